"""Messages whose payload is sealed: the envelope stays readable, and is bound to what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from squadron.runtime.errors import UnsealedError
from squadron.runtime.texts import encoded
from squadron.runtime.trust.sealing import Box, KeyRing, b64, bound, open_piece, unb64
from squadron.runtime.wire.envelope import AgentMessage, Payload

#: Of another one nothing is read.
VERSION = 1
#: What of a payload stays readable: limits are looked at before it is opened, and chunks are put in order. All but
#: the limits, which a redrive changes, are bound.
_CLEAR = ("constraints", "sequenceNumber", "isFirst", "isFinal", "attempt", "epoch", "run", "count", "end")


def is_sealed(message: AgentMessage) -> bool:
    """Whether its payload says that it is sealed."""
    return "sealed" in message.payload.model_fields_set


def info_of(message: AgentMessage) -> bytes:
    """What the wrapped keys of its box are bound to: messages of another kind or sender can't carry them."""
    return bound(message.type, message.source.id)


def seal_message(message: AgentMessage, box: Box, place: str) -> AgentMessage:
    """The message with its content, model, parameters, history and path sealed.

    Args:
        box: made with `info_of` of this message.
        place: where it goes: a task's subject without its lane; of results and chunks the task's `replyTo`.
    """
    fields = message.payload.model_dump(by_alias=True, exclude_unset=True)
    clear = {name: fields.pop(name) for name in _CLEAR if name in fields}
    hidden: dict[str, Any] = {"payload": fields}
    changes: dict[str, Any] = {}
    if message.context.history is not None:
        hidden["history"] = message.context.history
        changes["context"] = message.context.model_copy(update={"history": None})
    metadata = dict(message.metadata or {})
    if "path" in metadata:
        # Its steps hold digests of inputs, and those can be guessed.
        hidden["path"] = metadata.pop("path")
        changes["metadata"] = metadata
    at = round(message.timestamp * 1e6)
    piece = box.seal(encoded(hidden), _aad(message, clear, box.wraps, at, place))
    sealed = {"v": VERSION, "at": at, "keys": dict(box.wraps), "data": b64(piece)}
    payload = Payload.model_validate({**clear, "sealed": sealed})
    return message.model_copy(update={**changes, "payload": payload})


def open_message(message: AgentMessage, ring: KeyRing, place: str) -> AgentMessage:
    """The message that `seal_message` sealed, for who has one of its readers' keys.

    Raises:
        KeyLostError: it is sealed for keys that are not in the ring.
        UnsealedError: it is not as it was sealed, or not where.
    """
    clear = message.payload.model_dump(by_alias=True, exclude_unset=True)
    wraps, at, data = _read(clear.pop("sealed", None))
    try:
        is_same_time = at == round(message.timestamp * 1e6)
        aad = _aad(message, clear, wraps, at, place)
    except (ValueError, OverflowError):
        # Of JSON, where a number may have thousands of digits.
        raise UnsealedError("a number in it is beyond all measure", field="payload") from None
    if not is_same_time and not message.redriven:
        # Who puts a dead letter back gives it another time, and can't seal it anew.
        raise UnsealedError("it was sealed at another time than it says", field="timestamp")
    plain = open_piece(ring.unwrap(wraps, info_of(message)), unb64(data), aad)
    try:
        hidden = from_json(plain)
        payload = Payload.model_validate({**hidden["payload"], **clear})
        changes: dict[str, Any] = {"payload": payload}
        if "history" in hidden:
            changes["context"] = message.context.model_copy(update={"history": list(hidden["history"])})
        if "path" in hidden:
            changes["metadata"] = {**(message.metadata or {}), "path": hidden["path"]}
        return message.model_copy(update=changes)
    except (ValueError, TypeError, LookupError, ValidationError):
        raise UnsealedError("what was sealed is no payload", field="payload.sealed.data") from None


def _read(sealed: Any) -> tuple[dict[str, str], int, str]:
    match sealed:
        case {"v": 1, "at": int(at), "keys": dict(wraps), "data": str(data)}:
            if all(isinstance(each, str) for pair in wraps.items() for each in pair):
                return wraps, at, data
    raise UnsealedError("it is not sealed as version 1 has it", field="payload.sealed")


def _aad(message: AgentMessage, clear: Mapping[str, Any], wraps: Mapping[str, str], at: int, place: str) -> bytes:
    """What can't be changed beside a sealed payload without its ceasing to open."""
    told = {name: value for name, value in clear.items() if name != "constraints"}
    return bound(
        message.type,
        place,
        message.id,
        message.source.id,
        message.reply_to or "",
        message.correlation_id or "",
        message.context.parent_message_id or "",
        message.context.conversation_id,
        str(at),
        ",".join(sorted(wraps)),
        *(f"{name}={_text(told[name])}" for name in sorted(told)),
    )


def _text(value: Any) -> str:
    """A clear field as any language writes it: `true`, `12`, or the text itself."""
    return str(value).lower() if isinstance(value, bool) else str(value)
