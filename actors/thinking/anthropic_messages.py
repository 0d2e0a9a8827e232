"""Anthropic's messages API: a turn is a list of blocks, and goes back as it came."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from squadron.actors.thinking.answers import AnswerForm
from squadron.actors.thinking.assemble import TurnParts, as_sent
from squadron.actors.thinking.attachments import kind_of, name_of, text_of
from squadron.actors.thinking.echoes import Echo, echo_of, safe_name, shown
from squadron.actors.thinking.model import Attachment, ChatMessage, ModelRequest, ModelTurn, ToolDefinition, Usage

if TYPE_CHECKING:
    from anthropic.types import RawMessageStreamEvent

#: Anthropic requires `max_tokens`, and thinking counts against it. 16 Ki leaves room for thought and a
#: long answer, and is under the output limit of every current model (the smallest: 64 K, Haiku 4.5).
DEFAULT_ANTHROPIC_MAX_TOKENS = 16_384

#: Anthropic's API 2026-10-21, the SDK's default, answers 400 to any `temperature`; the version before
#: still takes it for the models that have one.
_ANTHROPIC_VERSION_WITH_TEMPERATURE = "2023-06-01"

#: The mark of what is to be cached for five minutes (guide to prompt caching).
_CACHED = {"type": "ephemeral"}

#: Models that take a schema as the format of an answer: Claude from 4.1 on (guide to structured outputs).
_WITH_FORMAT = re.compile(r"claude-(?!instant|2|3|(opus|sonnet)-4(-0|-20\d{6})?$)")

_THOUGHTS = ("thinking", "redacted_thinking")

#: Stands in front of a conversation whose beginning was cut: the first message has to be the user's.
_CUT = "(The beginning of this conversation was left out.)"


class MessagesWire:
    """Requests and events of the messages API."""

    def takes_format(self, model: str, request: ModelRequest) -> bool:
        """Whether a schema can be given as the format of the answer."""
        return _WITH_FORMAT.match(model) is not None

    def body(self, model: str, who: str, request: ModelRequest, form: AnswerForm | None) -> dict[str, Any]:
        """What to send; `form` is set where its format is to be used."""
        body: dict[str, Any] = {
            "messages": _messages(request.messages, who),
            "max_tokens": DEFAULT_ANTHROPIC_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        }
        if system := "\n\n".join(m.content for m in request.messages if m.role == "system" and m.content.strip()):
            body["system"] = system
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if form is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": form.format}}
        if request.tools or request.cache_key:
            # What comes back with more behind it. Writing into the cache costs a quarter more than reading
            # the text, so a question that stands alone is not marked.
            _mark(body)
        if request.temperature is not None:
            body["extra_body"] = {"temperature": request.temperature}  # no longer a parameter of the SDK
            body["extra_headers"] = {"anthropic-version": _ANTHROPIC_VERSION_WITH_TEMPERATURE}
        return body

    def read(self, parts: TurnParts, event: RawMessageStreamEvent) -> None:
        """Take in one event."""
        match event.type:
            case "message_start":
                # Compatible servers leave things out: the SDK has None there, whatever its types say.
                parts.response_id = event.message.id or ""
                parts.usage = _usage(parts.usage, as_sent(event.message.usage))
            case "content_block_start":
                block: dict[str, Any] = {"type": "text"} | as_sent(event.content_block)
                parts.blocks[event.index] = block
                if block["type"] == "tool_use":
                    parts.call_at(event.index, block.get("id") or "").name = block.get("name") or ""
                elif block["type"] == "text":  # some servers send it all at once
                    block["text"] = block.get("text") or ""
                    parts.add_text(block["text"])
            case "content_block_stop":
                block = parts.blocks.get(event.index, {})
                # Some servers send the input whole, and no pieces of it.
                if block.get("type") == "tool_use" and block.get("input"):
                    call = parts.call_at(event.index)
                    call.arguments = call.arguments or json.dumps(block["input"], ensure_ascii=False)
            case "content_block_delta":
                _read_delta(parts, event.index, event.delta)
            case "message_delta":
                parts.usage = _usage(parts.usage, as_sent(event.usage))
                parts.stop_reason = event.delta.stop_reason or parts.stop_reason
                details = event.delta.stop_details
                parts.refusal = (details.explanation if details else None) or parts.refusal

    def blocks(self, parts: TurnParts, turn: ModelTurn) -> tuple[dict[str, Any], ...]:
        """The blocks, if text and calls are not all of it."""
        calls, kept = iter(turn.tool_calls), list[dict[str, Any]]()
        for index in sorted(parts.blocks):
            block = dict(parts.blocks[index])
            if block["type"] == "tool_use":
                call = next(calls)
                block |= {"id": call.id, "name": call.name, "input": shown(call)}
            elif index in parts.inputs:
                try:
                    block["input"] = json.loads(parts.inputs[index] or "{}")
                except ValueError:
                    continue  # cut off, and no use to anybody
            # The API takes no thought without its signature, which comes last, and no empty text.
            if block["type"] == "thinking" and not block.get("signature"):
                continue
            if block["type"] != "text" or block["text"].strip():
                kept.append(block)
        kinds = [block["type"] for block in kept]
        is_plain = set(kinds) <= {"text", "tool_use"} and "text" not in kinds[1:]
        return () if is_plain and not any(block.get("citations") for block in kept) else tuple(kept)


def _mark(body: dict[str, Any]) -> None:
    """Mark where the provider is to look for what it has cached, and to write what comes behind it.

    From a mark it looks back over 20 blocks, so that a turn with ten calls hides all before it. Where the last
    request ended is therefore marked, too, and the end of tools and system prompt, which other runs may share.
    """
    body["cache_control"] = _CACHED
    if "system" in body:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": _CACHED}]
    said = [at for at, message in enumerate(body["messages"]) if message["role"] == "assistant"]
    if said:
        body["messages"][said[-1] - 1]["content"][-1]["cache_control"] = _CACHED


def _read_delta(parts: TurnParts, index: int, delta: Any) -> None:
    block = parts.blocks.setdefault(index, {"type": "text", "text": ""})
    match delta.type:
        case "text_delta":
            block["text"] = block.get("text", "") + (delta.text or "")
            parts.add_text(delta.text)
        case "input_json_delta" if block["type"] == "tool_use":
            parts.call_at(index).arguments += delta.partial_json or ""
        case "input_json_delta":  # a call that the server makes itself
            parts.inputs[index] = parts.inputs.get(index, "") + (delta.partial_json or "")
        case "thinking_delta":
            thought = delta.thinking or ""
            block["thinking"] = block.get("thinking", "") + thought
            parts.thought_chars += len(thought)
        case "signature_delta":
            block["signature"] = delta.signature
        case "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), as_sent(delta.citation)]
        case "compaction_delta":  # beta, and of no type that the SDK knows here
            block |= {key: value for key, value in as_sent(delta).items() if key != "type"}


def _usage(before: Usage, told: dict[str, Any]) -> Usage:
    # A `message_delta` repeats the totals, or leaves some of them out. With compaction on the server the totals
    # are of the last iteration, and each is paid.
    iterations = [one for one in told.get("iterations") or () if isinstance(one, dict)] or [told]
    read = sum(one.get("cache_read_input_tokens") or 0 for one in iterations)
    written = sum(one.get("cache_creation_input_tokens") or 0 for one in iterations)
    # What was read from or written to the cache is not in `input_tokens`, but was input all the same.
    whole = sum(one.get("input_tokens") or 0 for one in iterations) + read + written
    details = told.get("output_tokens_details") or {}
    return Usage(
        input=max(before.input, whole),
        output=sum(one.get("output_tokens") or 0 for one in iterations) or before.output,
        cache_read=max(before.cache_read, read),
        cache_write=max(before.cache_write, written),
        reasoning=details.get("thinking_tokens") or details.get("reasoning_tokens") or before.reasoning,
    )


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}


def _messages(messages: Iterable[ChatMessage], who: str) -> list[dict[str, Any]]:
    """The conversation without its system part, with the roles in turn as the API wants them."""
    groups = groupby(_blocks(messages, who), lambda block: block[0])
    merged = [(role, [block for _, block in group]) for role, group in groups]
    # Tool results must come before any text of the same message; the sort keeps the rest in order.
    for role, content in merged:
        if role == "user":
            content.sort(key=lambda block: block["type"] != "tool_result")
    if merged and merged[0][0] == "assistant":
        merged.insert(0, ("user", [{"type": "text", "text": _CUT}]))
    return [{"role": role, "content": content} for role, content in merged]


def _blocks(messages: Iterable[ChatMessage], who: str) -> Iterator[tuple[str, dict[str, Any]]]:
    echo = Echo()
    for message in messages:
        if message.role == "assistant":
            echo = echo_of(message, who, _said(message.blocks))
            yield from (("assistant", block) for block in _assistant(message, echo))
            for call_id in echo.answered:
                yield "user", {"type": "tool_result", "tool_use_id": call_id, "content": "taken"}
        elif message.role == "tool":
            yield "user", _result(message, echo)
        elif message.role == "user":
            yield from (("user", block) for block in _content(message))


def _said(blocks: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(block.get("id", ""), block.get("name", "")) for block in blocks if block.get("type") == "tool_use"]


def _assistant(message: ChatMessage, echo: Echo) -> list[dict[str, Any]]:
    if echo.verbatim:
        blocks = [
            block | {"name": safe_name(block["name"])} if block["type"] == "tool_use" else block
            for block in message.blocks
        ]
        while blocks and blocks[-1]["type"] in _THOUGHTS:  # the API refuses a thought at the end
            blocks.pop()
        return blocks
    calls = [
        {"type": "tool_use", "id": echo.id_of(call.id), "name": safe_name(call.name), "input": shown(call)}
        for call in message.tool_calls
    ]
    return [*_text(message.content), *calls]


def _result(message: ChatMessage, echo: Echo) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": echo.id_of(message.tool_call_id)}
    if message.attachments:
        result["content"] = _content(message)
    elif message.content.strip():
        result["content"] = message.content
    return result | ({"is_error": True} if message.is_error else {})


def _content(message: ChatMessage) -> list[dict[str, Any]]:
    return [*_text(message.content), *map(_part, message.attachments)]


def _text(text: str) -> list[dict[str, Any]]:
    # The API answers 400 to a text block without text.
    return [{"type": "text", "text": text}] if text.strip() else []


def _part(attachment: Attachment) -> dict[str, Any]:
    kind = kind_of(attachment)
    if kind == "text":
        source = {"type": "text", "media_type": "text/plain", "data": text_of(attachment)}
        return {"type": "document", "source": source, "title": name_of(attachment)}
    if attachment.url:
        source = {"type": "url", "url": attachment.url}
    else:
        source = {"type": "base64", "media_type": attachment.media_type, "data": attachment.data}
    return {"type": "image" if kind == "image" else "document", "source": source}
