"""Replicas that are told to go, under load: what runs ends where it runs, the rest is handed back."""

from __future__ import annotations

import asyncio

from squadron import Squad
from tests.chaos.client import Plan
from tests.chaos.conftest import Books, Start
from tests.chaos.processes import replica_pids
from tests.chaos.worker import Impatient, Narrow, Renewed, Worker

#: Less than a killed environment gets: these tests are about order, not about load.
IN_FLIGHT = 150


async def until_replicas(squad: Squad, count: int, *, without: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """Wait until so many are present, and none of those."""
    async with asyncio.timeout(120):
        while len(pids := await replica_pids(squad)) != count or without & set(pids):
            await asyncio.sleep(0.1)


async def test_scaling_in_under_load_loses_nothing_and_repeats_nothing(
    joined: Squad, start_client: Start, books: Books
):
    await joined.deploy(Worker)
    client = start_client(Plan(in_flight=IN_FLIGHT, most_s=1.0))
    await client.until_told(2 * IN_FLIGHT)
    await joined.scale("worker", 1)
    await until_replicas(joined, 1)
    told = len(client.outcomes())
    await client.until_told(told + 100)
    await client.finish(within_s=120)
    account = await books()
    assert account.repeated - account.lapsed == set()
    await joined.scale("worker", "auto")


async def test_a_redeploy_under_load_loses_nothing_and_repeats_nothing(
    joined: Squad, start_client: Start, books: Books
):
    await joined.deploy(Worker)
    before = set(await replica_pids(joined))
    client = start_client(Plan(in_flight=IN_FLIGHT, most_s=1.0))
    await client.until_told(2 * IN_FLIGHT)
    await joined.deploy(Renewed)
    await until_replicas(joined, 3, without=before)
    told = len(client.outcomes())
    await client.until_told(told + 100)
    await client.finish(within_s=120)
    account = await books()
    assert account.repeated - account.lapsed == set()


async def test_a_drained_squad_finishes_what_runs_and_its_return_does_the_rest(
    joined: Squad, start_client: Start, books: Books
):
    await joined.deploy(Narrow)
    await until_replicas(joined, 1)
    # More than there are slots for, so that most wait: one after the other they would take half a minute.
    client = start_client(Plan(in_flight=1000, count=1000, most_s=1.0))
    await client.until_told(50)
    await joined.drain()
    assert len(client.outcomes()) < 1000
    await joined.deploy(Worker)
    await client.finish(within_s=120)
    account = await books()
    assert account.repeated - account.lapsed == set()


async def test_turns_that_outlast_the_grace_period_are_handed_back_and_counted(
    joined: Squad, start_client: Start, books: Books
):
    await joined.deploy(Impatient)
    await until_replicas(joined, 3)
    # They outlast `Impatient.grace_s`.
    client = start_client(Plan(in_flight=IN_FLIGHT, least_s=1.0, most_s=3.0))
    await client.until_told(IN_FLIGHT)
    await joined.scale("worker", 1)
    await until_replicas(joined, 1)
    await client.finish(within_s=120)
    account = await books()
    handed_back = {task for task, lines in account.turns.items() if any(line["what"] == "cut" for line in lines)}
    assert handed_back
    assert account.repeated - (account.lapsed - handed_back) == handed_back
    for task in handed_back - account.lapsed:
        cuts = sum(line["what"] == "cut" for line in account.turns[task])
        assert account.outcomes[task][0]["attempt"] == 1 + cuts
    await joined.scale("worker", "auto")
