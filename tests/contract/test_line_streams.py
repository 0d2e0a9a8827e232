"""What stands in line for an ordered agent, where agents are apart: in a stream of its own, by now."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest

from squadron import Agent, Context, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.auth.roles import API_PREFIX, inbox_prefix
from squadron.bridge.host import Host
from squadron.bridge.jetstream.own_streams import OwnStream
from squadron.bridge.jetstream.storage import oldest_at, storage
from squadron.bridge.jetstream.stream_configs import ensure_streams
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.ports.queue import Backlog, Delivery, Mailbox
from squadron.runtime.running.once import is_copy
from squadron.runtime.secret import Secret
from squadron.runtime.store.own_journal import owners_of
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.subjects import OrderedSubject, Subjects, TicketSubject
from tests.contract.conftest import first_stored, until
from tests.contract.line_mover import IN_ORDER
from tests.contract.restricted import PASSWORD, RestrictedServer

S, NAMES = Subjects("test"), StreamNames("test")
ME = AgentIdentity(id="client", type="test")


class Scribe(Agent):
    """Writes down what comes."""

    def __init__(self) -> None:
        self.wrote: list[str] = []
        self.attempts: dict[str, int] = {}

    @topic("scroll.write")
    async def write(self, text: str, ctx: Context) -> int:
        """Write it down."""
        self.wrote.append(text)
        self.attempts[text] = ctx.attempt
        return len(self.wrote)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RestrictedServer]:
    made = RestrictedServer(tmp_path, "test")
    made.admit("agent", "scribe", serves=("scroll.write",), ordered=True)
    made.start()
    yield made
    made.stop()


def _task(text: str, conversation: str = "c") -> AgentMessage:
    return AgentMessage.new("task", ME, {"text": text}, conversation_id=conversation, id=f"id-{text}")


async def _put(place: Wiring, *texts: str, conversation: str = "c") -> None:
    for text in texts:
        task = _task(text, conversation)
        await place.ports.queue.put(S.task("scroll.write"), task.encode(), msg_id=task.id)


async def _of_old(server: RestrictedServer) -> Wiring:
    """A bridge as it was before ordered agents had streams for their lines."""
    shared = replace(server.settings("bridge", "bridge"), nats_own="")
    return await Wiring.open(shared, AgentIdentity(id="old"), create=True)


async def _in_line(place: Wiring, stream: str) -> int:
    query = {"subjects_filter": S.line("scribe")}
    info = await place.connection.api(f"STREAM.INFO.{stream}", query)
    return sum((info.get("state", {}).get("subjects") or {}).values())


async def _take_in(place: Wiring, count: int) -> None:
    """Have so many put in line by a replica that begins none of them."""
    feed = await place.ports.queue.consume(IN_ORDER, lambda _: None)

    async def stands() -> bool:
        held = [await _in_line(place, stream) for stream in (NAMES.tasks, NAMES.line("scribe"))]
        return sum(held) == count and not await _unread(place)

    await until(stands)
    await feed.aclose()


async def _unread(place: Wiring) -> int:
    info = await place.connection.api(f"CONSUMER.INFO.{NAMES.tasks}.scribe", {})
    return int(info["num_pending"]) + int(info["num_ack_pending"])


async def test_what_stood_in_line_among_all_tasks_is_brought_and_run_in_order(
    server: RestrictedServer,
) -> None:
    old = await _of_old(server)
    await old.ports.queue.declare(IN_ORDER)
    texts = ["a", "b", "c", "d"]
    await _put(old, *texts[:3])
    await _take_in(old, 3)
    assert await _in_line(old, NAMES.tasks) == 3
    await old.aclose()

    bridge = await server.open("bridge", "bridge")
    for _ in range(2):  # as each bridge that starts does
        await bridge.ports.queue.declare(IN_ORDER)
    assert (await _in_line(bridge, NAMES.tasks), await _in_line(bridge, NAMES.line("scribe"))) == (0, 3)
    assert (await bridge.ports.queue.backlog("scribe")).waiting == 3
    assert NAMES.line("scribe") in (await storage(bridge.connection, NAMES))[0]
    assert await oldest_at(bridge.connection, S, "scribe", ["scroll.write"]) is not None

    spec, scribe = AgentSpec.of(Scribe), Scribe()
    await bridge.registry.advertise(spec.card())
    place = await server.open("agent", "scribe", id="scribe-1", serves=("scroll.write",), ordered=True)
    host = Host(place, scribe, spec, slots=4, ordered=True)
    await host.start()
    await _put(bridge, texts[3])

    async def written() -> bool:
        return scribe.wrote == texts

    await until(written)

    async def nobody_waits() -> bool:
        return (await bridge.ports.queue.backlog("scribe")).waiting == 0

    await until(nobody_waits)
    await host.stop(1)
    for each in (place, bridge):
        await each.aclose()
    assert not server.violations()


async def _begin_in_line(place: Wiring, *texts: str) -> None:
    """Have these begun, each the first of a conversation of its own, by a replica that dies over them.

    The last is parked, and the first one but for it has a second one behind it.
    """
    for text in texts:
        await _put(place, text, conversation=text)
    await _put(place, "behind", conversation=texts[0])
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    feed = await place.ports.queue.consume(IN_ORDER, came.put_nowait)
    feed.want(len(texts))
    # Conversations don't wait for each other, so they come in any order.
    begun = {AgentMessage.decode(each.data).id: each for each in [await came.get() for _ in texts]}
    for each in begun.values():
        assert not await is_copy(place.ports, each, AgentMessage.decode(each.data))
        assert await each.lease.begin() == 1
    await begun[f"id-{texts[-1]}"].lease.park(600.0)

    async def all_taken_in() -> bool:
        return not await _unread(place)

    await until(all_taken_in)
    await feed.aclose()


async def _run_to_the_end(server: RestrictedServer, bridge: Wiring, *texts: str) -> Scribe:
    """Have a replica of now run all that stands in line; each has its one outcome then."""
    spec, scribe = AgentSpec.of(Scribe), Scribe()
    await bridge.registry.advertise(spec.card())
    place = await server.open("agent", "scribe", id="scribe-1", serves=("scroll.write",), ordered=True)
    host = Host(place, scribe, spec, slots=4, ordered=True)
    await host.start()
    for text in texts:
        told = await first_stored(bridge.ports.lite, S.lite("outcome", f"id-{text}"))
        assert told.payload.content["outcome"] == "result", told.payload.content

    async def nobody_waits() -> bool:
        return (await bridge.ports.queue.backlog("scribe")) == Backlog()

    await until(nobody_waits)
    await host.stop(1)
    await place.aclose()
    assert sorted(scribe.wrote) == sorted(texts)
    assert not server.violations()
    return scribe


async def test_what_had_begun_in_line_before_it_was_brought_is_run_to_its_end_and_counted(
    server: RestrictedServer,
) -> None:
    old = await _of_old(server)
    await old.ports.queue.declare(IN_ORDER)
    await _begin_in_line(old, "first", "second", "parked")
    await old.aclose()

    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(IN_ORDER)
    # Sent once more: it is told from the one that began before.
    again = _task("second", "second")
    await bridge.ports.queue.put(S.task("scroll.write"), again.encode(), msg_id="another")
    scribe = await _run_to_the_end(server, bridge, "first", "behind", "second", "parked")
    assert scribe.attempts == {"first": 2, "behind": 1, "second": 2, "parked": 1}
    assert scribe.wrote.index("first") < scribe.wrote.index("behind")
    await bridge.aclose()


async def _killed_until_it_is_done(server: RestrictedServer) -> int:
    """How many bridges were killed, each after the next step, until one had nothing to do any more."""
    settings = replace(server.settings("bridge", "bridge"), nats_password=Secret("env:OF_A_TEST"))
    environ = os.environ | settings.environ() | {"OF_A_TEST": PASSWORD}
    command = sys.executable, "-m", "tests.contract.line_mover"
    mover = await asyncio.create_subprocess_exec(*command, env=environ, stdout=asyncio.subprocess.PIPE)
    out, _ = await mover.communicate()
    assert mover.returncode == 0
    return int(out.splitlines()[-1])


async def test_a_bridge_that_is_killed_after_each_step_of_bringing_loses_and_doubles_nothing(
    server: RestrictedServer,
) -> None:
    old = await _of_old(server)
    await old.ports.queue.declare(IN_ORDER)
    await _begin_in_line(old, "first", "second", "parked")
    await _put(old, "x", "y", conversation="third")
    await _take_in(old, 6)
    await old.aclose()

    # Six tasks and four tickets, put and removed; notes of three; streams and consumers.
    assert await _killed_until_it_is_done(server) > 20

    bridge = await server.open("bridge", "bridge")
    scribe = await _run_to_the_end(server, bridge, "first", "behind", "second", "parked", "x", "y")
    assert scribe.attempts == {"first": 2, "behind": 1, "second": 2, "parked": 1, "x": 1, "y": 1}
    assert scribe.wrote.index("first") < scribe.wrote.index("behind")
    assert scribe.wrote.index("x") < scribe.wrote.index("y")
    await bridge.aclose()


def _as_before(patch: pytest.MonkeyPatch) -> None:
    """Names of the streams of agents as they were."""
    for kind in ("own", "line"):
        patch.setattr(
            StreamNames, kind, lambda self, agent, kind=kind: f"squadron-{self.environment}-{kind}-{agent}"
        )
    patch.setattr(StreamNames, "former", lambda self, name: "none")


async def test_streams_that_were_called_otherwise_are_brought_along_by_bridges_that_are_killed(
    server: RestrictedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, run = S.lite(owners_of("scribe")[0], "c"), S.run("run-1")
    with monkeypatch.context() as patch:
        _as_before(patch)
        old = await server.open("bridge", "bridge")
        await old.ports.queue.declare(IN_ORDER)
        await _begin_in_line(old, "first", "second", "parked")
        own = OwnStream(old.connection, NAMES, "scribe")
        kept = [await own.append(memory, b"%d" % number, ttl_s=600.0) for number in range(3)]
        await own.append(run, b"log", ttl_s=600.0)
        await own.erase(memory, through_seq=kept[0])

        async def told_on() -> bool:
            return await old.ports.runs.last(run) is not None

        await until(told_on)
        await old.aclose()
    assert await _killed_until_it_is_done(server) > 20

    bridge = await server.open("bridge", "bridge")
    streams = (await bridge.connection.api("STREAM.NAMES", {}))["streams"]
    assert {"squadron-test=own-scribe", "squadron-test=line-scribe"} <= set(streams)
    assert not [each for each in streams if "-scribe" in each and "=" not in each]
    own = OwnStream(bridge.connection, NAMES, "scribe")
    assert [(entry.seq, entry.data) async for entry in own.read(memory)] == [(kept[1], b"1"), (kept[2], b"2")]
    await own.append(run, b"more", ttl_s=600.0)

    async def goes_on() -> bool:
        return [entry.data async for entry in bridge.ports.runs.read(run)] == [b"log", b"more"]

    await until(goes_on)
    scribe = await _run_to_the_end(server, bridge, "first", "behind", "second", "parked")
    assert scribe.attempts == {"first": 2, "behind": 1, "second": 2, "parked": 1}
    await bridge.aclose()


async def test_a_stream_of_another_environment_is_not_taken_for_one_that_was_called_so(
    server: RestrictedServer,
) -> None:
    """The environment `test-line` has a stream of tasks that is called as the lines of an agent `tasks` were."""
    bridge = await server.open("bridge", "bridge")
    other = StreamNames("test-line").tasks
    await ensure_streams(bridge.connection, StreamNames("test-line"))
    await bridge.ports.queue.declare(Mailbox("tasks", ("task.write",), 30.0, ordered=True))
    assert NAMES.former(NAMES.line("tasks")) == other
    info = await bridge.connection.api(f"STREAM.INFO.{other}", {})
    assert "agents.test-line.task.*.*" in info["config"]["subjects"]
    await bridge.aclose()


async def test_who_sends_a_task_can_not_have_it_taken_for_one_that_was_brought(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(IN_ORDER)
    for id in ("1", "2"):
        task, headers = _task("a"), {"Squadron-Stood-At": "7"}
        await bridge.ports.queue.put(S.task("scroll.write"), task.encode(), msg_id=id, headers=headers)
    await _run_to_the_end(server, bridge, "a")
    await bridge.aclose()


async def test_what_replicas_of_an_earlier_release_put_in_line_is_called_by_the_bridge(
    server: RestrictedServer,
) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(IN_ORDER)
    # As those do: it is stored here, and they look for the head of the line among all tasks.
    place = OrderedSubject("test", "scribe", "c", "scroll.write")
    for text in ("a", "b"):
        await bridge.ports.queue.put(str(place), _task(text).encode(), msg_id=text)
    scribe = await _run_to_the_end(server, bridge, "a", "b")
    assert scribe.wrote == ["a", "b"]
    await bridge.aclose()


async def test_a_task_that_leaves_no_room_for_a_header_is_brought_and_run(server: RestrictedServer) -> None:
    old = await _of_old(server)
    await old.ports.queue.declare(IN_ORDER)
    # As the intake puts one that leaves no room for its id.
    room, small = old.connection.max_payload, _task("")
    text = "x" * (room - len(small.encode()) - 10)
    task = small.model_copy(update={"payload": small.payload.model_copy(update={"content": {"text": text}})})
    assert len(task.encode()) == room - 10
    line = OrderedSubject("test", "scribe", "c", "scroll.write")
    await old.ports.queue.put(str(line), task.encode(), msg_id="")
    stands = await old.ports.queue.store.head(S.line("scribe"))
    ticket = TicketSubject("test", "scribe", "c", stands.seq)
    await old.ports.queue.store.put_alone(str(ticket), b"")
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    feed = await old.ports.queue.consume(IN_ORDER, came.put_nowait)
    feed.want(1)
    head = await came.get()
    assert not await is_copy(old.ports, head, task)
    assert await head.lease.begin() == 1
    await feed.aclose()
    await old.aclose()

    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(IN_ORDER)
    spec, scribe = AgentSpec.of(Scribe), Scribe()
    place = await server.open("agent", "scribe", id="scribe-1", serves=("scroll.write",), ordered=True)
    host = Host(place, scribe, spec, slots=4, ordered=True)
    await host.start()
    await first_stored(bridge.ports.lite, S.lite("outcome", "id-"))
    assert scribe.wrote == [text]
    await host.stop(1)
    for each in (place, bridge):
        await each.aclose()


async def test_a_client_counts_who_stands_in_line(server: RestrictedServer) -> None:
    bridge, client = await server.open("bridge", "bridge"), await server.open("client", "client")
    assert (await client.ports.queue.backlog("scribe")).waiting == 0
    await bridge.ports.queue.declare(IN_ORDER)
    await _put(bridge, "a", "b")
    await _take_in(bridge, 2)

    async def counted() -> bool:
        return (await client.ports.queue.backlog("scribe")).waiting == 2

    await until(counted)
    for each in (client, bridge):
        await each.aclose()
    assert not server.violations()


async def test_a_head_that_was_parked_is_woken_by_the_bridge(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(IN_ORDER)
    place = await server.open("agent", "scribe", serves=("scroll.write",), ordered=True)
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    feed = await place.ports.queue.consume(IN_ORDER, came.put_nowait)
    feed.want(2)
    await _put(bridge, "a")
    head = await came.get()
    await head.lease.park(600.0)
    await bridge.ports.queue.wake(head.lease.wake_token)
    again = await came.get()
    assert again.data == head.data
    await again.lease.settle()
    await feed.aclose()
    for each in (place, bridge):
        await each.aclose()
    assert not server.violations()


@pytest.mark.parametrize(
    ("call", "query"),
    [
        (f"STREAM.MSG.GET.{NAMES.tasks}", {"seq": 1}),
        (f"STREAM.MSG.DELETE.{NAMES.tasks}", {"seq": 1}),
        (f"STREAM.MSG.GET.{NAMES.line('other')}", {"next_by_subj": ">"}),
        (f"STREAM.PURGE.{NAMES.line('scribe')}", {}),
        (f"DIRECT.GET.{NAMES.line('other')}", {"seq": 1, "batch": 9, "next_by_subj": ">"}),
    ],
    ids=["read a task", "delete a task", "read another's line", "purge a line", "read another's line directly"],
)
async def test_who_steals_the_credential_of_an_ordered_agent_has_its_own_line_alone(
    server: RestrictedServer, call: str, query: dict[str, Any]
) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(IN_ORDER)
    await bridge.ports.queue.declare(Mailbox("other", ("other.write",), 30.0, ordered=True))
    await _put(bridge, "a")

    async def hear(_: Exception) -> None:
        """Refusals are told like this."""

    login = {"user": "scribe", "password": PASSWORD, "inbox_prefix": inbox_prefix("scribe")}
    thief = await nats.connect(server.server.url, error_cb=hear, allow_reconnect=False, **login)
    # What it may, so that a silence says something.
    own = json.loads((await thief.request(f"{API_PREFIX}.STREAM.MSG.GET.{NAMES.line('scribe')}", b"{}")).data)
    assert "error" in own
    with pytest.raises(nats.errors.TimeoutError):
        await thief.request(f"{API_PREFIX}.{call}", json.dumps(query).encode(), timeout=0.3)
    assert any(call in each for each in server.violations())
    await thief.close()
    await bridge.aclose()
