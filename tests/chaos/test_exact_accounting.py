"""A thousand tasks in flight, and everybody is killed: each task has one outcome, and the accounts add up."""

from __future__ import annotations

import random

import pytest

from squadron import Settings, Squad
from tests.chaos.client import Plan
from tests.chaos.conftest import Books, Start
from tests.chaos.kills import Kills
from tests.chaos.worker import Worker

#: How long the client may need after the last kill, in seconds, to hear what is still under way.
FINISH_WITHIN_S = 90.0

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 22))]


# Beside the environment that it may have to bring up first, on a machine that others use.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_task_has_exactly_one_outcome_whoever_is_killed(
    seed: int, settings: Settings, joined: Squad, start_client: Start, books: Books, tmp_path
):
    await joined.deploy(Worker)
    client = start_client(Plan(seed=seed))
    # The first kill finds all thousand under way.
    await client.until_told(random.Random(seed).randrange(100, 600))
    kills = Kills(settings, joined, client, tmp_path, seed)
    await kills.one_at_a_time()
    await kills.together()
    await client.finish(within_s=FINISH_WITHIN_S)
    account = await books()
    # Else nothing was proved: a killed replica was at work, and left turns that had to be run again.
    assert account.left_by_killed_replicas() <= account.repeated
    assert account.left_by_killed_replicas()
