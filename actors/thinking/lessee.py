"""One replica's part of a provider account: it books for its callers, and serves them by priority and deadline."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from squadron.actors.thinking.model import ModelRequest, ModelTurn
from squadron.actors.thinking.quota import (
    AHEAD_S,
    LISTED_S,
    MOST_PAUSE_S,
    AccountState,
    Allotment,
    Booking,
    Limits,
    Units,
)
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import BusUnavailableError, ModelError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.wire.limits import Clock

T = TypeVar("T")

#: Pause after a 429 that names none, in seconds: as long as the first pause of `tries` is.
PAUSE_S = 2.0
#: How long the journal may take for a change until we go on alone, and for how long we do, in seconds: a change
#: takes milliseconds, a reconnect to a restarted server 1 to 2 s; to look whether it is back holds all calls up.
AWAY_AFTER_S, AWAY_FOR_S = 2.0, 20.0
#: How often we look whether it is carried out in that time: a quarter of a second is a long time for a loop.
LOOKS = 8
#: How long what is left stays here for the next call, in seconds: who asks less often than this books and gives
#: back each time, which is half a write per second at most.
REST_S = 2 * AHEAD_S
#: How often a replica without a place looks for one, in seconds; it only reads.
LOOK_S = 0.5
#: Tokens of an answer before any was seen: a few paragraphs.
FIRST_OUTPUT = 1_000.0

_log = get_logger("squadron.models")


class Log(Protocol):
    """Where all replicas keep what they know of the account."""

    async def change(self, change: Callable[[AccountState], tuple[AccountState, T]]) -> T: ...
    async def tell_pause(self, until: float) -> None: ...
    async def hear_pauses(self, sink: Callable[[float], object]) -> Subscription: ...


@dataclass(order=True)
class _Waiter:
    """A call that wants to be made."""

    rank: tuple[float, float, int]
    cost: dict[str, float] = field(compare=False)
    tokens: int = field(compare=False)
    deadline: float = field(compare=False)
    future: asyncio.Future[CallGrant] = field(compare=False)


class CallGrant:
    """The right to make one call, out of the allotment of its replica; a `tries.Grant`."""

    def __init__(self, lessee: Lessee, cost: Units, tokens: int) -> None:
        self._lessee, self._cost, self._tokens = lessee, cost, tokens
        self._settled = False

    def settle(self, asked: ModelRequest | None, turn: ModelTurn | None, error: ModelError | None = None) -> None:
        """The call is over: what it did not use comes back, what it used above that is charged."""
        if not self._settled:
            self._settled = True
            self._lessee.settle(self._back(asked, turn, error), turn, error)

    def _back(
        self, asked: ModelRequest | None, turn: ModelTurn | None, error: ModelError | None
    ) -> dict[str, float]:
        cost = self._cost
        if asked is None:
            return dict(cost)
        if error is not None and error.kind == "limit":  # it was counted, and nothing was read
            return {kind: units for kind, units in cost.items() if kind != "requests"}
        # `tokens` are counted when the call is made: with what it may use at most, or more if that was guessed.
        counted = self._lessee.cost_of(asked, self._tokens).get("tokens", 0.0)
        used = {"requests": cost.get("requests", 0.0), "tokens": counted}
        if turn is not None and not turn.usage.estimated and turn.usage.total:
            usage = turn.usage
            used |= {"tokens": max(counted, usage.total), "output": usage.output}
            used["input"] = max(0, usage.input - usage.cache_read)  # some servers count the cache beside the input
        return {kind: units - used.get(kind, units) for kind, units in cost.items()}


class Lessee:
    """Books for its callers what they need for the next seconds, and returns what they don't.

    A background task works as long as somebody waits or something is to be returned, and no longer.
    """

    def __init__(self, log: Log, limits: Limits, clock: Clock, who: str, name: str) -> None:
        self._shared, self._limits, self._clock, self._who, self.name = log, limits, clock, who, name
        self._waiting: list[_Waiter] = []
        self._numbers = itertools.count()
        self._allotment, self._running, self._listed = Allotment(), 0, False
        #: What is to go back and is in no allotment; below zero if more was used than booked.
        self._back: dict[str, float] = {}
        self._paused_until, self._untold_pause = 0.0, 0.0
        self._demand: dict[str, float] = {}
        self._arrived, self._since = dict[str, float](), clock.time()
        self._expected_output = FIRST_OUTPUT
        #: What we go by while the journal is away, and how many share it.
        self._alone, self._known, self._away_until, self._was_alone = AccountState(), 1, 0.0, False
        self._rest_until, self._look_at = 0.0, 0.0
        self._news, self._closed = asyncio.Event(), False
        self._serving: asyncio.Task[None] | None = None
        self._pauses: Subscription | None = None

    # --- for callers ---------------------------------------------------------------------------------

    def cost_of(self, request: ModelRequest, tokens: int) -> dict[str, float]:
        """What a request with so many tokens may cost, of the kinds that have a limit."""
        most = request.max_tokens
        output = self._expected_output if most is None else min(most, self._expected_output)
        whole = tokens + (self._expected_output if most is None else most)
        cost = {"requests": 1.0, "tokens": float(whole), "input": float(tokens), "output": float(output)}
        return {kind: cost[kind] for kind in self._limits.rates}

    async def admit(self, request: ModelRequest, tokens: int, *, within_s: float, priority: int) -> CallGrant:
        """Wait until the call may be made; higher priorities first, then what is due first.

        Raises:
            ModelError: of kind "limit": that will not be in time.
        """
        cost, now = self.cost_of(request, tokens), self._clock.time()
        for kind, rate in self._limits.rates.items():
            if kind != "requests" and cost[kind] > rate * 60:
                what = f"a call of {cost[kind]:.0f} tokens is more than {self.name} may use in a minute"
                raise ModelError(what, hint="ask for fewer max_tokens", kind="limit", retry_after_s=within_s)
        for kind, units in cost.items():
            self._arrived[kind] = self._arrived.get(kind, 0.0) + units
        future: asyncio.Future[CallGrant] = asyncio.get_running_loop().create_future()
        deadline = now + within_s
        waiter = _Waiter((-priority, deadline, next(self._numbers)), cost, tokens, deadline, future)
        heapq.heappush(self._waiting, waiter)
        self._wake()
        try:
            async with asyncio.timeout(within_s):
                await future
        except TimeoutError:
            if not future.done() or future.cancelled():
                raise self._too_late(within_s) from None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().settle(None, None)
            raise
        return future.result()

    def settle(self, back: Units, turn: ModelTurn | None, error: ModelError | None) -> None:
        """One call less is under way; `back` is what it did not use."""
        self._running -= 1
        if turn is not None and turn.usage.output and not turn.usage.estimated:
            # Half above what was usual of late: too little is charged later, too much is only lent.
            self._expected_output = 0.8 * self._expected_output + 0.2 * 1.5 * turn.usage.output
        self._return(back)
        if error is not None and error.kind == "limit":
            until = self._clock.time() + (PAUSE_S if error.retry_after_s is None else error.retry_after_s)
            if self._pause(until):
                self._untold_pause = self._paused_until
        if not self._waiting and not self._untold_pause:
            self._rest_until = max(self._rest_until, self._clock.time() + REST_S)
        self._wake()

    async def aclose(self) -> None:
        """Give back what is left, if the journal is there. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._serving is not None:
            await cancel_all([self._serving])
        while (head := self._head()) is not None:
            self._refuse(head, 0.0)
        if self._pauses is not None:
            await self._pauses.aclose()
        if self._listed or any(self._back.values()):
            await self._leave()

    # --- the work ------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._news.set()
        if not self._closed and (self._serving is None or self._serving.done()):
            self._serving = spawn(self._serve(), f"limits of {self.name}")
            self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        """However that was, nobody who waits is left alone."""
        if not self._closed and self._head() is not None:
            serving.get_loop().call_later(LOOK_S, self._wake)

    async def _serve(self) -> None:
        while True:
            self._news.clear()
            if self._pauses is None and self._clock.time() >= self._away_until:
                await self._hear_pauses()
            if self._untold_pause:
                await self._tell_pause()
            head = self._head()
            wait_s = await (self._rest() if head is None else self._advance(head))
            if wait_s is None:
                # What came while the last of it went back finds us working still, so nobody else begins.
                if self._news.is_set():
                    continue
                return
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._news.wait()

    def _head(self) -> _Waiter | None:
        while self._waiting and self._waiting[0].future.done():
            heapq.heappop(self._waiting)
        return self._waiting[0] if self._waiting else None

    async def _advance(self, head: _Waiter) -> float:
        """Serve the next call, or bring that nearer; returns after how many seconds to go on, news apart."""
        now, allotment = self._clock.time(), self._allotment
        if max(now, self._paused_until) > head.deadline:
            return self._refuse(head, self._paused_until - now)
        if self._paused_until > now:
            return self._paused_until - now
        has_place = allotment.places is None or self._running < allotment.places
        if allotment.holds(now) and has_place and allotment.covers(head.cost):
            ready_at = allotment.ready_at()
            if ready_at > head.deadline:
                return self._refuse(head, ready_at - now)
            if ready_at > now:
                return ready_at - now
            allotment.take(head.cost)
            self._running += 1
            self._rest_until = now + REST_S
            heapq.heappop(self._waiting)
            head.future.set_result(CallGrant(self, head.cost, head.tokens))
            return 0.0
        if not has_place and now < self._look_at:
            return self._look_at - now
        self._look_at = now + LOOK_S
        await self._renew(head, now)
        return 0.0

    async def _rest(self) -> float | None:
        """Nobody waits: what is left goes back after a while; None when there is nothing more to do."""
        now = self._clock.time()
        holds_places = self._limits.concurrency is not None and self._running > 0
        if now < self._rest_until:
            return self._rest_until - now
        if self._listed or any(self._back.values()):
            await self._leave()
        if not holds_places:
            return None
        self._listed = True
        self._rest_until = now + LISTED_S / 2
        return LISTED_S / 2

    async def _renew(self, head: _Waiter, now: float) -> None:
        span_s = max(AHEAD_S, now - self._since)
        wanted = dict[str, float]()
        for kind in self._limits.rates:
            self._demand[kind] = (self._demand.get(kind, 0.0) + self._arrived.get(kind, 0.0) / span_s) / 2
            waiting = sum(waiter.cost[kind] for waiter in self._waiting if not waiter.future.done())
            wanted[kind] = waiting + self._demand[kind] * AHEAD_S
        self._arrived, self._since = {}, now
        back = self._collect()
        waiting = len(self._waiting)
        booking = Booking(self._who, head.cost, wanted, back, self._running, waiting, head.deadline)
        seen = AccountState()

        def book(state: AccountState) -> tuple[AccountState, Allotment | None]:
            nonlocal seen
            seen, self._known = state, len(state.others(self._who, now)) + 1
            if self._was_alone:  # what was used meanwhile nobody wrote down, so there was no rest to burst after
                state = state.pause(now, self._limits.rates)
            return state.book(booking, self._limits, self._clock.time())

        try:
            allotment = await self._change(book)
            self._was_alone = False
        except BusUnavailableError:
            share = self._limits.share(self._known)
            self._alone, allotment = self._alone.book(booking, share, self._clock.time())
        except asyncio.CancelledError:
            self._return(back)
            raise
        self._pause(seen.paused_until)
        if allotment is None:
            self._refuse(head, head.deadline - now)
        elif self._paused_until <= self._clock.time():
            self._allotment, self._listed = allotment, True

    async def _leave(self) -> None:
        self._listed = False
        booking = Booking(self._who, back=self._collect(), running=self._running)
        with contextlib.suppress(BusUnavailableError):
            await self._change(lambda state: (state.leave(booking, self._limits, self._clock.time()), None))

    async def _change(self, change: Callable[[AccountState], tuple[AccountState, T]]) -> T:
        return await self._in_time(lambda: self._shared.change(change))

    async def _in_time(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Carry out what concerns all; `BusUnavailableError` if that is in vain, and also while we don't try."""
        if self._clock.time() < self._away_until:
            raise BusUnavailableError(f"the limits of {self.name} can't be shared at the moment")
        task = asyncio.get_running_loop().create_task(work())
        try:
            # A loop that was held up, or a process that was stopped, loses one look of all: what had come by then
            # is found before the next one.
            for _ in range(LOOKS):
                if (await asyncio.wait([task], timeout=AWAY_AFTER_S / LOOKS))[0]:
                    return task.result()
            raise TimeoutError(f"no answer in {AWAY_AFTER_S:g} s")
        except Exception as error:
            # Whatever is wrong with it: calls don't wait for that.
            self._go_alone()
            raise BusUnavailableError(f"the limits of {self.name} can't be shared: {error!r}") from error
        finally:
            task.cancel()

    def _go_alone(self) -> None:
        self._away_until, self._was_alone = self._clock.time() + AWAY_FOR_S, True
        if self._waiting:
            # Else it was only to give back what lapses by itself: the place may be closed already.
            _log.warning("models.limits_alone", account=self.name, replicas=self._known)

    # --- pauses --------------------------------------------------------------------------------------

    def _pause(self, until: float) -> bool:
        """Ask nothing before `until`, or for `MOST_PAUSE_S`; whether that is news.

        What was booked is void: all stand in line again.
        """
        now = self._clock.time()
        until = min(now + MOST_PAUSE_S, until)
        if until <= max(self._paused_until, now):
            return False
        self._paused_until, self._allotment = until, Allotment()
        self._news.set()
        return True

    async def _tell_pause(self) -> None:
        until, self._untold_pause = self._untold_pause, 0.0
        with contextlib.suppress(BusUnavailableError):
            await self._change(lambda state: (state.pause(until, self._limits.rates), None))
            await self._in_time(lambda: self._shared.tell_pause(until))

    async def _hear_pauses(self) -> None:
        with contextlib.suppress(BusUnavailableError):
            self._pauses = await self._in_time(lambda: self._shared.hear_pauses(self._pause))

    # --- helpers -------------------------------------------------------------------------------------

    def _return(self, back: Units) -> None:
        """What was not used: to the allotment, where the next call finds it, or on the way back."""
        allotment = self._allotment
        for kind, units in back.items():
            if kind in allotment.rates:
                allotment.left[kind] += units
                allotment.at[kind] -= units / allotment.rates[kind]
            else:
                self._back[kind] = self._back.get(kind, 0.0) + units

    def _collect(self) -> dict[str, float]:
        """All that is to go back, once."""
        allotment, self._allotment = self._allotment, Allotment()
        self._return(allotment.left)
        back, self._back = self._back, {}
        return back

    def _refuse(self, head: _Waiter, after_s: float) -> float:
        if not head.future.done():
            head.future.set_exception(self._too_late(max(0.0, after_s)))
        return 0.0

    def _too_late(self, after_s: float) -> ModelError:
        what = f"the limit of {self.name} leaves no room in time"
        hint = "give it more time, send less at once, or raise SQUADRON_MODEL_LIMITS if the account allows more"
        if (paused_s := self._paused_until - self._clock.time()) > 0:
            what = f"{self.name} is not asked for {paused_s:.0f} s more, since its provider answered HTTP 429"
            hint = "give it more time, or ask again later"
        return ModelError(what, hint=hint, kind="limit", retry_after_s=after_s)
