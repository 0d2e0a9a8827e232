"""Prompts, completions and arguments in spans: only when they are asked for, and without the secrets in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from opentelemetry.trace import Span

from squadron.actors.thinking.model import ChatMessage, ModelTurn
from squadron.bridge.otel import names
from squadron.runtime.redact import scrub_all

#: The variable of the GenAI conventions, and which of its values means what; `true` is that of older versions.
VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_AS_ATTRIBUTES, _AS_EVENTS = ("SPAN_ONLY", "SPAN_AND_EVENT", "TRUE"), ("EVENT_ONLY", "SPAN_AND_EVENT")
#: Characters of one content: a collector refuses a batch of spans above 4 MB.
MOST_CHARS = 64_000


@dataclass(frozen=True, slots=True)
class Contents:
    """Where contents go: into attributes of a span, and into an event of it."""

    attributes: bool
    events: bool

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Self:
        """As the environment asks for it; by default nowhere."""
        wanted = env.get(VARIABLE, "").strip().upper()
        return cls(wanted in _AS_ATTRIBUTES, wanted in _AS_EVENTS)

    @property
    def wanted(self) -> bool:
        """Whether they go anywhere."""
        return self.attributes or self.events

    def put(self, span: Span, **contents: Any) -> None:
        """Put contents where they are wanted, by names such as `input_messages`; empty ones nowhere."""
        if not self.wanted or not span.is_recording():
            return
        given = {
            _ATTRIBUTES[name]: _text(value) for name, value in contents.items() if value not in (None, [], ())
        }
        if not given:
            return
        if self.attributes:
            span.set_attributes(given)
        if self.events:
            span.add_event(names.DETAILS_EVENT, given)


_ATTRIBUTES = {
    "system_instructions": names.SYSTEM_INSTRUCTIONS,
    "input_messages": names.INPUT_MESSAGES,
    "output_messages": names.OUTPUT_MESSAGES,
    "arguments": names.TOOL_ARGUMENTS,
    "result": names.TOOL_RESULT,
}


def _text(value: Any) -> str:
    text = json.dumps(scrub_all(value), ensure_ascii=False, default=str)
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}… ({len(text)} characters)"


def messages(said: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """A conversation as the conventions write it: a role and parts; images and files only by their names."""
    return [{"role": each.role, "parts": _parts(each)} for each in said]


def turn_messages(turn: ModelTurn) -> list[dict[str, Any]]:
    """What a model said, as the conventions write it."""
    return [{**each, "finish_reason": turn.stop} for each in messages([turn.as_message()])]


def _parts(message: ChatMessage) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if message.role == "tool":
        parts.append({"type": "tool_call_response", "id": message.tool_call_id, "result": message.content})
    elif message.content:
        parts.append({"type": "text", "content": message.content})
    parts += (
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    )
    parts += (
        {"type": "file", "mime_type": each.media_type, "name": each.name or each.url}
        for each in message.attachments
    )
    return parts
