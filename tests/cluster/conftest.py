"""One local cluster for the whole folder: a real Ray, a real nats-server, in a home of its own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squadron import Settings, Squad
from squadron.servers import stop_local


@pytest.fixture(scope="session")
def settings() -> Iterator[Settings]:
    """Settings of the folder's cluster; fast heartbeats, so that tests of liveness are short."""
    with tempfile.TemporaryDirectory(prefix="sq-tests-") as home:
        chosen = Settings.load({}, home=Path(home), heartbeat_s=1.0)
        yield chosen
        stop_local(chosen)


@pytest.fixture(scope="session")
async def cluster(settings: Settings) -> AsyncIterator[Squad]:
    """The squad that brought the cluster up."""
    async with Squad.up(settings) as squad:
        yield squad


@pytest.fixture
async def squad(cluster: Squad) -> AsyncIterator[Squad]:
    """The cluster's squad, with no agent of another test on it."""
    yield cluster
    await cluster.drain(60)


async def until(condition, *, within_s: float = 120.0, every_s: float = 0.1):  # type: ignore[no-untyped-def]
    """Wait for an async condition to return something true, and return that."""
    async with asyncio.timeout(within_s):
        while not (found := await condition()):
            await asyncio.sleep(every_s)
        return found
