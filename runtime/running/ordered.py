"""Order where asked: the tasks of a conversation run one at a time, in the order in which they were published.

A task of an ordered mailbox goes two steps. The *intake* reads the mailbox one message at a time, over all
replicas, and puts each task in the *line* of its conversation. The head of each line has one *ticket*, a
message with a lease: who holds it runs the head, takes it off the line, makes the ticket of the next head, and
only then settles its own. Whoever dies, between any two steps, leaves a lease that ends; the next who gets the
message goes on where the dead one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from squadron.runtime.background import spawn
from squadron.runtime.errors import (
    BusUnavailableError,
    InvalidMessageError,
    InvalidSubjectError,
    MessageTooLargeError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import CLOCKS_S, Backlog, Delivery, Feed, Lease, Mailbox, Store, sent_with
from squadron.runtime.retries import traceback_of
from squadron.runtime.running.line_numbers import number_of
from squadron.runtime.trust.carried import carry
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import OrderedSubject, Subjects, TicketSubject, token_of

#: Messages the intake asks for ahead, so that the next one comes with the acknowledgement of the last.
INTAKE_AHEAD = 8
#: How often a mailbox that is ordered no more looks whether anybody is left in line, in seconds.
LEFT_IN_LINE_LOOK_S = 1.0
#: Header of a task in line that nobody can have begun before it stood there, and that came under its own id.
_FRESH = "Squadron-Fresh"
#: Ends the message id of a task in line; before it stands the one that the task was put with.
_IN_LINE = ".ordered"
#: In the token of a lease between that of a ticket and the ticket's subject.
_WITH_PLACE = "@"


def _read(delivery: Delivery) -> tuple[str, str]:
    """The tokens of a task's conversation and of its id; what nobody can read is alone in a conversation."""
    try:
        message = AgentMessage.decode(delivery.data)
    except InvalidMessageError:
        return str(delivery.seq), ""
    return token_of(message.context.conversation_id or message.id), token_of(message.id)


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of one mailbox, one for each conversation; `intake` is the store of what is not in line yet."""

    store: Store
    intake: Store
    subjects: Subjects
    mailbox: Mailbox

    async def join(self, delivery: Delivery, *, fresh: bool) -> None:
        """Put a task at the end of its line; the same delivery again changes nothing.

        Args:
            fresh: whether surely nobody was delivered it before.
        """
        conversation, id = _read(delivery)
        topic = ".".join(delivery.subject.split(".")[3:5])
        place = OrderedSubject(self.subjects.environment, self.mailbox.name, conversation, topic)
        # Under the message id that it came with, so that the head of the line is known to have come under it.
        came_with = delivery.headers.get("Nats-Msg-Id", "")
        msg_id = f"{self.mailbox.name}.{came_with or delivery.seq}{_IN_LINE}"
        try:
            headers = sent_with(delivery.headers) | carry(
                delivery.headers, delivery.subject, at=delivery.stored_at
            )
            if fresh and came_with == id:
                headers[_FRESH] = "1"
            await self.store.put(str(place), delivery.data, msg_id=msg_id, headers=headers)
        except MessageTooLargeError:
            # It came without headers and leaves no room for one; it must not hold up all others for ever.
            await self.store.put(str(place), delivery.data, msg_id="")
        await self.call(conversation)

    async def head(self, conversation: str = "*") -> Entry | None:
        """Who is first in a line, or in any."""
        return await self.store.head(self.subjects.line(self.mailbox.name, conversation))

    async def call(self, conversation: str) -> None:
        """See to it that the head of a line has its one ticket.

        Everybody who changed a line does so before he settles what he holds. A ticket is there until its task
        has left the line, so there are never two for one head.
        """
        head = await self.head(conversation)
        if head is not None:
            ticket = TicketSubject(self.subjects.environment, self.mailbox.name, conversation, head.seq)
            await self.store.put_alone(str(ticket), b"")

    async def leave(self, conversation: str, seq: int) -> None:
        """Take the head off its line, and call the next."""
        await self.store.discard(seq)
        await self.call(conversation)


@dataclass(frozen=True, slots=True)
class _TurnLease:
    """The lease of a head: that of its ticket."""

    lines: _Lines
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

    def __init__(self, lines: _Lines, sink: Callable[[Delivery], None]) -> None:
        self._lines, self._sink = lines, sink
        self._tickets: Feed | None = None
        self._intake: Feed | None = None
        #: From when on, in seconds since the epoch, what is stored goes no other way than through such a feed.
        self._since = math.inf
        self._under_way: set[asyncio.Task[None]] = set()
        self._log = get_logger("squadron.ordered").bind(mailbox=lines.mailbox.name)

    async def open(self, *, intake: bool) -> None:
        """Begin; without the `intake` only what stands in line already is handed out."""
        lines, self._since = self._lines, time.time() + CLOCKS_S
        self._tickets = await lines.store.consume(ticket_box(lines.subjects, lines.mailbox), self._called)
        if intake:
            self._intake = await lines.intake.consume(lines.mailbox, self._came)
            self._intake.want(INTAKE_AHEAD)

    def want(self, count: int) -> None:
        """Allow `count` more deliveries."""
        if self._tickets is not None:
            self._tickets.want(count)

    def _came(self, delivery: Delivery) -> None:
        self._go_on(self._take_in(delivery), f"intake {delivery.seq}")

    def _called(self, ticket: Delivery) -> None:
        self._go_on(self._begin(ticket), f"ticket {ticket.subject}")

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

    async def _take_in(self, delivery: Delivery) -> None:
        try:
            await self._lines.join(delivery, fresh=delivery.lease.first and delivery.stored_at > self._since)
            await delivery.lease.settle(confirmed=True)
        finally:
            if self._intake is not None:
                self._intake.want(1)

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
                fresh = _FRESH in head.headers and head.time > max(ticket.lease.sure_from, self._since)
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
        id = head.headers.get("Nats-Msg-Id", "")
        came_with = id.removeprefix(f"{self._lines.mailbox.name}.").removesuffix(_IN_LINE)
        return replace(head, headers={**head.headers, "Nats-Msg-Id": came_with})

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

    def __init__(self, lines: _Lines, sink: Callable[[Delivery], None]) -> None:
        self._lines, self._sink = lines, sink
        self._wanted = 0
        self._feed: Feed | None = None
        self._closing = asyncio.Event()
        self._unwinding: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin with what is in line."""
        await self._turn_to(in_line=True)
        self._unwinding = spawn(self._unwind(), f"unwind {self._lines.mailbox.name}", lasting=True)

    async def _turn_to(self, *, in_line: bool) -> None:
        if self._feed is not None:
            await self._feed.aclose()
        if in_line:
            feed = _LineFeed(self._lines, self._deliver)
            await feed.open(intake=False)
            self._feed = feed
        else:
            self._feed = await self._lines.intake.consume(self._lines.mailbox, self._deliver)
        self._feed.want(self._wanted)

    async def _unwind(self) -> None:
        in_line = True
        while not self._closing.is_set():
            with contextlib.suppress(BusUnavailableError):
                if in_line != (await self._lines.head() is not None):
                    await self._turn_to(in_line=not in_line)
                    in_line = not in_line
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEFT_IN_LINE_LOOK_S):
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


def ticket_box(subjects: Subjects, mailbox: Mailbox) -> Mailbox:
    """The mailbox of an ordered mailbox's tickets."""
    return Mailbox(f"{mailbox.name}=tickets", (), mailbox.lease_s, subject=subjects.tickets(mailbox.name))


def line_box(subjects: Subjects, mailbox: Mailbox) -> Mailbox:
    """The mailbox of all that stands in line. Nobody takes from it: it is there to be counted."""
    return Mailbox(f"{mailbox.name}=line", (), mailbox.lease_s, subject=subjects.line(mailbox.name))


def _stored(mailbox: Mailbox) -> Mailbox:
    """A mailbox as the store is to have it: that of an ordered one is the intake."""
    return replace(mailbox, serial=True) if mailbox.ordered else mailbox


class OrderedQueue:
    """`Queue` that knows ordered mailboxes, on a store that does not; others are the store's own.

    Args:
        line_store: where the lines of the mailbox of this name are, if not among all tasks.
    """

    def __init__(self, store: Store, subjects: Subjects, line_store: Callable[[str], Store] | None = None) -> None:
        self.store, self._subjects, self._line_store = store, subjects, line_store or (lambda _: store)

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
        self, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Store one message."""
        await self.store.put(subject, data, msg_id=msg_id, headers=headers)

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        """Pull from the mailbox; from an ordered one comes only what may run now."""
        lines = self._lines(_stored(mailbox))
        if mailbox.ordered:
            feed = _LineFeed(lines, sink)
            await feed.open(intake=True)
            return feed
        if await lines.store.knows(ticket_box(self._subjects, mailbox).name):
            unwinding = _UnwindingFeed(lines, sink)
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

    def _lines(self, mailbox: Mailbox) -> _Lines:
        return _Lines(self._line_store(mailbox.name), self.store, self._subjects, mailbox)
