"""Events that a program hears: as they come, and from the log."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Self

from squadron.bridge.place import Place
from squadron.runtime.background import spawn
from squadron.runtime.closing import AsyncClosing
from squadron.runtime.errors import BusUnavailableError, InvalidMessageError, SquadClosedError, SquadronError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.queue import Delivery, Feed
from squadron.runtime.running.event_turns import read_event
from squadron.runtime.running.pump import keep_leases
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import speaks_as
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.start import Start
from squadron.runtime.wire.subjects import check_token

#: How many plain events wait for a subscriber that is slower than they come: some 100 MB at most.
MOST_HELD = 65_536


class Events(AsyncClosing):
    """Events as they come, as an async iterator; close it to stop listening.

    Of those that nobody takes the newest `most_held` are held.

    Attributes:
        dropped: how many were not held any more when somebody came for them.
    """

    def __init__(self, most_held: int = MOST_HELD, guard: Guard | None = None) -> None:
        self._guard = guard
        self.dropped, self._most_held = 0, most_held
        self._queue: asyncio.Queue[AgentMessage | None] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._closed = False

    def hear(self, note: Note) -> None:
        """Take in one note of the bus; what is not a message is left out, and so is what comes after the end."""
        if self._closed:
            return
        try:
            message = AgentMessage.decode(note.data)
        except InvalidMessageError:
            return
        if self._guard is None:
            return self._take(message)
        said, may = (note.subject, note.data, note.headers), speaks_as(message.source.id)
        self._guard.hear("event", *said, lambda _: self._take(message), at=None, may=may)

    def _take(self, message: AgentMessage) -> None:
        if self._queue.qsize() >= self._most_held:
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(message)

    def attach(self, subscription: Subscription) -> Self:
        """Remember what to close."""
        self._subscription = subscription
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AgentMessage:
        if (message := await self._get()) is None:
            raise StopAsyncIteration
        return message

    async def _get(self) -> AgentMessage | None:
        message = await self._queue.get()
        if message is None:
            # The end is there for whoever asks again, and for others who wait.
            self._queue.put_nowait(None)
        return message

    async def next(self, *, within_s: float) -> AgentMessage:
        """The next event.

        Raises:
            TimeoutError: none came in time.
        """
        async with asyncio.timeout(within_s):
            message = await self._get()
        if message is None:
            raise TimeoutError("the subscription was closed")
        return message

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""
        subscription, self._subscription = self._subscription, None
        if not self._closed:
            self._closed = True
            # Ends an iteration that waits for more.
            self._queue.put_nowait(None)
        if subscription is not None:
            await subscription.aclose()


@dataclass(frozen=True, slots=True)
class DurableEvent:
    """One event: its message, its sequence in the log, and how often it was given out by this subscription."""

    message: AgentMessage
    seq: int
    attempt: int


class DurableEvents(AsyncClosing):
    """Events of one durable subscription, one at a time, at least once: `async for event in events`.

    An event is settled when the next one is asked for, or by `settle()`. Who stops in the middle of one, by
    `aclose` or by dying, leaves it to the next who subscribes under the same name. While it is held its lease
    is extended, however long that takes.
    """

    def __init__(self, wiring: Place, group: EventGroup) -> None:
        self._wiring, self._group = wiring, group
        self._feed: Feed | None = None
        self._extender: asyncio.Task[None] | None = None
        #: Whether one is on its way, one that came and was not yet given out, and the one that is worked on.
        self._asked = False
        self._arrived: Delivery | None = None
        self._held: Delivery | None = None
        #: Notes that work on the one that came begins: once, however often somebody stops waiting for it.
        self._beginning: asyncio.Task[int] | None = None
        self._changed = asyncio.Event()
        self._closed = False

    @classmethod
    async def open(cls, wiring: Place, name: str, pattern: str, start: Start) -> Self:
        """Subscribe; the group exists when this returns.

        Raises:
            InvalidSubjectError: the name is not a token, or the pattern breaks the grammar.
            InvalidInputError: `start` is not a place in the log.
            BusUnavailableError: the server can't be reached.
        """
        # An agent's group has a dot in its name, and is none to join.
        group = EventGroup(check_token(name, "subscription"), pattern, start, wiring.settings.lease_s)
        events = cls(wiring, group)
        events._feed = await wiring.ports.events.consume(events._group, events._hear)
        events._extender = spawn(keep_leases(group.lease_s, events._unsettled), f"lease {name}", lasting=True)
        return events

    def _hear(self, delivery: Delivery) -> None:
        self._arrived, self._asked = delivery, False
        self._changed.set()

    def _unsettled(self) -> list[Delivery]:
        return [delivery for delivery in (self._held, self._arrived) if delivery is not None]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DurableEvent:
        await self.settle()
        wiring = self._wiring
        while True:
            delivery = await self._delivered()
            message = await read_event(wiring.dead_letters, wiring.ports, self._group.name, delivery)
            if message is None:
                self._arrived = None
                continue
            if self._beginning is None:
                self._beginning = asyncio.ensure_future(delivery.lease.begin())
            try:
                attempt = await asyncio.shield(self._beginning)
            except SquadronError:
                self._beginning = None
                raise
            self._held, self._arrived, self._beginning = delivery, None, None
            return DurableEvent(message, delivery.seq, attempt)

    async def _delivered(self) -> Delivery:
        """Wait for the next delivery; it stays where it arrived, so that who gives up waiting loses nothing."""
        while self._arrived is None:
            if self._closed or self._feed is None:
                raise StopAsyncIteration
            # First, for what waits may come at once.
            self._changed.clear()
            if not self._asked:
                self._asked = True
                self._feed.want(1)
            await self._changed.wait()
        return self._arrived

    async def next(self, *, within_s: float) -> DurableEvent:
        """Settle the event before and wait for the next one.

        Raises:
            TimeoutError: none came in time, or the subscription was closed.
        """
        try:
            async with asyncio.timeout(within_s):
                return await anext(self)
        except StopAsyncIteration:
            raise TimeoutError("the subscription was closed") from None

    async def settle(self, *, confirmed: bool = False) -> None:
        """The event that was given out last is done: it is not delivered to this subscription again.

        The server hears so a moment later or, if `confirmed`, before this returns.

        Raises:
            BusUnavailableError: only if `confirmed`: the server did not say so in time.
        """
        if self._held is not None:
            await self._held.lease.settle(confirmed=confirmed)
            self._held = None

    async def aclose(self) -> None:
        """Stop, and hand back what is not settled; the subscription keeps its place. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        if self._extender is not None:
            self._extender.cancel()
        # Whoever else closes is not kept from it by a server that is away.
        with contextlib.suppress(BusUnavailableError, SquadClosedError):
            if self._feed is not None:
                await self._feed.aclose()
            # Without the server it is delivered again after its lease.
            for delivery in self._unsettled():
                await delivery.lease.release()
        self._held = self._arrived = None
