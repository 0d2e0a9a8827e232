"""`EventLog` in memory, held to the same contract as JetStream's."""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from squadron.bridge.memory.bus import MemoryBus
from squadron.bridge.memory.common import Seen, check_size, wall_s
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

    def __init__(self, log: MemoryEventLog, group: _Group, seq: int) -> None:
        self._log, self._group, self._seq = log, group, seq
        self.delivered = group.delivered[seq]
        self.first = self.delivered == 1
        self._timer = self._arm(group.lease_s)

    def _arm(self, after_s: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(after_s, self._lapse)

    def _lapse(self) -> None:
        if self._group.give_back(self._seq, self.delivered):
            self._log.match(self._group)

    async def begin(self) -> int:
        self._group.begun[self._seq] += 1
        return self._group.begun[self._seq]

    async def settle(self, *, confirmed: bool = False) -> None:
        self._timer.cancel()
        self._group.delivered.pop(self._seq, None)
        self._group.begun.pop(self._seq, None)
        if self._seq in self._group.returned:
            self._group.returned.remove(self._seq)

    async def extend(self) -> None:
        self._timer.cancel()
        self._timer = self._arm(self._group.lease_s)

    async def release(self, after_s: float = 0.0) -> None:
        self._timer.cancel()
        self._timer = self._arm(after_s)


class _EventFeed:
    def __init__(self, log: MemoryEventLog, group: _Group, sink: Callable[[Delivery], None]) -> None:
        self._log, self._group, self.sink, self.wanted = log, group, sink, 0

    def want(self, count: int) -> None:
        self.wanted += count
        self._log.match(self._group)

    async def aclose(self) -> None:
        self.wanted = 0
        if self in self._group.feeds:
            self._group.feeds.remove(self)


class MemoryEventLog:
    """`EventLog` in one process; events are also heard live on `bus`."""

    def __init__(self, bus: MemoryBus, subjects: Subjects) -> None:
        self._bus, self._subjects = bus, subjects
        self._events: list[_Event] = []
        self._seen = Seen()
        self._groups: dict[str, _Group] = {}

    async def append(self, topic: str, data: bytes, *, msg_id: str) -> int:
        check_size(data)
        if (known := self._seen.seq(msg_id)) is not None:
            return known
        self._events.append(_Event(topic, data, wall_s()))
        seq = len(self._events)
        self._seen.add(msg_id, seq)
        self._bus.deliver(Note(self._subjects.event(topic), data))
        for group in self._groups.values():
            self.match(group)
        return seq

    async def consume(self, group: EventGroup, sink: Callable[[Delivery], None]) -> Feed:
        place = self._groups.get(group.name)
        if place is None:
            place = _Group(group.pattern, self._first_seq(group), group.lease_s)
            self._groups[group.name] = place
        place.pattern, place.lease_s = group.pattern, group.lease_s
        feed = _EventFeed(self, place, sink)
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
        group = self._groups.pop(name, None)
        if group is not None:
            group.feeds.clear()

    def match(self, group: _Group) -> None:
        """Hand waiting events to members that want some, in order, each member in its turn."""
        while feed := next((feed for feed in group.feeds if feed.wanted > 0), None):
            seq = self._next_of(group)
            if seq is None:
                return
            group.feeds.remove(feed)
            group.feeds.append(feed)
            feed.wanted -= 1
            group.delivered[seq] += 1
            event = self._events[seq - 1]
            lease = _EventLease(self, group, seq)
            feed.sink(Delivery(self._subjects.durable(event.topic), event.data, lease, seq))

    def _next_of(self, group: _Group) -> int | None:
        if group.returned:
            return group.returned.pop(0)
        while group.next_seq <= len(self._events):
            seq, group.next_seq = group.next_seq, group.next_seq + 1
            if matches(group.pattern, self._events[seq - 1].topic):
                return seq
        return None
