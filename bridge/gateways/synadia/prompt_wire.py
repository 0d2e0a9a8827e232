"""What prompts and answers look like on the wire of the Synadia Agent Protocol 0.3."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from squadron.runtime.errors import InvalidInputError, SquadronError
from squadron.runtime.texts import encoded
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.topics import SemanticTopic

#: Headers of an error (NATS ADR-32).
CODE_HEADER, ERROR_HEADER = "Nats-Service-Error-Code", "Nats-Service-Error"
#: The codes that the protocol knows, by how a task ended; all others are 500.
CODES = {"rejected": 400, "undeliverable": 404, "cancelled": 409, "expired": 429}
#: A header is one line of ASCII, and not a page.
MOST_REASON = 400
#: How much of an answer goes into one message, in characters: with each escaped as `\\u0000` still below 1 MB.
PIECE = 150_000
#: Made once: `json.dumps` makes one at each call.
_as_json = json.JSONEncoder(ensure_ascii=False).encode
#: How JSON begins, as `json` reads it: with `NaN` and `Infinity`.
_BEGINNINGS = tuple('{["-0123456789tfnNI')
#: A field of a topic's input that takes what is attached.
ATTACHMENTS = "attachments"


class PromptError(SquadronError):
    """A prompt is refused; `code` is one of those of the protocol."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Prompt:
    """What was asked.

    Attributes:
        task_id: a task of before that is to be heard further, in place of a new one.
        key: under which it is one task, however often it is sent.
    """

    text: str
    attachments: tuple[Mapping[str, str], ...] = ()
    task_id: str = ""
    key: str = ""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a request.

        Raises:
            PromptError: it is none.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise PromptError(400, "a prompt is UTF-8") from None
        if not text.strip():
            raise PromptError(400, "the prompt is empty")
        if not text.lstrip().startswith("{"):
            return cls(text)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise PromptError(400, "what begins with { is an envelope in JSON, and this is none") from None
        said = {name: fields.get(name, "") for name in ("prompt", "taskId", "key")}
        for name, value in said.items():
            if not isinstance(value, str):
                raise PromptError(400, f"{name} has to be a text")
        if not said["prompt"] and not said["taskId"]:
            raise PromptError(400, "prompt is missing")
        if len(said["key"]) > PIECE or len(said["taskId"]) > MOST_REASON:
            raise PromptError(400, "key or taskId is too long")
        return cls(said["prompt"], _attached(fields.get(ATTACHMENTS)), said["taskId"], said["key"])

    def content_for(self, topic: SemanticTopic) -> Any:
        """The input of a topic: JSON that fits it as it is, any other text as its only field.

        Raises:
            PromptError: something is attached, and the topic takes nothing of the kind.
        """
        content = read_text(self.text, topic)
        if not self.attachments:
            return content
        if not takes_attachments(topic):
            raise PromptError(400, f"{topic.name} takes no attachments")
        fields = content if isinstance(content, dict) else _only_text(topic, self.text)
        return {**fields, ATTACHMENTS: [dict(each) for each in self.attachments]}


def takes_attachments(topic: SemanticTopic) -> bool:
    """Whether a topic's input has a field for what is attached."""
    return ATTACHMENTS in (topic.input_schema.get("properties") or {})


def read_text(text: str, topic: SemanticTopic) -> Any:
    """A text as the input of a topic."""
    given: Any = None
    # Most texts are no JSON: to learn that from an exception takes ten times as long.
    if text.lstrip().startswith(_BEGINNINGS):
        with contextlib.suppress(ValueError, RecursionError, InvalidInputError):
            given = topic.wrap(json.loads(text))
            topic.check(given)
            return given
    wrapped = topic.wrap(text)
    if not isinstance(wrapped, dict):
        wrapped = _only_text(topic, text)
    # Of fields that don't fit the refusal says which.
    return given if isinstance(given, dict) and not isinstance(wrapped, dict) else wrapped


def _only_text(topic: SemanticTopic, text: str) -> Any:
    """The text as that field which has to be there, beside those that need not."""
    required = [name for name in topic.input_schema.get("required", ()) if name != ATTACHMENTS]
    return {required[0]: text} if len(required) == 1 else text


def _attached(given: Any) -> tuple[Mapping[str, str], ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise PromptError(400, "attachments is a list")
    for each in given:
        if not isinstance(each, dict) or not all(isinstance(each.get(n), str) for n in ("filename", "content")):
            raise PromptError(400, "an attachment has filename and content")
        try:
            base64.b64decode(each["content"], validate=True)
        except (binascii.Error, ValueError):
            raise PromptError(400, f"attachment {each['filename'][:80]!r} is not base64") from None
    return tuple({"filename": each["filename"], "content": each["content"]} for each in given)


def chunk(kind: str, data: Any) -> bytes:
    """One message of an answer."""
    return encoded({"type": kind, "data": data})


def text_of(data: Any) -> str:
    """Data as text: text as it is, all else as JSON."""
    return data if isinstance(data, str) else _as_json(data)


def responses(data: Any) -> Iterator[bytes]:
    """Data as answers that fit into messages."""
    if isinstance(data, Mapping) and data.keys() == {"text", ATTACHMENTS} and isinstance(data["text"], str):
        yield chunk("response", dict(data))
        return
    text = text_of(data)
    for start in range(0, len(text), PIECE):
        yield chunk("response", text[start : start + PIECE])


def refusal(code: int, reason: str, **more: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of an error."""
    line = " ".join(reason.split()).encode("ascii", "replace").decode()[:MOST_REASON]
    body = json.dumps({"error": more.pop("error", "refused"), "message": reason[:PIECE], **more}).encode()
    return {CODE_HEADER: str(code), ERROR_HEADER: line or "refused"}, body


def refusal_of(outcome: Outcome) -> tuple[dict[str, str], bytes]:
    """The error that stands for an end other than a result."""
    reason = f"{outcome.kind.replace('_', ' ')}: {outcome.reason}"
    about = {"error": outcome.kind, "taskId": outcome.task_id, "retryable": outcome.retryable}
    return refusal(CODES.get(outcome.kind, 500), reason, **about)
