"""A running pull on a serial mailbox: one reader at a time, and nothing before what came earlier.

The server lets one reader pull at a time, but forgets him when he was silent for a lease. What he had it gives
to the next one when those leases end: later than what nobody had yet, and in any order. So a reader hands on only
what it is sure of: a delivery whose number is the next one, because then nobody else was given anything meanwhile.
After a gap it holds back what comes until the server has given out nothing but what it has itself, by leases that
have not ended; then it goes on in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from squadron.bridge.jetstream.lease import JetStreamLease
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.pull_feed import PullFeed
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import BusUnavailableError, SquadronError
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.texts import encoded

#: The one group of a serial mailbox's consumer.
SERIAL_GROUP = "serial"
#: Pause before the server is asked again what it has given out, in seconds: at first, and at most.
FIRST_LOOK_S, LOOK_S = 0.005, 0.1


@dataclass
class SerialReader:
    """What one reader of a serial mailbox was given, and what it may hand on.

    Args:
        sink: gets what is sure.
        taken: how many messages are given out and not settled, over all readers.
        lease_s: how long each is leased.
        now: in seconds, by a clock that only goes on.
    """

    sink: Callable[[Delivery], None]
    taken: Callable[[], Awaitable[int]]
    lease_s: float
    now: Callable[[], float] = time.monotonic
    want: Callable[[int], None] = lambda _: None
    _nth: int = 0
    _is_sure: bool = True
    #: By their places: what is held back, and when what is not settled was given, held back or handed on.
    _held: dict[int, Delivery] = field(default_factory=dict)
    _given: dict[int, float] = field(default_factory=dict)
    #: Grows with all that changes them.
    _changes: int = 0
    _looking: asyncio.Task[None] | None = None

    def arrived(self, delivery: Delivery) -> None:
        """The next delivery that the server made to this reader."""
        lease = delivery.lease
        assert isinstance(lease, JetStreamLease)
        self._is_sure = self._is_sure and lease.nth == self._nth + 1
        self._nth, self._changes = lease.nth, self._changes + 1
        known = delivery.seq in self._given
        self._given[delivery.seq] = self.now()
        if known:
            # Its lease ran out here, and there is a new one.
            self.want(1)
            if delivery.seq not in self._held:
                # Whoever works on it goes on.
                return
        elif self._is_sure:
            return self._hand_on(delivery)
        self._held[delivery.seq] = delivery
        if self._looking is None or self._looking.done():
            self._looking = spawn(self._make_sure(), "look who reads")

    def _hand_on(self, delivery: Delivery) -> None:
        assert isinstance(delivery.lease, JetStreamLease)
        delivery.lease.let_go = partial(self._let_go, delivery.seq)
        self.sink(delivery)

    def _let_go(self, seq: int, settled: bool) -> None:
        self._given.pop(seq, None)
        self._changes += 1
        # What is handed back comes again behind what came since.
        self._is_sure = self._is_sure and settled

    def doubt(self) -> None:
        """Others may have been given something since: the connection was lost."""
        self._is_sure = False

    async def _make_sure(self) -> None:
        pause_s = FIRST_LOOK_S
        while self._held:
            self._forget_lapsed()
            changes, ours = self._changes, len(self._given)
            with contextlib.suppress(BusUnavailableError):
                # What is under way to here or was let go a moment ago counts there already, or still.
                taken = await self.taken()
                self._forget_lapsed()
                if taken == ours and changes == self._changes:
                    self._is_sure = True
                    held, self._held = self._held, {}
                    for _, delivery in sorted(held.items()):
                        self._hand_on(delivery)
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_S)

    def _forget_lapsed(self) -> None:
        """What was given too long ago may be with another by now, and settled there."""
        over = self.now() - self.lease_s
        for seq in [seq for seq, at in self._given.items() if at <= over]:
            del self._given[seq]
            self._changes += 1
            if self._held.pop(seq, None) is not None:
                self.want(1)

    async def aclose(self) -> None:
        """Hand on nothing more; what was held back is handed back. May be called twice."""
        self.sink = lambda _: None
        if self._looking is not None:
            await cancel_all([self._looking])
        held, self._held = self._held, {}
        with contextlib.suppress(SquadronError):
            for delivery in held.values():
                await delivery.lease.release()


class SerialFeed:
    """A running pull on a serial mailbox, by a reader of it and the feed that brings him what comes."""

    def __init__(self, connection: Connection, reader: SerialReader, feed: PullFeed, unpin: str) -> None:
        self._connection, self._reader, self._feed, self._unpin = connection, reader, feed, unpin

    async def open(self) -> None:
        """Begin."""
        self._reader.want = self._feed.want
        self._connection.on_reconnect(self._reconnected)
        await self._feed.open()

    async def _reconnected(self) -> None:
        self._reader.doubt()

    def want(self, count: int) -> None:
        """Allow `count` more deliveries."""
        self._feed.want(count)

    async def aclose(self) -> None:
        """Stop pulling, and let another read. May be called twice."""
        self._connection.off_reconnect(self._reconnected)
        was_pinned = self._feed.is_pinned
        # First, or what is handed back comes here again.
        await self._feed.aclose()
        await self._reader.aclose()
        if was_pinned:
            # Else the next one begins when this one was silent for a lease.
            with contextlib.suppress(SquadronError):
                self._connection.ask(self._unpin, encoded({"group": SERIAL_GROUP}), lambda heard, _: heard)
