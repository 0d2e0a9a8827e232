"""How fast messages flow over lite topics: from publish to subscriber, to a reader that returns, in streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from nats.aio.msg import Msg

from benchmarks.floors import connection
from benchmarks.lite_store import TEXT, TTL_S, Place, key_of
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.runtime.lite.feed import LiteItems
from squadron.runtime.lite.reader import LiteMessage
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.running.context import Context
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns

#: Where the floor publishes, and where what was heard is told: the next message goes out then.
FLOOR, HEARD = "bench.floor", "bench.heard"
#: A figure that takes longer is a fault.
WITHIN_S = 30.0
#: Topics of one owner that `Squad.lite` publishes on: the messages of a conversation come in bursts, and not each
#: of them has to renew its topic's life.
IN_USE = 100
#: Messages that a returning reader has missed.
MISSED = 10

_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Latencies:
    """In ms: all of them, and the median of each round."""

    taken: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    def add(self, taken: Sequence[float]) -> None:
        """Those of one round."""
        self.taken += taken
        self.rounds.append(statistics.median(taken))

    def quantile(self, part: float) -> float:
        """For example 0.999: so much of all took at most so long."""
        return sorted(self.taken)[min(len(self.taken) - 1, int(len(self.taken) * part))]

    def as_json(self) -> dict[str, Any]:
        quantiles = {f"p{100 * part:g}": self.quantile(part) for part in (0.5, 0.99, 0.999)}
        return quantiles | {"count": len(self.taken), "rounds": self.rounds}


@dataclass
class FlowFigures:
    """One size's."""

    floor: Latencies = field(default_factory=Latencies)
    #: Sent without an acknowledgement and heard by `Journal.follow`; `Squad.lite(…).publish` and `Squad.follow`.
    sent: Latencies = field(default_factory=Latencies)
    published: Latencies = field(default_factory=Latencies)
    publish: Latencies = field(default_factory=Latencies)
    resume: Latencies = field(default_factory=Latencies)


def _stamped() -> bytes:
    return json.dumps({"sent": time.perf_counter(), "text": TEXT}).encode()


def _age_ms(data: bytes) -> float:
    # One machine, one clock: CLOCK_MONOTONIC is the same in all processes.
    return (time.perf_counter() - float(json.loads(data)["sent"])) * 1000


class Peer:
    """Another process, that does `work` and answers what it is told."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    @classmethod
    @asynccontextmanager
    async def start(cls, work: Callable[..., Awaitable[None]], settings: Settings) -> AsyncIterator[Peer]:
        """Run it; it has said that it is ready when this is entered."""
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_be_peer, args=(work, theirs, settings), daemon=True)
        process.start()
        try:
            peer = cls(ours)
            await peer.hear()
            yield peer
        finally:
            process.kill()
            process.join()

    async def hear(self) -> Any:
        """Its next answer."""
        if not await asyncio.to_thread(self._pipe.poll, WITHIN_S):
            raise TimeoutError(f"a process does not answer within {WITHIN_S:g} s")
        return self._pipe.recv()

    async def tell(self, what: Any) -> Any:
        """Tell it something, and wait for its answer."""
        self._pipe.send(what)
        return await self.hear()


def _be_peer(work: Callable[..., Awaitable[None]], pipe: Connection, settings: Settings) -> None:
    asyncio.run(work(pipe, settings))  # type: ignore[arg-type]


async def ear(pipe: Connection, settings: Settings) -> None:
    """Hears in the way it is told to; tells how old each message was, and each time that the next may come."""
    taken, told = list[float](), set[asyncio.Task[None]]()
    async with Place.open(settings) as place, connection(settings) as client, contextlib.AsyncExitStack() as stack:
        lite, everything = place.wiring.ports.lite, f"agents.{settings.env}.lite.*.*"

        async def hear_floor(msg: Msg) -> None:
            taken.append(_age_ms(msg.data))
            await client.publish(HEARD, b"")

        def hear(entry: Entry | LiteMessage) -> None:
            taken.append(_age_ms(entry.data))
            told.add(task := asyncio.create_task(client.publish(HEARD, b"")))
            task.add_done_callback(told.discard)

        async def handle(_: str, items: LiteItems) -> None:
            for each in items:
                assert isinstance(each, LiteMessage), "a topic ended"
                hear(each)

        await client.subscribe(f"{FLOOR}.>", cb=hear_floor)
        await client.flush()
        pipe.send("ready")
        while True:
            match await asyncio.to_thread(pipe.recv):
                case "follow":
                    stack.push_async_callback((await lite.follow(everything, hear)).aclose)
                case "serve":
                    feed = await stack.enter_async_context(place.squad.follow(key_of(0)[0]))
                    feed.add_all()
                    serving = asyncio.create_task(feed.serve(handle, slots=8))
                    stack.push_async_callback(asyncio.wait, [serving])
                    stack.push_async_callback(feed.aclose)
                case "stop":
                    await stack.aclose()
            pipe.send(taken)
            taken = []


async def latencies(place: Place, topics: int, rounds: int, count: int) -> FlowFigures:
    """Publish to subscriber, in turn with bare NATS; the next message goes out when the one before was heard."""
    figures, order, heard = FlowFigures(), random.Random(0), asyncio.Event()
    published = list[float]()
    async with Peer.start(ear, place.settings) as peer, connection(place.settings) as client:

        async def hear(_: Msg) -> None:
            heard.set()

        async def floor() -> None:
            await client.publish(f"{FLOOR}.{order.randrange(topics)}", _stamped())

        async def send() -> None:
            key = place.wiring.ports.subjects.lite(*key_of(order.randrange(topics)))
            await place.wiring.connection.publish(key, _stamped(), headers={"Nats-TTL": f"{TTL_S:.0f}s"})

        async def publish() -> None:
            name = key_of(order.randrange(IN_USE))
            started = time.perf_counter()
            await place.publish(name, _stamped())
            published.append((time.perf_counter() - started) * 1000)

        async def one_round(way: str, send: Callable[[], Awaitable[None]], count: int) -> list[float]:
            await peer.tell(way)
            for _ in range(count):
                heard.clear()
                await send()
                async with asyncio.timeout(WITHIN_S):
                    await heard.wait()
            return list(await peer.tell("stop"))

        await client.subscribe(HEARD, cb=hear)
        await client.flush()
        ways = {
            "floor": (floor, figures.floor),
            "follow": (send, figures.sent),
            "serve": (publish, figures.published),
        }
        for way, (call, _) in ways.items():
            await one_round(way, call, count)
        for _ in range(rounds):
            published.clear()
            for way in order.sample([*ways], len(ways)):
                call, into = ways[way]
                into.add(await one_round(way, call, count))
            figures.publish.add(published)
    return figures


async def resume(place: Place, topics: int, count: int, figures: FlowFigures) -> None:
    """A reader that missed some messages asks for them, in a process that never saw the topic."""
    order, taken = random.Random(1), list[float]()
    names = [key_of(number) for number in order.sample(range(topics), min(topics, count))]
    missed = {name: [await place.publish(name, TEXT) for _ in range(MISSED)] for name in names}
    async with Place.open(place.settings) as other:
        for (owner, id), seqs in missed.items():
            started = time.perf_counter()
            reader = other.squad.lite(id, owner).read(seqs[0])
            got = [(await anext(reader)).seq for _ in seqs]
            taken.append((time.perf_counter() - started) * 1000)
            await reader.aclose()
            assert got == seqs, "a reader that resumed lost or repeated something"
    figures.resume.add(taken)


@dataclass
class FollowFigures:
    """Of one process that follows many topics, in ms."""

    followed: int = 0
    #: From `add` until a message that was published then is in the handler; `remove`, which is at once.
    add: Latencies = field(default_factory=Latencies)
    remove: Latencies = field(default_factory=Latencies)
    subscriptions: int = 0


async def follow(place: Place, topics: int, count: int) -> FollowFigures:
    """Add and remove topics while many others are followed over the same subscription."""
    figures, heard, handed_out = FollowFigures(topics), asyncio.Event(), set[str]()
    before = len(place.wiring.connection.client._subs)
    added, removed = list[float](), list[float]()

    async def handle(id: str, _: LiteItems) -> None:
        handed_out.add(id)
        heard.set()

    async with place.squad.follow("feed") as feed, connection(place.settings) as client:
        figures.subscriptions = len(place.wiring.connection.client._subs) - before
        serving = asyncio.create_task(feed.serve(handle))
        for number in range(topics):
            await feed.add(f"other-{number}")
        for number in range(count):
            id = f"mine-{number}"
            key = place.wiring.ports.subjects.lite("feed", id)
            heard.clear()
            started = time.perf_counter()
            await feed.add(id)
            await client.publish(key, b"now")
            async with asyncio.timeout(WITHIN_S):
                await heard.wait()
            added.append((time.perf_counter() - started) * 1000)
            started = time.perf_counter()
            feed.remove(id)
            removed.append((time.perf_counter() - started) * 1000)
            handed_out.clear()
            await client.publish(key, b"too late")
            await client.flush()
            assert id not in handed_out, "a topic that was removed was handed out"
    await serving
    figures.add.add(added)
    figures.remove.add(removed)
    return figures


class Poet(Agent):
    """Streams as fast as it may."""

    name = "bench-poet"

    @topic("bench.poem")
    async def write(self, chunks: int, ctx: Context) -> None:
        """Emit so many chunks; the first says when it was sent."""
        for number in range(chunks):
            await ctx.emit({"sent": time.perf_counter(), "text": TEXT} if number == 0 else TEXT)


async def poet(pipe: Connection, settings: Settings) -> None:
    """One replica of `Poet`, without Ray."""
    async with Place.open(settings) as place:
        wiring, agent, spec = place.wiring, Poet(), AgentSpec.of(Poet)
        turns = Turns(spec.name, spec.handlers(agent), wiring.caller)
        mailbox = Mailbox(spec.name, tuple(each.topic.name for each in spec.topics), settings.lease_s)
        pump = Pump(wiring.ports.queue, mailbox, turns.run, slots=8)
        await wiring.ports.queue.declare(mailbox)
        await wiring.registry.advertise(spec.card())
        await wiring.registry.renew(spec.name, wiring.ports.identity.id)
        await turns.start()
        await pump.start()
        pipe.send("ready")
        while True:
            await asyncio.sleep(settings.heartbeat_s)
            await wiring.registry.renew(spec.name, wiring.ports.identity.id)


@dataclass
class StreamFigures:
    """Of the first chunk, in ms, and of the floor beside it; and chunks per second of one long stream."""

    first: Latencies = field(default_factory=Latencies)
    floor: Latencies = field(default_factory=Latencies)
    per_second: list[float] = field(default_factory=list)

    @property
    def added_ms(self) -> list[float]:
        return [one - other for one, other in zip(self.first.rounds, self.floor.rounds, strict=True)]


async def streams(place: Place, rounds: int, count: int, chunks: int) -> StreamFigures:
    """What a replica emits, read in this process."""
    figures = StreamFigures()
    async with (
        Peer.start(poet, place.settings),
        Peer.start(ear, place.settings) as peer,
        connection(place.settings) as client,
    ):
        for number in range(rounds + 1):
            for _ in range(count):
                await client.publish(f"{FLOOR}.1", _stamped())
                # As long as a task takes, so that the machine is as awake.
                await asyncio.sleep(0.002)
            floor = list(await peer.tell("stop"))
            first = [await _first_chunk(place) for _ in range(count)]
            per_second = await _long_stream(place, chunks)
            if number:
                figures.floor.add(floor)
                figures.first.add(first)
                figures.per_second.append(per_second)
    return figures


async def _first_chunk(place: Place) -> float:
    stream, taken = place.squad.stream("bench.poem", {"chunks": 1}), 0.0
    async for chunk in stream:
        taken = (time.perf_counter() - chunk["sent"]) * 1000
    (await stream.outcome()).unwrap()
    return taken


async def _long_stream(place: Place, chunks: int) -> float:
    stream = place.squad.stream("bench.poem", {"chunks": chunks})
    first, heard = 0.0, 0
    async for chunk in stream:
        first, heard = first or chunk["sent"], heard + 1
    taken = time.perf_counter() - first
    (await stream.outcome()).unwrap()
    assert heard == chunks, f"{chunks - heard} chunks were lost"
    return chunks / taken
