"""A user's nats-server comes back with an empty store: the bridge notices, and everybody heals by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squadron import Settings
from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.bridge.control.control import Bridge
from squadron.bridge.jetstream import stream_configs
from squadron.bridge.jetstream.queue import subjects_held
from squadron.bridge.jetstream.stream_configs import FRESH_SEQS, StreamNames, Streams
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import SquadronError
from squadron.runtime.ports.queue import Delivery, Mailbox
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.deployment import Deployment, Scale
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.groups import EventGroup
from tests.conftest import HEARTBEAT_S, LEASE_S
from tests.contract.conftest import Inbox, until
from tests.contract.own_server import OwnServer
from tests.unit.test_bridge import HeldReplicas


class Typist(Agent):
    """Types what it is given."""

    @topic("typist.type")
    async def type(self, text: str) -> str:
        return text.upper()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    made = OwnServer(tmp_path)
    made.start()
    yield made
    made.stop()


class Site:
    """A bridge, a replica and a caller, each on a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.open = settings, contextlib.AsyncExitStack()

    async def wiring(self, name: str) -> Wiring:
        wiring = await Wiring.open(self.settings, AgentIdentity(id=name), create=name == "bridge")
        self.open.push_async_callback(wiring.aclose)
        return wiring

    async def bridge(self) -> Bridge:
        wiring = await self.wiring("bridge")
        names = StreamNames(self.settings.env)
        patterns = [f"agents.{self.settings.env}.task.>"]
        bridge = Bridge(
            wiring.ports,
            wiring.registry,
            wiring.records,
            HeldReplicas(),
            lambda: subjects_held(wiring.connection, names.tasks, patterns),
            Streams(wiring.connection, names).watch,
            {},
            lease_s=self.settings.lease_s,
        )
        await bridge.start()
        self.open.push_async_callback(bridge.aclose)
        return bridge

    async def replica(self, agent: Agent) -> None:
        wiring, spec = await self.wiring("replica"), AgentSpec.of(type(agent))
        turns = Turns(spec.name, spec.handlers(agent), wiring.caller)
        pump = Pump(wiring.ports.queue, Mailbox(spec.name, ("typist.type",), LEASE_S), turns.run, slots=4)
        await turns.start()
        await pump.start()
        self.open.push_async_callback(turns.aclose)
        self.open.push_async_callback(pump.aclose)

        async def beat() -> None:
            while True:
                with contextlib.suppress(SquadronError):
                    await wiring.registry.renew(spec.name, "replica")
                await asyncio.sleep(HEARTBEAT_S)

        beating = asyncio.create_task(beat())
        self.open.callback(beating.cancel)


@pytest.fixture
async def site(server: OwnServer, tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(Settings(home=tmp_path, nats_url=server.url, env="lost", heartbeat_s=HEARTBEAT_S, lease_s=LEASE_S))
    async with made.open:
        yield made


async def test_after_the_store_was_lost_everybody_heals_and_it_is_told(server: OwnServer, site: Site) -> None:
    bridge = await site.bridge()
    scale = Scale(minimum=1, maximum=1)
    deployment = Deployment(
        card=AgentSpec.of(Typist).card(),
        code={"version": "v1", "import_path": "x"},
        slots=4,
        grace_s=1,
        lease_s=LEASE_S,
        bounds=scale,
        scale=scale,
    )
    await bridge.deploy([deployment.model_dump(mode="json")])
    await site.replica(Typist())
    caller = await site.wiring("caller")
    events = Inbox()
    feed = await caller.ports.events.consume(EventGroup("listener", "news.*", "new", 30.0), events)
    feed.want(10)
    topic = caller.caller.lite_topics.topic("room", "owner")
    before = await topic.publish("before")
    reader = topic.read("new")
    waiting = asyncio.ensure_future(anext(reader))

    async def asked(text: str, priority: int) -> bool:
        try:
            outcome = await caller.caller.ask(
                "typist.type", {"text": text}, AskOptions(within_s=20, priority=priority)
            )
        except SquadronError:
            return False
        return outcome.unwrap() == text.upper() if outcome.kind == "result" else False

    assert await asked("here", 5)
    # A lane besides the normal one, and a payload that travels on its own.
    assert await asked("urgent", 9)
    assert await asked("x" * 600_000, 5)
    await caller.ports.events.append("news.first", b"first", msg_id="1")
    first: Delivery = await events.next()
    await first.lease.settle(confirmed=True)

    server.lose_store()

    await until(lambda: asked("back", 5), within_s=60)
    await until(lambda: asked("urgent again", 9), within_s=60)
    await until(lambda: asked("y" * 600_000, 5), within_s=60)
    await caller.ports.events.append("news.second", b"second", msg_id="2")
    second: Delivery = await events.next(within_s=60)
    assert second.data == b"second"
    after = await topic.publish("after")
    assert (await asyncio.wait_for(waiting, 60)).content == "after"
    # Nobody who holds a number of the old store can settle, or read past, a message of the new one.
    assert min(after, second.seq) >= FRESH_SEQS > max(before, first.seq)
    (loss,) = (await bridge.ping())["losses"]
    assert "squadron-lost-tasks" in loss["streams"]
    assert "squadron-lost-registry" in loss["streams"]
    late = await site.wiring("late")
    assert late.registry.find("typist.type") is not None
    (recorded,) = await late.records.latest(late.ports.subjects.registry("deployment"))
    assert Deployment.model_validate_json(recorded.data) == deployment
    await feed.aclose()


async def test_streams_that_somebody_else_made_anew_are_noticed_as_well(server: OwnServer, site: Site) -> None:
    wiring = await site.wiring("bridge")
    streams = Streams(wiring.connection, StreamNames("lost"))
    assert await streams.keep() == []
    assert await streams.keep() == []

    server.lose_store()
    other = await Wiring.open(site.settings, AgentIdentity(id="other"), create=True)
    await other.aclose()

    async def lost() -> bool:
        try:
            return len(await streams.keep()) == 7
        except SquadronError:
            return False

    await until(lost, within_s=30)
    assert await streams.keep() == []


async def test_streams_are_looked_at_once_in_a_while_and_at_once_over_a_new_connection(
    server: OwnServer, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_configs, "LOOK_S", 3600.0)
    wiring = await site.wiring("bridge")
    streams, asked = Streams(wiring.connection, StreamNames("lost")), 0
    keep = streams.keep

    async def counted() -> list[str]:
        nonlocal asked
        lost, asked = await keep(), asked + 1
        return lost

    monkeypatch.setattr(streams, "keep", counted)
    for _ in range(3):
        assert await streams.watch() == []
    assert asked == 1

    server.lose_store()

    async def lost() -> bool:
        with contextlib.suppress(SquadronError):
            return len(await streams.watch()) == 7
        return False

    await until(lost, within_s=30)
    looked = asked
    assert await streams.watch() == []
    assert asked == looked


async def test_a_server_that_comes_back_with_its_store_has_lost_nothing(server: OwnServer, site: Site) -> None:
    wiring = await site.wiring("bridge")
    streams = Streams(wiring.connection, StreamNames("lost"))
    await streams.keep()
    server.stop()
    server.start()
    looks: list[list[str]] = []

    async def looked() -> bool:
        with contextlib.suppress(SquadronError):
            looks.append(await streams.keep())
        return bool(looks)

    await until(looked, within_s=30)
    assert looks == [[]]
