"""All ports in memory: public stand-ins for tests and experiments, held to the same contract as JetStream.

What they keep dies with the process. They use the real codec: bytes go in, the same bytes come out.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from squadron.runtime.errors import (
    BusUnavailableError,
    FencedError,
    MessageTooLargeError,
    RouteConflictError,
)
from squadron.runtime.ports import Backlog, Delivery, Entry, Feed, Mailbox, Note, Subscription
from squadron.runtime.subjects import TaskSubject, matches, overlap

#: As in the embedded server's configuration.
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
#: As JetStream's default duplicate window, in seconds.
DUPLICATE_WINDOW_S = 120.0


def subject_matches(pattern: str, subject: str) -> bool:
    """NATS matching: `*` is one token, a last `>` is one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(given) > i
        if i >= len(given) or token not in ("*", given[i]):
            return False
    return len(wanted) == len(given)


class _Seen:
    """Message ids of the last two minutes, each with the sequence it was stored under."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def seq(self, msg_id: str | None) -> int | None:
        """The sequence of a message id that was seen before."""
        now = time.monotonic()
        while self._ids and next(iter(self._ids.values()))[0] < now - DUPLICATE_WINDOW_S:
            self._ids.popitem(last=False)
        known = None if msg_id is None else self._ids.get(msg_id)
        return None if known is None else known[1]

    def add(self, msg_id: str | None, seq: int) -> None:
        """Remember a message id."""
        if msg_id is not None:
            self._ids[msg_id] = time.monotonic(), seq


def _check_size(data: bytes) -> None:
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MessageTooLargeError(f"{len(data)} bytes are more than {MAX_PAYLOAD_BYTES}")


@dataclass
class _Task:
    seq: int
    subject: str
    data: bytes
    delivered: int = 0
    begun: int = 0
    ready: bool = True
    put_at: float = field(default_factory=time.monotonic)

    @property
    def priority(self) -> int:
        return TaskSubject.parse(self.subject).priority


class _MemoryLease:
    def __init__(self, queue: MemoryQueue, task: _Task, lease_s: float) -> None:
        self._queue, self._task, self._lease_s = queue, task, lease_s
        self.delivered, self.first = task.delivered, task.delivered == 1
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


class _MemoryFeed:
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
        self._feeds: list[_MemoryFeed] = []
        self._seen = _Seen()
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
        TaskSubject.parse(subject)
        _check_size(data)
        if self._seen.seq(msg_id) is not None:
            return
        self._seen.add(msg_id, self._next_seq)
        self._tasks[self._next_seq] = _Task(self._next_seq, subject, data)
        self._next_seq += 1
        self.match()

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        feed = _MemoryFeed(self, mailbox, sink)
        self._feeds.append(feed)
        return feed

    async def backlog(self, name: str) -> Backlog:
        mailbox = self._mailboxes.get(name)
        if mailbox is None:
            return Backlog()
        held = [task for task in self._tasks.values() if self._belongs(task, mailbox)]
        waiting = sum(task.ready for task in held)
        return Backlog(waiting, len(held) - waiting)

    async def head(self, pattern: str) -> int:
        held = (seq for seq, task in self._tasks.items() if subject_matches(pattern, task.subject))
        return min(held, default=0)

    def _belongs(self, task: _Task, mailbox: Mailbox) -> bool:
        topic = TaskSubject.parse(task.subject).topic
        return any(matches(pattern, topic) for pattern in mailbox.patterns)

    def match(self) -> None:
        """Hand waiting tasks to feeds that want some, highest priority first, each feed in its turn."""
        while (found := self._pair()) is not None:
            feed, task = found
            self._feeds.remove(feed)
            self._feeds.append(feed)
            task.ready, task.delivered = False, task.delivered + 1
            feed.wanted -= 1
            feed.served_at[task.priority] = time.monotonic()
            lease = _MemoryLease(self, task, feed.mailbox.lease_s)
            feed.sink(Delivery(task.subject, task.data, lease, task.seq))

    def _pair(self) -> tuple[_MemoryFeed, _Task] | None:
        for feed in self._feeds:
            mailbox = self._mailboxes.get(feed.mailbox.name)
            if feed.wanted > 0 and mailbox is not None and (task := self._next(feed, mailbox)) is not None:
                return feed, task
        return None

    def _next(self, feed: _MemoryFeed, mailbox: Mailbox) -> _Task | None:
        held = [task for task in self._tasks.values() if self._belongs(task, mailbox)]
        waiting = [task for task in held if task.ready]
        if mailbox.serial:
            return waiting[0] if waiting and len(waiting) == len(held) else None
        before = time.monotonic() - mailbox.patience_s
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

    def forget(self, feed: _MemoryFeed) -> None:
        """A feed was closed."""
        if feed in self._feeds:
            self._feeds.remove(feed)


@dataclass
class _Stored:
    entry: Entry
    expires_at: float


@dataclass
class MemoryBus:
    """`UnreliableBus` in one process."""

    _subscriptions: list[_MemorySubscription] = field(default_factory=list)
    _turn: int = 0

    async def publish(self, subject: str, data: bytes) -> None:
        self.deliver(Note(subject, data))

    def deliver(self, note: Note) -> int:
        """Hand a note to all who listen; returns how many heard it."""
        heard = [s for s in self._subscriptions if subject_matches(s.pattern, note.subject)]
        groups: dict[str, list[_MemorySubscription]] = {}
        for subscription in heard:
            groups.setdefault(subscription.group or str(id(subscription)), []).append(subscription)
        self._turn += 1
        loop = asyncio.get_running_loop()
        for members in groups.values():
            loop.call_soon(members[self._turn % len(members)].hear, note)
        return len(groups)

    async def subscribe(self, pattern: str, sink: Callable[[Note], None], *, group: str = "") -> Subscription:
        subscription = _MemorySubscription(self, pattern, sink, group)
        self._subscriptions.append(subscription)
        return subscription

    async def request(self, subject: str, data: bytes, *, within_s: float) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        inbox = f"_INBOX.{id(answer)}"

        def hear(note: Note) -> None:
            if not answer.done():
                answer.set_result(note.data)

        listening = await self.subscribe(inbox, hear)
        try:
            if not self.deliver(Note(subject, data, inbox)):
                raise BusUnavailableError(f"nobody listens on {subject}")
            return await asyncio.wait_for(answer, within_s)
        except TimeoutError:
            raise BusUnavailableError(f"no answer on {subject} within {within_s:g} s") from None
        finally:
            await listening.aclose()

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Nothing to do: it is never disconnected."""

    def remove(self, subscription: _MemorySubscription) -> None:
        """A subscription was closed."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)


class _MemorySubscription:
    def __init__(self, bus: MemoryBus, pattern: str, sink: Callable[[Note], object], group: str) -> None:
        self._bus, self.pattern, self._sink, self.group = bus, pattern, sink, group
        self._closed = False

    def hear(self, note: Note) -> None:
        if not self._closed:
            self._sink(note)

    async def aclose(self) -> None:
        self._closed = True
        self._bus.remove(self)


class MemoryJournal:
    """`Journal` in one process; entries are also heard live on `bus`, as JetStream's are."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._entries: list[_Stored] = []
        self._grown = asyncio.Event()
        self._seen = _Seen()
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
        _check_size(data)
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

    async def erase(self, key: str) -> None:
        self._entries = [stored for stored in self._entries if stored.entry.key != key]
