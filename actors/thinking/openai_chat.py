"""OpenAI's chat completions, and the many servers that speak them more or less."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from squadron.actors.thinking.answers import AnswerForm
from squadron.actors.thinking.assemble import TurnParts, as_sent
from squadron.actors.thinking.attachments import IMAGE_URL, address_of, kind_of, name_of, titled
from squadron.actors.thinking.echoes import echo_of, safe_name, shown
from squadron.actors.thinking.model import Attachment, ChatMessage, ModelRequest, ModelTurn, ToolDefinition, Usage
from squadron.runtime.errors import ModelError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk

#: OpenAI's chat completions refuse function tools for these models (gpt-5.6 and later) unless
#: `reasoning_effort` is "none", also when it is left out.
_NO_REASONING_WITH_TOOLS = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9]|\d\d)(?!\d)")

#: The kind of block in which thoughts are kept that a server sends as text, and may want back in a tool loop.
_REASONING = "reasoning_content"
#: The same of OpenRouter, in parts, with the signatures of the provider behind it.
_DETAILS = "reasoning_details"
#: Where the blocks stand in a turn: thoughts first, then images.
_THOUGHT_AT, _DETAILS_AT, _IMAGES_AT = 0, 1, 2


class ChatWire:
    """Requests and events of chat completions. `is_official`: it is OpenAI that is spoken to."""

    def __init__(self, *, is_official: bool) -> None:
        self._is_official = is_official

    def takes_format(self, model: str, request: ModelRequest) -> bool:
        """Whether a schema can be given as the format of the answer."""
        # Servers that constrain what a model writes never let it call a tool then.
        return self._is_official or not request.tools

    def body(self, model: str, who: str, request: ModelRequest, form: AnswerForm | None) -> dict[str, Any]:
        """What to send; `form` is set where its format is to be used."""
        body: dict[str, Any] = {
            "messages": list(_messages(request.messages, who)),
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = [{"type": "function", "function": _function(tool)} for tool in request.tools]
            if _NO_REASONING_WITH_TOOLS.match(model):
                body["reasoning_effort"] = "none"
        if form is not None:
            schema = {"name": "answer", "schema": form.format, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        key = request.cache_key if self._is_official else ""  # others may refuse what they don't know
        optional = {
            "max_completion_tokens": request.max_tokens,
            "temperature": request.temperature,
            "prompt_cache_key": key or None,
        }
        return body | {name: value for name, value in optional.items() if value is not None}

    def read(self, parts: TurnParts, event: ChatCompletionChunk) -> None:
        """Take in one chunk."""
        parts.response_id = parts.response_id or event.id or ""
        groq: Any = getattr(event, "x_groq", None)  # where this server tells it
        usage: Any = event.usage or (groq.get("usage") if isinstance(groq, dict) else None)
        if usage:  # the last chunk, and it has no choices
            parts.usage = _usage(usage if isinstance(usage, dict) else as_sent(usage))
        for choice in event.choices or ():
            # Compatible servers leave it out of their last chunk, or send a whole message instead.
            delta = getattr(choice, "delta", None) or getattr(choice, "message", None)
            if delta is not None:
                _read_delta(parts, delta)
            parts.stop_reason = choice.finish_reason or parts.stop_reason

    def blocks(self, parts: TurnParts, turn: ModelTurn) -> tuple[dict[str, Any], ...]:
        """What is there besides text and calls: images, and the thoughts that led to calls, which may have to go
        back with the results (DeepSeek, Kimi, OpenRouter)."""
        kept = [parts.blocks[index] for index in sorted(parts.blocks)]
        return tuple(block for block in kept if turn.tool_calls or block["type"] == IMAGE_URL)


def _read_delta(parts: TurnParts, delta: Any) -> None:
    content = getattr(delta, "content", None)
    parts.add_text(_text_of(content))
    thought = getattr(delta, _REASONING, None)
    if isinstance(thought, str) and thought:
        block = parts.blocks.setdefault(_THOUGHT_AT, {"type": _REASONING, "text": ""})
        block["text"] += thought
    for detail in getattr(delta, _DETAILS, None) or ():
        _add_detail(parts.blocks.setdefault(_DETAILS_AT, {"type": _DETAILS, "details": []})["details"], detail)
    said = thought or getattr(delta, "reasoning", None)  # the second: OpenRouter and Groq
    parts.thought_chars += len(said) if isinstance(said, str) else 0
    for image in getattr(delta, "images", None) or ():  # OpenRouter
        if isinstance(image, dict) and image.get("type") == IMAGE_URL:
            parts.blocks[_IMAGES_AT + len(parts.blocks)] = image
    refusal = getattr(delta, "refusal", None)
    parts.refusal += refusal if isinstance(refusal, str) else ""
    for piece in getattr(delta, "tool_calls", None) or ():
        said = piece.function
        arguments = (said and said.arguments) or ""
        if not isinstance(arguments, str):  # a few servers send the object itself
            arguments = json.dumps(arguments, ensure_ascii=False)
        parts.add_call(piece.index, piece.id or "", (said and said.name) or "", arguments)


def _add_detail(details: list[Any], piece: Any) -> None:
    """Put a piece behind the others, or into the last one if that is one text with it."""
    last = details[-1] if details else None
    if not (isinstance(last, dict) and isinstance(piece, dict)):
        details.append(piece)
        return
    same = (last.get("type"), last.get("index")) == (piece.get("type"), piece.get("index"))
    key = {"reasoning.text": "text", "reasoning.summary": "summary"}.get(str(piece.get("type")))
    if not same or key is None:
        details.append(piece)
        return
    joined = (last.get(key) or "") + (piece.get(key) or "")
    details[-1] = last | {name: value for name, value in piece.items() if value is not None} | {key: joined}


def _text_of(content: Any) -> str:
    """The text of a message's content, which some servers (Mistral's) send as a list of parts."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _usage(told: dict[str, Any]) -> Usage:
    read, wrote = told.get("prompt_tokens_details") or {}, told.get("completion_tokens_details") or {}
    return Usage(
        input=told.get("prompt_tokens") or 0,
        output=told.get("completion_tokens") or 0,
        cache_read=read.get("cached_tokens") or told.get("prompt_cache_hit_tokens") or 0,  # the second: DeepSeek
        cache_write=read.get("cache_write_tokens") or 0,
        reasoning=wrote.get("reasoning_tokens") or 0,
    )


def _function(tool: ToolDefinition) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}


def _messages(messages: Iterable[ChatMessage], who: str) -> Iterator[dict[str, Any]]:
    ids, waiting = echo_of(ChatMessage("assistant"), who, ()), list[dict[str, Any]]()
    for message in messages:
        if message.role == "tool":
            # There is no error flag on this wire, so the text has to say it.
            content = f"Error: {message.content}" if message.is_error else message.content
            yield {"role": "tool", "tool_call_id": ids.id_of(message.tool_call_id), "content": content}
            # A result is text alone, and the next message is another result, or what came with them.
            waiting += _parts(message.attachments)
            continue
        if waiting:
            yield {"role": "user", "content": waiting}
            waiting = []
        if message.role != "assistant":
            parts = _parts(message.attachments)
            text = [{"type": "text", "text": message.content}] if message.content else []
            yield {"role": message.role, "content": [*text, *parts] if parts else message.content}
            continue
        ids = echo_of(message, who, [(call.id, call.name) for call in message.tool_calls])
        yield _assistant(message, who)
    if waiting:
        yield {"role": "user", "content": waiting}


def _assistant(message: ChatMessage, who: str) -> dict[str, Any]:
    if not message.tool_calls:
        return {"role": "assistant", "content": message.content}
    ids = echo_of(message, who, [(call.id, call.name) for call in message.tool_calls])
    calls = [
        {
            "id": ids.id_of(call.id),
            "type": "function",
            "function": {"name": safe_name(call.name), "arguments": json.dumps(shown(call), ensure_ascii=False)},
        }
        for call in message.tool_calls
    ]
    said: dict[str, Any] = {"role": "assistant", "content": message.content or None, "tool_calls": calls}
    blocks = {block.get("type"): block for block in message.blocks} if message.model == who else {}
    if _REASONING in blocks:
        said[_REASONING] = blocks[_REASONING].get("text")
    if _DETAILS in blocks:
        said[_DETAILS] = blocks[_DETAILS].get("details")
    return said


def _parts(attachments: Iterable[Attachment]) -> list[dict[str, Any]]:
    return [_part(attachment) for attachment in attachments]


def _part(attachment: Attachment) -> dict[str, Any]:
    match kind_of(attachment):
        case "image":
            return {"type": IMAGE_URL, IMAGE_URL: {"url": address_of(attachment)}}
        case "text":
            return {"type": "text", "text": titled(attachment)}
        case _ if attachment.url:
            message = f"the PDF {attachment.url!r} can't be sent by its url over chat completions"
            raise ModelError(message, hint="send its data, or use the Responses API (openai-responses:NAME)")
        case _:
            file = {"filename": name_of(attachment), "file_data": address_of(attachment)}
            return {"type": "file", "file": file}
