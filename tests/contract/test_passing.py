"""Who listens sees what passes on the bus, as people would tell it; however slow he is, nothing waits for him."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Context, Retry, Terminal, topic
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.lite.listing import list_lite
from squadron.runtime.ports.bus import Note
from squadron.views.listener import Listener, Missed
from squadron.views.passing import Passing, Reader
from squadron.views.talk_map import Ways, draw_map
from tests.contract.conftest import ON_NATS, Peer, Serve, World

#: Of what is heard the end is told by an event of the test's own.
END = "test.end"


class Clerk(Agent):
    """Does what it is asked, or not."""

    @topic("clerk.stamp")
    async def stamp(self, ctx: Context, text: str) -> str:
        if text == "bad":
            raise Terminal("it is torn")
        if text == "again" and ctx.attempt == 1:
            raise Retry("the ink, sk-abcdefgh12345678, is dry", after_s=0.01)
        await ctx.emit(f"stamping {text}")
        return f"stamped, with the key sk-abcdefgh12345678: {text}"


class Desk(Agent):
    """Has others do it."""

    @topic("desk.take")
    async def take(self, ctx: Context, text: str) -> str:
        outcome = await ctx.ask("clerk.stamp", {"text": text})
        return outcome.kind


async def listener_of(peer: Peer, *, contents: bool = False) -> Listener:
    return await Listener.open(peer.ports, peer.registry, contents=contents)


async def heard(listener: Listener, peer: Peer) -> list[Passing]:
    """What was heard up to now."""
    await peer.caller.sender.publish(END, {})
    found = []
    async with listener:
        async for it in listener:
            assert isinstance(it, Passing)
            if it.topic == END:
                return found
            found.append(it)
    raise AssertionError("it never ended")


async def ask(peer: Peer, name: str, text: str, **options: Any) -> Any:
    handle = await peer.caller.submit(name, {"text": text}, AskOptions.of(options))
    return await handle.outcome()


async def test_tasks_and_results_are_told_with_whom_they_are_of_and_belong_to(world: World, serve: Serve) -> None:
    await serve(Clerk(), name="clerk-1")
    await serve(Desk(), name="desk-1")
    peer, other = await world.join("tester"), await world.join("other")
    await other.registry.wait_for("desk.take", within_s=30)
    listener = await listener_of(other)

    await ask(peer, "desk.take", "one", task_id="mine", conversation_id="talk")

    passed = await heard(listener, peer)
    told = [(it.kind, it.topic, it.agent, it.outcome) for it in passed if it.kind in ("task", "result")]
    assert told == [
        ("task", "desk.take", "desk", ""),
        ("task", "clerk.stamp", "clerk", ""),
        ("result", "clerk.stamp", "test", "result"),
        ("result", "desk.take", "test", "result"),
    ]
    tasks = [it for it in passed if it.kind == "task"]
    results = [it for it in passed if it.kind == "result"]
    assert (tasks[0].id, tasks[0].parent, tasks[1].parent) == ("mine", "", "mine")
    assert [it.id for it in results] == [tasks[1].id, "mine"]
    assert {it.conversation for it in (*tasks, *results)} == {"talk"}
    assert [it.sender for it in (*tasks, *results)] == ["tester", "desk-1", "clerk-1", "desk-1"]
    (chunk,) = [it for it in passed if it.kind == "chunk"]
    assert (chunk.id, chunk.topic) == (tasks[1].id, "clerk.stamp")
    # Unless it is asked for, nobody is shown what others say.
    assert {repr(it.content) for it in passed} == {"None"}
    assert "stamped" not in json.dumps([it.to_dict() for it in passed])


async def test_contents_come_without_secrets_and_failures_with_their_reason(world: World, serve: Serve) -> None:
    await serve(Clerk(), name="clerk-1")
    peer = await world.join("tester")
    listener = await listener_of(peer, contents=True)

    await ask(peer, "clerk.stamp", "fine")
    await ask(peer, "clerk.stamp", "bad")
    await ask(peer, "clerk.stamp", "again")

    passed = await heard(listener, peer)
    results = [it for it in passed if it.kind == "result"]
    assert [it.content for it in passed if it.kind == "task"] == [{"text": t} for t in ("fine", "bad", "again")]
    assert results[0].content["data"] == "stamped, with the key [secret]: fine"
    assert [it.content for it in passed if it.kind == "chunk"] == ["stamping fine", "stamping again"]
    assert results[1].outcome == "failed"
    assert "it is torn" in results[1].said
    assert "attempt 2" in results[2].said
    # That it is tried again is told when it happens; what it spent, and when it begins, are notes of the runtime.
    [again] = [it for it in passed if it.kind == "again"]
    assert again.said == "attempt 1 failed: Retry: the ink, [secret], is dry"
    assert (again.id, again.topic, again.agent) == (results[2].id, "clerk.stamp", "clerk")
    assert again.conversation == results[2].conversation
    assert not [it for it in passed if it.kind == "lite"]


async def test_what_anybody_sends_is_read_and_nothing_of_it_breaks_the_listener(peer: Peer) -> None:
    listener = await listener_of(peer, contents=True)
    root = f"agents.{peer.subjects.environment}"
    subjects = [
        *("task.a.b", "task.a", "task.a.b.p9", "query.a.b", "event.a.b", "event.x", "result.a.b", "lite.a.b"),
        *("lite.cancel.x", "lite.people.x", "lite.a.b.c", "dead.box.id", "dead.x", "bridge.deploy", "bridge.ping"),
        *("a2a.negotiate.x", "a2a.x", "hand.x", "run.x", "registry.card.x", "stream.response.x", "x", "x.y.z"),
    ]
    bodies = [b"", b"\xff", b"[]", b"null", b'{"id": 1}', b"[" * 5000]
    envelope = {"id": "i", "timestamp": 1e300, "version": "1.0", "source": {"id": "s", "type": "t"}}
    for kind in ("task", "result", "event", "query", "stream"):
        for content in (None, [], "text", {"outcome": 5, "latency": "x", "attempt": [], "error": {"message": 7}}):
            body = {"type": kind, "context": {"conversationId": "c"}, "payload": {"content": content}}
            bodies.append(json.dumps(envelope | body).encode())

    for subject in subjects:
        for body in bodies:
            await peer.bus.publish(f"{root}.{subject}", body)

    # A server tells of what it stores on subjects of its own.
    ours = {f"{root}.{subject}" for subject in subjects}
    passed = [it for it in await heard(listener, peer) if it.subject in ours]
    assert len(passed) == len(subjects) * len(bodies)
    first = dict[str, str]()
    for it in passed:
        first.setdefault(it.subject.removeprefix(f"{root}."), it.kind)
    named = {"lite.cancel.x": "cancel", "bridge.deploy": "bridge", "dead.box.id": "dead", "lite.a.b": "lite"}
    named |= {"task.a.b": "task", "event.a.b": "event", "result.a.b": "result"}
    assert {subject: first[subject] for subject in named} == named
    assert {first[each] for each in ("bridge.ping", "run.x", "registry.card.x", "hand.x", "x")} == {"inner"}
    json.dumps([it.to_dict() for it in passed])


async def test_a_slow_reader_misses_what_he_has_no_room_for_and_is_told_how_much(peer: Peer) -> None:
    reader = Reader(peer.registry)
    listener = Listener(reader, most=3)
    for number in range(10):
        listener.hear(Note(f"agents.test.event.n.n{number}", b"{}"))
    assert [it.topic for it in listener.ready(2) if isinstance(it, Passing)] == ["n.n0", "n.n1"]
    listener.hear(Note("agents.test.event.n.late", b"{}"))
    listener.miss(0)

    rest = listener.ready(100)

    assert [it.topic if isinstance(it, Passing) else it.count for it in rest] == ["n.n2", 7, "n.late", 0]

    tight = Listener(reader, most_bytes=10)
    for body in (b"x" * 8, b"x" * 8, b"x"):
        tight.hear(Note("agents.test.event.a.b", body))
    assert [it.bytes if isinstance(it, Passing) else it.count for it in tight.ready(9)] == [8, 1, 1]


async def test_a_reader_who_never_reads_holds_nobody_up(world: World, serve: Serve) -> None:
    await serve(Clerk(), name="clerk-1")
    peer, other = await world.join("tester"), await world.join("other")
    idle = Listener(Reader(other.registry), most=10)
    subscription = await other.bus.subscribe(other.subjects.all, idle.hear)

    kinds = Counter([(await ask(peer, "clerk.stamp", str(number))).kind for number in range(50)])

    assert kinds == {"result": 50}
    await subscription.aclose()
    left = idle.ready(1000)
    assert len([it for it in left if isinstance(it, Passing)]) <= 10
    assert sum(it.count for it in left if isinstance(it, Missed)) >= 90


async def test_the_ways_of_messages_are_counted_and_how_they_ended(world: World, serve: Serve) -> None:
    await serve(Clerk(), name="clerk-1")
    await serve(Desk(), name="desk-1")
    peer, other = await world.join("tester"), await world.join("other")
    await other.registry.wait_for("desk.take", within_s=30)
    listener, ways = await listener_of(other), Ways()

    for text in ("one", "two", "bad"):
        await ask(peer, "desk.take", text)
    await peer.caller.sender.publish("desk.news", {"n": 1})
    for it in await heard(listener, peer):
        ways.count(it)

    assert {key: way.count for key, way in ways.ways.items()} == {
        ("task", "test", "desk.take", "desk"): 3,
        ("task", "test", "clerk.stamp", "clerk"): 3,
        ("event", "test", "desk.news", ""): 1,
    }
    assert ways.ways["task", "test", "clerk.stamp", "clerk"].outcomes == {"result": 2, "failed": 1}


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_a_map_is_drawn_of_what_passes_in_its_seconds(world: World, serve: Serve) -> None:
    await serve(Clerk(), name="clerk-1")
    peer = await world.join("tester")

    async def talk() -> None:
        for _ in range(4):
            await asyncio.sleep(3.0)
            await ask(peer, "clerk.stamp", "fine")

    async with asyncio.TaskGroup() as group:
        drawing = group.create_task(draw_map(peer.ports, peer.registry, 10.0))
        group.create_task(talk())
    seen = drawing.result()

    assert [(way.topic, way.count) for way in seen.ways] == [("clerk.stamp", 3)]
    assert (round(seen.seconds), seen.missed, seen.to_dicts()[0]["rate"]) == (10, 0, 0.3)


async def test_lite_topics_are_listed_with_their_lives(peer: Peer) -> None:
    topics = peer.caller.lite_topics
    first, second = topics.topic("one", "chat", ttl_s=60), topics.topic("two", "desk")
    await first.publish("hello")
    seq = await first.publish("again")
    await second.publish(b"bytes")
    await peer.ports.lite.append(peer.subjects.lite("tester-asks", "task"), b"{}", ttl_s=60)

    found = await list_lite(peer.ports)

    assert [(each.owner, each.id, each.kind) for each in found] == [
        ("desk", "two", "data"),
        ("chat", "one", "event"),
    ]
    assert (found[1].seq, found[1].ended) == (seq, "")
    assert 55 < found[1].ends_at - peer.clock.time() < 65
    assert [each.id for each in await list_lite(peer.ports, "chat")] == ["one"]
    assert len(await list_lite(peer.ports, everything=True)) == 3

    await first.close()

    assert [each.id for each in await list_lite(peer.ports)] == ["two"]
    ended = {each.id: each.ended for each in await list_lite(peer.ports, everything=True)}
    assert ended == {"one": "closed", "two": "", "task": ""}


@ON_NATS
async def test_a_lost_connection_is_told(peer: Peer) -> None:
    listener = await listener_of(peer)
    connection: Any = peer.place.connection  # type: ignore[attr-defined]
    await connection.reconnected()

    assert isinstance(await anext(listener), Missed)


@pytest.mark.parametrize("everything", [False, True])
async def test_where_there_is_no_lite_topic_the_list_is_empty(peer: Peer, everything: bool) -> None:
    assert await list_lite(peer.ports, "nobody", everything=everything) == []


@ON_NATS
async def test_a_terminal_that_is_stopped_holds_nobody_up_and_is_told_what_it_missed(
    world: World, serve: Serve
) -> None:
    await serve(Clerk(), name="clerk-1")
    peer, count = await world.join("tester"), 20_000
    assert world.settings is not None
    environ = os.environ | {"SQUADRON_HOME": str(world.settings.home), "SQUADRON_ENV": world.settings.env}
    tail = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("squadron")), "tail", "--topic", "flood.*", "--json"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=65_536,
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    assert b"Listening" in await tail.stderr.readline()

    # Nobody reads what it prints: its pipe is full after some hundred lines.
    for number in range(count):
        await peer.bus.publish(peer.subjects.event("flood.water"), str(number).encode())
        if number % 1000 == 0:
            assert (await ask(peer, "clerk.stamp", "fine")).ok

    seen = missed = 0
    while seen + missed < count:
        told = json.loads(await tail.stdout.readline())
        if told["kind"] == "missed":
            # Of the tasks meanwhile some were missed, too.
            missed += told["count"]
        else:
            assert told["topic"] == "flood.water"
            seen += 1
    assert seen >= 10_000
    assert missed > 0
    tail.kill()
    await tail.communicate()


@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "9" * 4000, "NaN", "-Infinity", "1e400", "1e308", "-1", '"1"', "[]"]
)
@pytest.mark.parametrize("name", ["latency", "attempt"])
async def test_a_result_with_odd_numbers_is_told_without_them(peer: Peer, name: str, number: str) -> None:
    subject = peer.subjects.lite("tester", "mine")
    data = peer.ports.pack("result", {"content": {"success": True, name: "ODD"}}, parent="mine")

    it = Reader(peer.registry).read(Note(subject, data.replace(b'"ODD"', number.encode())))

    assert (it.kind, it.id, len(it.said) < 30) == ("result", "mine", True)


async def test_a_message_of_no_date_passed_when_it_was_heard(peer: Peer) -> None:
    data = json.loads(peer.ports.pack("event", {"content": {}})) | {"timestamp": 1e15}

    it = Reader(peer.registry).read(Note(peer.subjects.event("a.b"), json.dumps(data).encode()))

    assert it.kind == "event"
    assert it.at <= time.time()
