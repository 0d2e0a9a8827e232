"""The roles the rules need from the outside. `bridge` implements each, once for real and once in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from squadron.runtime.deployment import AgentState, Deployment

Headers = Mapping[str, str]


class Clock(Protocol):
    """Time, so that tests can turn it."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a journal. `seq` is its place in the whole journal and grows."""

    seq: int
    key: str
    data: bytes
    headers: Headers = field(default_factory=dict)


class Lease(Protocol):
    """The right to work on one delivery, until it is settled, released, or runs out."""

    @property
    def delivered(self) -> int:
        """Which delivery of this message it is, from 1."""
        ...

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
        """Allow `count` more deliveries; there is one slot free for each."""
        ...

    async def aclose(self) -> None:
        """Stop pulling; deliveries that were wanted but did not come are forgotten. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The durable queue of one agent: all tasks whose topic matches one of `patterns`.

    `lease_s` is how long a silent replica keeps a task before it is given to another. A priority lane that was
    passed over for `patience_s` gets the next free slot of each replica. A `serial` mailbox leases one message
    at a time, over all its readers, in the order they were put.
    """

    name: str
    patterns: tuple[str, ...]
    lease_s: float = 2.5
    patience_s: float = 30.0
    serial: bool = False


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
        """Store one message; it is durable when this returns, and once per `msg_id` within two minutes.

        Raises:
            InvalidSubjectError: `subject` is not a task's.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; putting it again with the same `msg_id` is safe.
        """
        ...

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        """Pull from the mailbox; `sink` gets each delivery and must not block."""
        ...

    async def backlog(self, name: str) -> Backlog:
        """How much the mailbox holds now; zeros for an unknown name."""
        ...

    async def head(self, pattern: str) -> int:
        """Sequence of the oldest message that is not settled, of those whose subject matches; 0 for none."""
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
        """The newest entry of one key."""
        ...

    async def latest(self, pattern: str) -> list[Entry]:
        """The newest entry of each key that matches, oldest first."""
        ...

    def read(self, pattern: str, *, from_seq: int = 1, live: bool = False) -> AsyncGenerator[Entry, None]:
        """Entries in order from `from_seq` on; `live` waits for more instead of ending.

        Nothing is skipped or repeated, over reconnects too.
        """
        ...

    async def erase(self, key: str) -> None:
        """Remove all entries of one key."""
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
        """Send to whoever listens now."""
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

    async def states(self) -> dict[str, AgentState]:
        """How each agent is doing, by name."""
        ...

    async def capacity(self) -> int:
        """How many replicas the cluster's memory holds at most, over all agents."""
        ...
