"""The same accounts where nobody is trusted: roles, signatures that are required, and payloads that are sealed."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squadron import Context, Settings, Squad, topic
from squadron.bridge.jetstream.link.at_home import API_PREFIX
from tests.chaos.client import Plan
from tests.chaos.conftest import Books, Start, squadron_command
from tests.chaos.kills import Kills
from tests.chaos.worker import MAX_ATTEMPTS, Squarer

pytestmark = pytest.mark.slow


class Sealed(Squarer):
    """Nobody but its askers reads what it is asked and what it answers."""

    name = "worker"
    slots = 340
    min_replicas = max_replicas = 3

    @topic("chaos.square", max_attempts=MAX_ATTEMPTS, sealed=True)
    async def square(self, number: int, work_s: float, ledger: str, ctx: Context) -> int:
        """Square a number."""
        return await self.work(number, work_s, ledger, ctx)


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="sq-chaos-") as home:
        chosen = Settings.load({"SQUADRON_VERIFY": "require"}, home=Path(home))
        squadron_command(chosen, "auth", "init")
        squadron_command(chosen, "up")
        yield chosen
        squadron_command(chosen, "down")


@pytest.fixture(scope="module")
async def joined(settings: Settings) -> AsyncIterator[Squad]:
    async with Squad.connect(settings) as squad:
        yield squad


@pytest.mark.timeout(400)
async def test_each_sealed_task_has_one_outcome_whoever_is_killed(
    settings: Settings, joined: Squad, start_client: Start, books: Books, tmp_path: Path
) -> None:
    # Not the account of the streams, and whoever can't prove who it is isn't heard.
    ports = joined._wiring.ports
    assert joined._wiring.connection.api_prefix == API_PREFIX
    assert ports.guard is not None
    await joined.deploy(Sealed)
    client = start_client(Plan(in_flight=300))
    await client.until_told(300)
    kills = Kills(settings, joined, client, tmp_path, seed=0)
    await kills.one_at_a_time()
    await kills.together()
    await client.finish(within_s=90)
    account = await books()
    assert account.left_by_killed_replicas() <= account.repeated
    assert account.left_by_killed_replicas()
