"""Rubbish on every subject we listen to: nothing breaks, each message is accounted for, good ones are served.

`FUZZ_SEED` repeats a run; the seed stands in the test's name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from squadron import Agent, Context, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.control.control import Bridge
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.stream_configs import StreamNames, Streams
from squadron.bridge.jetstream.wiring import Wiring
from squadron.client.subscriptions import Events
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import InvalidMessageError, InvalidSubjectError
from squadron.runtime.ports.queue import Backlog, Mailbox
from squadron.runtime.registry.presence import Presence
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.deployment import Deployment, Scale
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.subjects import TaskSubject, token_of
from squadron.runtime.wire.topics import AgentCard
from tests.contract.conftest import SOON_S, until
from tests.unit.test_bridge import HeldReplicas

# The same in all processes of one run: the names of tests must be.
SEED = os.environ.get("FUZZ_SEED") or os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:8]

#: What breaks into a log if something is not expected; each of these is a defect.
DEFECTS = (
    "nats.sink_raised",
    "nats.revived",
    "pump.turn_broke",
    "bridge.control_broke",
    "bridge.upkeep",
    "bridge.no_sample",
    "ordered.broke",
    "background.broke",
    "queue.lane_refused",
)

# --- rubbish -------------------------------------------------------------------------------------------

#: Bytes that stand for one JSON value: wrong types, extreme numbers, what JSON doesn't allow.
JUNK = (
    *(b"null true false [] {} 0 -1 1e400 -1e400 NaN Infinity 1.5 0x10 '' [[]] {\"a\":{}}".split()),
    b"9" * 400,
    b"-" + b"9" * 4_000,
    b"9" * 5_000,
    rb'"\ud800"',
    rb'"\u0000"',
    b'"\xff\xfe"',
    b'"' + b"x" * 2_000 + b'"',
    b'"a..b"',
    b'"$JS.API.STREAM.DELETE.x"',
    b'"agents.*.>"',
    b"[" * 150 + b"]" * 150,
    b'{"a":' * 150 + b"1" + b"}" * 150,
)
HEADERS = (
    b"",
    b"x",
    b"NATS/1.0",
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\nno end",
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    b"NATS/1.0 404 \xff\xff\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"\xff" * 30,
    *(
        b"NATS/1.0\r\n%s\r\n\r\n" % line
        for line in (
            b"Status: 408",
            b"Status: 503",
            b"Nats-Sequence: x",
            b"Nats-Subject: elsewhere",
            b"Nats-Num-Pending: 0",
            b"Nats-Pending-Messages: many",
            b"Nats-Expected-Stream: other",
            b"Nats-Expected-Last-Sequence: 7",
            b"Nats-Rollup: all",
            b"Nats-TTL: soon",
            b"Nats-Marker-Reason: MaxAge",
            b"\xff\xff: \xff",
            b": nothing",
            b"A:" + b"b" * 3_000,
        )
    ),
)
REPLIES = (b"", b"a..b", b"a.*", b">", b"$JS.API.STREAM.NAMES", b"\xff\xfe", b"a\x0bb", b"r" * 2_000)
ODD_TOKENS = (b"\xff\xfe", b"a\x0bb", b"\x0c", b"\x00", b"@", b"$", b"x" * 200, "é".encode(), b"..", b"*", b">")
#: What is not a task: kinds of records, and the other subjects.
RECORDS = ("card", "presence", "deployment", "leaving", "binding", "blob", "odd")
KINDS = (*RECORDS, "event", "bridge", "lite", "own", "in order", "hand", "told", "dead")
#: Owners of lite topics that we write for ourselves: each has a test of its own, too, in `test_rubbish`.
OWNERS = (b"cancel", b"begun", b"cursor", b"memory-clerk", b"outcome")


class Rubbish:
    """Seeded: the same seed gives the same bytes."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def of(self, good: bytes) -> bytes:
        """One message that began as a good one, or as nothing."""
        pick = self.random
        kinds = (self._cut, self._flipped, self._noise, self._wrong, self._wrong, self._wrong, self._scalar)
        return pick.choice(kinds)(good)

    def _cut(self, good: bytes) -> bytes:
        return good[: self.random.randrange(len(good))]

    def _flipped(self, good: bytes) -> bytes:
        changed = bytearray(good)
        for _ in range(self.random.randint(1, 4)):
            changed[self.random.randrange(len(changed))] = self.random.randrange(256)
        return bytes(changed)

    def _noise(self, good: bytes) -> bytes:
        return self.random.randbytes(self.random.randrange(300))

    def _scalar(self, good: bytes) -> bytes:
        whole = (b"\xef\xbb\xbf" + good, good.decode().encode("utf-16"), good + good, good[:-1] + b',"id":"2"}')
        deep = (
            b"[" * 100_000,
            b'{"payload":' * 100_000,
            good[:-1] + b',"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        )
        return self.random.choice((*JUNK, *whole, self.random.choice(deep)))

    def _wrong(self, good: bytes) -> bytes:
        """A field, at any depth, is of another type, is missing, or stands twice."""
        data = json.loads(good)
        place: Any = data
        while True:
            key = self.random.choice(list(place))
            if not (isinstance(place[key], dict) and place[key]) or self.random.random() < 0.3:
                break
            place = place[key]
        mark = f"mark-{self.random.randrange(10**9)}"
        place[key] = mark
        junk = self.random.choice(JUNK)
        quoted = f'"{mark}"'.encode()
        text = json.dumps(data).encode()
        field = json.dumps(key).encode() + b": " + quoted
        kind = self.random.randrange(8)
        if kind == 0:
            return text.replace(field, b'"other": 1')
        if kind == 1:
            return text.replace(field, field.replace(quoted, junk) + b", " + field)
        return text.replace(quoted, junk)


class Stranger:
    """Speaks the bare protocol, so that nothing stops what it sends but the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        #: Answers by reply token.
        self.answers: dict[int, bytes] = {}
        self._pong = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def come(cls, endpoint: embedded.Endpoint) -> Stranger:
        host, _, port = endpoint.url.removeprefix("nats://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        await reader.readline()
        options = {"verbose": False, "pedantic": False, "headers": True, "auth_token": endpoint.token}
        writer.write(b"CONNECT %s\r\nSUB stranger.* 1\r\n" % json.dumps(options).encode())
        return cls(reader, writer)

    async def _read(self) -> None:
        while line := await self._reader.readline():
            if line.startswith((b"MSG", b"HMSG")):
                words = line.split()
                body = await self._reader.readexactly(int(words[-1]) + 2)
                self.answers[int(words[1].rsplit(b".", 1)[-1])] = body
            elif line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")
            elif line.startswith(b"PONG"):
                self._pong.set()

    async def send(self, subject: bytes, data: bytes, headers: bytes | None = None, reply: bytes = b"") -> None:
        to = b"%s %s" % (subject, reply) if reply else subject
        if headers is None:
            self._writer.write(b"PUB %s %d\r\n%s\r\n" % (to, len(data), data))
        else:
            size = len(headers)
            self._writer.write(b"HPUB %s %d %d\r\n%s%s\r\n" % (to, size, size + len(data), headers, data))
        await self._writer.drain()

    async def flush(self) -> None:
        self._pong.clear()
        self._writer.write(b"PING\r\n")
        await asyncio.wait_for(self._pong.wait(), 30)

    async def leave(self) -> None:
        self._reading.cancel()
        self._writer.close()


# --- the place -----------------------------------------------------------------------------------------


class Clerk(Agent):
    """Serves a topic and a family."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    @topic("clerk.double")
    async def double(self, number: int) -> int:
        """Twice a number."""
        return 2 * number

    @topic("clerk.wait")
    async def wait(self) -> str:
        """Until it may go on."""
        await self.go.wait()
        return "done"

    @topic("any.*")
    async def any(self, context: Context, **fields: Any) -> str:
        """Whatever comes."""
        return context.topic


class Place:
    """A bridge, a replica of `Clerk`, and a client, each on a connection of its own, on a real server."""

    def __init__(self, settings: Settings, open_ones: AsyncExitStack) -> None:
        self.settings, self._open = settings, open_ones
        self.wirings: list[Wiring] = []
        self.clerk, self.spec = Clerk(), AgentSpec.of(Clerk)

    async def wiring(self, name: str) -> Wiring:
        wiring = await Wiring.open(self.settings, AgentIdentity(id=name, type="test"), create=True)
        self._open.push_async_callback(wiring.aclose)
        self.wirings.append(wiring)
        return wiring

    async def bridge(self, name: str) -> Bridge:
        wiring = await self.wiring(name)

        async def held() -> dict[str, int]:
            return {}

        keep = Streams(wiring.connection, StreamNames(self.settings.env)).keep
        lease_s = self.settings.lease_s
        bridge = Bridge(
            wiring.ports, wiring.registry, wiring.records, HeldReplicas(), held, keep, {}, lease_s=lease_s
        )
        await bridge.start()
        self._open.push_async_callback(bridge.aclose)
        return bridge

    async def open(self) -> None:
        self.first = await self.bridge("bridge")
        one = Scale(minimum=1, maximum=1)
        deployment = Deployment(
            card=self.spec.card(), code={"version": "1"}, slots=8, grace_s=1, bounds=one, scale=one
        )
        await self.first.deploy([deployment.model_dump(mode="json")])
        replica = await self.wiring("clerk-1")
        turns = Turns("clerk", self.spec.handlers(self.clerk), replica.caller)
        await turns.start()
        self._open.push_async_callback(turns.aclose)
        self.pump = Pump(
            replica.ports.queue,
            Mailbox("clerk", deployment.patterns, lease_s=self.settings.lease_s),
            turns.run,
            slots=8,
        )
        await self.pump.start()
        self._open.push_async_callback(self.pump.aclose)
        self.client = await self.wiring("client")
        self.events = Events()
        self.events.attach(
            await self.client.ports.bus.subscribe(self.client.ports.subjects.event("news.*"), self.events.hear)
        )
        endpoint = embedded.find(self.settings.home)
        assert endpoint is not None
        self.stranger = await Stranger.come(endpoint)
        self._open.push_async_callback(self.stranger.leave)

    def subject(self, rest: bytes | str) -> bytes:
        rest = rest.encode() if isinstance(rest, str) else rest
        return b"agents.%s.%s" % (self.settings.env.encode(), rest)

    async def ask(self, number: int) -> None:
        """A good task is served right, in good time."""
        outcome = await self.client.caller.ask("clerk.double", {"number": number}, AskOptions(within_s=30))
        assert outcome.ok, outcome
        assert outcome.unwrap() == 2 * number

    async def all_ended(self, within_s: float = SOON_S) -> None:
        async def nothing_left() -> bool:
            return await self.client.ports.queue.backlog("clerk") == Backlog(0, 0)

        await until(nothing_left, within_s=within_s)

    async def letters(self) -> set[str]:
        """What the dead letters lie under: poison under a digest of its subject and bytes."""
        pattern = self.subject("dead.>").decode()
        return {entry.key.rsplit(".", 1)[-1] async for entry in self.client.ports.dead.read(pattern)}

    async def outcomes(self) -> set[str]:
        """Ids of the tasks of strangers that have a stored outcome."""
        pattern = self.subject("lite.outcome.*").decode()
        return {entry.key.rsplit(".", 1)[-1] async for entry in self.client.ports.lite.read(pattern)}

    async def is_as_before(self) -> None:
        """Good messages are served, by those who were here and for those who come now."""
        await self.ask(1)
        for wiring in (*self.wirings, await self.wiring("late")):
            assert wiring.registry.find("clerk.double") is not None
            assert wiring.registry.discover("twice a number")[0].agent == "clerk"
            assert {card.agent for card in wiring.registry.cards()} == {"clerk"}
            assert wiring.connection.client.stats["reconnects"] == 0
        assert (await self.first.status())["agents"][0]["agent"] == "clerk"
        answer = json.loads(
            await self.client.ports.bus.request(self.subject("bridge.ping").decode(), b"", within_s=30)
        )
        assert "ok" in answer


@pytest.fixture
def defects(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails for what nobody expected: callbacks that raised, tasks whose exception nobody took."""
    caplog.set_level(logging.ERROR)
    with structlog.testing.capture_logs((structlog.processors.format_exc_info,)) as logged:
        yield
    for line in logged:
        assert line["event"] not in DEFECTS, line.get("exception", line)
    ours = ("asyncio", "nats.aio.client")
    assert [record.getMessage() for record in caplog.records if record.name in ours] == []


@pytest.fixture
async def place(settings: Settings, defects: None) -> AsyncIterator[Place]:
    async with AsyncExitStack() as open_ones:
        # No task comes again because nobody here got a turn for a moment.
        made = Place(replace(settings, lease_s=60.0), open_ones)
        await made.open()
        yield made


# --- tests ---------------------------------------------------------------------------------------------


def _task(task_id: str, number: int = 21, **fields: Any) -> bytes:
    """A good task as a stranger sends it, with all fields filled."""
    me = {"id": "stranger", "type": "test"}
    message = {
        "id": task_id,
        "timestamp": 1.7e9,
        "version": "1.0",
        "type": "task",
        "source": me,
        "context": {"conversationId": task_id, "history": [], "metadata": {"a": 1}},
        "payload": {
            "content": {"number": number},
            "model": "x",
            "parameters": {"t": 1},
            "constraints": {"tokens": 100, "hops": 3, "deadline": 4_000_000_000_000, "time": 6e4, "cost": 1.0},
        },
        "routing": {"priority": 5, "exclusions": [], "capabilities": [], "timeout": 1e13},
        "correlationId": task_id,
        "metadata": {},
    }
    return json.dumps(message | fields).encode()


def _is_poison(subject: bytes, data: bytes) -> bool:
    try:
        TaskSubject.parse(subject.decode(errors="replace"))
        AgentMessage.decode(data)
    except (InvalidMessageError, InvalidSubjectError):
        return True
    return False


def _digest(subject: bytes, data: bytes) -> str:
    # A query is stored under the task's subject.
    stored = subject.replace(b".query.", b".task.", 1).decode(errors="replace").encode()
    return hashlib.sha256(stored + b"\n" + data).hexdigest()[:32]


async def _flood_tasks(place: Place, rubbish: Rubbish, count: int) -> Counter[str]:
    """Send rubbish as tasks, with good ones among it, and hold what came of it against what was sent."""
    pick, sent = rubbish.random, {}
    for i in range(count):
        token = pick.choice(ODD_TOKENS) if pick.random() < 0.1 else b"thing"
        rest = pick.choice((b"task.clerk.double", b"query.clerk.double", b"task.any.thing", b"task.any." + token))
        lane = pick.choice((b"", b"", b"", b".p0", b".p5", b".p9"))
        headers = pick.choice(HEADERS) if pick.random() < 0.2 else None
        subject, data = place.subject(rest + lane), rubbish.of(_task(f"task-{i}"))
        sent[i] = subject, data
        await place.stranger.send(subject, data, headers, b"stranger.%d" % i)
        if i % 100 == 0:
            await place.ask(i)
    for i, data in enumerate(
        (_task("large", text="x" * 7_900_000), bytes(7_900_000), b"[" * 7_900_000), start=count
    ):
        sent[i] = place.subject("task.clerk.double"), data
        await place.stranger.send(*sent[i], None, b"stranger.%d" % i)
    await place.stranger.flush()

    async def answered() -> bool:
        return place.stranger.answers.keys() >= {i for i, (subject, _) in sent.items() if b".." not in subject}

    # The server takes no subject with an empty token, and answers all others when it has stored or refused them.
    await until(answered)
    await place.all_ended()

    # The server says which it stored; the rest it refused for their headers or subjects.
    stored = {i: sent[i] for i, answer in place.stranger.answers.items() if b'"error"' not in answer}
    poison = {_digest(subject, data) for subject, data in stored.values() if _is_poison(subject, data)}
    readable = [AgentMessage.decode(it[1]).id for it in stored.values() if not _is_poison(*it)]
    assert poison <= await place.letters()
    assert {token_of(id) for id in readable} <= await place.outcomes()
    # Ids are rubbish, too: of two tasks under one id the second may be taken for a repetition of the first.
    outcomes = Counter(place.pump.statistics().outcomes)
    assert len(set(readable)) <= outcomes.total() - len(range(0, count, 100)) <= len(readable)
    assert len(stored) > count / 2
    assert len(readable) > count / 20
    return outcomes


async def _flood_the_rest(place: Place, rubbish: Rubbish, count: int) -> None:
    """The same on all other subjects that somebody of ours listens to."""
    pick = rubbish.random
    waiting = await place.client.caller.submit("clerk.wait", {}, AskOptions(within_s=90))
    follow = asyncio.create_task(_all(waiting.chunks()))
    record = {
        "card": place.spec.card().model_dump_json().encode(),
        "presence": b'{"expires_at":1,"pid":2}',
        "own": b'{"until": 4000000000.0, "epoch": 1, "seq": 2, "held": true, "ttlS": 60}',
    }
    call = json.dumps({"callId": "c", "agent": "clerk", "to": "1", "deployments": [{"card": {}}]}).encode()
    for i in range(count):
        kind = pick.choice(KINDS)
        key, head = pick.choice((b"clerk", b"other", pick.choice(ODD_TOKENS))), b""
        good = record.get(kind, _task(f"other-{i}"))
        rest = b"registry.%s.%s" % (kind.encode(), key)
        if kind == "presence":
            rest += b"." + pick.choice((b"bridge", b"clerk-1", b"x"))
        elif kind == "leaving" and key != b"clerk":
            # The key alone says it; an agent that is not there is nobody's loss.
            rest = b"registry.leaving.other"
        elif kind == "event":
            rest = pick.choice((b"event.news.sport", b"event.news." + key, b"event.status.online"))
        elif kind == "bridge":
            good, rest = call, b"bridge." + pick.choice((b"deploy", b"scale", b"status", b"ping", b"no", key))
        elif kind == "lite":
            rest = pick.choice((waiting.reply_to.split(".", 2)[2].encode(), b"lite.client.other"))
        elif kind == "own":
            rest = pick.choice((b"lite.", b"life.", b"live.")) + pick.choice(OWNERS) + b"." + key
        elif kind == "in order":
            line = b"clerk.talk." + pick.choice((key, b"1", b"x"))
            rest = pick.choice((b"ticket." + line, b"ordered." + line + b".double"))
        elif kind == "hand":
            head, rest = b"$JS.ACK.a.b.c.1.2.3.4.5 7 agents.test.task.clerk.double\n", b"hand.clerk-1"
        elif kind == "told":
            rest = b"told." + pick.choice((b"card.", b"presence.clerk.")) + key
        elif kind == "dead":
            rest = b"dead.clerk." + key
        data = head + rubbish.of(good)
        if _is_valid(kind, data):
            continue
        headers = pick.choice(HEADERS) if pick.random() < 0.3 else None
        if rest.startswith((b"lite.", b"registry.")) and headers == b"x":
            # nats-server 2.15.1 dies of a header block of one byte on a stream that republishes: ADR 0013.
            headers = None
        await place.stranger.send(place.subject(rest), data, headers, pick.choice(REPLIES))
        if i % 200 == 0:
            await place.ask(i)
    await place.stranger.flush()
    await place.client.caller.sender.publish("news.sport", "they won")
    async with asyncio.timeout(SOON_S):
        while (await place.events.next(within_s=SOON_S)).payload.content != "they won":
            pass
    place.clerk.go.set()
    outcome = await place.client.caller.outcome(waiting)
    assert outcome.unwrap() == "done"
    assert await asyncio.wait_for(follow, SOON_S) == []


def _is_valid(kind: str, data: bytes) -> bool:
    """Whether it says something, by chance: then it counts, whoever wrote it."""
    try:
        match kind:
            case "card":
                AgentCard.model_validate_json(data)
            case "presence":
                Presence.model_validate_json(data)
            case "lite":
                AgentMessage.decode(data)
            case _:
                return False
    except (ValidationError, InvalidSubjectError, InvalidMessageError):
        # An empty card withdraws an agent.
        return kind == "card" and not data
    return True


async def _all(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


async def _fuzz(place: Place, seed: str, count: int) -> None:
    rubbish = Rubbish(seed)
    outcomes = await _flood_tasks(place, rubbish, count // 2)
    assert outcomes.keys() >= {"result", "rejected"}
    await place.is_as_before()
    await _flood_the_rest(place, rubbish, count - count // 2)

    async def put_right() -> bool:
        # The bridge has written again what was written over.
        clerk = place.client.ports.subjects.record("deployment", "clerk")
        entry = await place.client.records.last(clerk)
        card = await place.client.records.last(place.client.ports.subjects.card("clerk"))
        return bool(
            entry and card and b'"version":"1"' in entry.data and card.data.startswith(b'{"agent":"clerk"')
        )

    await until(put_right)
    await place.is_as_before()
    # Whoever starts now reads all of it.
    successor = await place.bridge("successor")
    assert [each["agent"] for each in (await successor.status())["agents"]] == ["clerk"]
    await place.ask(2)


@pytest.mark.parametrize("seed", [SEED])
async def test_rubbish_on_all_subjects_changes_nothing_for_good_messages(place: Place, seed: str) -> None:
    await _fuzz(place, seed, 10_000)


HUGE = "x" * 7_900_000


@pytest.mark.parametrize(
    "fields",
    [
        # Each is copied into the outcome, or is where it is announced.
        {"id": HUGE, "correlationId": None},
        {"correlationId": HUGE},
        {"context": {"conversationId": HUGE}},
        {"replyTo": "r" * 5_000},
        {"replyTo": "r" * 1_000_000},
        {"replyTo": "a.\ud7ff.\x00"},
        {"replyTo": "a\x0bb"},
        {"payload": {"content": {"number": 10**400}}},
        {"payload": {"content": {"number": 1}, "constraints": {"tokens": 10**4000, "hops": 10**4000}}},
        {"payload": {"content": {"number": 1}, "constraints": {"tokens": -5, "hops": -5}}},
        {"payload": {"content": {"number": 1}, "parameters": {"n": 10**4000}}},
        {"routing": {"timeout": 1e308}, "timestamp": 1e308},
        {"payload": {"content": {"number": 1}, "constraints": {"deadline": 10**400}}},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_readable_task_with_an_absurd_field_ends_and_is_not_tried_for_ever(
    place: Place, fields: dict[str, Any]
) -> None:
    await place.stranger.send(place.subject("task.clerk.double"), _task("absurd", **fields), None, b"stranger.1")
    await place.stranger.flush()

    async def answered() -> bool:
        return 1 in place.stranger.answers

    await until(answered)
    assert b'"error"' not in place.stranger.answers[1]
    await place.all_ended()
    assert sum(place.pump.statistics().outcomes.values()) + len(await place.letters()) >= 1
    await place.is_as_before()


@pytest.mark.parametrize(
    "chunk",
    [{"sequenceNumber": "7"}, {"sequenceNumber": None}, {"attempt": "2"}, {"attempt": []}, {"attempt": 10**400}],
    ids=str,
)
async def test_a_stream_goes_on_over_a_chunk_that_is_none(place: Place, chunk: dict[str, Any]) -> None:
    waiting = await place.client.caller.submit("clerk.wait", {}, AskOptions(within_s=60))
    rubbish = json.loads(_task("chunk")) | {"type": "stream", "payload": {"chunk": 1, "sequenceNumber": 0} | chunk}
    await place.stranger.send(waiting.reply_to.encode(), json.dumps(rubbish).encode())
    await place.stranger.flush()
    follow = asyncio.create_task(_all(waiting.chunks()))
    place.clerk.go.set()
    assert (await place.client.caller.outcome(waiting)).unwrap() == "done"
    await asyncio.wait_for(follow, SOON_S)


@pytest.mark.parametrize(
    "content",
    [
        {"success": 1, "latency": 10**400},
        {"success": True, "attempt": 1e308, "tokens": 10**400},
        {"success": [], "outcome": {"a": 1}, "error": [1]},
        {"success": None, "outcome": "result", "error": {"details": 1, "message": None}},
    ],
    ids=str,
)
async def test_a_result_with_absurd_figures_is_a_result(place: Place, content: dict[str, Any]) -> None:
    waiting = await place.client.caller.submit("clerk.wait", {}, AskOptions(within_s=60))
    result = json.loads(_task("result")) | {"type": "result", "payload": {"content": content}}
    result["context"] = {"conversationId": "c", "parentMessageId": waiting.task_id}
    await place.stranger.send(waiting.reply_to.encode(), json.dumps(result).encode())
    outcome = await place.client.caller.outcome(waiting)
    assert (outcome.task_id, outcome.source) == (waiting.task_id, "stranger")
    str(outcome), outcome.to_content()
    place.clerk.go.set()
