"""However late a replica is, and whatever breaks, its account lets somebody through; none of it is in earnest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from squadron.actors.thinking.account import AccountLog
from squadron.actors.thinking.lessee import AWAY_AFTER_S, LOOK_S, LOOKS, REST_S, CallGrant, Lessee
from squadron.actors.thinking.model import ChatMessage, ModelRequest
from squadron.actors.thinking.quota import AHEAD_S, BURST_S, AccountState, Limits
from squadron.bridge.memory import MemoryServer
from squadron.config import Settings
from squadron.runtime.errors import InvalidMessageError, ModelError
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.testing import TurnedLoop, now_s, turned_time

T = TypeVar("T")
REQUEST = ModelRequest((ChatMessage("user", "How many moons has Mars?"),))
PLENTY_S = 300.0


@dataclass
class Slow:
    """What all know of an account, as it is; each change takes `takes_s`, and `fault` is raised instead of one."""

    log: AccountLog
    takes_s: float = 0.0
    faults: list[Exception] = field(default_factory=list)
    changes: int = 0

    async def change(self, change: Callable[[AccountState], tuple[AccountState, T]]) -> T:
        self.changes += 1
        await asyncio.sleep(self.takes_s)
        if self.faults:
            raise self.faults.pop()
        return await self.log.change(change)

    async def tell_pause(self, until: float) -> None:
        await self.log.tell_pause(until)

    async def hear_pauses(self, sink: Callable[[float], object]) -> Subscription:
        return await self.log.hear_pauses(sink)


@pytest.fixture(autouse=True)
async def turned() -> AsyncIterator[None]:
    with turned_time():
        yield


Join = Callable[[str, Limits], tuple[Lessee, Slow]]


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    server, made = MemoryServer("test"), list[Lessee]()

    def join(name: str, limits: Limits) -> tuple[Lessee, Slow]:
        ports = server.place(AgentIdentity(id=name, type="test"), Settings(env="test")).ports
        key, pauses = (ports.subjects.lite(what, "a") for what in ("model-account", "model-pause"))
        slow = Slow(AccountLog(ports.lite, key, pauses, ports.clock))
        made.append(Lessee(slow, limits, ports.clock, name, "scripted"))
        return made[-1], slow

    yield join
    for lessee in made:
        await lessee.aclose()


async def admit(lessee: Lessee, within_s: float = PLENTY_S) -> CallGrant:
    return await lessee.admit(REQUEST, 50, within_s=within_s, priority=0)


@contextmanager
def late(who: Lessee, by_s: float) -> Iterator[None]:
    """Its timers, and no others, are so much too late, as those of a process that hardly gets to run."""
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def later(when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        is_late = asyncio.current_task() is who._serving
        return call_at(when + by_s if is_late else when, *args, **options)

    loop.call_at = later  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del loop.call_at


@pytest.mark.parametrize("limits", [Limits(), Limits(rpm=600), Limits(concurrency=2)])
@pytest.mark.parametrize("after_s", [-0.5, 0.1, 0.5, 0.99])
async def test_who_asks_while_the_last_goes_back_is_served(limits: Limits, after_s: float, join: Join) -> None:
    lessee, log = join("one", limits)
    (await admit(lessee)).settle(REQUEST, None)
    log.takes_s, changes = 1.0, log.changes
    # When the rest is over what is left goes back, for a second.
    await asyncio.sleep(REST_S + after_s)
    assert log.changes == changes + (after_s >= 0.0)
    began = now_s()

    await admit(lessee)

    assert now_s() - began <= 2 * 1.0 + 1.0


async def test_a_call_that_is_over_while_the_last_goes_back_and_is_tried_again_is_let_through(join: Join) -> None:
    # As in a run whose try failed four seconds after its account had let it through.
    lessee, log = join("one", Limits())
    grant = await admit(lessee)
    log.takes_s = 1.0
    await asyncio.sleep(REST_S + 0.5)
    grant.settle(REQUEST, None, ModelError("overloaded", kind="passing"))
    await asyncio.sleep(0.01)
    began = now_s()

    await admit(lessee)

    assert now_s() - began <= 2 * 1.0 + 1.0


@pytest.mark.parametrize("late_s", [AHEAD_S + 0.5, 20.0])
async def test_a_replica_that_is_always_late_gets_through_beside_those_that_are_not(
    late_s: float, join: Join
) -> None:
    limits, used = Limits(rpm=60), list[float]()

    async def ask(who: Lessee, times: int) -> None:
        for _ in range(times):
            grant = await admit(who, 1e9)
            used.append(now_s())
            grant.settle(REQUEST, None)

    # So many that the line is always longer than an allotment is good for.
    others = [asyncio.create_task(ask(join(f"r{number}", limits)[0], 10_000)) for number in range(8)]
    await asyncio.sleep(2 * BURST_S)
    lessee, _ = join("late", limits)
    with late(lessee, late_s):
        for _ in range(3):
            began = now_s()
            await ask(lessee, 1)
            # Its turn in a line of nine, and how late it is.
            assert now_s() - began <= 3 * len(others) + 2 * late_s
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    # The limit holds all the same: no minute has more than it holds, a burst, and a call that came late.
    assert max(sum(at <= each < at + 60 for each in used) for at in used) <= 60 + BURST_S + 1


async def test_what_came_while_the_process_was_stopped_is_not_taken_for_a_server_that_is_away(join: Join) -> None:
    lessee, log = join("one", Limits(rpm=600))
    log.takes_s = 0.1
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TurnedLoop)

    def stop() -> None:
        loop.ahead_s += 10 * AWAY_AFTER_S

    loop.call_later(0.05, stop)
    with capture_logs() as logs:
        await admit(lessee)
    assert not logs
    # A server that is away is noticed in time.
    log.takes_s, began = 1e6, now_s()
    with capture_logs() as logs:
        for _ in range(100):
            (await admit(lessee)).settle(REQUEST, None)
    assert "models.limits_alone" in [line["event"] for line in logs]
    assert now_s() - began <= 10 + AWAY_AFTER_S + 2 * AWAY_AFTER_S / LOOKS


@pytest.mark.parametrize("fault", [ValueError("no such thing"), InvalidMessageError("rubbish")])
async def test_whatever_breaks_somebody_serves(fault: Exception, join: Join) -> None:
    lessee, log = join("one", Limits(rpm=600))
    log.faults.append(fault)
    began = now_s()
    await admit(lessee)
    assert now_s() - began < 1


async def test_if_who_serves_is_gone_somebody_else_serves_soon(join: Join) -> None:
    lessee, log = join("one", Limits(rpm=600))
    log.takes_s = 1.0
    asking = asyncio.create_task(admit(lessee))
    await asyncio.sleep(0.5)
    assert lessee._serving is not None
    lessee._serving.cancel()
    began = now_s()

    await asking

    assert now_s() - began <= LOOK_S + 1.0 + 0.1


async def test_who_waits_for_an_account_that_is_closed_is_told(join: Join) -> None:
    lessee, log = join("one", Limits(rpm=600))
    log.takes_s = 1.0
    asking = asyncio.create_task(admit(lessee))
    await asyncio.sleep(0.5)
    began = now_s()
    await lessee.aclose()
    with pytest.raises(ModelError):
        await asking
    assert now_s() == pytest.approx(began, abs=1.1)
