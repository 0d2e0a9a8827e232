"""`Journal` in memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from squadron.bridge.memory.bus import MemoryBus
from squadron.bridge.memory.common import Seen, check_size, subject_matches
from squadron.runtime.errors import (
    FencedError,
)
from squadron.runtime.ports import Entry, Note


@dataclass
class _Stored:
    entry: Entry
    expires_at: float


class MemoryJournal:
    """`Journal` in one process; entries are also heard live on `bus`, as JetStream's are."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._entries: list[_Stored] = []
        self._grown = asyncio.Event()
        self._seen = Seen()
        self._next_seq = 1

    def _living(self) -> list[Entry]:
        now = time.monotonic()
        self._entries = [stored for stored in self._entries if stored.expires_at > now]
        return [stored.entry for stored in self._entries]

    async def append(
        self,
        key: str,
        data: bytes,
        *,
        ttl_s: float | None = None,
        msg_id: str | None = None,
        expect_seq: int | None = None,
    ) -> int:
        check_size(data)
        last = await self.last(key)
        if expect_seq is not None and (last.seq if last else 0) != expect_seq:
            raise FencedError(f"{key} is not at {expect_seq}")
        self._bus.deliver(Note(key, data))
        if (known := self._seen.seq(msg_id)) is not None:
            return known
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._seen.add(msg_id, seq)
        life_s = math.inf if ttl_s is None else max(1, math.ceil(ttl_s))
        self._entries.append(_Stored(Entry(seq, key, data), time.monotonic() + life_s))
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
        return seq

    async def last(self, key: str) -> Entry | None:
        return next((entry for entry in reversed(self._living()) if entry.key == key), None)

    async def latest(self, pattern: str) -> list[Entry]:
        newest = {entry.key: entry for entry in self._living() if subject_matches(pattern, entry.key)}
        return sorted(newest.values(), key=lambda entry: entry.seq)

    async def read(self, pattern: str, *, from_seq: int = 1, live: bool = False) -> AsyncGenerator[Entry, None]:
        while True:
            grown = self._grown
            for entry in self._living():
                if entry.seq >= from_seq and subject_matches(pattern, entry.key):
                    from_seq = entry.seq + 1
                    yield entry
            if not live:
                return
            await grown.wait()

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        last = math.inf if through_seq is None else through_seq
        entries = self._entries
        self._entries = [stored for stored in entries if stored.entry.key != key or stored.entry.seq > last]
