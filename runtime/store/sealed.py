"""Messages whose payload is sealed: the envelope stays readable, and is bound to what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from squadron.runtime.errors import UnsealedError
from squadron.runtime.texts import digest_of, encoded
from squadron.runtime.trust.sealing import Box, KeyRing, SealKey, b64, bound, info_for, open_piece, unb64
from squadron.runtime.wire.envelope import AgentMessage, Payload

#: Of another one nothing is read.
VERSION = 1
#: What of a payload stays readable, and is not bound: limits are looked at before it is opened, and a redrive
#: changes them; a claim is dropped by who can't open it, and names what opens by a key that was sealed.
_LOOSE = ("constraints", "claim")
#: What stays readable in all: chunks are put in order.
_CLEAR = frozenset((*_LOOSE, "sequenceNumber", "isFirst", "isFinal", "attempt", "epoch", "run", "count", "end"))
#: Most keys that one answer is sealed for: who asked, and those further up that see its chunks.
MOST_READERS = 8


def is_sealed(message: AgentMessage) -> bool:
    """Whether its payload says that it is sealed."""
    return "sealed" in message.payload.model_fields_set


def is_sensitive(message: AgentMessage) -> bool:
    """Whether its sender says that nobody else may read it."""
    return message.context.metadata.get("sensitive") is True


def readers_of(message: AgentMessage) -> tuple[SealKey, ...]:
    """For whom the answers to an opened task are to be sealed.

    Raises:
        UnsealedError: it does not say.
    """
    keys = (message.payload.model_extra or {}).get("answerKeys")
    if not isinstance(keys, list) or not 0 < len(keys) <= MOST_READERS:
        raise UnsealedError(
            "it does not say for whom its answer is to be sealed",
            field="payload.answerKeys",
            hint=f"seal it with the public keys of those who may read the answer, at most {MOST_READERS}",
        )
    return tuple(SealKey.parse(str(key)) for key in keys)


def salt_of(message: AgentMessage) -> str:
    """What goes into digests of what an opened task holds, where others see them; empty if it was not sealed."""
    return str((message.payload.model_extra or {}).get("salt", ""))


def input_digest(content: Any, salt: str = "") -> str:
    """What stands for an input where others see it; with a salt that they don't know nobody can guess it."""
    travels = digest_of(from_json(encoded(content)))
    return digest_of([travels, salt]) if salt else travels


def take_hidden(wire: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take what is to be sealed out of a message as it is laid out; returns the readable payload, and that."""
    fields: dict[str, Any] = wire["payload"]
    clear = {name: value for name, value in fields.items() if name in _CLEAR}
    hidden: dict[str, Any] = {"payload": {name: value for name, value in fields.items() if name not in _CLEAR}}
    context, metadata = wire["context"], wire.get("metadata") or {}
    if context.get("history") is not None:
        hidden["history"] = context["history"]
        wire["context"] = {name: value for name, value in context.items() if name != "history"}
    if "path" in metadata:
        # Its steps hold digests of inputs, and those can be guessed.
        hidden["path"] = metadata["path"]
        wire["metadata"] = {name: value for name, value in metadata.items() if name != "path"}
    return clear, hidden


def sealed_payload(
    wire: Mapping[str, Any], clear: Mapping[str, Any], plain: bytes, box: Box, place: str
) -> dict[str, Any]:
    """The payload of a message in which `plain` is sealed.

    Args:
        wire: the message as it is laid out, without what `take_hidden` took.
        box: made with `info_of` of this message.
        place: where it goes: a task's subject without its lane; of results and chunks the task's `replyTo`.
    """
    at = round(wire["timestamp"] * 1e6)
    piece = box.seal(plain, _aad(wire, clear, box.wraps, at, place))
    return {**clear, "sealed": {"v": VERSION, "at": at, "keys": box.wraps, "data": b64(piece)}}


def info_of(message: AgentMessage) -> bytes:
    """What the wrapped keys of its box are bound to, see `info_for`."""
    return info_for(message.type, message.source.id)


def seal_message(message: AgentMessage, box: Box, place: str) -> AgentMessage:
    """The message with its content, model, parameters, history and path sealed; see `sealed_payload`."""
    wire = from_json(message.encode())
    clear, hidden = take_hidden(wire)
    wire["payload"] = sealed_payload(wire, clear, encoded(hidden), box, place)
    return AgentMessage.decode(encoded(wire))


def open_message(message: AgentMessage, ring: KeyRing, place: str) -> AgentMessage:
    """The message that `seal_message` sealed, for who has one of its readers' keys.

    Raises:
        KeyLostError: it is sealed for keys that are not in the ring.
        UnsealedError: it is not as it was sealed, or not where.
    """
    return with_hidden(message, opened(message, ring, place))


def opened(message: AgentMessage, ring: KeyRing, place: str) -> dict[str, Any]:
    """What was sealed in a message.

    Raises:
        KeyLostError, UnsealedError: as `open_message`.
    """
    clear = clear_of(message) | {"sealed": (message.payload.model_extra or {}).get("sealed")}
    wire = {
        "type": message.type,
        "id": message.id,
        "timestamp": message.timestamp,
        "source": {"id": message.source.id},
        "replyTo": message.reply_to,
        "correlationId": message.correlation_id,
        "context": {
            "conversationId": message.context.conversation_id,
            "parentMessageId": message.context.parent_message_id,
        },
        "payload": clear,
    }
    return opened_wire(wire, ring, place, was_put_back=message.redriven > 0)


def opened_wire(
    wire: Mapping[str, Any], ring: KeyRing, place: str, *, was_put_back: bool = False
) -> dict[str, Any]:
    """What was sealed in a message, as JSON data of which its sender is known to be one of ours, or not.

    Raises:
        KeyLostError, UnsealedError: as `open_message`.
        ValueError, TypeError, LookupError, AttributeError: it is no message.
    """
    payload = wire["payload"]
    wraps, at, data = _read(payload.get("sealed"))
    clear = {name: value for name, value in payload.items() if name in _CLEAR}
    try:
        is_same_time = at == round(wire["timestamp"] * 1e6)
        aad = _aad(wire, clear, wraps, at, place)
    except (ValueError, OverflowError):
        # Of JSON, where a number may have thousands of digits.
        raise UnsealedError("a number in it is beyond all measure", field="payload") from None
    if not is_same_time and not was_put_back:
        # Who puts a dead letter back gives it another time, and can't seal it anew.
        raise UnsealedError("it was sealed at another time than it says", field="timestamp")
    key = ring.unwrap(wraps, info_for(wire["type"], wire["source"]["id"]))
    return read_hidden(open_piece(key, unb64(data), aad))


def read_hidden(plain: bytes) -> dict[str, Any]:
    """What was sealed, as JSON data.

    Raises:
        UnsealedError: it is no JSON object.
    """
    try:
        hidden = from_json(plain)
    except ValueError:
        hidden = None
    if not isinstance(hidden, dict):
        raise UnsealedError("what was sealed is no payload", field="payload.sealed.data")
    return hidden


def with_hidden(message: AgentMessage, hidden: Mapping[str, Any]) -> AgentMessage:
    """The message with what was sealed in its place.

    Raises:
        UnsealedError: that is no payload.
    """
    try:
        clear = {name: value for name, value in clear_of(message).items() if name != "claim"}
        changes: dict[str, Any] = {"payload": Payload.model_validate({**hidden["payload"], **clear})}
        if "history" in hidden:
            changes["context"] = message.context.model_copy(update={"history": list(hidden["history"])})
        if "path" in hidden:
            changes["metadata"] = {**(message.metadata or {}), "path": hidden["path"]}
        return message.model_copy(update=changes)
    except (ValueError, TypeError, LookupError, ValidationError):
        raise UnsealedError("what was sealed is no payload", field="payload.sealed.data") from None


def clear_of(message: AgentMessage) -> dict[str, Any]:
    """What of a sealed payload is readable."""
    extra = message.payload.model_extra or {}
    clear = {name: value for name, value in extra.items() if name in _CLEAR}
    if message.payload.constraints is not None:
        clear["constraints"] = message.payload.constraints
    return clear


def _read(sealed: Any) -> tuple[dict[str, str], int, str]:
    # Plainly, for each message: a pattern takes five times as long.
    if isinstance(sealed, dict) and sealed.get("v") == VERSION:
        wraps, at, data = sealed.get("keys"), sealed.get("at"), sealed.get("data")
        if isinstance(wraps, dict) and isinstance(at, int) and isinstance(data, str):
            for each in wraps.values():
                if not isinstance(each, str):
                    break
            else:
                return wraps, at, data
    raise UnsealedError("it is not sealed as version 1 has it", field="payload.sealed")


def _aad(
    wire: Mapping[str, Any], clear: Mapping[str, Any], wraps: Mapping[str, str], at: int, place: str
) -> bytes:
    """What can't be changed beside a sealed payload without its ceasing to open."""
    context = wire["context"]
    return bound(
        wire["type"],
        place,
        wire["id"],
        wire["source"]["id"],
        wire.get("replyTo") or "",
        wire.get("correlationId") or "",
        context.get("parentMessageId") or "",
        context["conversationId"],
        str(at),
        ",".join(sorted(wraps)),
        *[f"{name}={_text(clear[name])}" for name in sorted(clear) if name not in _LOOSE],
    )


def _text(value: Any) -> str:
    """A clear field as any language writes it: `true`, `12`, or the text itself."""
    return str(value).lower() if isinstance(value, bool) else str(value)
