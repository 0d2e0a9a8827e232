"""`Queue` in memory, and the `Store` it is built on."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Self
from weakref import WeakValueDictionary

from squadron.bridge.memory.bus import Headed, MemoryBus
from squadron.bridge.memory.common import Seen, check_size, now_s, wall_s
from squadron.bridge.memory.line import Line
from squadron.runtime.errors import InvalidMessageError, RouteConflictError
from squadron.runtime.ports.bus import Note
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import SERIAL_AT_ONCE, Backlog, Delivery, Feed, Lease, Mailbox
from squadron.runtime.wire.subjects import check_queued, lane_of, matches, overlap, subject_matches


@dataclass
class _Task:
    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    delivered: int = 0
    begun: int = 0
    has_begun: bool = False
    ready: bool = True
    put_at: float = field(default_factory=now_s)
    stored_at: float = field(default_factory=wall_s)
    #: When its lease lapses, if it has one.
    timer: asyncio.TimerHandle | None = None
    #: The feed that was given it last.
    holder: _QueueFeed | None = None
    #: What it asks for; empty for what only the ordering of conversations put here.
    topic: str = field(init=False)

    def __post_init__(self) -> None:
        kind, *topic = self.subject.split(".")[2:5]
        self.topic = ".".join(topic) if kind in ("task", "query") else ""

    @property
    def priority(self) -> int:
        return lane_of(self.subject)


class _QueueLease:
    sure_from = 0.0

    def __init__(self, queue: MemoryQueue, line: Line, task: _Task, lease_s: float) -> None:
        self._queue, self._line, self._task, self._lease_s = queue, line, task, lease_s
        self.delivered, self.first = task.delivered, task.delivered == 1
        self.token = f"{task.seq}.{task.delivered}"
        self._begun = self._is_back = False
        self._arm(lease_s)

    def over(self, line: Line) -> _QueueLease:
        """The same, in the hands of another process."""
        view = copy.copy(self)
        view._line = line
        return view

    def _arm(self, after_s: float) -> None:
        if self._task.delivered == self.delivered:
            if self._task.timer is not None:
                self._task.timer.cancel()
            loop = asyncio.get_running_loop()
            self._task.timer = loop.call_later(after_s, self._queue.give_back, self._task, self.delivered)

    async def begin(self) -> int:
        if not self.first:
            await self._line.answer()
        self._task.begun += 1
        self._begun = self._task.has_begun = True
        return self._task.begun

    async def begun_before(self) -> bool:
        if not self.first:
            await self._line.answer()
        return self._task.has_begun

    async def progressed(self) -> None:
        await self._line.answer()
        self._task.begun, self._begun = 0, False

    async def settle(self, *, confirmed: bool = False) -> None:
        if confirmed:
            await self._line.answer()
        self._line.send(lambda: self._queue.drop(self._task))

    async def extend(self) -> None:
        if not self._is_back:
            self._line.send(lambda: self._arm(self._lease_s))

    async def release(self, after_s: float = 0.0) -> None:
        self._is_back = True
        self._line.send(lambda: self._arm(after_s))

    @property
    def wake_token(self) -> str:
        return self.token

    async def park(self, after_s: float) -> None:
        await self._line.answer()
        self._task.begun -= self._begun
        self._is_back = True
        self._arm(after_s)


class _QueueFeed:
    def __init__(self, queue: MemoryQueue, line: Line, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> None:
        self.queue, self.line, self.mailbox, self.sink, self.wanted = queue, line, mailbox, sink, 0
        #: When each lane was last taken from.
        self.served_at: dict[int, float] = {}

    def want(self, count: int) -> None:
        self.wanted += count
        self.queue.match()

    async def aclose(self) -> None:
        self.wanted = 0
        self.queue.forget(self)


class MemoryQueue:
    """`Queue` in one process."""

    def __init__(self, bus: MemoryBus | None = None, line: Line | None = None) -> None:
        self._bus = bus
        self._tasks: dict[int, _Task] = {}
        self._mailboxes: dict[str, Mailbox] = {}
        #: What each mailbox that was looked into holds.
        self._held_by: dict[str, dict[int, _Task]] = {}
        self._feeds: list[_QueueFeed] = []
        self._seen = Seen()
        self._leases: WeakValueDictionary[str, _QueueLease] = WeakValueDictionary()
        self._seqs = itertools.count(1)
        self._take(line or Line())

    def _take(self, line: Line) -> None:
        self._line = line
        line.resumed.append(self.match)

    def over(self, line: Line) -> Self:
        """The same, as one process sees it over its own line."""
        view = copy.copy(self)
        view._take(line)
        return view

    async def declare(self, mailbox: Mailbox) -> None:
        await self._line.answer()
        for other in self._mailboxes.values():
            if other.name == mailbox.name:
                continue
            for mine in mailbox.patterns:
                for theirs in other.patterns:
                    if overlap(mine, theirs):
                        raise RouteConflictError(f"{mine!r} of {mailbox.name} overlaps {theirs!r} of {other.name}")
        self._mailboxes[mailbox.name] = mailbox
        self._held_by.pop(mailbox.name, None)

    async def remove(self, name: str) -> None:
        await self._line.answer()
        self._mailboxes.pop(name, None)
        self._held_by.pop(name, None)

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> None:
        check_queued(subject)
        check_size(data)
        await self._line.answer()
        self._store(subject, data, msg_id, headers, signed=signed)

    def _store(
        self, subject: str, data: bytes, msg_id: str, given: Mapping[str, str] | None, *, signed: bool = True
    ) -> int:
        headers = {**(given or {}), **({"Nats-Msg-Id": msg_id} if msg_id else {})}
        if signed:
            headers = self._line.headers(subject, data, headers)
        if self._bus is not None:
            # Who listens hears what a server is sent, also what that has already.
            self._bus.deliver(Note(subject, data, "", Headed(headers)))
        if self._seen.seq(msg_id or None) is not None:
            return 0
        seq = next(self._seqs)
        self._seen.add(msg_id or None, seq)
        task = self._tasks[seq] = _Task(seq, subject, data, headers)
        for name, held in self._held_by.items():
            if self._belongs(task, self._mailboxes[name]):
                held[seq] = task
        self.match()
        return seq

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        feed = _QueueFeed(self, self._line, mailbox, sink)
        self._feeds.append(feed)
        return feed

    async def wake(self, token: str) -> None:
        await self._line.answer()
        try:
            seq, _ = map(int, token.split("."))
        except ValueError:
            raise InvalidMessageError(f"{token[:80]!r} is no lease") from None
        if task := self._tasks.get(seq):
            self.give_back(task, task.delivered)

    def take_over(self, token: str) -> Lease:
        try:
            return self._leases[token].over(self._line)
        except KeyError:
            raise InvalidMessageError(f"{token[:80]!r} is no lease") from None

    async def backlog(self, name: str) -> Backlog:
        await self._line.answer()
        mailbox = self._mailboxes.get(name)
        if mailbox is None:
            return Backlog()
        held = self._held(mailbox)
        waiting = sum(task.ready for task in held)
        return Backlog(waiting, len(held) - waiting)

    async def knows(self, name: str) -> bool:
        await self._line.answer()
        return name in self._mailboxes

    async def put_alone(
        self,
        subject: str,
        data: bytes,
        *,
        among: str = "",
        msg_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> int:
        check_queued(subject)
        check_size(data)
        await self._line.answer()
        # With nothing in between: two who put it at once are one.
        if any(subject_matches(among or subject, task.subject) for task in self._tasks.values()):
            return 0
        return self._store(subject, data, msg_id, headers)

    async def head(self, pattern: str) -> Entry | None:
        await self._line.answer()
        # A dictionary keeps the order in which it was filled, which is that of the sequences.
        held = (task for task in self._tasks.values() if subject_matches(pattern, task.subject))
        return next(
            (Entry(each.seq, each.subject, each.data, each.headers, each.stored_at) for each in held), None
        )

    async def count(self, pattern: str) -> int:
        await self._line.answer()
        return sum(subject_matches(pattern, task.subject) for task in self._tasks.values())

    async def discard(self, seq: int) -> None:
        await self._line.answer()
        self._remove(seq)
        self.match()

    async def holds(self, pattern: str) -> bool:
        return await self.count(pattern) > 0

    def _remove(self, seq: int) -> None:
        for tasks in (self._tasks, *self._held_by.values()):
            tasks.pop(seq, None)

    def _held(self, mailbox: Mailbox) -> Collection[_Task]:
        """What a mailbox holds, the oldest first."""
        held = self._held_by.get(mailbox.name)
        if held is None:
            here = (task for task in self._tasks.values() if self._belongs(task, mailbox))
            held = self._held_by[mailbox.name] = {task.seq: task for task in here}
        return held.values()

    def _belongs(self, task: _Task, mailbox: Mailbox) -> bool:
        if mailbox.subject:
            return subject_matches(mailbox.subject, task.subject)
        return bool(task.topic) and any(matches(pattern, task.topic) for pattern in mailbox.patterns)

    def match(self) -> None:
        """Hand waiting tasks to feeds that want some, highest priority first, each feed in its turn."""
        while (found := self._pair()) is not None:
            feed, task = found
            self._feeds.remove(feed)
            self._feeds.append(feed)
            task.ready, task.delivered, task.holder = False, task.delivered + 1, feed
            feed.wanted -= 1
            feed.served_at[task.priority] = now_s()
            # As it was declared, whatever who pulls believes.
            lease = _QueueLease(self, feed.line, task, self._mailboxes[feed.mailbox.name].lease_s)
            self._leases[lease.token] = lease
            feed.sink(Delivery(task.subject, task.data, lease, task.seq, task, task.stored_at))

    def _pair(self) -> tuple[_QueueFeed, _Task] | None:
        for feed in self._feeds:
            mailbox = self._mailboxes.get(feed.mailbox.name)
            if (
                feed.wanted > 0
                and feed.line.up
                and mailbox is not None
                and (task := self._next(feed, mailbox)) is not None
            ):
                return feed, task
        return None

    def _next(self, feed: _QueueFeed, mailbox: Mailbox) -> _Task | None:
        held = self._held(mailbox)
        waiting = [task for task in held if task.ready]
        if mailbox.serial:
            elsewhere = any(not task.ready and task.holder is not feed for task in held)
            full = len(held) - len(waiting) >= SERIAL_AT_ONCE
            return None if elsewhere or full or not waiting else waiting[0]
        before = now_s() - mailbox.patience_s
        neglected = [t for t in waiting if max(t.put_at, feed.served_at.get(t.priority, 0)) < before]
        return min(neglected or waiting, key=lambda task: (-task.priority, task.seq), default=None)

    def give_back(self, task: _Task, delivered: int) -> None:
        """A lease ended: the task is free again, unless it was delivered anew since."""
        if task.seq in self._tasks and task.delivered == delivered:
            task.ready = True
            self.match()

    def drop(self, task: _Task) -> None:
        """A task was settled."""
        if task.timer is not None:
            task.timer.cancel()
        self._remove(task.seq)
        # A serial mailbox waits for it.
        self.match()

    def forget(self, feed: _QueueFeed) -> None:
        """A feed was closed."""
        if feed in self._feeds:
            self._feeds.remove(feed)
