"""What replicas count comes to the bridge with their heartbeats, and outlives both of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from squadron import Agent, Context, LLMAgent, Model, ModelTurn, Retry, Usage, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.storage import oldest_at, storage
from squadron.bridge.jetstream.stream_configs import StreamNames, ask_for
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory.server import MemoryPlace
from squadron.bridge.metrics.census import MOST_AGENTS, Census
from squadron.bridge.metrics.exposition import text_of
from squadron.bridge.metrics.families import OTHER
from squadron.bridge.metrics.figures import Figures, Gauge
from squadron.bridge.metrics.gauges import Gauges
from squadron.runtime.asking.people import put_question
from squadron.runtime.errors import StorageFullError
from squadron.runtime.ports.journal import Journal
from squadron.runtime.wire.question import Question
from squadron.testing import ScriptedModel
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import ON_NATS, Peer, World, until


class Clerk(Agent):
    """Answers, tries again once, or gives up."""

    @topic("clerk.echo")
    async def echo(self, text: str) -> str:
        return text

    @topic("clerk.again", max_attempts=2)
    async def again(self, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Retry("not yet", after_s=0.01)
        return ctx.attempt

    @topic("clerk.never", max_attempts=1)
    async def never(self) -> None:
        raise ValueError("never")


Shown = dict[tuple[str, ...], float]


def shown(census: Census) -> Shown:
    """What Prometheus would read: name and values of labels, sorted by the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text_of(census.figures()))
        for sample in family.samples
    }


async def shows(census: Census, expected: Shown) -> None:
    """Wait until it shows these."""

    async def is_so() -> bool:
        found = shown(census)
        return all(found.get(name) == value for name, value in expected.items())

    await until(is_so)


async def _nothing() -> list[Gauge]:
    return []


Open = Callable[..., Awaitable[Any]]


@pytest.fixture
async def replica(world: World) -> AsyncIterator[Open]:
    """Run a replica as a Serve replica does."""
    hosts: list[Host] = []

    async def start(name: str, kind: type[Agent] = Clerk) -> Host:
        host = Host((await world.join(name)).place, kind(), AgentSpec.of(kind), slots=4)
        await host.place.ports.queue.declare(host.mailbox)
        await host.place.registry.advertise(host.spec.card())
        await host.start()
        hosts.append(host)
        return host

    yield start
    for host in hosts:
        await host.halt(0)


@pytest.fixture
async def census(world: World) -> AsyncIterator[Open]:
    """The figures of one bridge."""
    opened: list[Census] = []

    async def start(look_up: Callable[..., Awaitable[Any]] = _nothing, name: str = "bridge") -> Census:
        peer = await world.join(name)
        made = Census(peer.ports, peer.records, look_up, heartbeat_s=HEARTBEAT_S)
        await made.load()
        await made.start()
        opened.append(made)
        return made

    yield start
    for each in opened:
        await each.aclose()


async def _ask_each(peer: Peer) -> None:
    for text in ("one", "two"):
        assert (await peer.caller.ask("clerk.echo", {"text": text})).unwrap() == text
    assert (await peer.caller.ask("clerk.again", {})).unwrap() == 2
    assert (await peer.caller.ask("clerk.never", {})).kind == "dead_lettered"


async def test_what_a_replica_did_is_shown_after_its_next_heartbeat(
    replica: Open, census: Open, peer: Peer
) -> None:
    bridge = await census()
    await replica("one")
    await _ask_each(peer)

    await shows(
        bridge,
        {
            ("squadron_tasks_total", "clerk", "result", "clerk.echo"): 2,
            ("squadron_tasks_total", "clerk", "result", "clerk.again"): 1,
            ("squadron_tasks_total", "clerk", "dead_lettered", "clerk.never"): 1,
            ("squadron_task_retries_total", "clerk", "clerk.again"): 1,
            ("squadron_buried_total", "clerk"): 1,
            ("squadron_turn_duration_seconds_count", "clerk", "clerk.again"): 2,
            ("squadron_turn_duration_seconds_bucket", "clerk", "+Inf", "clerk.again"): 2,
            ("squadron_task_wait_seconds_count", "clerk", "clerk.again"): 1,
            ("agent_tasks_total", "clerk", "result"): 3,
            ("agent_tasks_total", "clerk", "dead_lettered"): 1,
            ("agent_task_duration_seconds_count", "clerk"): 5,
            ("squadron_slots", "clerk", "free"): 4,
            ("squadron_slots", "clerk", "busy"): 0,
            ("squadron_replicas", "clerk", "present"): 1,
        },
    )


async def test_an_agent_counts_as_used_when_tasks_have_ended_and_not_by_being_there(
    replica: Open, census: Open, peer: Peer
) -> None:
    bridge = await census()
    await replica("one")
    await shows(bridge, {("squadron_replicas", "clerk", "present"): 1})
    assert bridge.uses["clerk"] == 0
    (await peer.caller.ask("clerk.echo", {"text": "one"})).unwrap()

    async def is_heard() -> bool:
        return bool(bridge.uses["clerk"])

    await until(is_heard)
    assert bridge.uses["clerk"] == 1


async def test_what_goes_wrong_for_the_first_time_is_a_growth_of_what_was_shown_before(census: Open) -> None:
    bridge, names = (
        await census(),
        [("squadron_buried_total", "clerk"), ("squadron_nats_reconnects_total", "clerk")],
    )
    bridge.take("clerk", "one", {"v": 1, "cells": [], "lagS": 0})
    await shows(bridge, dict.fromkeys(names, 0))
    bridge.take("clerk", "one", {"v": 1, "cells": [["buried", [3]]], "lagS": 0})
    await shows(bridge, dict(zip(names, (3, 0), strict=True)))
    await shows(await census(), dict(zip(names, (3, 0), strict=True)))


async def test_replicas_add_up_and_one_that_is_stopped_has_told_all_it_did(
    replica: Open, census: Open, peer: Peer
) -> None:
    bridge = await census()
    first = await replica("one")
    await _ask_each(peer)
    await first.stop(5)
    await replica("two")
    await _ask_each(peer)

    await shows(
        bridge,
        {
            ("squadron_tasks_total", "clerk", "result", "clerk.echo"): 4,
            ("squadron_buried_total", "clerk"): 2,
            ("squadron_replicas", "clerk", "present"): 1,
        },
    )


async def test_the_next_bridge_shows_no_less_than_the_one_before_and_counts_nothing_twice(
    replica: Open, census: Open, peer: Peer
) -> None:
    bridge = await census()
    gone = await replica("one")
    await _ask_each(peer)
    await gone.stop(5)
    await replica("two")
    await _ask_each(peer)
    echoes = ("squadron_tasks_total", "clerk", "result", "clerk.echo")
    await shows(bridge, {echoes: 4})
    await bridge.aclose()

    after = await census(name="bridge-2")
    # Before it has heard anything.
    assert shown(after)[echoes] == 4
    await _ask_each(peer)
    await shows(after, {echoes: 6, ("squadron_buried_total", "clerk"): 3})


class Blocker(Agent):
    """Holds its event loop up."""

    @topic("blocker.block")
    async def block(self, for_s: float) -> None:
        time.sleep(for_s)  # noqa: ASYNC251 - the fault that the figure is there to show


@ON_NATS
async def test_a_handler_that_blocks_its_event_loop_shows_as_lag(replica: Open, census: Open, peer: Peer) -> None:
    bridge = await census()
    await replica("one", Blocker)
    highest = 0.0

    async def is_seen() -> bool:
        nonlocal highest
        highest = max(highest, shown(bridge).get(("squadron_loop_lag_seconds", "blocker"), 0.0))
        return highest > HEARTBEAT_S / 2

    asking = asyncio.ensure_future(peer.caller.ask("blocker.block", {"for_s": 2 * HEARTBEAT_S}))
    await until(is_seen)
    await asking


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_beyond_so_many_agents_all_others_are_one(census: Open) -> None:
    bridge = await census()
    for number in range(MOST_AGENTS + 5):
        # All from one process, as those are that the bridge serves itself.
        bridge.take(f"agent-{number}", "one", {"v": 1, "cells": [["buried", [2]]], "lagS": 0})
    await shows(bridge, {("squadron_buried_total", OTHER): 10, ("squadron_buried_total", "agent-0"): 2})
    buried = {name: value for name, value in shown(bridge).items() if name[0] == "squadron_buried_total"}
    assert len(buried) == MOST_AGENTS + 1
    assert sum(buried.values()) == 2 * (MOST_AGENTS + 5)


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_agents_that_somebody_made_up_are_one_in_what_is_looked_at_too(census: Open, peer: Peer) -> None:
    bridge, subject = await census(), peer.subjects.event("status.heartbeat")
    for number in range(MOST_AGENTS + 5):
        beat = {
            "event": "agent_heartbeat",
            "agent": f"agent-{number}",
            "replica": "one",
            "slots": 3,
            "inFlight": 1,
            "metrics": {"v": 1, "cells": [], "lagS": 0},
        }
        await peer.bus.publish(subject, peer.ports.pack("event", {"content": beat}))
    await shows(bridge, {("squadron_replicas", OTHER, "present"): 5, ("squadron_slots", OTHER, "busy"): 5})
    assert sum(name[0] == "squadron_loop_lag_seconds" for name in shown(bridge)) == MOST_AGENTS + 1


#: What is no amount, though JSON has it.
ODD: list[Any] = [10**400, 1e300, -1, None]


class Full:
    """A journal that may have no room for what is appended."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self.full = journal, False

    async def append(self, key: str, data: bytes, **how: Any) -> int:
        if self.full:
            raise StorageFullError("no room")
        return await self._journal.append(key, data, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


async def test_what_is_not_stored_is_not_shown_so_that_no_later_bridge_shows_less(
    replica: Open, peer: Peer, world: World
) -> None:
    there = await world.join("bridge")
    records = Full(there.records)
    bridge = Census(there.ports, records, _nothing, heartbeat_s=HEARTBEAT_S)  # type: ignore[arg-type]
    await bridge.load()
    await bridge.start()
    await replica("one")
    await _ask_each(peer)
    buried = ("squadron_buried_total", "clerk")
    await shows(bridge, {buried: 1})

    records.full = True
    beats: list[Figures] = []
    bridge.each_beat(beats.append)
    await _ask_each(peer)

    async def has_beaten() -> bool:
        return len(beats) > 4

    await until(has_beaten)
    assert shown(bridge)[buried] == 1
    records.full = False
    await shows(bridge, {buried: 2})
    await bridge.aclose()
    await bridge.aclose()


class Poet(LLMAgent):
    """Thinks once."""

    def make_model(self, spec: str) -> Model:
        usage = Usage(input=100, output=50, cache_read=60, reasoning=20)
        return ScriptedModel([ModelTurn("roses", usage=usage)], name="acme:rhymes")

    @topic("poet.write")
    async def write(self, ctx: Context, about: str) -> str:
        return await self.think(ctx, about)


async def test_what_models_took_is_shown_by_model_and_type_of_token(
    replica: Open, census: Open, peer: Peer
) -> None:
    bridge = await census()
    await replica("poet", Poet)
    assert (await peer.caller.ask("poet.write", {"about": "x"})).unwrap() == "roses"
    await shows(
        bridge,
        {
            ("squadron_model_calls_total", "poet", "acme:rhymes", "ok"): 1,
            ("squadron_tokens_total", "poet", "acme:rhymes", "input"): 40,
            ("squadron_tokens_total", "poet", "acme:rhymes", "cache_read"): 60,
            ("squadron_tokens_total", "poet", "acme:rhymes", "output"): 30,
            ("squadron_tokens_total", "poet", "acme:rhymes", "reasoning"): 20,
            ("gen_ai_client_operation_duration_seconds_count", "chat", "acme", "rhymes"): 1,
        },
    )


async def test_a_connection_that_comes_back_is_counted(replica: Open, census: Open) -> None:
    bridge, host = await census(), await replica("one")
    if isinstance(host.place, MemoryPlace):
        host.place.line.cut()
        host.place.line.heal()
    else:
        host.place.connection.client._transport._io_writer.transport.abort()
    await shows(bridge, {("squadron_nats_reconnects_total", "clerk"): 1})


async def test_heartbeats_of_strangers_change_nothing(census: Open, peer: Peer) -> None:
    bridge, subject = await census(), peer.subjects.event("status.heartbeat")
    good = {
        "event": "agent_heartbeat",
        "agent": "clerk",
        "replica": "one",
        "slots": 1,
        "inFlight": 0,
        "metrics": {"v": 1, "cells": [["buried", [1]]], "lagS": 0},
    }
    bad: list[Any] = [
        None,
        {},
        {**good, "metrics": {**good["metrics"], "v": 2}},  # type: ignore[dict-item]
        {**good, "metrics": {"v": 1, "cells": [["buried", [-1]]], "lagS": 0}},
        {**good, "agent": "no token at all"},
        {**good, "replica": {"a": 1}},
        {**good, "slots": "many"},
        {**good, "beatS": "seldom"},
        *({**good, name: value} for name in ("slots", "inFlight", "beatS") for value in ODD),
        {**good, "metrics": {**good["metrics"], "lagS": 10**400}},  # type: ignore[dict-item]
        {**good, "outcomes": {"result": 10**400}},
    ]
    for content in [*bad, good]:
        await peer.bus.publish(subject, peer.ports.pack("event", {"content": content}))
    await peer.bus.publish(subject, b"rubbish")

    await shows(bridge, {("squadron_buried_total", "clerk"): 1})
    assert shown(bridge)["squadron_replicas", "clerk", "present"] == 1
    assert shown(bridge)["squadron_slots", "clerk", "free"] == 1


async def test_what_the_bridge_looks_up_is_shown_with_it(
    replica: Open, census: Open, peer: Peer, world: World
) -> None:
    agents = [
        {"agent": "clerk", "running": 1, "target": 2, "waiting": 3, "taken": None, "topics": ["clerk.echo"]},
        {"agent": "other", "running": 0, "target": 0, "waiting": 0, "taken": 0, "topics": []},
    ]

    async def told() -> list[dict[str, Any]]:
        return agents

    async def stored() -> tuple[dict[str, tuple[int, int, int]], int, int]:
        return {"tasks": (10, 2, 0), "lite": (20, 3, 100)}, 30, 1_000

    ports = (await world.join("gauges")).ports

    async def since(agent: str, topics: list[str]) -> float:
        assert (agent, topics) == ("clerk", ["clerk.echo"])
        return ports.clock.time() - 60

    async def audit() -> tuple[int, int]:
        return 7, 2

    bridge = await census(Gauges(ports, told, stored, since, "1.2.3", audit))
    await replica("one")
    await _ask_each(peer)
    deadline_ms = round(1000 * (peer.clock.time() + 60))
    await put_question(peer.caller, Question(message="which?", deadline_ms=deadline_ms), "q1")

    await shows(
        bridge,
        {
            ("squadron_replicas", "clerk", "running"): 1,
            ("squadron_replicas", "clerk", "target"): 2,
            ("squadron_mailbox_tasks", "clerk", "waiting"): 3,
            ("squadron_dead_letters", "clerk"): 1,
            ("squadron_dead_letters", "other"): 0,
            ("squadron_stream_bytes", "lite"): 20,
            ("squadron_stream_limit_bytes", "lite"): 100,
            ("squadron_store_limit_bytes",): 1_000,
            ("squadron_people_waiting",): 1,
            ("squadron_build_info", "1.2.3"): 1,
            ("squadron_audit_lag_messages",): 7,
            ("squadron_audit_gaps_total",): 2,
        },
    )
    found = shown(bridge)
    assert ("squadron_mailbox_tasks", "clerk", "taken") not in found
    assert ("squadron_stream_limit_bytes", "tasks") not in found
    assert found["squadron_lite_topics",] >= 4
    assert found["squadron_mailbox_oldest_seconds", "clerk"] >= 60
    assert ("squadron_mailbox_oldest_seconds", "other") not in found


@ON_NATS
async def test_the_oldest_task_of_all_topics_and_lanes_is_found_and_what_streams_hold(peer: Peer) -> None:
    assert isinstance(peer.place, Wiring)
    connection, subjects = peer.place.connection, peer.subjects
    assert await oldest_at(connection, subjects, "clerk", ["clerk.echo", "clerk.*"]) is None
    began = time.time()
    for subject in (subjects.task("clerk.echo", 9), subjects.task("clerk.other"), subjects.task("a.b")):
        await peer.queue.put(subject, b"x" * 1_000, msg_id="")
    at = await oldest_at(connection, subjects, "clerk", ["clerk.echo"])
    later = await oldest_at(connection, subjects, "clerk", ["clerk.other"])
    assert at is not None
    assert later is not None
    assert began - 1 < at < later < time.time() + 1
    assert await oldest_at(connection, subjects, "clerk", ["clerk.other", "clerk.echo"]) == at

    names = StreamNames(subjects.environment)
    streams, used, most = await storage(connection, names)
    held, messages, limit = streams[names.tasks]
    assert messages == 3
    assert 3_000 < held <= used
    assert (limit, most) == (0, 0)
    config = (await ask_for(connection, f"STREAM.INFO.{names.events}"))["config"]
    await ask_for(connection, f"STREAM.UPDATE.{names.events}", config | {"max_bytes": 5_000})
    streams, _, _ = await storage(connection, names)
    assert streams[names.events] == (0, 0, 5_000)


async def test_gauges_that_can_not_be_looked_up_stand_as_they_were(census: Open) -> None:
    looks = 0

    async def look_up() -> list[Gauge]:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise OSError("away")
        return [("squadron_lite_topics", (), 5)]

    bridge = await census(look_up)

    async def looked_again() -> bool:
        return looks > 2

    await until(looked_again)
    await asyncio.sleep(0)
    assert shown(bridge)["squadron_lite_topics",] == 5
