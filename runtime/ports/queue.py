"""The roles the rules need from the outside. `bridge` implements each, once for real and once in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from squadron.runtime.running.event_turns import EventGroup
    from squadron.runtime.wire.deployment import AgentState, Deployment

Headers = Mapping[str, str]

#: Above the first a payload travels as a claim, above the second not at all; settings may say otherwise.
OVER_BYTES, MOST_BYTES = 512 * 1024, 128 * 1024 * 1024


class Clock(Protocol):
    """Time, so that tests can turn it."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a journal.

    Attributes:
        seq: its place in the whole journal; it grows.
        time: when it was stored, in seconds since the epoch.
        previous: as it was stored, the sequence of the key's newest entry before it, 0 if there was none. Only
            `Journal.follow` knows it; -1 if unknown.
    """

    seq: int
    key: str
    data: bytes
    headers: Headers = field(default_factory=dict)
    time: float = 0.0
    previous: int = -1


class Lease(Protocol):
    """The right to work on one delivery, until it is settled, released, or runs out."""

    @property
    def delivered(self) -> int:
        """Which delivery of this message it is, from 1."""
        ...

    @property
    def token(self) -> str:
        """What `Queue.take_over` takes; empty if it stays here."""

    @property
    def first(self) -> bool:
        """Whether it is surely the first one: a killed server forgets what it delivered in its last moments."""
        ...

    async def begin(self) -> int:
        """Note that the work begins; returns which beginning it is, from 1.

        A delivery that was handed back before it began does not count.
        """
        ...

    async def settle(self, *, confirmed: bool = False) -> None:
        """The work is done for good: the message leaves the queue, soon or, if `confirmed`, before this returns.

        Raises:
            BusUnavailableError: only if `confirmed`: the server did not say so in time.
        """
        ...

    async def extend(self) -> None:
        """Start the lease's time anew."""
        ...

    async def release(self, after_s: float = 0.0) -> None:
        """Hand the message back; it is delivered again after `after_s` seconds, to anyone."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """A leased message: it is ours until the lease ends. `seq` is its place in the queue, over all mailboxes."""

    subject: str
    data: bytes
    lease: Lease
    seq: int


class Feed(Protocol):
    """A running pull on a mailbox: delivers no more than was wanted."""

    def want(self, count: int) -> None:
        """Allow `count` more deliveries, or fewer if negative; there is one slot free for each."""
        ...

    async def aclose(self) -> None:
        """Stop pulling; deliveries that were wanted but did not come are forgotten. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The durable queue of one agent: all tasks whose topic matches one of `patterns`.

    `lease_s` is how long a silent replica keeps a task before it is given to another. A priority lane that was
    passed over for `patience_s` gets the next free slot of each replica. A `serial` mailbox leases one message
    at a time, over all its readers, in the order they were put. An `ordered` one runs the tasks of each
    conversation one at a time (`runtime.ordered`). With `subject` it holds what matches that, and no topics.
    """

    name: str
    patterns: tuple[str, ...]
    lease_s: float = 2.5
    patience_s: float = 30.0
    serial: bool = False
    ordered: bool = False
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much a mailbox holds: `waiting` for a slot, and `taken` but not settled."""

    waiting: int = 0
    taken: int = 0


class Queue(Protocol):
    """Leased work, at least once: what is put stays until it is settled."""

    async def declare(self, mailbox: Mailbox) -> None:
        """Make the mailbox, or change it to fit; keeps what it holds.

        Raises:
            RouteConflictError: another mailbox already serves an overlapping pattern.
        """
        ...

    async def remove(self, name: str) -> None:
        """Forget a mailbox; what it holds stays in the queue for a later one. Unknown names are fine."""
        ...

    async def put(self, subject: str, data: bytes, *, msg_id: str) -> None:
        """Store one message; it is durable when this returns, and once per `msg_id` (if any) within two minutes.

        Raises:
            InvalidSubjectError: `subject` is not a task's.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; putting it again with the same `msg_id` is safe.
        """
        ...

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        """Pull from the mailbox; `sink` gets each delivery and must not block."""
        ...

    def take_over(self, token: str) -> Lease:
        """The lease that another process holds and leaves alone from now on; InvalidMessageError if it is none."""

    async def backlog(self, name: str) -> Backlog:
        """How much the mailbox holds now; zeros for an unknown name."""
        ...


class Store(Queue, Protocol):
    """A queue that can be looked into, and whose messages can be taken out by hand."""

    async def knows(self, name: str) -> bool:
        """Whether there is a mailbox of this name."""
        ...

    async def put_alone(self, subject: str, data: bytes) -> None:
        """Store one message, unless one of exactly this subject is stored already.

        Raises:
            BusUnavailableError: not acknowledged in time; trying again is safe.
        """
        ...

    async def head(self, pattern: str) -> Entry | None:
        """The oldest message whose subject matches, leased or not; all that was acknowledged before counts.

        Raises:
            BusUnavailableError: no answer in time.
        """
        ...

    async def count(self, pattern: str) -> int:
        """How many messages have a subject that matches."""
        ...

    async def discard(self, seq: int) -> None:
        """Take one message out for good; one that is gone already is fine.

        Raises:
            BusUnavailableError: no answer in time; trying again is safe.
        """
        ...


class EventLog(Protocol):
    """Durable events: each is kept for a week, and delivered at least once to every group that wants it."""

    async def append(self, topic: str, data: bytes, *, msg_id: str) -> int:
        """Store one event and return its sequence; once per `msg_id` within two minutes.

        Whoever listens on the bus for plain events of this topic hears it as well (at most once).

        Raises:
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; appending it again with the same `msg_id` is safe.
        """
        ...

    async def consume(self, group: EventGroup, sink: Callable[[Delivery], None]) -> Feed:
        """Pull as a member of the group, which is made if it is new; `sink` gets each delivery and must not block.

        Events that wait are delivered in order; one that is delivered again may come behind newer ones. The
        newest pattern and lease count for all members. `Delivery.seq` is the event's sequence.

        Raises:
            BusUnavailableError: the server can't be reached, or refuses the group.
        """
        ...

    async def forget(self, name: str) -> None:
        """Delete a group with its place in the log; its members hear nothing more. Unknown names are fine."""
        ...


class Journal(Protocol):
    """A keyed log that can be read again: lite topics, the registry and dead letters are views of one."""

    async def append(
        self,
        key: str,
        data: bytes,
        *,
        ttl_s: float | None = None,
        msg_id: str | None = None,
        expect_seq: int | None = None,
    ) -> int:
        """Append one entry and return its sequence; it is stored when this returns.

        Args:
            ttl_s: life of the entry, rounded up to whole seconds (NATS ADR-43); None keeps it for the
                journal's own limit.
            msg_id: the same id within two minutes is stored once.
            expect_seq: refuse unless the key's last entry has this sequence (0: the key is empty).

        Raises:
            FencedError: `expect_seq` did not fit.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time.
        """
        ...

    async def last(self, key: str) -> Entry | None:
        """The newest entry of one key, or of all that match a pattern."""
        ...

    async def latest(self, pattern: str) -> list[Entry]:
        """The newest entry of each key that matches, oldest first."""
        ...

    def read(
        self, pattern: str, *, from_seq: int = 1, from_time: float | None = None, live: bool = False
    ) -> AsyncGenerator[Entry, None]:
        """Entries in order from `from_seq` on; `live` waits for more instead of ending.

        Nothing is skipped or repeated, over reconnects too.

        Args:
            from_time: instead, those stored at this time or later, in seconds since the epoch.
        """
        ...

    async def follow(
        self, pattern: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        """Hear of each entry right after it was stored, with `Entry.previous`; active on return.

        At most once: what is missed shows as an entry whose `previous` was never heard, and can be read. Only of
        lite topics and the registry; `sink` must not block.

        Args:
            lost: called when the connection is lost, before anything that came after it is heard: what is stored
                until it is back is not heard. It must not block.

        Raises:
            InvalidSubjectError: `pattern` is of neither.
            BusUnavailableError: the server can't be reached.
        """
        ...

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        """Remove all entries of one key, or those up to and with `through_seq`: what came since stays.

        Raises:
            BusUnavailableError: not acknowledged in time.
        """
        ...


class Vault(Protocol):
    """Where payloads wait that are too large for a message: the message carries only the name (a claim check)."""

    async def store(self, data: bytes, *, keep_s: float) -> str:
        """Keep `data` for `keep_s` seconds (rounded up to whole ones) and return its name; stored on return.

        Raises:
            BusUnavailableError: not acknowledged in time; nothing will be found under any name.
        """
        ...

    async def fetch(self, name: str) -> bytes:
        """What was stored under the name.

        Raises:
            ClaimLostError: it was dropped, its time is over, or it was never there.
            BusUnavailableError: no answer in time.
        """
        ...

    async def drop(self, name: str) -> None:
        """Forget it now. Unknown names are fine."""
        ...


class Subscription(Protocol):
    """A live subscription on the bus."""

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Note:
    """A message as the bus hands it over; `reply` is empty unless an answer is wanted."""

    subject: str
    data: bytes
    reply: str = ""


class UnreliableBus(Protocol):
    """At most once: who listens now hears it, nobody else ever does."""

    async def publish(self, subject: str, data: bytes) -> None:
        """Send to whoever listens now.

        Raises:
            MessageTooLargeError: larger than the server takes.
        """
        ...

    async def subscribe(self, pattern: str, sink: Callable[[Note], None], *, group: str = "") -> Subscription:
        """Hear everything on `pattern`; in a `group` each message reaches one member. Active on return."""
        ...

    async def request(self, subject: str, data: bytes, *, within_s: float) -> bytes:
        """Send and wait for one answer.

        Raises:
            BusUnavailableError: nobody listens, or no answer in time.
        """
        ...

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` each time the connection came back: something may have been missed."""
        ...


class Replicas(Protocol):
    """Who starts, heals, scales and stops the replicas of agents."""

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        """Run exactly these agents; what changed only in numbers is changed in place, without restarts.

        Raises:
            DeployError: the cluster refused the whole declaration.
        """
        ...

    async def states(self, wanted: Sequence[Deployment]) -> dict[str, AgentState]:
        """How each agent is doing, by name, and whether it runs by another declaration than is wanted."""
        ...

    async def capacity(self) -> int:
        """How many replicas the cluster's memory holds at most, over all agents."""
        ...
