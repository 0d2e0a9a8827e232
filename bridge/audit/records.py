"""What the trail records of one message or action."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any, TypeAlias

from pydantic_core import from_json

from squadron.bridge.audit.redaction import Redaction
from squadron.bridge.jetstream.intake import Caught
from squadron.runtime.ports.lite_journal import END_HEADER

#: One entry of the trail, as plain JSON data.
Record: TypeAlias = dict[str, Any]


class RecordMaker:
    """Makes records: redacted, with a commitment to what was there."""

    def __init__(self, redaction: Redaction, key: bytes) -> None:
        """Make one; `key` is that of the commitments: a bare hash of short contents can be guessed."""
        self._redaction, self._hmac = redaction, hmac.new(key, digestmod=hashlib.sha256)

    def record(self, caught: Caught, *, contents: bool, chunks: bool) -> Record | None:
        """The record of one message; None of what only serves the transport."""
        kind, owner = _kind(caught.subject)
        if kind is None:
            return None
        message = _object(caught.data)
        record: Record = {"at": round(caught.at, 6), "kind": kind, "subject": caught.subject}
        if caught.stream:
            record |= {"stream": caught.stream, "seq": caught.seq}
        if kind == "action":
            # Who did what is all that there is to it: it is recorded without contents, too.
            return record | {"action": self._redaction.of(message, caught.data.decode(errors="replace"))}
        if kind == "lite":
            record["kind"] = _lite_kind(caught, owner, message)
        if record["kind"] == "chunk" and not chunks:
            return None
        record |= _about(message)
        if kind == "run":
            # What was decided, in a word each; the rest is contents.
            record["entries"] = _entries(message)
        record["bytes"] = len(caught.data)
        commitment = self._hmac.copy()
        commitment.update(caught.data)
        record["hmac"] = commitment.hexdigest()
        if contents and caught.data:
            record["message"] = self._contents(caught.data, message)
        return record

    def _contents(self, data: bytes, message: Record | None) -> Any:
        try:
            raw = data.decode()
        except UnicodeDecodeError:
            # Encrypted, say: it stays as it is.
            return {"base64": base64.b64encode(data).decode()}
        return self._redaction.text(raw) if message is None else self._redaction.of(message, raw)


def _kind(subject: str) -> tuple[str | None, str]:
    tokens = subject.split(".")
    match tokens[2:]:
        case ["task", *_]:
            return "task", ""
        case ["filed", "action", *_]:
            return "action", ""
        case ["filed", "sent", *_]:
            return "sent", ""
        case ["lite", owner, id]:
            # A cursor of a reader, and the mark that a task was begun, tell nothing of what was said.
            return ("begun" if id == "begun" else "lite"), owner
        case ["durable" | "event", domain, *rest]:
            return (None if (domain, *rest) == ("status", "heartbeat") else "event"), ""
        case ["result", *_]:
            return "result", ""
        case ["dead", *_]:
            return "dead", ""
        case ["run", *_]:
            return "run", ""
        case _:
            return None, ""


def _lite_kind(caught: Caught, owner: str, message: Record | None) -> str:
    if END_HEADER in caught.headers:
        return "end"
    if owner in ("cancel", "begun"):
        return owner
    said = None if message is None else message.get("type")
    if said == "stream":
        return "chunk"
    return said if said in ("task", "result", "event", "query") else "note"


def _object(data: bytes) -> Record | None:
    try:
        found = from_json(data, cache_strings="keys")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _about(message: Record | None) -> Record:
    """Of what and from whom a message is; whatever a stranger wrote there, these are texts."""
    if message is None:
        return {}
    context, payload, source = (_part(message, name) for name in ("context", "payload", "source"))
    content = _part(payload, "content")
    found = {
        "id": message.get("id"),
        "task": message.get("correlationId") or content.get("taskId"),
        "parent": context.get("parentMessageId"),
        "conversation": context.get("conversationId"),
        "source": source.get("id"),
        "agent": source.get("type") if source.get("type") not in ("client", "agent") else None,
        "replyTo": message.get("replyTo"),
        "outcome": content.get("outcome"),
    }
    return {name: value[:1_000] for name, value in found.items() if isinstance(value, str) and value}


def _entries(message: Record | None) -> list[str]:
    content = _part(message or {}, "payload").get("content")
    entries = content if isinstance(content, list) else []
    return [str(each.get("kind"))[:100] for each in entries if isinstance(each, dict)]


def _part(message: Record, name: str) -> Record:
    part = message.get(name)
    return part if isinstance(part, dict) else {}
