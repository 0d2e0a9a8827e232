"""Order under load when servers are killed: the one that has the lines, or the leader of their three copies."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from squadron import Agent, Context, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.queue import Backlog, Mailbox
from squadron.runtime.wire.envelope import AgentMessage
from tests.contract.conftest import until
from tests.contract.nats_cluster import Cluster
from tests.contract.own_server import OwnServer
from tests.contract.test_streams_on_three import opened_at_last

CONVERSATIONS, EACH = 20, 40


class Scribe(Agent):
    """Writes down what it began."""

    ordered_by = "conversation"

    def __init__(self) -> None:
        self.began: defaultdict[str, list[int]] = defaultdict(list)
        self.inside: dict[str, int] = {}
        self.side_by_side = list[tuple[str, int, int]]()

    @topic("scribe.note")
    async def note(self, number: int, context: Context) -> int:
        """Write it down."""
        conversation = context.message.context.conversation_id
        if (other := self.inside.get(conversation, number)) != number:
            self.side_by_side.append((conversation, other, number))
        self.inside[conversation] = number
        self.began[conversation].append(number)
        await asyncio.sleep(0.002)
        self.inside.pop(conversation, None)
        return number


async def _send(place: Wiring, number: int) -> None:
    for which in range(CONVERSATIONS):
        task = AgentMessage.new("task", place.ports.identity, {"number": number}, conversation_id=f"c{which}")
        while True:
            try:
                subject = place.ports.subjects.task("scribe.note")
                await place.ports.queue.put(subject, task.encode(), msg_id=task.id)
                break
            except BusUnavailableError:
                await asyncio.sleep(0.1)


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and clients have one, so that what is stored right after a reconnect is known to come first."""
    for module in ("runtime.running.ordered", "bridge.jetstream.lease"):
        monkeypatch.setattr(f"squadron.{module}.CLOCKS_S", 0.0)


@pytest.mark.slow
async def test_each_conversation_keeps_its_order_when_the_leader_of_three_copies_dies(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        settings = Settings(home=tmp_path, env="three", nats_url=",".join(cluster.urls), stream_replicas=3)

        async def kill(client: Wiring, number: int) -> None:
            if number == EACH // 2:
                cluster.kill(await cluster.server_of(client, StreamNames("three").tasks))

        await _keeps_order(settings, kill)


@pytest.mark.slow
async def test_each_conversation_keeps_its_order_when_its_server_is_killed_again_and_again(tmp_path: Path) -> None:
    server = OwnServer(tmp_path)
    server.start()
    try:

        async def kill(_: Wiring, number: int) -> None:
            if number % 8 == 7:
                server.stop()
                server.start()

        await _keeps_order(Settings(home=tmp_path, env="one", nats_url=server.url), kill)
    finally:
        server.stop()


async def _keeps_order(settings: Settings, kill: Callable[[Wiring, int], Awaitable[None]]) -> None:
    """Send rounds of tasks, one for each conversation, to two replicas; `kill` comes after each round is sent."""
    scribe, spec = Scribe(), AgentSpec.of(Scribe)
    client, *replicas = [await opened_at_last(settings, name) for name in ("client", "one", "two")]
    patterns = tuple(each.name for each in spec.card().topics)
    await client.ports.queue.declare(Mailbox("scribe", patterns, settings.lease_s, ordered=True))
    hosts = [Host(place, scribe, spec, slots=8, ordered=True) for place in replicas]
    for host in hosts:
        await host.start()
    async with asyncio.timeout(90):
        for number in range(EACH):
            await _send(client, number)
            await kill(client, number)

    async def nothing_is_left() -> bool:
        try:
            return await client.ports.queue.backlog("scribe") == Backlog(0, 0)
        except BusUnavailableError:
            return False

    await until(nothing_is_left, within_s=60.0)
    for host in hosts:
        await host.stop(1.0)
    for place in (client, *replicas):
        await place.aclose()

    # One whose outcome was not acknowledged may have run again; never with another one in between.
    once = {key: list(dict.fromkeys(numbers)) for key, numbers in scribe.began.items()}
    assert once == {f"c{which}": list(range(EACH)) for which in range(CONVERSATIONS)}
    assert all(numbers == sorted(numbers) for numbers in scribe.began.values())
    assert scribe.side_by_side == []
