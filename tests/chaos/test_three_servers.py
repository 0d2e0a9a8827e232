"""A NATS cluster of three servers, each stream on all of them: whichever is killed under load, nothing is lost."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squadron import Settings, Squad
from squadron.bridge.jetstream.stream_configs import StreamNames, ask_for
from tests.chaos.client import Plan
from tests.chaos.conftest import Books, Start, squadron_command
from tests.chaos.ledger import Ledger
from tests.chaos.worker import Worker
from tests.contract.nats_cluster import Cluster

#: How long the client may need after the kill, in seconds: streams elect new leaders within some 5 s.
FINISH_WITHIN_S = 90.0
COPIES = 3


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("servers")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def settings(servers: Cluster) -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="sq-three-") as home:
        urls = ",".join(servers.urls)
        chosen = Settings.load({}, home=Path(home), nats_url=urls, stream_replicas=COPIES)
        squadron_command(chosen, "up")
        yield chosen
        squadron_command(chosen, "down")


@pytest.fixture(scope="module")
async def joined(settings: Settings) -> AsyncIterator[Squad]:
    async with Squad.connect(settings) as squad:
        yield squad


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_one_of_three_servers_is_killed_under_load_and_nothing_is_lost(
    settings: Settings, servers: Cluster, joined: Squad, start_client: Start, books: Books, tmp_path: Path
) -> None:
    names = StreamNames(settings.env)
    streams = (names.tasks, names.lite, names.registry, names.dead, names.events, names.runs)
    for stream in streams:
        info = await ask_for(joined._nats.connection, f"STREAM.INFO.{stream}")
        assert info["config"]["num_replicas"] == COPIES
        assert len(info["cluster"]["replicas"]) == COPIES - 1
    await joined.deploy(Worker)
    client = start_client(Plan(seed=1))
    await client.until_told(300)

    # The one that orders the tasks, and to which somebody is connected.
    servers.kill(await servers.server_of(joined._nats, names.tasks))
    Ledger(tmp_path / "kills").write("kill", role="nats", victim=0)

    await client.finish(within_s=FINISH_WITHIN_S)
    await books()
