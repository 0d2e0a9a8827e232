"""Leased work, at least once: mailboxes, deliveries, leases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from squadron.runtime.ports.bus import Carrier
from squadron.runtime.ports.journal import Entry

#: How far the clocks of a server and its clients may differ, in seconds.
CLOCKS_S = 1.0
#: Messages of a serial mailbox that are leased at once: enough that its reader waits for the server once for many,
#: and few enough that one who died holds up little.
SERIAL_AT_ONCE = 64


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

    @property
    def sure_from(self) -> float:
        """The server has forgotten nothing of what was stored later than this, in seconds since the epoch."""
        ...

    async def begin(self) -> int:
        """Note that the work begins; returns which beginning it is, from 1.

        A delivery that was handed back before it began does not count.
        """
        ...

    async def begun_before(self) -> bool:
        """Whether the work may have begun in an earlier delivery, also where that beginning does not count.

        Asked before `begin`.

        Raises:
            BusUnavailableError: nobody knows.
        """
        ...

    async def progressed(self) -> None:
        """The work has come further, and what was done is kept: beginnings up to now don't count any more.

        Raises:
            BusUnavailableError: not acknowledged in time.
        """
        ...

    async def settle(self, *, confirmed: bool = False) -> None:
        """The work is done for good: the message leaves the queue, soon or, if `confirmed`, before this returns.

        Raises:
            BusUnavailableError: only if `confirmed`: the server did not say so in time.
        """
        ...

    async def extend(self) -> None:
        """Start the lease's time anew; nothing once it was handed back."""
        ...

    async def release(self, after_s: float = 0.0) -> None:
        """Hand the message back; it is delivered again after `after_s` seconds, to anyone."""
        ...

    @property
    def wake_token(self) -> str:
        """What `Queue.wake` takes, once it is parked."""
        ...

    async def park(self, after_s: float) -> None:
        """Hand the message back for long: as `release`, but it may be woken, and the work did not begin.

        The server keeps it for as long, and knows so when this returns.

        Raises:
            BusUnavailableError: the server did not say so in time; the lease may go on.
        """
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """A leased message: it is ours until the lease ends.

    Attributes:
        seq: its place in the queue, over all mailboxes.
        stored_at: when the queue stored it, in seconds since the epoch.
        place: where it lies there, if that is not `subject`.
        behind: how many more waited when it was delivered; 0 if that is not known, or if what is next may change.
    """

    subject: str
    data: bytes
    lease: Lease
    seq: int
    carrier: Carrier | None = field(default=None, compare=False)
    stored_at: float = 0.0
    place: str = ""
    behind: int = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that it was put with, and those that the server added."""
        return self.carrier.headers if self.carrier is not None else {}


#: Header of a message that was a dead letter: the `traceparent` of its earlier life. The new one is a new trace.
EARLIER_TRACE = "squadron-earlier-trace"


def sent_with(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that go along when a message is put once more: the trace, and nothing that is the server's."""
    return {name: headers[name] for name in ("traceparent", "tracestate", EARLIER_TRACE) if name in headers}


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
    passed over for `patience_s` gets the next free slot of each replica. A `serial` mailbox gives out
    its messages in the order they were put, `SERIAL_AT_ONCE` at once, and none to a reader as long as another has
    an earlier one. An `ordered` one runs the tasks of each conversation one at a time
    (`runtime.running.ordered`). With `subject` it holds what matches that, and no topics.
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

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> None:
        """Store one message; it is durable when this returns, and once per `msg_id` (if any) within two minutes.

        Args:
            headers: that its deliveries have.
            signed: whether it is signed, if this process signs.

        Raises:
            InvalidSubjectError: `subject` is not a task's.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; putting it again with the same `msg_id` is safe.
        """
        ...

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        """Pull from the mailbox; `sink` gets each delivery and must not block."""
        ...

    async def wake(self, token: str) -> None:
        """Have a message that was parked delivered now; one that is settled stays so.

        One that was delivered again since is taken from whoever has it.

        Raises:
            InvalidMessageError: that is no token of a lease.
            BusUnavailableError: the server did not say so in time; trying again is safe.
        """
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

    async def put_alone(
        self,
        subject: str,
        data: bytes,
        *,
        among: str = "",
        msg_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Store one message, unless one of exactly this subject is stored already, or one that matches `among`.

        Returns its sequence; 0 if it was not stored, because of such a one or because its `msg_id` is known.

        Raises:
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; trying again is safe.
        """
        ...

    async def head(self, pattern: str) -> Entry | None:
        """The oldest message whose subject matches, leased or not; all that was acknowledged before counts.

        Raises:
            BusUnavailableError: no answer in time.
        """
        ...

    async def holds(self, pattern: str) -> bool:
        """Whether there is such a `head`, of a pattern that has no `>`; costs less than to read it."""
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
