"""Claim checks: a payload too large for a message waits in the vault, and the message carries its name."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from squadron.runtime.errors import (
    BusUnavailableError,
    InvalidMessageError,
    KeyLostError,
    MessageTooLargeError,
    UnsealedError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.vault import MOST_BYTES, OVER_BYTES, Vault, name_of
from squadron.runtime.store.sealed import (
    is_sealed,
    opened,
    opened_wire,
    read_hidden,
    sealed_payload,
    take_hidden,
    with_hidden,
)
from squadron.runtime.store.seals import Seals
from squadron.runtime.texts import encoded
from squadron.runtime.trust.sealing import Box, SealKey, b64, info_for, open_stream, seal_stream, unb64
from squadron.runtime.wire.envelope import AgentMessage, MessageType, Payload, Wire

#: How long a task's input waits in the vault, in seconds: as long as the dead letter that the task may become.
#: A task that is settled otherwise takes its input along.
INPUT_KEEP_S = 90 * 24 * 3600.0

#: What may stand in a payload beside the claim: limits are looked at before the rest is fetched.
_BESIDE = {"claim", "constraints"}
#: What stands around a sealed payload, at most, in bytes: an envelope with its longest names, and eight keys.
_AROUND_BYTES = 12 * 1024
_log = get_logger("squadron.claims")


class Claim(Wire):
    """Stands in place of a payload: its name in the vault, its size, and the SHA-256 of its bytes in hex.

    With `salt` its name is made of the message: only then who settles the message takes the payload along, as of a
    task. Answers end with their time: many may read them, who are not to have them removed. Of a sealed payload
    there is no SHA-256: it opens under its key, or was changed.
    """

    name: str = Field(min_length=1, max_length=160)
    bytes: int = Field(ge=0)
    sha256: str
    salt: str | None = Field(default=None, max_length=128)


def _salt_for(kind: MessageType) -> str | None:
    return os.urandom(16).hex() if kind in ("task", "query") else None


def _key_of(message_id: str, salt: str | None) -> str:
    """The key in the vault that is of one message: nobody finds a salt by which it were that of another.

    Without a salt it is nothing, and the vault makes one that stands nowhere.
    """
    return f"{salt} {message_id}" if salt is not None else ""


def claim_of(message: AgentMessage) -> Claim | None:
    """The claim that a message carries; a readable payload with anything but limits beside it is none.

    Raises:
        InvalidMessageError: it is not of a claim's shape.
    """
    given = message.payload.model_fields_set
    if "claim" not in given or not ("sealed" in given or given <= _BESIDE):
        return None
    try:
        return Claim.model_validate((message.payload.model_extra or {})["claim"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(("payload.claim", *(str(part) for part in first["loc"])))
        raise InvalidMessageError(f"field {field!r}: {first['msg']}", field=field) from None


class Claims:
    """Makes messages ready to travel, and opens those that came.

    A message of at most `over_bytes` travels as it is, a larger one as a claim, and one of more than `most_bytes`
    not at all. With `seals` what is for certain readers is sealed for them.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        over_bytes: int = OVER_BYTES,
        most_bytes: int = MOST_BYTES,
        seals: Seals | None = None,
    ) -> None:
        self.vault, self._over_bytes, self._most_bytes = vault, over_bytes, most_bytes
        self.seals = seals or Seals()

    async def seal(self, data: bytes, *, keep_s: float) -> bytes:
        """An encoded message as it can travel; a payload that goes to the vault is kept for `keep_s` seconds.

        Raises:
            MessageTooLargeError: more than `most_bytes`; nothing was stored.
            BusUnavailableError: the vault did not take it.
        """
        if len(data) <= self._over_bytes:
            return data
        self._check(len(data))
        message = AgentMessage.decode(data)
        payload = message.payload.encode()
        salt = _salt_for(message.type)
        name = await self.vault.store(payload, keep_s=keep_s, key=_key_of(message.id, salt))
        claim = Claim(name=name, bytes=len(payload), sha256=await _digest(payload), salt=salt)
        stub: dict[str, Any] = {"claim": claim.model_dump()}
        if message.payload.constraints is not None:
            stub["constraints"] = message.payload.constraints
        return message.model_copy(update={"payload": Payload.model_validate(stub)}).encode()

    async def seal_for(
        self,
        readers: Sequence[SealKey],
        wire: dict[str, Any],
        place: str,
        *,
        keep_s: float,
        box: Box | None = None,
    ) -> bytes:
        """A message, as it is laid out, sealed for its readers; a large payload goes to the vault, sealed as well.

        Args:
            place: where the message goes, see `sealed_payload`.
            box: for these readers; by default one that is kept for them.

        Raises:
            MessageTooLargeError, BusUnavailableError: as `seal`.
            ConfigError: this process has no keys.
        """
        if self.seals.known is None:
            await self.seals.ring()
        box = box or self.seals.box(readers, info_for(wire["type"], wire["source"]["id"]))
        clear, hidden = take_hidden(wire)
        plain = encoded(hidden)
        # Base64 takes four bytes for three; beside it stand the envelope and the keys.
        if len(plain) * 4 // 3 + _AROUND_BYTES > self._over_bytes:
            self._check(len(plain))
            key, payload = await asyncio.to_thread(seal_stream, plain)
            salt = _salt_for(wire["type"])
            name = await self.vault.store(payload, keep_s=keep_s, key=_key_of(wire["id"], salt))
            clear["claim"] = Claim(name=name, bytes=len(payload), sha256="", salt=salt).model_dump()
            plain = encoded({"stream": b64(key)})
        wire["payload"] = sealed_payload(wire, clear, plain, box, place)
        return encoded(wire)

    async def open(self, data: bytes, place: str = "", *, got_at: float = math.inf) -> AgentMessage:
        """Read a message that came, with its whole payload.

        Raises:
            InvalidMessageError, ClaimLostError, MessageTooLargeError, BusUnavailableError: as `resolve`.
        """
        return await self.resolve(AgentMessage.decode(data), place, got_at=got_at)

    def open_now(self, wire: dict[str, Any], place: str) -> dict[str, Any] | None:
        """The payload of a sealed message, opened at once; None if the ring or itself has to be waited for.

        Raises:
            UnsealedError, ValueError, TypeError, LookupError, AttributeError: see `opened_wire`.
        """
        if self.seals.known is None:
            return None
        try:
            hidden = opened_wire(wire, self.seals.known, place)
        except KeyLostError:
            return None
        payload: dict[str, Any] | None = hidden.get("payload")
        return payload

    async def _unsealed(self, message: AgentMessage, place: str, got_at: float) -> AgentMessage:
        try:
            hidden = opened(message, await self.seals.ring(), place)
        except KeyLostError as lost:
            await self.seals.look_again(lost, got_at)
            hidden = opened(message, await self.seals.ring(), place)
        if "stream" not in hidden:
            return with_hidden(message, hidden)
        if (claim := claim_of(message)) is None:
            raise UnsealedError("it has lost the claim of its payload", field="payload.claim")
        self._check(claim.bytes)
        payload = await self.vault.fetch(claim.name)
        plain = await asyncio.to_thread(open_stream, unb64(str(hidden["stream"])), payload)
        return with_hidden(message, read_hidden(plain))

    async def resolve(self, message: AgentMessage, place: str = "", *, got_at: float = math.inf) -> AgentMessage:
        """The message with the payload that it claims, or that is sealed in it; else itself.

        Args:
            place: where it stands, if it may be sealed; see `sealed_payload`.
            got_at: when this process got it; see `Seals.look_again`.

        Raises:
            KeyLostError: it is sealed for keys that are not here.
            UnsealedError: it is not as it was sealed, or not where.
            InvalidMessageError: the claim or what it names is malformed, or is not what was claimed.
            ClaimLostError: the payload is not there any more.
            MessageTooLargeError: more than `most_bytes`; nothing was fetched.
            BusUnavailableError: the vault does not answer; later it may.
        """
        if is_sealed(message):
            return await self._unsealed(message, place, got_at)
        claim = claim_of(message)
        if claim is None:
            return message
        self._check(claim.bytes)
        payload = await self.vault.fetch(claim.name)
        if len(payload) != claim.bytes or await _digest(payload) != claim.sha256:
            reason = f"the payload of {message.id} is not the one that was claimed (SHA-256)"
            raise InvalidMessageError(reason, field="payload.claim")
        try:
            whole = Payload.model_validate_json(payload)
        except ValidationError as error:
            raise InvalidMessageError(f"field 'payload': {error.errors()[0]['msg']}", field="payload") from None
        if message.payload.constraints is not None:
            # A message that is sent again has a later deadline than the payload that waited for it.
            whole = whole.model_copy(update={"constraints": message.payload.constraints})
        return message.model_copy(update={"payload": whole})

    async def drop(self, message: AgentMessage) -> None:
        """Forget what the message, as it travelled, claims; what can't be forgotten now ends with its time.

        Only what was stored for this message: anybody may name the objects of others.
        """
        try:
            claim = claim_of(message)
            if claim is None or claim.salt is None:
                return
            # Before it stands who has stored it, where each principal has a place of its own.
            if claim.name.rpartition(".")[2] == name_of(key := _key_of(message.id, claim.salt)):
                await self.vault.drop(claim.name, key)
        except (InvalidMessageError, BusUnavailableError) as error:
            _log.info("claims.not_dropped", message=message.id, error=str(error))

    def _check(self, size: int) -> None:
        if size > self._most_bytes:
            raise MessageTooLargeError(
                f"{size:,} bytes are more than the {self._most_bytes:,} of the largest message",
                hint="send a reference instead, or raise SQUADRON_MAX_MESSAGE_BYTES",
            )


async def _digest(data: bytes) -> str:
    # In a thread: for 50 MB it takes as long as hundreds of small messages.
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
