"""What an agent keeps for itself, as on any journal, and sealed for its own key where a turn is sealed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from pydantic_core import from_json

from squadron.runtime.errors import KeyLostError, UnsealedError
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.store.seals import Seals
from squadron.runtime.texts import encoded
from squadron.runtime.trust.sealing import b64, bound, open_piece, unb64

#: How an entry begins that is sealed: anything else is read as it is.
_BEGINS = b'{"sealedEntry":'
#: What the wrapped keys and the entries are bound to, with their place.
_OWN = "own"


@dataclass(frozen=True, slots=True)
class OwnJournal:
    """A journal whose entries only this agent reads, if `sealed`; those that are sealed are opened in any case.

    What does not open is given as it is stored: whoever reads passes over what he can't read.
    """

    journal: Journal
    seals: Seals
    sealed: bool

    async def append(
        self, key: str, data: bytes, *, ttl_s: float, msg_id: str | None = None, expect_seq: int | None = None
    ) -> int:
        """See `Journal.append`."""
        if self.sealed:
            ring = await self.seals.ring()
            box = self.seals.box((ring.public,), bound(_OWN, key))
            data = encoded({"sealedEntry": {"keys": box.wraps, "data": b64(box.seal(data, bound(_OWN, key)))}})
        return await self.journal.append(key, data, ttl_s=ttl_s, msg_id=msg_id, expect_seq=expect_seq)

    async def last(self, key: str) -> Entry | None:
        """See `Journal.last`."""
        entry = await self.journal.last(key)
        return None if entry is None else await self._opened(entry)

    async def read(self, key: str) -> AsyncGenerator[Entry, None]:
        """See `Journal.read`."""
        async with aclosing(self.journal.read(key)) as entries:
            async for entry in entries:
                yield await self._opened(entry)

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        """See `Journal.erase`."""
        await self.journal.erase(key, through_seq=through_seq)

    async def _opened(self, entry: Entry) -> Entry:
        if not entry.data.startswith(_BEGINS):
            return entry
        try:
            sealed = from_json(entry.data)["sealedEntry"]
            wraps, piece, bounds = sealed["keys"], unb64(sealed["data"]), bound(_OWN, entry.key)
            await self.seals.ring()
            try:
                key = self.seals.unwrap(wraps, bounds)
            except KeyLostError as lost:
                await self.seals.look_again(lost)
                key = self.seals.unwrap(wraps, bounds)
            return replace(entry, data=open_piece(key, piece, bounds))
        except (UnsealedError, ValueError, TypeError, LookupError, AttributeError):
            return entry
