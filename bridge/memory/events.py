"""`EventLog` in memory, held to the same contract as JetStream's."""

from __future__ import annotations

import asyncio
import bisect
import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from squadron.bridge.memory.bus import MemoryBus
from squadron.bridge.memory.common import Seen, check_size, wall_s
from squadron.bridge.memory.line import PERSIST_S, Line
from squadron.runtime.ports.bus import Note
from squadron.runtime.ports.queue import Delivery, Feed
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.start import check_start
from squadron.runtime.wire.subjects import Subjects, matches


@dataclass(frozen=True, slots=True)
class _Event:
    topic: str
    data: bytes
    at_s: float
    headers: Mapping[str, str]


@dataclass
class _Group:
    """The place of one group in the log."""

    pattern: str
    next_seq: int
    lease_s: float
    feeds: list[_EventFeed] = field(default_factory=list)
    #: Handed back, in order.
    returned: list[int] = field(default_factory=list)
    #: Deliveries of each event that is not settled, and how often work on it began.
    delivered: Counter[int] = field(default_factory=Counter)
    begun: Counter[int] = field(default_factory=Counter)

    def give_back(self, seq: int, delivered: int) -> bool:
        """A lease ended; False if the event was settled or delivered anew since."""
        if self.delivered.get(seq) != delivered or seq in self.returned:
            return False
        bisect.insort(self.returned, seq)
        return True


class _EventLease:
    token = ""
    sure_from = 0.0

    def __init__(self, log: MemoryEventLog, line: Line, group: _Group, seq: int) -> None:
        self._log, self._line, self._group, self._seq = log, line, group, seq
        self.delivered = group.delivered[seq]
        self.first = self.delivered == 1
        self._timer = self._after(group.lease_s)
        self._is_back = False

    def _after(self, after_s: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(after_s, self._lapse)

    def _arm(self, after_s: float) -> None:
        self._timer.cancel()
        self._timer = self._after(after_s)

    def _lapse(self) -> None:
        if self._group.give_back(self._seq, self.delivered):
            self._log.match(self._group)

    def _settle(self) -> None:
        self._timer.cancel()
        self._group.delivered.pop(self._seq, None)
        self._group.begun.pop(self._seq, None)
        if self._seq in self._group.returned:
            self._group.returned.remove(self._seq)

    async def begin(self) -> int:
        if not self.first:
            await self._line.answer()
        self._group.begun[self._seq] += 1
        return self._group.begun[self._seq]

    async def begun_before(self) -> bool:
        if not self.first:
            await self._line.answer()
        return self._seq in self._group.begun

    async def progressed(self) -> None:
        await self._line.answer()
        self._group.begun[self._seq] = 0

    async def settle(self, *, confirmed: bool = False) -> None:
        if confirmed:
            await self._line.answer()
        self._line.send(self._settle)

    async def extend(self) -> None:
        if not self._is_back:
            self._line.send(lambda: self._arm(self._group.lease_s))

    @property
    def wake_token(self) -> str:
        return ""

    async def park(self, after_s: float) -> None:
        await self.release(after_s)

    async def release(self, after_s: float = 0.0) -> None:
        self._is_back = True
        self._line.send(lambda: self._arm(after_s))


class _EventFeed:
    def __init__(self, log: MemoryEventLog, line: Line, group: _Group, sink: Callable[[Delivery], None]) -> None:
        self._log, self.line, self._group, self.sink, self.wanted = log, line, group, sink, 0

    def want(self, count: int) -> None:
        self.wanted += count
        self._log.match(self._group)

    async def aclose(self) -> None:
        self.wanted = 0
        if self in self._group.feeds:
            self._group.feeds.remove(self)


class MemoryEventLog:
    """`EventLog` in one process; events are also heard live on `bus`."""

    def __init__(self, bus: MemoryBus, subjects: Subjects, line: Line | None = None) -> None:
        self._bus, self._subjects = bus, subjects
        self._events: list[_Event] = []
        self._seen = Seen()
        self._groups: dict[str, _Group] = {}
        self._take(line or Line())

    def _take(self, line: Line) -> None:
        self._line = line
        line.resumed.append(self._match_all)

    def over(self, line: Line) -> Self:
        """The same, as one process sees it over its own line."""
        view = copy.copy(self)
        view._take(line)
        return view

    async def append(
        self, topic: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> int:
        check_size(data)
        await self._line.answer(PERSIST_S)
        if (known := self._seen.seq(msg_id)) is not None:
            return known
        whole = self._line.headers(self._subjects.durable(topic), data, {**(headers or {}), "Nats-Msg-Id": msg_id})
        self._events.append(_Event(topic, data, wall_s(), whole))
        seq = len(self._events)
        self._seen.add(msg_id, seq)
        self._bus.deliver(Note(self._subjects.event(topic), data, "", self._events[-1]))
        self._match_all()
        return seq

    def _match_all(self) -> None:
        for group in self._groups.values():
            self.match(group)

    async def consume(self, group: EventGroup, sink: Callable[[Delivery], None]) -> Feed:
        await self._line.answer()
        place = self._groups.get(group.name)
        if place is None:
            place = _Group(group.pattern, self._first_seq(group), group.lease_s)
            self._groups[group.name] = place
        place.pattern, place.lease_s = group.pattern, group.lease_s
        feed = _EventFeed(self, self._line, place, sink)
        place.feeds.append(feed)
        return feed

    def _first_seq(self, group: EventGroup) -> int:
        match check_start(group.start):
            case "new":
                return len(self._events) + 1
            case "first":
                return 1
            case int(seq):
                return seq
            case float(at_s):
                return bisect.bisect_left(self._events, at_s, key=lambda event: event.at_s) + 1

    async def forget(self, name: str) -> None:
        await self._line.answer()
        group = self._groups.pop(name, None)
        if group is not None:
            group.feeds.clear()

    def match(self, group: _Group) -> None:
        """Hand waiting events to members that want some, in order, each member in its turn."""
        while feed := next((feed for feed in group.feeds if feed.wanted > 0 and feed.line.up), None):
            seq = self._next_of(group)
            if seq is None:
                return
            group.feeds.remove(feed)
            group.feeds.append(feed)
            feed.wanted -= 1
            group.delivered[seq] += 1
            event = self._events[seq - 1]
            lease = _EventLease(self, feed.line, group, seq)
            feed.sink(Delivery(self._subjects.durable(event.topic), event.data, lease, seq, event, event.at_s))

    def _next_of(self, group: _Group) -> int | None:
        if group.returned:
            return group.returned.pop(0)
        while group.next_seq <= len(self._events):
            seq, group.next_seq = group.next_seq, group.next_seq + 1
            if matches(group.pattern, self._events[seq - 1].topic):
                return seq
        return None
