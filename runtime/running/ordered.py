"""Order where asked: the tasks of a conversation run one at a time, in the order in which they were published.

A task of an ordered mailbox goes two steps. The *intake*, which one replica reads at a time, puts each task in the
*line* of its conversation. The head of each line has one *ticket*, a message with a lease: who holds it runs the
head, takes it off the line, makes the ticket of the next head, and only then settles its own. Whoever dies,
between any two steps, leaves a lease that ends; the next who gets the message goes on where the dead one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from squadron.runtime.background import spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    InvalidSubjectError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import CLOCKS_S, Backlog, Delivery, Feed, Lease, Mailbox, Store
from squadron.runtime.retries import traceback_of
from squadron.runtime.running.line_intake import LineIntake
from squadron.runtime.running.line_numbers import number_of
from squadron.runtime.running.waiting_lines import (
    CALLED,
    CALLED_WITHIN_S,
    FRESH,
    IN_LINE,
    STANDS_AT,
    WaitingLines,
    line_box,
    ticket_box,
)
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.subjects import OrderedSubject, Subjects, TicketSubject

#: How often a mailbox that is ordered no more looks whether anybody is left in line, in seconds.
LEFTIN_LINE_LOOK_S = 1.0
#: In the token of a lease between that of a ticket and the ticket's subject.
_WITH_PLACE = "@"


@dataclass(frozen=True, slots=True)
class _TurnLease:
    """The lease of a head: that of its ticket."""

    lines: WaitingLines
    place: TicketSubject
    ticket: Lease
    #: Whether the task was surely begun by nobody before this ticket was made.
    fresh: bool = False

    @property
    def delivered(self) -> int:
        return self.ticket.delivered

    @property
    def token(self) -> str:
        # A place in line goes with its ticket.
        return f"{self.ticket.token}{_WITH_PLACE}{self.place}"

    @property
    def first(self) -> bool:
        # Of the ticket alone it would say nothing about the task.
        return self.fresh and self.ticket.first

    @property
    def sure_from(self) -> float:
        return self.ticket.sure_from

    async def begin(self) -> int:
        return await self.ticket.begin()

    async def begun_before(self) -> bool:
        return await self.ticket.begun_before()

    async def progressed(self) -> None:
        await self.ticket.progressed()

    async def settle(self, *, confirmed: bool = False) -> None:
        await self.lines.leave(self.place.conversation, self.place.seq)
        await self.ticket.settle(confirmed=confirmed)

    async def extend(self) -> None:
        await self.ticket.extend()

    async def release(self, after_s: float = 0.0) -> None:
        await self.ticket.release(after_s)

    @property
    def wake_token(self) -> str:
        return self.ticket.wake_token

    async def park(self, after_s: float) -> None:
        # Its conversation waits with it.
        await self.ticket.park(after_s)


class _LineFeed:
    """Hands out the heads of all lines, as tickets for them come; and reads the intake, if asked."""

    def __init__(self, lines: WaitingLines, sink: Callable[[Delivery], None], clock: Clock) -> None:
        self._lines, self._sink = lines, sink
        self._tickets: Feed | None = None
        self._intake: LineIntake | None = None
        #: From when on, in seconds since the epoch, what is stored goes no other way than through such a feed.
        self._since = clock.time() + CLOCKS_S
        self._under_way: set[asyncio.Task[None]] = set()
        self._log = get_logger("squadron.ordered").bind(mailbox=lines.mailbox.name)

    async def open(self, *, intake: bool) -> None:
        """Begin; without the `intake` only what stands in line already is handed out."""
        lines = self._lines
        self._tickets = await lines.store.consume(ticket_box(lines.subjects, lines.mailbox), self._called)
        if intake:
            self._intake = LineIntake(lines, self._since)
            await self._intake.open()

    def want(self, count: int) -> None:
        """Allow `count` more deliveries."""
        if self._tickets is not None:
            self._tickets.want(count)

    def _called(self, ticket: Delivery) -> None:
        if (head := self._held_by(ticket)) is not None:
            self._sink(head)
        else:
            self._go_on(self._begin(ticket), f"ticket {ticket.subject}")

    def _held_by(self, ticket: Delivery) -> Delivery | None:
        """The task that a ticket holds, if it surely is the head of its line.

        There was no other ticket of it, whose holder took it off the line, and no server that was killed brought
        back an earlier task.
        """
        headers, since = ticket.headers, max(ticket.lease.sure_from, self._since)
        try:
            place, task = TicketSubject.parse(ticket.subject), OrderedSubject.parse(headers[STANDS_AT]).task
            came_at = float(headers[FRESH])
        except (InvalidSubjectError, LookupError, ValueError):
            return None
        if not (ticket.lease.first and since < came_at and ticket.stored_at < came_at + CALLED_WITHIN_S):
            return None
        lease = _TurnLease(self._lines, place, ticket.lease, fresh=True)
        came_with = {**headers, "Nats-Msg-Id": self._lines.came_with(ticket, CALLED)}
        came = Entry(place.seq, ticket.subject, ticket.data, came_with, ticket.stored_at)
        return Delivery(task, ticket.data, lease, place.seq, came, ticket.stored_at, place=ticket.subject)

    def _go_on(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = spawn(self._logged(work), name)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BusUnavailableError as error:
            # What was held is delivered again when its lease ends.
            self._log.warning("ordered.later", error=str(error))
        except Exception as error:
            self._log.error("ordered.broke", traceback=traceback_of(error))

    async def _begin(self, ticket: Delivery) -> None:
        """Run the head if the ticket is its own; a ticket whose task has left the line calls the next."""
        delivered = False
        try:
            try:
                place = TicketSubject.parse(ticket.subject)
            except InvalidSubjectError:
                # Not written by us; else it would come again for ever.
                return await ticket.lease.settle()
            head = await self._lines.head(place.conversation)
            if head is not None and head.seq == place.seq:
                # A server that was killed may have brought the task back into its line.
                fresh = FRESH in head.headers and head.time > max(ticket.lease.sure_from, self._since)
                lease = _TurnLease(self._lines, place, ticket.lease, fresh)
                delivered = True
                task, came = OrderedSubject.parse(head.key).task, self._as_it_came(head)
                number = number_of(head)
                self._sink(Delivery(task, head.data, lease, number, came, head.time, place=head.key))
            else:
                await self._lines.call(place.conversation)
                await ticket.lease.settle()
        finally:
            if not delivered:
                self.want(1)

    def _as_it_came(self, head: Entry) -> Entry:
        """The head of a line, with the message id that it was put with."""
        return replace(head, headers={**head.headers, "Nats-Msg-Id": self._lines.came_with(head, IN_LINE)})

    async def aclose(self) -> None:
        """Take nothing new; what is half done is done. May be called twice."""
        for feed in (self._intake, self._tickets):
            if feed is not None:
                await feed.aclose()
        if self._under_way:
            await asyncio.wait(self._under_way)


class _UnwindingFeed:
    """The feed of a mailbox that is ordered no more: first what stands in line still, then the rest.

    It goes on looking: replicas of the old code put tasks in line until they are gone.
    """

    def __init__(self, lines: WaitingLines, sink: Callable[[Delivery], None], clock: Clock) -> None:
        self._lines, self._sink, self._clock = lines, sink, clock
        self._wanted = 0
        self._feed: Feed | None = None
        self._closing = asyncio.Event()
        self._unwinding: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin with what is in line."""
        await self._turn_to(in_line=True)
        self._unwinding = spawn(self._unwind(), f"unwind {self._lines.mailbox.name}", lasting=True)

    async def _turn_to(self, *, in_line: bool) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.aclose()
        if in_line:
            of_lines = _LineFeed(self._lines, self._deliver, self._clock)
            await of_lines.open(intake=False)
            self._feed = of_lines
        else:
            self._feed = await self._lines.intake.consume(self._lines.mailbox, self._deliver)
        self._feed.want(self._wanted)

    async def _unwind(self) -> None:
        in_line = True
        while not self._closing.is_set():
            with contextlib.suppress(BusUnavailableError):
                is_held = await self._lines.head() is not None
                if self._feed is None or in_line != is_held:
                    await self._turn_to(in_line=is_held)
                    in_line = is_held
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEFTIN_LINE_LOOK_S):
                    await self._closing.wait()

    def want(self, count: int) -> None:
        """Allow `count` more deliveries."""
        self._wanted += count
        if self._feed is not None:
            self._feed.want(count)

    def _deliver(self, delivery: Delivery) -> None:
        self._wanted -= 1
        self._sink(delivery)

    async def aclose(self) -> None:
        """Stop. May be called twice."""
        self._closing.set()
        if self._unwinding is not None:
            await self._unwinding
        if self._feed is not None:
            await self._feed.aclose()


def _stored(mailbox: Mailbox) -> Mailbox:
    """A mailbox as the store is to have it: that of an ordered one is the intake."""
    return replace(mailbox, serial=True) if mailbox.ordered else mailbox


class OrderedQueue:
    """`Queue` that knows ordered mailboxes, on a store that does not; others are the store's own.

    Args:
        clock: that of what is stored.
        line_store: where the lines of the mailbox of this name are, if not among all tasks.
    """

    def __init__(
        self, store: Store, subjects: Subjects, clock: Clock, line_store: Callable[[str], Store] | None = None
    ) -> None:
        self.store, self._subjects, self._clock = store, subjects, clock
        self._line_store = line_store or (lambda _: store)

    async def declare(self, mailbox: Mailbox) -> None:
        """Make the mailbox, or change it to fit; keeps what it holds."""
        await self.store.declare(_stored(mailbox))
        lines = self._lines(mailbox)
        if mailbox.ordered or await lines.head() is not None:
            await lines.store.declare(ticket_box(self._subjects, mailbox))
            await lines.store.declare(line_box(self._subjects, mailbox))

    async def remove(self, name: str) -> None:
        """Forget a mailbox; who stands in line there waits for its return."""
        await self.store.remove(name)
        for box in (ticket_box, line_box):
            await self._line_store(name).remove(box(self._subjects, Mailbox(name, ())).name)

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> None:
        """Store one message."""
        await self.store.put(subject, data, msg_id=msg_id, headers=headers, signed=signed)

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        """Pull from the mailbox; from an ordered one comes only what may run now."""
        lines = self._lines(_stored(mailbox))
        if mailbox.ordered:
            feed = _LineFeed(lines, sink, self._clock)
            await feed.open(intake=True)
            return feed
        if await lines.store.knows(ticket_box(self._subjects, mailbox).name):
            unwinding = _UnwindingFeed(lines, sink, self._clock)
            await unwinding.open()
            return unwinding
        return await self.store.consume(mailbox, sink)

    async def wake(self, token: str) -> None:
        """Have a message that was parked delivered now."""
        await self.store.wake(token)

    def take_over(self, token: str) -> Lease:
        """The lease that another process holds."""
        ticket, of_line, place = token.partition(_WITH_PLACE)
        if not of_line:
            return self.store.take_over(ticket)
        where = TicketSubject.parse(place)
        lines = self._lines(Mailbox(where.mailbox, ()))
        return _TurnLease(lines, where, lines.store.take_over(ticket))

    async def backlog(self, name: str) -> Backlog:
        """How much the mailbox holds now, those in line included."""
        plain = await self.store.backlog(name)
        store = self._line_store(name)
        in_line = (await store.backlog(line_box(self._subjects, Mailbox(name, ())).name)).waiting
        if not in_line:
            return plain
        running = (await store.backlog(ticket_box(self._subjects, Mailbox(name, ())).name)).taken
        return Backlog(plain.waiting + max(0, in_line - running), plain.taken + running)

    def _lines(self, mailbox: Mailbox) -> WaitingLines:
        return WaitingLines(self._line_store(mailbox.name), self.store, self._subjects, mailbox)
