"""`Journal` in memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from squadron.bridge.memory.bus import MemoryBus
from squadron.bridge.memory.common import Seen, check_size, subject_matches, wall_s
from squadron.runtime.background import spawn
from squadron.runtime.errors import FencedError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.wire.subjects import life_of, live_of


@dataclass
class _Stored:
    entry: Entry
    expires_at: float


class MemoryJournal:
    """`Journal` in one process; entries are also heard live on `bus`, as JetStream's are. `now` is its clock."""

    def __init__(self, bus: MemoryBus, now: Callable[[], float] = wall_s) -> None:
        self._bus, self._now = bus, now
        self._entries: list[_Stored] = []
        #: When the next of them is gone.
        self._lapses_at = math.inf
        self._seen = Seen()
        self._next_seq = 1
        self._followers: list[_Follower] = []
        self._ending: set[asyncio.Future[int]] = set()

    def _living(self) -> list[_Stored]:
        now = self._now()
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
        return await self._append(key, data, {}, ttl_s, msg_id, expect_seq)

    async def _append(
        self,
        key: str,
        data: bytes,
        headers: dict[str, str],
        ttl_s: float | None,
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
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{life_s}s"
        entry = Entry(seq, key, data, headers, self._now())
        expires_at = self._now() + life_s
        self._entries.append(_Stored(entry, expires_at))
        self._lapses_at = min(self._lapses_at, expires_at)
        told = replace(entry, previous=last.seq if last else 0)
        for follower in self._followers:
            if subject_matches(follower.pattern, key):
                asyncio.get_running_loop().call_soon(follower.hear, told)
        return seq

    async def append_soon(
        self, key: str, data: bytes, *, ttl_s: float | None = None, msg_id: str | None = None
    ) -> asyncio.Future[int]:
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stored.set_result(await self.append(key, data, ttl_s=ttl_s, msg_id=msg_id))
        return stored

    async def end(self, key: str, data: bytes, *, keep_s: float, expect_seq: int | None = None) -> int:
        return await self._end(key, data, "closed", keep_s, expect_seq)

    async def _end(self, key: str, data: bytes, why: str, keep_s: float, expect_seq: int | None = None) -> int:
        seq = await self._append(key, data, {END_HEADER: why}, keep_s, expect_seq=expect_seq)
        await self.erase(key, through_seq=seq - 1)
        return seq

    async def end_at(
        self, key: str, data: bytes, *, at: float, keep_s: float, expect_seq: int | None = None
    ) -> int:
        order = life_of(key)
        seq = await self._append(order, data, {END_HEADER: "expired"}, None, expect_seq=expect_seq)
        await self.erase(order, through_seq=seq - 1)

        after_s = max(0.0, at - self._now())
        asyncio.get_running_loop().call_later(after_s, self._end_ordered, order, seq, key, keep_s)
        return seq

    async def append_and_end(
        self, key: str, data: bytes, order: bytes, *, at: float, keep_s: float, msg_id: str | None = None
    ) -> int:
        await self.end_at(key, order, at=at, keep_s=keep_s)
        return await self.append(key, data, msg_id=msg_id)

    def _end_ordered(self, order: str, seq: int, key: str, keep_s: float) -> None:
        for stored in [each for each in self._entries if each.entry.seq == seq]:
            self._entries.remove(stored)
            ending = spawn(self._end(key, stored.entry.data, "expired", keep_s), f"end {key}")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def count(self, pattern: str) -> int:
        return sum(subject_matches(pattern, stored.entry.key) for stored in self._living())

    async def keys(self) -> int:
        return len({stored.entry.key for stored in self._living()})

    async def last(self, key: str) -> Entry | None:
        wild = "*" in key
        return next(
            (
                stored.entry
                for stored in reversed(self._living())
                if stored.entry.key == key or (wild and subject_matches(key, stored.entry.key))
            ),
            None,
        )

    async def latest(self, pattern: str) -> list[Entry]:
        living = (stored.entry for stored in self._living())
        newest = {entry.key: entry for entry in living if subject_matches(pattern, entry.key)}
        return sorted(newest.values(), key=lambda entry: entry.seq)

    async def read(
        self, pattern: str, *, from_seq: int = 1, from_time: float | None = None
    ) -> AsyncGenerator[Entry, None]:
        since = 0.0 if from_time is None else from_time
        from_seq = 1 if from_time is not None else from_seq
        for entry in [stored.entry for stored in self._living()]:
            if entry.seq >= from_seq and entry.time >= since and subject_matches(pattern, entry.key):
                yield entry

    async def follow(
        self, pattern: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        # Nothing is ever lost here.
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
