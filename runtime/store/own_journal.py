"""What an agent keeps for itself, as on any journal, and sealed for its own key where a turn is sealed."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from squadron.runtime.errors import KeyLostError, UnsealedError, UntrustedError
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.seals import Seals
from squadron.runtime.texts import encoded
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import only_agent
from squadron.runtime.trust.sealing import b64, bound, open_piece, unb64
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.wire.subjects import MAX_TOKEN, token_of

#: How an entry begins that is sealed: anything else is read as it is.
_BEGINS = b'{"sealedEntry":'
#: What the wrapped keys and the entries are bound to, with their place.
_OWN = "own"


async def seal_own(seals: Seals, place: str, data: bytes) -> dict[str, Any]:
    """Bytes as JSON data that only this principal opens, and only in this place.

    Raises:
        ConfigError, BusUnavailableError: see `Seals.ring`.
    """
    ring = await seals.ring()
    box = seals.box((ring.public,), bound(_OWN, place))
    return {"keys": box.wraps, "data": b64(box.seal(data, bound(_OWN, place)))}


async def open_own(seals: Seals, place: str, sealed: Any, *, got_at: float = math.inf) -> bytes:
    """What `seal_own` sealed, and this process got then; see `Seals.look_again`.

    Raises:
        KeyLostError: it is another's, or the key is lost.
        UnsealedError: it was changed, stands elsewhere, or is nothing of the kind.
        ConfigError, BusUnavailableError: see `Seals.ring`.
    """
    bounds = bound(_OWN, place)
    try:
        wraps, piece = dict(sealed["keys"]), unb64(sealed["data"])
    except (ValueError, TypeError, LookupError):
        raise UnsealedError("that is nothing that was sealed", field="sealed") from None
    await seals.ring()
    try:
        key = seals.unwrap(wraps, bounds)
    except KeyLostError as lost:
        await seals.look_again(lost, got_at)
        key = seals.unwrap(wraps, bounds)
    return open_piece(key, piece, bounds)


def memory_owner(agent: str) -> str:
    """Owner of the lite topics where an agent's handlers remember."""
    return f"memory-{agent}"[:MAX_TOKEN]


def talk_owner(agent: str) -> str:
    """Owner of those with what it said in conversations."""
    return token_of(f"talk-{agent}")


def notes_owner(agent: str) -> str:
    """Owner of those with its notes."""
    return token_of(f"notes-{agent}")


def owners_of(agent: str) -> tuple[str, ...]:
    """Owners of all that an agent keeps for itself."""
    return memory_owner(agent), talk_owner(agent), notes_owner(agent)


#: What was taken so far of one journal: who signed it, and the nonce.
Taken = set[tuple[str, str]]


def required(ports: Ports) -> Guard | None:
    """What checks who signed what is kept; None where all counts that stands there, signed or not."""
    guard = ports.guard
    return None if guard is None or not guard.requires or ports.own_is_apart else guard


async def is_own(ports: Ports, entry: Entry, agent: str, taken: Taken) -> bool:
    """Whether an agent has kept this itself, as far as anybody looks who signed it; see `is_by`.

    Raises:
        BusUnavailableError: nobody says who signed it.
    """
    return ports.own_is_apart or await is_by(ports.guard, entry, agent, taken)


async def is_by(guard: Guard | None, entry: Entry, agent: str, taken: Taken) -> bool:
    """Whether an agent wrote this, or the bridge, as far as `guard` looks.

    Args:
        taken: of the entries before it, which are read in their order; one that is put there again is nobody's.

    Raises:
        BusUnavailableError: nobody says who signed it.
    """
    if guard is None:
        return True

    def may(signed: Signed) -> None:
        only_agent(agent)(signed)
        # Of another number it is in an agent's own stream, and anew where it is told on: by that nobody knows it.
        if (which := (signed.by.user, signed.nonce)) in taken:
            raise UntrustedError("it was put there before")
        taken.add(which)

    try:
        await guard.admit("own", entry.key, entry.data, entry.headers, at=entry.time, may=may)
    except UntrustedError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class OwnJournal:
    """A journal whose entries only this agent reads, if `sealed`; those that are sealed are opened in any case.

    What does not open is given as it is stored: whoever reads passes over what he can't read. What somebody else
    has written or put again there is given empty, where it is looked who signed it.
    """

    ports: Ports
    agent: str
    sealed: bool

    @property
    def journal(self) -> Journal:
        """Where it is kept."""
        return self.ports.own

    async def append(
        self, key: str, data: bytes, *, ttl_s: float, msg_id: str | None = None, expect_seq: int | None = None
    ) -> int:
        """See `Journal.append`."""
        if self.sealed:
            data = encoded({"sealedEntry": await seal_own(self.ports.claims.seals, key, data)})
        return await self.journal.append(key, data, ttl_s=ttl_s, msg_id=msg_id, expect_seq=expect_seq)

    async def last(self, key: str) -> Entry | None:
        """See `Journal.last`. What somebody else wrote there since does not hide what was kept."""
        newest = await self.journal.last(key)
        if newest is None:
            return None
        if required(self.ports) is None:
            return await self._opened(newest, Taken())
        # All before it tells whether it is put there again.
        found = replace(newest, data=b"", headers={})
        async for each in self.read(key):
            found = each if each.data else found
        # Who appends after it names the newest, whoever wrote that.
        return replace(found, seq=newest.seq)

    async def read(self, key: str) -> AsyncGenerator[Entry, None]:
        """See `Journal.read`."""
        taken = Taken()
        async with aclosing(self.journal.read(key)) as entries:
            async for entry in entries:
                yield await self._opened(entry, taken)

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        """See `Journal.erase`."""
        await self.journal.erase(key, through_seq=through_seq)

    async def _opened(self, entry: Entry, taken: Taken) -> Entry:
        if not await is_own(self.ports, entry, self.agent, taken):
            # Its headers neither: anybody may write that something has ended.
            return replace(entry, data=b"", headers={})
        if not entry.data.startswith(_BEGINS):
            return entry
        try:
            sealed = from_json(entry.data)["sealedEntry"]
            seals = self.ports.claims.seals
            return replace(entry, data=await open_own(seals, entry.key, sealed, got_at=entry.got_at))
        except (UnsealedError, ValueError):
            return entry
