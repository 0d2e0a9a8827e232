"""`Queue` in memory, and the `Store` it is built on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from squadron.bridge.memory.common import Seen, check_size, now_s, subject_matches
from squadron.runtime.errors import InvalidMessageError, RouteConflictError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Backlog, Delivery, Feed, Lease, Mailbox
from squadron.runtime.wire.subjects import check_queued, lane_of, matches, overlap


@dataclass
class _Task:
    seq: int
    subject: str
    data: bytes
    delivered: int = 0
    begun: int = 0
    ready: bool = True
    put_at: float = field(default_factory=now_s)
    #: What it asks for; empty for what only the ordering of conversations put here.
    topic: str = field(init=False)

    def __post_init__(self) -> None:
        kind, *topic = self.subject.split(".")[2:5]
        self.topic = ".".join(topic) if kind in ("task", "query") else ""

    @property
    def priority(self) -> int:
        return lane_of(self.subject)


class _QueueLease:
    def __init__(self, queue: MemoryQueue, task: _Task, lease_s: float) -> None:
        self._queue, self._task, self._lease_s = queue, task, lease_s
        self.delivered, self.first = task.delivered, task.delivered == 1
        self.token = f"{task.seq}.{task.delivered}"
        self._timer = self._arm(lease_s)

    def _arm(self, after_s: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(after_s, self._queue.give_back, self._task, self.delivered)

    async def begin(self) -> int:
        self._task.begun += 1
        return self._task.begun

    async def settle(self, *, confirmed: bool = False) -> None:
        self._timer.cancel()
        self._queue.drop(self._task)

    async def extend(self) -> None:
        self._timer.cancel()
        self._timer = self._arm(self._lease_s)

    async def release(self, after_s: float = 0.0) -> None:
        self._timer.cancel()
        self._timer = self._arm(after_s)


class _QueueFeed:
    def __init__(self, queue: MemoryQueue, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> None:
        self.queue, self.mailbox, self.sink, self.wanted = queue, mailbox, sink, 0
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

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}
        self._mailboxes: dict[str, Mailbox] = {}
        self._feeds: list[_QueueFeed] = []
        self._seen = Seen()
        self._leases: WeakValueDictionary[str, _QueueLease] = WeakValueDictionary()
        self._next_seq = 1

    async def declare(self, mailbox: Mailbox) -> None:
        for other in self._mailboxes.values():
            if other.name == mailbox.name:
                continue
            for mine in mailbox.patterns:
                for theirs in other.patterns:
                    if overlap(mine, theirs):
                        raise RouteConflictError(f"{mine!r} of {mailbox.name} overlaps {theirs!r} of {other.name}")
        self._mailboxes[mailbox.name] = mailbox

    async def remove(self, name: str) -> None:
        self._mailboxes.pop(name, None)

    async def put(self, subject: str, data: bytes, *, msg_id: str) -> None:
        check_queued(subject)
        check_size(data)
        if self._seen.seq(msg_id or None) is not None:
            return
        self._seen.add(msg_id or None, self._next_seq)
        self._tasks[self._next_seq] = _Task(self._next_seq, subject, data)
        self._next_seq += 1
        self.match()

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        feed = _QueueFeed(self, mailbox, sink)
        self._feeds.append(feed)
        return feed

    def take_over(self, token: str) -> Lease:
        try:
            return self._leases[token]
        except KeyError:
            raise InvalidMessageError(f"{token[:80]!r} is no lease") from None

    async def backlog(self, name: str) -> Backlog:
        mailbox = self._mailboxes.get(name)
        if mailbox is None:
            return Backlog()
        held = [task for task in self._tasks.values() if self._belongs(task, mailbox)]
        waiting = sum(task.ready for task in held)
        return Backlog(waiting, len(held) - waiting)

    async def knows(self, name: str) -> bool:
        return name in self._mailboxes

    async def put_alone(self, subject: str, data: bytes) -> None:
        if not await self.count(subject):
            await self.put(subject, data, msg_id="")

    async def head(self, pattern: str) -> Entry | None:
        # A dictionary keeps the order in which it was filled, which is that of the sequences.
        held = (task for task in self._tasks.values() if subject_matches(pattern, task.subject))
        return next((Entry(task.seq, task.subject, task.data) for task in held), None)

    async def count(self, pattern: str) -> int:
        return sum(subject_matches(pattern, task.subject) for task in self._tasks.values())

    async def discard(self, seq: int) -> None:
        self._tasks.pop(seq, None)
        self.match()

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
            task.ready, task.delivered = False, task.delivered + 1
            feed.wanted -= 1
            feed.served_at[task.priority] = now_s()
            # As it was declared, whatever who pulls believes.
            lease = _QueueLease(self, task, self._mailboxes[feed.mailbox.name].lease_s)
            self._leases[lease.token] = lease
            feed.sink(Delivery(task.subject, task.data, lease, task.seq))

    def _pair(self) -> tuple[_QueueFeed, _Task] | None:
        for feed in self._feeds:
            mailbox = self._mailboxes.get(feed.mailbox.name)
            if feed.wanted > 0 and mailbox is not None and (task := self._next(feed, mailbox)) is not None:
                return feed, task
        return None

    def _next(self, feed: _QueueFeed, mailbox: Mailbox) -> _Task | None:
        held = [task for task in self._tasks.values() if self._belongs(task, mailbox)]
        waiting = [task for task in held if task.ready]
        if mailbox.serial:
            return waiting[0] if waiting and len(waiting) == len(held) else None
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
        self._tasks.pop(task.seq, None)
        # A serial mailbox waits for it.
        self.match()

    def forget(self, feed: _QueueFeed) -> None:
        """A feed was closed."""
        if feed in self._feeds:
            self._feeds.remove(feed)
