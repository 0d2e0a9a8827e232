"""`Journal` in memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from squadron.bridge.memory.bus import MemoryBus
from squadron.bridge.memory.common import Seen, check_size, subject_matches
from squadron.runtime.errors import (
    FencedError,
)
from squadron.runtime.ports import Entry, Note, Subscription
from squadron.runtime.subjects import live_of


@dataclass
class _Stored:
    entry: Entry
    expires_at: float


class MemoryJournal:
    """`Journal` in one process; entries are also heard live on `bus`, as JetStream's are."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._entries: list[_Stored] = []
        #: When the next of them is gone, on the monotonic clock.
        self._lapses_at = math.inf
        self._grown = asyncio.Event()
        self._seen = Seen()
        self._next_seq = 1
        self._followers: list[_Follower] = []

    def _living(self) -> list[_Stored]:
        now = time.monotonic()
        if self._lapses_at <= now:
            self._entries = [stored for stored in self._entries if stored.expires_at > now]
            self._lapses_at = min((stored.expires_at for stored in self._entries), default=math.inf)
        return self._entries

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
        entry = Entry(seq, key, data, {}, time.time())
        expires_at = time.monotonic() + life_s
        self._entries.append(_Stored(entry, expires_at))
        self._lapses_at = min(self._lapses_at, expires_at)
        told = replace(entry, previous=last.seq if last else 0)
        for follower in self._followers:
            if subject_matches(follower.pattern, key):
                asyncio.get_running_loop().call_soon(follower.hear, told)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
        return seq

    async def append_soon(
        self, key: str, data: bytes, *, ttl_s: float | None = None, msg_id: str | None = None
    ) -> asyncio.Future[int]:
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stored.set_result(await self.append(key, data, ttl_s=ttl_s, msg_id=msg_id))
        return stored

    async def last(self, key: str) -> Entry | None:
        return next((stored.entry for stored in reversed(self._living()) if stored.entry.key == key), None)

    async def latest(self, pattern: str) -> list[Entry]:
        living = (stored.entry for stored in self._living())
        newest = {entry.key: entry for entry in living if subject_matches(pattern, entry.key)}
        return sorted(newest.values(), key=lambda entry: entry.seq)

    async def read(
        self, pattern: str, *, from_seq: int = 1, from_time: float | None = None, live: bool = False
    ) -> AsyncGenerator[Entry, None]:
        since = 0.0 if from_time is None else from_time
        from_seq = 1 if from_time is not None else from_seq
        while True:
            grown = self._grown
            for entry in [stored.entry for stored in self._living()]:
                if entry.seq >= from_seq and entry.time >= since and subject_matches(pattern, entry.key):
                    from_seq = entry.seq + 1
                    yield entry
            if not live:
                return
            await grown.wait()

    async def follow(self, pattern: str, sink: Callable[[Entry], None]) -> Subscription:
        live_of(pattern)
        follower = _Follower(pattern, sink, self._followers)
        self._followers.append(follower)
        return follower

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        last = math.inf if through_seq is None else through_seq
        entries = self._entries
        self._entries = [stored for stored in entries if stored.entry.key != key or stored.entry.seq > last]


class _Follower:
    def __init__(self, pattern: str, sink: Callable[[Entry], None], among: list[_Follower]) -> None:
        self.pattern, self._sink, self._among = pattern, sink, among

    def hear(self, entry: Entry) -> None:
        if self in self._among:
            self._sink(entry)

    async def aclose(self) -> None:
        if self in self._among:
            self._among.remove(self)
