"""How long it takes until work goes on after a kill, with the settings a user has by default."""

from __future__ import annotations

import asyncio
import time

import pytest

from squadron import Settings, Squad
from squadron.bridge.jetstream.link import embedded
from tests.chaos.client import Plan
from tests.chaos.conftest import Books, Start
from tests.chaos.kills import Kills
from tests.chaos.ledger import Line, read
from tests.chaos.worker import Worker

#: What is timed is run where nothing else is: a busy machine recovers later.
pytestmark = pytest.mark.slow

#: The promises, in seconds: a killed replica's tasks start elsewhere, and work flows after a restart of NATS.
ELSEWHERE_WITHIN_S, FLOWS_WITHIN_S = 3.0, 5.0
#: How long the nats-server is away, in seconds.
AWAY_S = 2.0
#: Tasks under way that leave the machine some air: how fast it recovers is measured, not how busy it is.
IN_FLIGHT = 100


async def test_the_tasks_of_a_killed_replica_start_elsewhere_within_three_seconds(
    settings: Settings, joined: Squad, start_client: Start, books: Books, tmp_path
):
    await joined.deploy(Worker)
    client = start_client(Plan(in_flight=IN_FLIGHT))
    await client.until_told(IN_FLIGHT)
    killed_at = time.monotonic()
    victim = await Kills(settings, joined, client, tmp_path, seed=0).kill("replica")
    await asyncio.sleep(2 * ELSEWHERE_WITHIN_S)
    await client.finish(within_s=30)
    await books()
    lines = read(tmp_path / "handlers")
    left = _begun(lines, victim) - _ended(lines)
    assert left
    waited = {task: min(_starts(lines, task, not_by=victim)) - killed_at for task, _ in left}
    assert max(waited.values()) < ELSEWHERE_WITHIN_S, waited


def _begun(lines: list[Line], pid: int) -> set[tuple[str, int]]:
    return {(line["task"], line["attempt"]) for line in lines if line["what"] == "start" and line["pid"] == pid}


def _ended(lines: list[Line]) -> set[tuple[str, int]]:
    return {(line["task"], line["attempt"]) for line in lines if line["what"] == "end"}


def _starts(lines: list[Line], task: str, *, not_by: int) -> list[float]:
    return [
        line["at"] for line in lines if line["what"] == "start" and line["task"] == task and line["pid"] != not_by
    ]


async def test_work_flows_within_five_seconds_after_the_nats_server_was_away_for_two(
    settings: Settings, joined: Squad, start_client: Start, books: Books, tmp_path
):
    await joined.deploy(Worker)
    client = start_client(Plan(in_flight=IN_FLIGHT))
    await client.until_told(IN_FLIGHT)
    await Kills(settings, joined, client, tmp_path, seed=0).kill("nats")
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(embedded.ensure, settings.home)
    back_at = time.monotonic()
    await asyncio.sleep(FLOWS_WITHIN_S)
    await client.finish(within_s=30)
    await books()
    started = [line["at"] - back_at for line in read(tmp_path / "handlers") if line["what"] == "start"]
    heard = [line["at"] - back_at for line in client.outcomes()]
    for what in (started, heard):
        assert min(after_s for after_s in what if after_s > 0) < FLOWS_WITHIN_S
