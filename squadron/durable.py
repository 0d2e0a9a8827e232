"""A durable subscription in a program of one's own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.durable import EventGroup, Start, read_event
from squadron.runtime.envelope import AgentMessage
from squadron.runtime.ports import Delivery
from squadron.runtime.pump import Pump


@dataclass(frozen=True, slots=True)
class DurableEvent:
    """One event: its message, its sequence in the log, and which delivery to this subscription it is, from 1."""

    message: AgentMessage
    seq: int
    attempt: int


@dataclass(slots=True)
class _Held:
    event: DurableEvent
    delivery: Delivery
    done: asyncio.Event


class DurableEvents:
    """Events of one durable subscription, one at a time, at least once: `async for event in events`.

    An event is settled when the next one is asked for, or by `settle()`. Who stops in the middle of one, by
    `aclose` or by dying, leaves it to the next who subscribes under the same name. While it is held its lease
    is extended, however long that takes.
    """

    def __init__(self, wiring: Wiring, group: EventGroup) -> None:
        self._wiring, self._group = wiring, group
        self._pump = Pump(wiring.events, group, self._offer, slots=1)
        #: Arrived and not yet asked for; then what the caller works on.
        self._arrived: _Held | None = None
        self._held: _Held | None = None
        self._changed = asyncio.Event()
        self._closed = False

    @classmethod
    async def open(cls, wiring: Wiring, name: str, pattern: str, start: Start) -> Self:
        """Subscribe; the group exists when this returns.

        Raises:
            InvalidSubjectError: the name is not a token, or the pattern breaks the grammar.
            InvalidInputError: `start` is not a place in the log.
            BusUnavailableError: the server can't be reached.
        """
        events = cls(wiring, EventGroup(name, pattern, start, wiring.settings.lease_s))
        await events._pump.start()
        return events

    async def _offer(self, delivery: Delivery) -> None:
        wiring = self._wiring
        message = await read_event(wiring.dead, wiring.subjects, wiring.identity, self._group.name, delivery)
        if message is not None:
            event = DurableEvent(message, delivery.seq, delivery.lease.attempt)
            held = self._arrived = _Held(event, delivery, asyncio.Event())
            self._changed.set()
            try:
                await held.done.wait()
            except asyncio.CancelledError:
                # Closed: the pump hands the event back, unless it was settled a moment before.
                if not held.done.is_set():
                    raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DurableEvent:
        await self.settle()
        while self._arrived is None:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._held, self._arrived = self._arrived, None
        return self._held.event

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
            await self._held.delivery.lease.settle(confirmed=confirmed)
            self._held.done.set()
            self._held = None

    async def aclose(self) -> None:
        """Stop, and hand back what is not settled; the subscription keeps its place. May be called twice."""
        self._closed = True
        self._held = self._arrived = None
        self._changed.set()
        await self._pump.aclose()
