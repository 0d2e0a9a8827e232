"""Background tasks: what breaks is told, and what the process can't do without is a fault of its health."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from squadron.runtime.background import Health, cancel_all, spawn, to_its_end


async def _break() -> None:
    raise KeyError("not ours")


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
    # The callback that tells is run in the next turn of the loop.
    await asyncio.sleep(0)


async def test_what_breaks_is_told_and_lasting_work_is_a_fault() -> None:
    health = Health.begin()
    with capture_logs() as logs:
        await _ended(spawn(_break(), "one message"))
        assert health.fault == ""
        await _ended(spawn(_break(), "the pull", lasting=True))

    assert health.fault == "the pull broke: KeyError: 'not ours'"
    assert [(each["event"], each["task"]) for each in logs] == [
        ("background.broke", "one message"),
        ("background.broke", "the pull"),
    ]


async def test_what_is_cancelled_or_done_is_no_fault() -> None:
    health = Health.begin()
    with capture_logs() as logs:
        waiting = spawn(asyncio.sleep(3600), "waiting", lasting=True)
        await asyncio.sleep(0)
        waiting.cancel()
        await _ended(waiting)
        await _ended(spawn(asyncio.sleep(0), "done", lasting=True))

    assert (health.fault, logs) == ("", [])


async def test_what_a_task_spawns_counts_for_the_health_that_was_begun_before_it() -> None:
    health = Health.begin()

    async def child() -> None:
        await _ended(spawn(_break(), "grandchild", lasting=True))

    parent = asyncio.create_task(child())
    other = Health.begin()
    await parent

    assert health.fault.startswith("grandchild broke")
    assert other.fault == ""


async def test_the_first_fault_is_the_one_that_is_told() -> None:
    health = Health.begin()
    with capture_logs():
        for name in ("first", "second"):
            await _ended(spawn(_break(), name, lasting=True))

    assert health.fault.startswith("first")


async def test_who_awaits_it_gets_what_it_raised() -> None:
    with capture_logs(), pytest.raises(KeyError):
        await spawn(_break(), "awaited")


async def test_a_task_that_forgets_a_cancel_is_cancelled_again() -> None:
    forgotten = []

    async def forgetful() -> None:
        while len(forgotten) < 2:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError as cancel:
                forgotten.append(cancel)
        await asyncio.sleep(3600)

    async def breaks() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise KeyError("on its way out")

    tasks = [asyncio.create_task(each) for each in (forgetful(), breaks(), asyncio.sleep(3600), asyncio.sleep(0))]
    await asyncio.sleep(0)
    await cancel_all(tasks, again_s=0.01)
    assert [task.done() for task in tasks] == [True] * 4
    assert len(forgotten) == 2


async def test_what_goes_to_its_end_does_so_however_often_its_waiter_is_cancelled() -> None:
    going, done = asyncio.Event(), []

    async def work() -> None:
        await going.wait()
        done.append(True)

    waiting = asyncio.create_task(to_its_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    going.set()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert done
