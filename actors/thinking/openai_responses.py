"""OpenAI's Responses API: a conversation is a list of items, and what the model thought is among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from squadron.actors.thinking.answers import AnswerForm
from squadron.actors.thinking.assemble import TurnParts, as_sent
from squadron.actors.thinking.attachments import address_of, kind_of, name_of, titled
from squadron.actors.thinking.echoes import Echo, echo_of, safe_name, shown
from squadron.actors.thinking.model import Attachment, ChatMessage, ModelRequest, ModelTurn, ToolDefinition, Usage
from squadron.actors.thinking.provider_errors import FailedResponseError

if TYPE_CHECKING:
    from openai.types.responses import Response, ResponseIncludable, ResponseStreamEvent

#: Fewest `max_output_tokens` that the API takes, and most characters of a `prompt_cache_key`.
_FEWEST_TOKENS, _LONGEST_KEY = 16, 64

#: What an answer that is stored there would otherwise keep to itself: thoughts, in a form that can be sent back.
INCLUDED: tuple[ResponseIncludable, ...] = ("reasoning.encrypted_content",)

#: Kinds of items of which text and calls say all.
_PLAIN = frozenset({"message", "function_call"})


class ResponsesWire:
    """Requests and events of the Responses API; `in_background` has the server keep the answer that it makes."""

    def __init__(self, *, in_background: bool = False) -> None:
        self._kept = {"background": True, "store": True, "include": list(INCLUDED)} if in_background else {}

    def takes_format(self, model: str, request: ModelRequest) -> bool:
        """Whether a schema can be given as the format of the answer."""
        return True

    def body(self, model: str, who: str, request: ModelRequest, form: AnswerForm | None) -> dict[str, Any]:
        """What to send; `form` is set where its format is to be used."""
        # Nothing is stored there without need: the conversation is ours, so that any model can go on with it.
        body: dict[str, Any] = {"input": list(_items(request.messages, who)), "store": False, **self._kept}
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.max_tokens is not None:
            body["max_output_tokens"] = max(_FEWEST_TOKENS, request.max_tokens)
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if form is not None:
            schema = {"type": "json_schema", "name": "answer", "schema": form.format, "strict": True}
            body["text"] = {"format": schema}
        if key := request.cache_key:
            long = len(key) > _LONGEST_KEY
            body["prompt_cache_key"] = hashlib.sha256(key.encode()).hexdigest() if long else key
        return body

    def read(self, parts: TurnParts, event: ResponseStreamEvent) -> None:
        """Take in one event.

        Raises:
            FailedResponseError: it says that the response failed.
        """
        match event.type:
            case "response.created" | "response.queued" | "response.in_progress":
                parts.response_id = event.response.id
            case "response.output_text.delta":
                parts.add_text(event.delta)
            case "response.refusal.delta":
                parts.refusal += event.delta
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                parts.thought_chars += len(event.delta)
            case "response.output_item.added" if event.item.type == "function_call":
                parts.call_at(event.output_index, event.item.call_id).name = event.item.name
            case "response.function_call_arguments.delta":
                parts.call_at(event.output_index).arguments += event.delta
            case "response.output_item.done":
                _take(parts, event.output_index, as_sent(event.item))
            case "response.completed" | "response.incomplete" | "response.failed":
                _end(parts, event.response)
            case "error":
                raise FailedResponseError(event.code, event.message)

    def blocks(self, parts: TurnParts, turn: ModelTurn) -> tuple[dict[str, Any], ...]:
        """The items, if text and calls are not all of it."""
        items = [parts.blocks[index] for index in sorted(parts.blocks)]
        is_plain = all(item.get("type") in _PLAIN and not item.get("phase") for item in items)
        return () if is_plain else tuple(items)


def _take(parts: TurnParts, index: int, item: dict[str, Any]) -> None:
    parts.blocks[index] = item
    if item.get("type") == "function_call":  # its pieces came before, but this is the whole
        call = parts.call_at(index, item.get("call_id") or "")
        call.name, call.arguments = item.get("name") or call.name, item.get("arguments") or call.arguments
    elif item.get("type") == "message":
        if not parts.text:  # a compatible server that sends no pieces
            parts.add_text(_text_of(item))
        parts.refusal = parts.refusal or "".join(part.get("refusal") or "" for part in item.get("content") or ())


def _end(parts: TurnParts, response: Response) -> None:
    parts.response_id = response.id or parts.response_id
    if response.usage is not None:
        parts.usage = _usage(as_sent(response.usage))
    if response.status == "failed" or response.error is not None:
        error = response.error
        raise FailedResponseError(error.code if error else None, error.message if error else None)
    if not parts.blocks:
        for index, item in enumerate(response.output or ()):
            _take(parts, index, as_sent(item))
    why = response.incomplete_details.reason if response.incomplete_details else None
    parts.stop_reason = why or response.status or "completed"


def _usage(told: dict[str, Any]) -> Usage:
    read, wrote = told.get("input_tokens_details") or {}, told.get("output_tokens_details") or {}
    return Usage(
        input=told.get("input_tokens") or 0,
        output=told.get("output_tokens") or 0,
        cache_read=read.get("cached_tokens") or 0,
        cache_write=read.get("cache_write_tokens") or 0,
        reasoning=wrote.get("reasoning_tokens") or 0,
    )


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    # Left out, `strict` is true, and most schemas of topics are refused.
    about = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "strict": False, **about}


def _items(messages: Iterable[ChatMessage], who: str) -> Iterator[dict[str, Any]]:
    echo = Echo()
    for message in messages:
        if message.role == "assistant":
            echo = echo_of(message, who, _said(message.blocks))
            yield from _assistant(message, echo)
        elif message.role == "tool":
            # There is no error flag on this wire, so the text has to say it.
            content = f"Error: {message.content}" if message.is_error else message.content
            output = _content(content, message.attachments)
            call_id = echo.id_of(message.tool_call_id)
            yield {"type": "function_call_output", "call_id": call_id, "output": output}
        else:
            yield {"role": message.role, "content": _content(message.content, message.attachments)}


def _said(blocks: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(b.get("call_id", ""), b.get("name", "")) for b in blocks if b.get("type") == "function_call"]


def _assistant(message: ChatMessage, echo: Echo) -> Iterator[dict[str, Any]]:
    if not echo.verbatim:
        if message.content:
            yield {"role": "assistant", "content": message.content}
        for call in message.tool_calls:
            arguments = json.dumps(shown(call), ensure_ascii=False)
            said = {"call_id": echo.id_of(call.id), "name": safe_name(call.name), "arguments": arguments}
            yield {"type": "function_call", **said}
        return
    items = [_sent(item) for item in message.blocks]
    while items and items[-1]["type"] == "reasoning":  # the API refuses a thought that nothing follows
        items.pop()
    yield from items
    for call_id in echo.answered:
        yield {"type": "function_call_output", "call_id": call_id, "output": "taken"}


def _sent(item: dict[str, Any]) -> dict[str, Any]:
    """An item on its way back: without its id, under which nothing is stored there."""
    if item["type"] == "message":
        phase = {"phase": item["phase"]} if item.get("phase") else {}
        return {"type": "message", "role": "assistant", "content": _text_of(item), **phase}
    sent = {key: value for key, value in item.items() if key != "id" and value is not None}
    if item["type"] == "function_call":
        sent["name"] = safe_name(item.get("name") or "")
    if item["type"] == "reasoning":
        sent.setdefault("summary", [])
        if not sent.get("content"):
            sent.pop("content", None)
    return sent


def _text_of(item: dict[str, Any]) -> str:
    return "".join(part.get("text") or "" for part in item.get("content") or ())


def _content(text: str, attachments: Iterable[Attachment]) -> str | list[dict[str, Any]]:
    parts = [_part(attachment) for attachment in attachments]
    if not parts:
        return text
    return [{"type": "input_text", "text": text}, *parts] if text else parts


def _part(attachment: Attachment) -> dict[str, Any]:
    match kind_of(attachment):
        case "image":
            return {"type": "input_image", "image_url": address_of(attachment), "detail": "auto"}
        case "text":
            return {"type": "input_text", "text": titled(attachment)}
        case _ if attachment.url:
            return {"type": "input_file", "file_url": attachment.url}
        case _:
            return {"type": "input_file", "filename": name_of(attachment), "file_data": address_of(attachment)}
