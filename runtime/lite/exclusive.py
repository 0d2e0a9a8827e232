"""Reading exclusively: of all readers of one name only the newest is handed anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from squadron.runtime.errors import BusUnavailableError, FencedError
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.wire.subjects import Subjects, token_of

#: A permission to hand out a message counts for so long after it was asked for, in seconds: its answer may have
#: waited while this process was stopped. An answer takes 0.3 ms.
FRESH_S = 0.5
#: Who takes over waits for so long, in seconds, until what the one before was permitted counts no more.
TAKEOVER_S = 0.6
#: How long leaving may take, in seconds.
RELEASE_WITHIN_S = 2.0
#: Pause before a server that is away is asked again, in seconds.
AWAY_S = 0.1
#: After so many steps those before them are erased.
KEPT_STEPS = 256


class _Sequenced(Protocol):
    @property
    def seq(self) -> int: ...


T = TypeVar("T", bound=_Sequenced)


def cursor_key(subjects: Subjects, key: str, name: str) -> str:
    """The lite topic that holds where the exclusive readers `name` of the lite topic `key` are."""
    return subjects.lite("cursor", token_of(f"{key} {name}"))


@dataclass(frozen=True, slots=True)
class _ReaderPlace:
    """Where the readers of one name are, as it is stored."""

    epoch: int
    seq: int
    held: bool


#: Nobody has read yet.
_NOBODY = _ReaderPlace(epoch=0, seq=0, held=False)


def _read(data: bytes) -> _ReaderPlace | None:
    """A stored place; None if it is none: anybody may write there."""
    try:
        raw = json.loads(data)
        place = _ReaderPlace(raw["epoch"], raw["seq"], raw["held"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    counts = all(type(count) is int and 0 <= count < 2**63 for count in (place.epoch, place.seq))
    return place if counts and type(place.held) is bool else None


async def _newest(journal: Journal, key: str) -> _ReaderPlace:
    """The newest place that can be read."""
    found = _NOBODY
    async with aclosing(journal.read(key)) as entries:
        async for entry in entries:
            found = _read(entry.data) or found
    return found


class ExclusiveCursor:
    """Where the readers of one name are, and which of them may go on: the one that took it last.

    Before a message is handed out its sequence is stored, by compare-and-set on what this reader stored before.
    Once another has taken over that fails with `FencedError`. The other starts with the message that was handed
    out last, which therefore may come twice: each comes at least once.

    Attributes:
        seq: the message to start with; 0 if nobody read under this name before.
        epoch: which reader this is, from 1; it grows with each. Whoever acts on a message in another system can
            refuse those of an older one: a process that is stopped between being handed a message and acting on
            it acts later, and nothing here can hinder it.
    """

    def __init__(self, journal: Journal, key: str, whose: str = "") -> None:
        self._journal, self._key, self._whose = journal, key, whose or key
        self._at = self._steps = 0
        self.seq = self.epoch = 0

    @classmethod
    async def take(cls, journal: Journal, key: str, whose: str = "") -> Self:
        """Become the only reader. When this returns, the one before is handed nothing more.

        Args:
            whose: what errors call it; the key by default.

        Raises:
            BusUnavailableError: not acknowledged in time; trying again is safe.
        """
        cursor = cls(journal, key, whose)
        while True:
            last = await journal.last(key)
            cursor._at = 0 if last is None else last.seq
            found = _NOBODY if last is None else _read(last.data) or await _newest(journal, key)
            cursor.seq, cursor.epoch = found.seq, found.epoch + 1
            try:
                cursor._at = await journal.append(key, cursor._record(held=True), expect_seq=cursor._at)
            except FencedError:
                # Another took it, or went on, at this moment; whoever comes last has it.
                continue
            if found.held:
                await asyncio.sleep(TAKEOVER_S)
            return cursor

    async def step(self, seq: int) -> None:
        """Permit that the message `seq` is handed out, and note it. While the server is away this waits.

        Raises:
            FencedError: another reader has taken over.
        """
        self.seq = seq
        loop = asyncio.get_running_loop()
        while True:
            asked_at = loop.time()
            await self._store(self._record(held=True))
            if loop.time() - asked_at < FRESH_S:
                break
        self._steps += 1
        if self._steps % KEPT_STEPS == 0:
            await self._erase_older()

    async def release(self, *, done: bool) -> None:
        """Leave, so that the next reader need not wait for this one; `done`: nor is handed the last message again.

        Raises:
            FencedError: another reader has taken over.
        """
        self.seq += done and self._steps > 0
        await self._store(self._record(held=False))
        await self._erase_older()

    def guard(self, messages: AsyncGenerator[T, None]) -> Guarded[T]:
        """Hand out messages as long as this is the only reader, and leave at the end."""
        return Guarded(self, messages)

    def _record(self, *, held: bool) -> bytes:
        return json.dumps({"epoch": self.epoch, "seq": self.seq, "held": held}).encode()

    async def _store(self, record: bytes) -> None:
        while True:
            try:
                self._at = await self._journal.append(self._key, record, expect_seq=self._at)
                return
            except (BusUnavailableError, FencedError) as error:
                last = await self._last()
                seq = 0 if last is None else last.seq
                if seq == self._at:
                    # It is not stored, and nothing else is.
                    await asyncio.sleep(AWAY_S)
                elif last is not None and last.data == record:
                    # It is, only its acknowledgement was lost.
                    self._at = seq
                    return
                else:
                    raise FencedError(
                        f"another reader has taken over {self._whose}",
                        hint="stop, or read again to take it back",
                    ) from error

    async def _last(self) -> Entry | None:
        while True:
            try:
                return await self._journal.last(self._key)
            except BusUnavailableError:
                await asyncio.sleep(AWAY_S)

    async def _erase_older(self) -> None:
        try:
            await self._journal.erase(self._key, through_seq=self._at - 1)
        except BusUnavailableError:
            # The next one will.
            return


class Guarded(AsyncIterator[T], Generic[T]):
    """The messages that a cursor permits; one is done when the next one is asked for.

    Raises:
        FencedError: another reader has taken over.
    """

    # No generator: an event loop that ends closes all those at once, and this one would wait for the server then.

    def __init__(self, cursor: ExclusiveCursor, messages: AsyncGenerator[T, None]) -> None:
        self._cursor, self._messages = cursor, messages
        self._done, self._left = True, False

    async def __anext__(self) -> T:
        self._done = True
        try:
            message = await anext(self._messages)
            await self._cursor.step(message.seq)
        except BaseException:
            await self.aclose()
            raise
        self._done = False
        return message

    async def aclose(self) -> None:
        """Leave. May be called twice."""
        if not self._left:
            self._left = True
            # Without it the next reader waits a moment longer.
            with contextlib.suppress(FencedError, TimeoutError):
                async with asyncio.timeout(RELEASE_WITHIN_S):
                    await self._cursor.release(done=self._done)
        await self._messages.aclose()
