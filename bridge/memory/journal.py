"""`Journal` in memory."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from squadron.bridge.memory.bus import Headed, MemoryBus
from squadron.bridge.memory.common import Seen, check_size, wall_s
from squadron.bridge.memory.line import ANSWER_WITHIN_S, PERSIST_S, Line
from squadron.runtime.errors import BusUnavailableError, FencedError, InvalidSubjectError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.journal import Counts, Entry, Headers
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.wire.subjects import life_of, live_of, subject_matches


@dataclass
class _Stored:
    entry: Entry
    expires_at: float


@dataclass
class _Kept:
    """What the server keeps, whoever looks at it."""

    entries: list[_Stored] = field(default_factory=list)
    #: When the next of them is gone.
    lapses_at: float = math.inf
    seen: Seen = field(default_factory=Seen)
    next_seq: int = 1
    followers: list[_Follower] = field(default_factory=list)


class MemoryJournal:
    """`Journal` in one process; entries are also heard live on `bus`, as JetStream's are. `now` is its clock."""

    def __init__(self, bus: MemoryBus, now: Callable[[], float] = wall_s, line: Line | None = None) -> None:
        self._bus, self._now, self._line = bus, now, line or Line()
        self._kept = _Kept()

    def over(self, line: Line) -> Self:
        """The same, as one process sees it over its own line."""
        view = copy.copy(self)
        view._line = line
        return view

    def _living(self) -> list[_Stored]:
        now = self._now()
        if self._kept.lapses_at <= now:
            self._kept.entries = [stored for stored in self._kept.entries if stored.expires_at > now]
            self._kept.lapses_at = min((stored.expires_at for stored in self._kept.entries), default=math.inf)
        return self._kept.entries

    async def append(
        self,
        key: str,
        data: bytes,
        *,
        ttl_s: float | None = None,
        msg_id: str | None = None,
        expect_seq: int | None = None,
        headers: Headers | None = None,
        counts: Counts | None = None,
    ) -> int:
        # With an id the same entry is stored once, so that it may be sent again.
        again = msg_id is not None and expect_seq is None
        await self._line.answer(PERSIST_S if again else ANSWER_WITHIN_S)
        while counts and (known := self._known(key, msg_id)) and known.data != data and not await counts(known):
            msg_id = f"{msg_id} {known.seq}"
        return self._append(key, data, dict(headers or {}), ttl_s, msg_id, expect_seq)

    def _known(self, key: str, msg_id: str | None) -> Entry | None:
        if (seq := self._kept.seen.seq(f"{key} {msg_id}")) is None:
            # Nearly always, and to look through all takes as long as there is.
            return None
        return next((each.entry for each in self._living() if each.entry.seq == seq), None)

    def _append(
        self,
        key: str,
        data: bytes,
        headers: dict[str, str],
        ttl_s: float | None,
        msg_id: str | None = None,
        expect_seq: int | None = None,
    ) -> int:
        check_size(data)
        headers = self._line.headers(key, data, headers)
        last = self._last(key)
        if expect_seq is not None and (last.seq if last else 0) != expect_seq:
            raise FencedError(f"{key} is not at {expect_seq}")
        self._bus.deliver(Note(key, data, "", Headed(headers)))
        # Of two of one id for one key the second is not stored; what others store under it does not count.
        id = None if msg_id is None else f"{key} {msg_id}"
        if (known := self._kept.seen.seq(id)) is not None:
            return known
        seq, self._kept.next_seq = self._kept.next_seq, self._kept.next_seq + 1
        self._kept.seen.add(id, seq)
        life_s = math.inf if ttl_s is None else max(1, math.ceil(ttl_s))
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{life_s}s"
        entry = Entry(seq, key, data, headers, self._now())
        expires_at = self._now() + life_s
        self._kept.entries.append(_Stored(entry, expires_at))
        self._kept.lapses_at = min(self._kept.lapses_at, expires_at)
        with contextlib.suppress(InvalidSubjectError):
            # Of dead letters and runs nothing is told.
            self._bus.deliver(Note(live_of(key), data, "", Headed(headers)))
        told = replace(entry, previous=last.seq if last else 0)
        for follower in self._kept.followers:
            if subject_matches(follower.pattern, key):
                asyncio.get_running_loop().call_soon(follower.hear, told)
        return seq

    def append_soon(
        self, key: str, entries: Sequence[tuple[bytes, str]], *, ttl_s: float | None = None
    ) -> asyncio.Future[int]:
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        for data, _ in entries:
            check_size(data)
        if self._line.up:
            for data, msg_id in entries:
                self._append(key, data, {}, ttl_s, msg_id)
            stored.set_result(len(entries))
        else:
            stored.set_exception(BusUnavailableError(f"{key}: not acknowledged"))
            # Whoever sent it may be gone by now.
            stored.exception()
        return stored

    async def end(self, key: str, data: bytes, *, keep_s: float, expect_seq: int | None = None) -> int:
        await self._line.answer()
        return self._end(key, data, "closed", keep_s, expect_seq)

    def _end(self, key: str, data: bytes, why: str, keep_s: float, expect_seq: int | None = None) -> int:
        seq = self._append(key, data, {END_HEADER: why}, keep_s, expect_seq=expect_seq)
        self._erase(key, seq - 1)
        return seq

    async def end_at(
        self, key: str, data: bytes, *, at: float, keep_s: float, expect_seq: int | None = None
    ) -> int:
        await self._line.answer()
        order = life_of(key)
        seq = self._append(order, data, {END_HEADER: "expired"}, None, expect_seq=expect_seq)
        self._erase(order, seq - 1)
        after_s = max(0.0, at - self._now())
        asyncio.get_running_loop().call_later(after_s, self._end_ordered, seq, key, keep_s)
        return seq

    async def append_and_end(
        self,
        key: str,
        data: bytes,
        order: bytes,
        *,
        at: float,
        keep_s: float,
        msg_id: str | None = None,
        headers: Headers | None = None,
    ) -> int:
        await self._line.answer(ANSWER_WITHIN_S if msg_id is None else PERSIST_S)
        await self.end_at(key, order, at=at, keep_s=keep_s)
        return await self.append(key, data, msg_id=msg_id, headers=headers)

    def _end_ordered(self, seq: int, key: str, keep_s: float) -> None:
        for stored in [each for each in self._kept.entries if each.entry.seq == seq]:
            self._kept.entries.remove(stored)
            self._end(key, stored.entry.data, "expired", keep_s)

    async def count(self, pattern: str) -> int:
        await self._line.answer()
        return sum(subject_matches(pattern, stored.entry.key) for stored in self._living())

    async def keys(self) -> int:
        await self._line.answer()
        return len({stored.entry.key for stored in self._living()})

    async def last(self, key: str) -> Entry | None:
        await self._line.answer()
        return self._last(key)

    def _last(self, key: str) -> Entry | None:
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
        await self._line.answer(PERSIST_S)
        living = (stored.entry for stored in self._living())
        newest = {entry.key: entry for entry in living if subject_matches(pattern, entry.key)}
        return sorted(newest.values(), key=lambda entry: entry.seq)

    async def read(
        self, pattern: str, *, from_seq: int = 1, from_time: float | None = None
    ) -> AsyncGenerator[Entry, None]:
        since = 0.0 if from_time is None else from_time
        from_seq = 1 if from_time is not None else from_seq
        await self._line.answer(PERSIST_S)
        for entry in [stored.entry for stored in self._living()]:
            if entry.seq >= from_seq and entry.time >= since and subject_matches(pattern, entry.key):
                yield entry

    async def follow(
        self, pattern: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        live_of(pattern)
        await self._line.answer()
        follower = _Follower(pattern, sink, lost, self._line, self._kept.followers)
        self._kept.followers.append(follower)
        if lost is not None:
            self._line.on_cut(lost)
        return follower

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        await self._line.answer()
        self._erase(key, math.inf if through_seq is None else through_seq)

    def _erase(self, key: str, last: float) -> None:
        entries = self._kept.entries
        self._kept.entries = [stored for stored in entries if stored.entry.key != key or stored.entry.seq > last]


class _Follower:
    def __init__(
        self,
        pattern: str,
        sink: Callable[[Entry], None],
        lost: Callable[[], None] | None,
        line: Line,
        among: list[_Follower],
    ) -> None:
        self.pattern, self._sink, self._lost, self._line, self._among = pattern, sink, lost, line, among

    def hear(self, entry: Entry) -> None:
        if self._line.up and self in self._among:
            self._sink(entry)

    async def aclose(self) -> None:
        if self in self._among:
            self._among.remove(self)
            if self._lost is not None:
                self._line.off_cut(self._lost)
