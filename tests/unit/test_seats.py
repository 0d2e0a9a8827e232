"""A seat of a group: whatever happens to it is no matter of its neighbours, and somebody looks after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron.bridge.serve import group_process
from squadron.bridge.serve.group_process import GroupProcess

DECLARED = {"code": {"version": "v1"}, "slots": 1, "grace_s": 0.0, "ordered_by": "", "generation": 0, "most": 1}


class Process:
    """What runs on a seat, as the test says: the bridge and Serve are elsewhere."""

    made: list[Process]
    fails: list[BaseException]
    hangs = False

    def __init__(self, *_: Any) -> None:
        self.made.append(self)
        self.fault, self.stopped, self.cleaned = "", False, False

    async def begin(self, *_: Any, **__: Any) -> None:
        if self.fails:
            raise self.fails.pop(0)
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                # What is closed takes a moment.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                self.cleaned = True

    def check_health(self) -> None:
        if self.fault:
            raise RuntimeError(self.fault)

    async def stop(self) -> None:
        self.stopped = True


class Bridge:
    """What it was told of seats; it may be away."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.is_there = asyncio.Event()
        self.is_there.set()

    async def call(self, environment: str, method: str, *args: Any) -> None:
        await self.is_there.wait()
        self.told.append(args)


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Bridge:
    made = Bridge()
    Process.made, Process.fails, Process.hangs = [], [], False
    monkeypatch.setattr(group_process, "AgentProcess", Process)
    monkeypatch.setattr(group_process, "call_bridge", made.call)
    monkeypatch.setattr(group_process, "SEAT_AGAIN_S", 0.0)
    monkeypatch.setattr(group_process, "LOOK_S", 0.0)
    return made


@pytest.fixture
async def group(bridge: Bridge) -> AsyncIterator[GroupProcess]:
    process = GroupProcess("t", "light")
    process.opening = asyncio.Semaphore(1)
    yield process
    bridge.is_there.set()
    await process.stop()


async def until(is_so: Any) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "raised", [ValueError("odd"), SystemExit(1), asyncio.CancelledError()], ids=["error", "exit", "cancel"]
)
async def test_whatever_a_start_raises_the_process_goes_on_and_the_seat_is_tried_again(
    group: GroupProcess, bridge: Bridge, raised: BaseException
) -> None:
    Process.fails = [raised, raised]
    group.seat({"one": DECLARED}, 0)
    await until(lambda: len(Process.made) == 3 and len(bridge.told) == 3)
    group.check_health()
    assert [bool(fault) for _, _, fault, _ in bridge.told] == [True, True, False]
    assert {(agent, process) for agent, _, _, process in bridge.told} == {("one", group.id)}


async def test_a_seat_is_looked_after_while_the_bridge_is_away_and_what_it_tells_keeps_its_order(
    group: GroupProcess, bridge: Bridge
) -> None:
    bridge.is_there.clear()
    Process.fails = [ValueError("odd")]
    group.seat({"one": DECLARED}, 0)
    await until(lambda: len(Process.made) == 2)
    Process.made[1].fault = "deaf"
    await until(lambda: len(Process.made) == 3)
    assert Process.made[1].stopped
    group.check_health()
    bridge.is_there.set()
    await until(lambda: len(bridge.told) == 4)
    told = [fault.splitlines()[-1:] for _, _, fault, _ in bridge.told]
    assert told == [["ValueError: odd"], [], ["RuntimeError: deaf"], []]


async def test_a_seat_that_is_taken_away_as_it_begins_ends_alone_and_closes_all(
    group: GroupProcess, bridge: Bridge
) -> None:
    group.seat({"two": DECLARED}, 0)
    await until(lambda: Process.made)
    Process.hangs = True
    group.seat({"one": DECLARED, "two": DECLARED}, 0)
    await until(lambda: len(Process.made) == 2)
    one = group._seats["one"]
    group.seat({"two": DECLARED}, 0)
    # Twice: when a process ends, it asks all that leave once more.
    await asyncio.gather(one.leave(), one.leave())
    assert Process.made[1].cleaned
    assert one.running.done()
    group.check_health()
    assert bridge.told == []


async def test_a_seat_that_takes_over_from_one_with_a_fault_says_that_it_runs(
    group: GroupProcess, bridge: Bridge
) -> None:
    Process.fails = [ValueError("odd")] * 1000
    group.seat({"one": DECLARED}, 0)
    await until(lambda: bridge.told)
    Process.fails = []
    group.seat({"one": DECLARED | {"generation": 1}}, 0)
    await until(lambda: bridge.told[-1][2] == "")
