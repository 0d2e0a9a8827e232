"""Nodes of a Ray cluster die under load: nothing is lost, and agents are back elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squadron import Settings, Squad
from squadron.bridge.jetstream.link import embedded
from squadron.runtime.errors import SquadronError
from tests.chaos.client import Plan
from tests.chaos.conftest import Books, Start, squadron_command
from tests.chaos.ledger import Ledger
from tests.chaos.ray_nodes import RayNodes
from tests.chaos.worker import Worker

#: How long the client may need after a kill, in seconds: Ray takes up to 30 s to give up a node.
FINISH_WITHIN_S = 120.0
#: How long Ray may take to have lost a node, in seconds.
BACK_WITHIN_S = 120.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Placed(Worker):
    """Three replicas that need CPUs: none of them is on the head."""

    name = "worker"
    num_cpus = 1


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Ray puts UNIX sockets there, whose paths are limited.
    with tempfile.TemporaryDirectory(prefix="sqn-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[RayNodes]:
    with RayNodes(folder, {}) as started:
        started.head()
        for name in ("one", "two"):
            started.worker(name)
        yield started


@pytest.fixture(scope="module")
def settings(nodes: RayNodes, folder: Path) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        home = folder / "home"
        chosen = Settings.load({}, home=home, ray_address=nodes.address)
        squadron_command(chosen, "up")
        yield chosen
        embedded.stop(home)


@pytest.fixture(scope="module")
async def joined(settings: Settings) -> AsyncIterator[Squad]:
    async with Squad.connect(settings) as squad:
        yield squad


async def _replicas(squad: Squad) -> set[int]:
    """The processes of the replicas that Ray Serve has, or none while the bridge can't tell."""
    with contextlib.suppress(SquadronError):
        for each in (await squad.status())["agents"]:
            if each["agent"] == "worker" and each["running"] == 3:
                return {replica["pid"] for replica in each["replicas"]}
    return set()


async def _back(squad: Squad, gone: set[int]) -> set[int]:
    """Wait until there are three replicas again, none of them of those that are gone."""
    async with asyncio.timeout(BACK_WITHIN_S):
        while len(present := await _replicas(squad)) != 3 or present & gone:
            await asyncio.sleep(0.2)
    return present


async def test_a_node_that_holds_replicas_is_killed_under_load_and_they_are_back_elsewhere(
    nodes: RayNodes, joined: Squad, start_client: Start, books: Books, tmp_path: Path
) -> None:
    await joined.deploy(Placed)
    held = await _back(joined, set())
    homes = {name: {each.pid for each in nodes.processes(name)} & held for name in ("one", "two")}
    assert set.union(*homes.values()) == held, "replicas are on workers only"
    victim = max(homes, key=lambda name: len(homes[name]))
    client = start_client(Plan(seed=2))
    await client.until_told(300)

    nodes.kill(victim)
    kills = Ledger(tmp_path / "kills")
    for pid in homes[victim]:
        kills.write("kill", role="replica", victim=pid)

    await _back(joined, homes[victim])
    await client.until_told(1500, within_s=60)
    await client.finish(within_s=FINISH_WITHIN_S)
    account = await books()
    assert account.left_by_killed_replicas()
    told = {each["name"]: each["alive"] for each in await joined.nodes() if each["alive"]}
    assert len(told) >= 1
