"""The registry over real ports: lapses, gaps, a store that is made anew, and who knows more than whom."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.stream_configs import StreamNames, ensure_streams
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import ON_NATS, Peer, Serve, World, stand_in, until


def _card(number: int) -> AgentCard:
    return AgentCard(agent="reader", topics=(SemanticTopic(name="book.read", description=str(number)),))


def _read_by(peer: Peer) -> str:
    found = peer.registry.find("book.read")
    return found.description if found else ""


async def test_a_source_is_of_the_agent_that_its_whole_name_is_or_that_it_is_a_process_of(peer: Peer) -> None:
    for agent, name in (("bare", "bare.thing"), ("doubler", "bare.double")):
        await peer.registry.advertise(AgentCard(agent=agent, topics=(SemanticTopic(name=name),)))
        await stand_in(peer, agent, f"{agent}-1")

    refuted = {
        each
        for each in ("bare", "bare-0a1b2c3d", "bare-doubler", "doubler")
        if peer.registry.refutes(each, "bare.double")
    }

    assert refuted == {"bare", "bare-0a1b2c3d"}


async def test_a_presence_lapses_by_itself_in_each_process(world: World) -> None:
    one, other = await world.join("one"), await world.join("other")
    lapsed: list[tuple[str, str]] = []
    other.registry.on_lapse(lambda *who: lapsed.append(who))
    await one.registry.advertise(_card(1))
    await one.registry.renew("reader", "reader-1")

    async def found() -> bool:
        return _read_by(other) == "1"

    async def gone() -> bool:
        return not any(peer.registry.is_live("reader") for peer in (one, other))

    await until(found)
    await until(gone)
    assert lapsed == [("reader", "reader-1")]


class Beating:
    """A process of its own, as far as its event loop counts: its heart beats while ours stands still."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._stop, self.beats = settings, threading.Event(), threading.Semaphore(0)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._beat()))

    def __enter__(self) -> Beating:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _beat(self) -> None:
        wiring = await Wiring.open(self._settings, AgentIdentity(id="beating", type="test"), create=True)
        await wiring.registry.advertise(_card(1))
        while not self._stop.is_set():
            await wiring.registry.renew("reader", "reader-1")
            self.beats.release()
            await asyncio.sleep(HEARTBEAT_S)
        await wiring.aclose()


@ON_NATS
async def test_nobody_lapses_because_our_own_loop_was_late(world: World) -> None:
    """As when a model's library is imported on a busy machine, right before a supervisor looks for topics."""
    assert world.settings_of is not None
    peer = await world.join("late")

    async def found() -> bool:
        return _read_by(peer) == "1"

    with Beating(world.settings_of("beating")) as beating:
        await until(found)
        ended_at = time.monotonic() + 1.5 * peer.registry.presence_ttl_s
        while time.monotonic() < ended_at:
            beating.beats.acquire()  # blocks the loop

        assert _read_by(peer) == "1"
        assert [hit.agent for hit in peer.registry.discover("read a book")] == ["reader"]


@ON_NATS
async def test_a_registry_that_was_made_anew_counts_though_its_sequences_are_lower(world: World) -> None:
    assert world.settings is not None
    bridge, client = [
        await Wiring.open(world.settings, AgentIdentity(id=name, type="test"), create=True)
        for name in ("bridge", "client")
    ]
    for number in range(5):
        await bridge.registry.advertise(_card(number))
    await bridge.registry.renew("reader", "bridge")
    names = StreamNames(world.settings.env)
    await bridge.connection.api(f"STREAM.DELETE.{names.registry}", {})
    await ensure_streams(bridge.connection, names)
    await bridge.registry.advertise(_card(9))
    await bridge.registry.renew("reader", "bridge")

    async def both() -> bool:
        return all(
            (found := each.registry.find("book.read")) and found.description == "9" for each in (bridge, client)
        )

    await until(both)
    for each in (client, bridge):
        await each.aclose()


@ON_NATS
async def test_an_older_environment_learns_to_tell_of_its_registry(world: World) -> None:
    assert world.settings is not None
    peer = await Wiring.open(world.settings, AgentIdentity(id="old", type="test"), create=True)
    stream = StreamNames(world.settings.env).registry
    before = (await peer.connection.api(f"STREAM.INFO.{stream}", {}))["config"]
    assert before.pop("republish")
    await peer.connection.api(f"STREAM.DELETE.{stream}", {})
    assert "error" not in await peer.connection.api(f"STREAM.CREATE.{stream}", before)

    await ensure_streams(peer.connection, StreamNames(world.settings.env))

    assert "republish" in (await peer.connection.api(f"STREAM.INFO.{stream}", {}))["config"]
    await peer.aclose()


class Relay(Agent):
    """Asks on."""

    @topic("relay.ask")
    async def ask(self, ctx: Context) -> Any:
        """Ask the desk."""
        return (await ctx.ask("desk.answer")).unwrap()


class Desk(Agent):
    """Answers."""

    @topic("desk.answer")
    async def answer(self) -> int:
        """Tell a number."""
        return 42


async def test_a_replica_sees_at_least_what_its_caller_saw(world: World, serve: Serve) -> None:
    relay = await serve(Relay(), name="relay")
    client = await world.join("client")
    # It hears nothing more, and does not know it.
    await relay.peer.registry.aclose()
    await serve(Desk(), name="desk")

    async def known() -> bool:
        return client.registry.find("desk.answer") is not None

    await until(known)
    assert relay.peer.registry.find("desk.answer") is None
    outcome = await client.caller.ask("relay.ask", {}, AskOptions(within_s=30))
    assert outcome.unwrap() == 42
