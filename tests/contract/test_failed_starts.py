"""An agent whose start fails: what had begun has ended, and the next start in that process finds nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from squadron import Agent, on, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.wire.envelope import AgentMessage
from tests.contract.conftest import Peer, World, until


class Opener(Agent):
    """Opens something for its time, and may fail at several places."""

    fails = ""

    def __init__(self) -> None:
        self.opened = 0

    async def on_start(self) -> None:
        self.opened += 1
        if self.fails == "on_start":
            raise ValueError("no such thing")
        if self.fails == "cancelled":
            await asyncio.Event().wait()

    async def on_stop(self) -> None:
        self.opened -= 1

    @topic("opener.say")
    async def say(self) -> str:
        """Say it."""
        return "said"

    @on("news.opener")
    async def hear(self, message: AgentMessage) -> None:
        """Hear of it."""


class Unsure(Opener):
    """Does not know what it can do."""

    name = "opener"

    @property
    def capabilities(self) -> Collection[str]:  # type: ignore[override]
        raise ValueError("no such thing")


@pytest.fixture
async def replica(world: World) -> Peer:
    return await world.join("opener-1", agent="opener")


async def make(peer: Peer, agent: Agent) -> Host:
    host = Host(peer.place, agent, AgentSpec.of(type(agent)), slots=2)
    await peer.queue.declare(host.mailbox)
    return host


def work() -> set[str]:
    """What of ours goes on in the background, by name: the loop is that of other tests, too."""
    return {name for task in asyncio.all_tasks() if not (name := task.get_name()).startswith("Task-")}


@pytest.mark.parametrize("where", ["on_start", "capabilities", "last step", "cancelled"])
async def test_of_a_start_that_fails_or_is_cancelled_nothing_is_left_and_the_next_one_serves(
    peer: Peer, replica: Peer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before, agent = work(), Unsure() if where == "capabilities" else Opener()
    agent.fails = where
    host = await make(replica, agent)
    if where == "last step":

        async def away(event: str) -> None:
            raise BusUnavailableError("the server is away")

        monkeypatch.setattr(host, "_tell", away)
    starting = asyncio.ensure_future(host.start())
    if where == "cancelled":
        while not agent.opened:
            await asyncio.sleep(0)
        starting.cancel()
    expected: dict[str, Any] = {"last step": BusUnavailableError, "cancelled": asyncio.CancelledError}
    with pytest.raises(expected.get(where, ValueError)):
        await starting

    assert agent.opened == 0

    async def nothing_is_left() -> bool:
        return work() <= before

    await until(nothing_is_left)
    await peer.registry.catch_up(replica.registry.news)
    assert peer.registry.replicas("opener") == {}

    # Another one takes what comes, and nothing of the first takes it away from it.
    again = await make(replica, Opener())
    await peer.registry.advertise(again.spec.card())
    await again.start()
    for _ in range(4):
        assert (await peer.caller.ask("opener.say", {})).unwrap() == "said"
    await again.stop(1.0)
