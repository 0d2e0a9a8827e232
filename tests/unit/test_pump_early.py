"""A pump that asks for the next task before a slot is free, of a server that takes a moment to give one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from squadron.runtime.ports.queue import Delivery, Mailbox
from squadron.runtime.running import pump as pump_module
from squadron.runtime.running.pump import SHORTEST_OF, Pump
from squadron.runtime.wire.outcome import Outcome
from squadron.testing import now_s, turned_time

BOX = Mailbox("reader", ("book.read",), lease_s=1e9)
#: A pull's way, and how long turns work, in seconds: a thousand times what it is, so that the machine
#: pauses for less.
WAY_S, WORK_S, LONG_S = 3.0, 100.0, 10_000.0


@pytest.fixture(autouse=True)
async def _slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(pump_module, "LEAD_S", 1000 * pump_module.LEAD_S)
    monkeypatch.setattr(pump_module, "HOLD_S", 1000 * pump_module.HOLD_S)
    monkeypatch.setattr(pump_module, "LOOK_S", 1000 * pump_module.LOOK_S)
    with turned_time():
        yield


class _Server:
    """Gives out as many tasks as it has, one for each that was wanted, and takes back what is released."""

    def __init__(self, tasks: int, *, tells: bool = True, takes_back_s: float = 0.0) -> None:
        self.left, self._tells, self._takes_back_s = tasks, tells, takes_back_s
        self.wanted = self.given = self.most_wanted = 0
        self.returned: list[int] = []

    async def consume(self, _: Mailbox, sink: Callable[[Delivery], None]) -> _Server:
        self._sink = sink
        return self

    def want(self, count: int) -> None:
        self.wanted += count
        asyncio.get_running_loop().call_later(WAY_S, self._give)

    def _give(self) -> None:
        while self.wanted > 0 and self.left > 0:
            self.wanted, self.left, self.given = self.wanted - 1, self.left - 1, self.given + 1
            lease: Any = SimpleNamespace(release=self._release_of(self.given), extend=None)
            self._sink(Delivery("", b"", lease, self.given, behind=self.left if self._tells else 0))

    def _release_of(self, seq: int) -> Any:
        async def release(after_s: float = 0.0) -> None:
            await asyncio.sleep(self._takes_back_s)
            self.returned.append(seq)

        return release

    async def aclose(self) -> None:
        self.wanted = 0


class _Turns:
    """Turns, all from the nth on of which last, and when they worked."""

    def __init__(self, lasting_from: int = 1000) -> None:
        self._lasting_from, self.running, self.most = lasting_from, 0, 0
        self.begun: list[float] = []
        self.ended: list[float] = []

    async def __call__(self, delivery: Delivery) -> Outcome | None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.append(now_s())
        await asyncio.sleep(WORK_S if len(self.begun) < self._lasting_from else LONG_S)
        self.ended.append(now_s())
        self.running -= 1
        return None

    def gaps(self, slots: int) -> list[float]:
        return [later - ended for ended, later in zip(self.ended, self.begun[slots:], strict=False)]


async def _started(server: _Server, turns: _Turns, slots: int) -> Pump:
    pump = Pump(server, BOX, turns, slots=slots)
    await pump.start()
    return pump


@pytest.mark.parametrize("slots", [1, 4])
async def test_the_next_task_is_there_when_a_slot_is_free_once_it_is_known_how_long_they_take(slots: int) -> None:
    server, turns = _Server(20 * slots), _Turns()
    pump = await _started(server, turns, slots)

    await asyncio.sleep(20 * (WORK_S + WAY_S) + 100)

    first = SHORTEST_OF + slots
    assert turns.gaps(slots)[first:] == pytest.approx([0.0] * (19 * slots - first), abs=1.0)
    assert len(turns.ended) == 20 * slots
    assert turns.most == slots
    assert server.returned == []
    # The last of them want as much as there are slots, and no more.
    assert server.wanted == slots
    await pump.aclose()


async def test_who_is_not_told_that_more_waits_asks_when_a_slot_is_free() -> None:
    turns = _Turns()
    pump = await _started(_Server(20, tells=False), turns, 1)

    await asyncio.sleep(20 * (WORK_S + WAY_S) + 100)

    assert turns.gaps(1) == pytest.approx([WAY_S] * 19, abs=1.0)
    await pump.aclose()


async def test_what_came_too_early_goes_back_and_nothing_more_comes_early_for_a_while() -> None:
    server, turns = _Server(100), _Turns(lasting_from=13)
    pump = await _started(server, turns, 1)

    while not server.returned:
        await asyncio.sleep(1.0)

    # The one that came early for the first turn that lasts: it was held for no longer than that.
    assert len(turns.begun) == 13
    assert now_s() == pytest.approx(turns.begun[-1] + WORK_S + 35.0, abs=8.0)
    assert server.returned == [server.given]
    assert server.wanted == 0
    await asyncio.sleep((SHORTEST_OF - 1) * LONG_S)
    assert len(server.returned) == 1
    assert turns.most == 1
    await pump.aclose()


async def test_who_asked_too_early_and_got_nothing_wants_it_no_more_until_a_slot_is_free() -> None:
    server, turns = _Server(12), _Turns(lasting_from=10)
    pump = await _started(server, turns, 1)
    while len(turns.begun) < 10:
        await asyncio.sleep(WORK_S / 10)
    # Others take what waited.
    server.left = 0

    await asyncio.sleep(WORK_S)
    assert server.wanted == 1
    await asyncio.sleep(WORK_S)
    assert server.wanted == 0
    await asyncio.sleep(LONG_S)
    assert server.wanted == 1
    assert len(turns.ended) == 10
    await pump.aclose()


async def test_who_drains_hands_back_what_came_early() -> None:
    server, turns = _Server(100), _Turns()
    pump = await _started(server, turns, 1)
    while not (server.given == len(turns.begun) + 1 and turns.running):
        await asyncio.sleep(1.0)

    early = server.given
    await pump.drain(1000.0)

    assert server.returned == [early]
    assert server.wanted == 0
    assert len(turns.ended) == early - 1


async def test_a_drain_hands_all_back_at_once_and_running_turns_have_their_grace_meanwhile() -> None:
    slots = 8
    server, turns = _Server(10_000, takes_back_s=WORK_S), _Turns()
    pump = await _started(server, turns, slots)
    async with asyncio.timeout(LONG_S):
        while not (len(pump._early) > 1 and turns.running == slots):
            await asyncio.sleep(1.0)
    waiting, ended, began_s = len(pump._early), len(turns.ended), now_s()

    await pump.drain(2 * WORK_S)

    assert now_s() - began_s < 2 * WORK_S
    assert len(server.returned) == waiting > 1
    assert len(turns.ended) == ended + slots
