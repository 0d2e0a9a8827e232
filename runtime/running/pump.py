"""Moves deliveries: mailbox → free slot → turn → settled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from squadron.runtime.background import CANCEL_OTHERS_AGAIN_S, cancel_all, spawn
from squadron.runtime.errors import BusUnavailableError, SquadClosedError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.queue import Delivery, Feed
from squadron.runtime.retries import places_of, traceback_of
from squadron.runtime.wire.outcome import Outcome

#: A lease is extended after this share of its time, so that two extensions may be lost.
EXTEND_AT = 1 / 3
#: The next task is asked for so long, in seconds, before a slot is free if its turn takes as long as the shortest
#: of so many before. A pull's way to the server and back takes 1 to 5 ms.
LEAD_S, SHORTEST_OF = 0.01, 8
#: What was asked for early and has no slot after so many seconds goes back: turns of the usual length end by then
#: also on a busy machine, and whoever else has a slot lost little.
HOLD_S = 0.04
#: How often it is looked for slots that are about to be free, in seconds: what all of them need is asked for at
#: once, and no turn needs a timer.
LOOK_S = 0.005

#: Frees the slot of the turn that runs here; a turn that no pump began has none.
_free: ContextVar[Callable[[], None] | None] = ContextVar("free", default=None)


def free_slot() -> None:
    """Let the next turn begin: what is left of this one, like storing its outcome, only waits for the server."""
    if (free := _free.get()) is not None:
        free()


async def keep_leases(lease_s: float, held: Callable[[], Iterable[Delivery]]) -> None:
    """Extend the leases of what is held, again and again, until cancelled or the connection is closed."""
    while True:
        await asyncio.sleep(lease_s * EXTEND_AT)
        try:
            for delivery in held():
                with contextlib.suppress(BusUnavailableError):
                    await delivery.lease.extend()
        except SquadClosedError:
            return


class Source(Protocol):
    """What a pump pulls from: a mailbox, or a group of event subscribers."""

    @property
    def name(self) -> str: ...

    @property
    def lease_s(self) -> float: ...


S_contra = TypeVar("S_contra", bound=Source, contravariant=True)


class Supply(Protocol[S_contra]):
    """Who delivers from it: `Queue` or `EventLog`."""

    async def consume(self, source: S_contra, sink: Callable[[Delivery], None], /) -> Feed: ...


class _BroughtOnly:
    """A supply that delivers nothing: its pump runs what others bring."""

    async def consume(self, source: Source, sink: Callable[[Delivery], None], /) -> Feed:
        return self

    def want(self, count: int) -> None: ...

    async def aclose(self) -> None: ...


BROUGHT_ONLY = _BroughtOnly()


@dataclass(frozen=True, slots=True)
class PumpStatistics:
    """What a pump does now and has done.

    Attributes:
        in_flight: turns that have a slot; those that only store what they came to have none.
        outcomes: ended tasks, by kind of outcome.
    """

    slots: int
    in_flight: int
    outcomes: dict[str, int]


class Pump:
    """Runs up to `slots` deliveries of one source at once; pulls one more for each that frees its slot.

    A turn frees it at its end, or before by `free_slot`; so do as many at once as there are slots, so that a
    server that stores slowly holds up the work.

    Where more tasks wait than others take, the next one is asked for just before a slot is free, as far as the
    turns before tell how long one has it. What would wait for longer than `HOLD_S` goes back, and nothing more is
    asked for early for a while. No more than three times the slots are leased.
    """

    def __init__(
        self,
        supply: Supply[S_contra],
        source: S_contra,
        run: Callable[[Delivery], Awaitable[Outcome | None]],
        *,
        slots: int,
    ) -> None:
        self._open = partial(supply.consume, source)
        self._source: Source = source
        self._run, self._slots = run, slots
        #: What is leased and has begun, with or without a slot.
        self._in_flight: dict[asyncio.Task[None], Delivery] = {}
        #: Those with one, and since when on the loop's clock.
        self._working: dict[asyncio.Task[None], float] = {}
        #: All that is leased, by its place in the queue.
        self._seqs: set[int] = set()
        #: Those that others handed to us, and that wait for a slot.
        self._handed: deque[Delivery] = deque()
        #: Those that were asked for early and wait for one; and for each that was, until when on the loop's clock.
        self._early: deque[Delivery] = deque()
        self._asked_early: deque[float] = deque()
        self._looks_ahead = False
        #: How long the last turns had their slots, in seconds, and how many tasks waited behind the last one.
        self._took_s: deque[float] = deque(maxlen=SHORTEST_OF)
        self._behind = 0
        self._returning: set[asyncio.Task[None]] = set()
        self._feed: Feed | None = None
        self._extender: asyncio.Task[None] | None = None
        self._outcomes: Counter[str] = Counter()
        self._log = get_logger("squadron.pump").bind(mailbox=source.name)

    async def start(self) -> None:
        """Begin to pull."""
        # Kept, because asking for it costs a system call each time.
        self._loop = asyncio.get_running_loop()
        self._feed = await self._open(self._arrived)
        self._extender = spawn(
            keep_leases(self._source.lease_s, self._held), f"leases {self._source.name}", lasting=True
        )
        self._feed.want(self._slots)

    def _arrived(self, delivery: Delivery) -> None:
        if self._has(delivery):
            # Our own lease ran out, because something blocked the event loop; the work goes on.
            self._renew(delivery)
            if self._feed is not None:
                self._feed.want(1)
            return
        self._behind = delivery.behind
        if self._running < self._slots:
            self._begin(delivery)
        else:
            self._seqs.add(delivery.seq)
            self._early.append(delivery)

    def _renew(self, delivery: Delivery) -> None:
        """What has not begun does so as what it is by now."""
        for waiting in (self._handed, self._early):
            for at, each in enumerate(waiting):
                if each.seq == delivery.seq:
                    waiting[at] = delivery

    @property
    def lease_s(self) -> float:
        """How long a lease of its source is, in seconds."""
        return self._source.lease_s

    def _has(self, delivery: Delivery) -> bool:
        return delivery.seq in self._seqs or any(each.seq == delivery.seq for each in self._handed)

    def has_room(self, delivery: Delivery, *, beside: int = 0) -> bool:
        """Whether `offer` takes it, when it has taken so many others."""
        return self._has(delivery) or (self._feed is not None and len(self._handed) + beside < self._slots)

    def offer(self, delivery: Delivery) -> bool:
        """Take what another replica was delivered for us, before all else; False if too much waits already."""
        if self._has(delivery):
            self._renew(delivery)
            return True
        if not self.has_room(delivery):
            return False
        assert self._feed is not None
        if self._running < self._slots:
            self._feed.want(-1)
            self._begin(delivery)
        else:
            self._handed.append(delivery)
        return True

    def _begin(self, delivery: Delivery) -> None:
        self._seqs.add(delivery.seq)
        task = spawn(self._serve(delivery), f"turn {delivery.subject}", loop=self._loop)
        self._in_flight[task], self._working[task] = delivery, self._loop.time()
        task.add_done_callback(self._ended)
        if not self._looks_ahead and self._may_ask_early:
            self._looks_ahead = True
            self._loop.call_later(LOOK_S, self._look_ahead)

    @property
    def _running(self) -> int:
        return len(self._working)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._seqs.discard(self._in_flight.pop(task).seq)
        self._fill_slot_of(task)

    def _free(self, task: asyncio.Task[None]) -> None:
        if len(self._in_flight) - len(self._working) < self._slots:
            self._fill_slot_of(task)

    def _fill_slot_of(self, task: asyncio.Task[None]) -> None:
        began_at = self._working.pop(task, None)
        if began_at is None:
            return
        self._took_s.append(self._loop.time() - began_at)
        if self._feed is None:
            # Drained: what waits goes back.
            return
        if self._handed:
            self._begin(self._handed.popleft())
        elif self._asked_early:
            self._asked_early.popleft()
            if self._early:
                self._begin(self._early.popleft())
        else:
            self._feed.want(1)

    @property
    def _may_ask_early(self) -> bool:
        return bool(self._behind and self._working) and len(self._took_s) == SHORTEST_OF

    def _look_ahead(self) -> None:
        """Ask for as many as slots are about to be free, again and again while that may help."""
        now = self._loop.time()
        while self._asked_early and self._asked_early[0] <= now:
            self._was_too_early()
        self._looks_ahead = self._feed is not None and (bool(self._asked_early) or self._may_ask_early)
        if self._feed is None or not self._looks_ahead:
            return
        self._loop.call_later(LOOK_S, self._look_ahead)
        if self._may_ask_early:
            begun_by = now + LEAD_S - min(self._took_s)
            due = sum(began_at <= begun_by for began_at in self._working.values())
            if (more := due - len(self._asked_early)) > 0:
                self._asked_early.extend([now + HOLD_S] * more)
                self._feed.want(more)

    def _was_too_early(self) -> None:
        """No slot was free by the end of the time that the longest wait has."""
        self._asked_early.popleft()
        self._took_s.clear()
        if self._early:
            self._hand_back(self._early.popleft())
        elif self._feed is not None:
            self._feed.want(-1)

    def _hand_back(self, delivery: Delivery) -> None:
        self._seqs.discard(delivery.seq)
        returning = spawn(self._release(delivery), f"hand back {delivery.subject}", loop=self._loop)
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)

    async def _serve(self, delivery: Delivery) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        _free.set(partial(self._free, task))
        try:
            outcome = await self._run(delivery)
        except asyncio.CancelledError:
            # Drained past the grace period: somebody else gets the task at once.
            await self._release(delivery)
            raise
        except BusUnavailableError as error:
            # The outcome could not be stored; the task must not be settled, so it will be delivered again.
            self._log.warning("pump.not_stored", subject=delivery.subject, error=str(error))
        except Exception as error:
            # Of a sealed task where it was, and nothing of what was in its hands.
            sealed = b'"sealed"' in delivery.data
            where = {"at": places_of(error)} if sealed else {"traceback": traceback_of(error)}
            self._log.error("pump.turn_broke", subject=delivery.subject, error=type(error).__name__, **where)
            await self._release(delivery, self._source.lease_s)
        else:
            if outcome is not None:
                self._outcomes[outcome.kind] += 1

    async def _release(self, delivery: Delivery, after_s: float = 0.0) -> None:
        with contextlib.suppress(BusUnavailableError):
            await delivery.lease.release(after_s)

    def _held(self) -> list[Delivery]:
        return [*self._in_flight.values(), *self._handed, *self._early]

    def statistics(self) -> PumpStatistics:
        """What it does now and has done."""
        return PumpStatistics(self._slots, self._running, dict(self._outcomes))

    async def drain(self, within_s: float) -> None:
        """Take nothing new, give running turns `within_s` seconds to end, and hand back the rest."""
        if self._feed is not None:
            feed, self._feed = self._feed, None
            await feed.aclose()
        for waiting in (self._handed, self._early):
            while waiting:
                self._hand_back(waiting.popleft())
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=within_s)
        await cancel_all(list(self._in_flight), again_s=CANCEL_OTHERS_AGAIN_S)
        await asyncio.gather(*self._returning, return_exceptions=True)
        if self._extender is not None:
            await cancel_all([self._extender])
            self._extender = None

    async def aclose(self) -> None:
        """Stop now: running turns are handed back."""
        await self.drain(0.0)
