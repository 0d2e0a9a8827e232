"""The side that asks: what it does while the server is away, and how long it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from squadron import Agent, topic
from squadron.runtime.wire.outcome import Rejected, Undeliverable
from squadron.testing import MemorySquad, now_s


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        yield made


async def test_a_call_that_is_cancelled_while_the_server_is_away_is_cancelled_at_once(squad: MemorySquad) -> None:
    await squad.script("form.file", "filed")
    squad.cut()
    submitting = asyncio.create_task(squad.submit("form.file", task_id="mine", within_s=3600))
    await asyncio.sleep(1)
    cancelled_at = now_s()
    submitting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await submitting

    assert now_s() == pytest.approx(cancelled_at)
    squad.heal()
    assert (await squad.ask("form.file", task_id="mine")).unwrap() == "filed"


async def test_a_deadline_that_passes_while_the_server_is_away_ends_no_look_for_late_outcomes(
    squad: MemorySquad,
) -> None:
    await squad.script("form.file", "filed")
    squad.cut()
    outcome = await squad.ask("form.file", task_id="mine", within_s=2)
    await asyncio.sleep(60)

    assert isinstance(outcome, Undeliverable)
    looking = squad._wiring.caller._looking
    assert looking is not None
    assert not looking.done()


class Bench(Agent):
    """Has room for one task."""

    slots = 1
    mailbox_limit = 1

    @topic("bench.work")
    async def work(self) -> None:
        await asyncio.sleep(90)


async def test_who_waited_for_the_topic_waits_the_shorter_for_room(squad: MemorySquad) -> None:
    await squad.deploy(Bench)
    await squad.submit("bench.work", within_s=3600)
    await squad.undeploy(Bench)
    squad._wiring.registry.grace_s = 30
    began = now_s()
    asking = asyncio.create_task(squad.ask("bench.work", within_s=20))
    await asyncio.sleep(15)
    await squad.deploy(Bench)

    outcome = await asking

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == "mailbox"
    assert now_s() - began == pytest.approx(20, abs=1)
