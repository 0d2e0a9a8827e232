"""How fast messages flow over lite topics: from publish to subscriber, to a reader that returns, in streams."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from nats.aio.msg import Msg

from benchmarks.floors import connection
from benchmarks.lite_store import TEXT, TTL_S, Place, key_of
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.runtime.context import Context
from squadron.runtime.ports import Entry, Mailbox
from squadron.runtime.pump import Pump
from squadron.runtime.turn import Turns

#: Where the floor publishes, and where what was heard is told: the next message goes out then.
FLOOR, HEARD = "bench.floor", "bench.heard"
#: A figure that takes longer is a fault.
WITHIN_S = 30.0
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
    unwaited: Latencies = field(default_factory=Latencies)
    end_to_end: Latencies = field(default_factory=Latencies)
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
    """Hears every lite topic, and the floor; tells how old each message was, and that the next may come."""
    taken, told = list[float](), set[asyncio.Future[None]]()
    async with Place.open(settings) as place, connection(settings) as client:

        async def hear_floor(msg: Msg) -> None:
            taken.append(_age_ms(msg.data))
            await client.publish(HEARD, b"")

        def hear(entry: Entry) -> None:
            taken.append(_age_ms(entry.data))
            told.add(task := asyncio.ensure_future(client.publish(HEARD, b"")))
            task.add_done_callback(told.discard)

        await client.subscribe(f"{FLOOR}.>", cb=hear_floor)
        await client.flush()
        await place.wiring.lite.follow(f"agents.{settings.env}.lite.*.*", hear)
        pipe.send("ready")
        while True:
            await asyncio.to_thread(pipe.recv)
            pipe.send(taken)
            taken = []


async def latencies(place: Place, topics: int, rounds: int, count: int) -> FlowFigures:
    """Publish to subscriber, in turn with bare NATS; the next message goes out when the one before was heard."""
    figures, order, heard = FlowFigures(), random.Random(0), asyncio.Event()
    subjects, published = place.wiring.subjects, list[float]()
    async with Peer.start(ear, place.settings) as peer, connection(place.settings) as client:

        async def hear(_: Msg) -> None:
            heard.set()

        async def floor() -> None:
            await client.publish(f"{FLOOR}.{order.randrange(topics)}", _stamped())

        async def unwaited() -> None:
            await place.wiring.connection.publish(subjects.lite(*key_of(order.randrange(topics))), _stamped())

        async def publish() -> None:
            started = time.perf_counter()
            await place.wiring.lite.append(
                subjects.lite(*key_of(order.randrange(topics))), _stamped(), ttl_s=TTL_S
            )
            published.append((time.perf_counter() - started) * 1000)

        async def one_round(send: Callable[[], Awaitable[None]]) -> list[float]:
            for _ in range(count):
                heard.clear()
                await send()
                async with asyncio.timeout(WITHIN_S):
                    await heard.wait()
            return list(await peer.tell("taken"))

        await client.subscribe(HEARD, cb=hear)
        await client.flush()
        ways = [(floor, figures.floor), (unwaited, figures.unwaited), (publish, figures.end_to_end)]
        for send, _ in ways:
            await one_round(send)
        published.clear()
        for _ in range(rounds):
            for send, into in order.sample(ways, len(ways)):
                into.add(await one_round(send))
            figures.publish.add(published)
            published.clear()
    return figures


async def resume(place: Place, topics: int, count: int, figures: FlowFigures) -> None:
    """A reader that missed some messages asks for them, in a process that never saw the topic."""
    order = random.Random(1)
    lite, subjects = place.wiring.lite, place.wiring.subjects
    keys = [subjects.lite(*key_of(number)) for number in order.sample(range(topics), min(topics, count))]
    missed = [[await lite.append(key, TEXT.encode(), ttl_s=TTL_S) for _ in range(MISSED)] for key in keys]
    taken = []
    async with Place.open(place.settings) as other:
        for key, seqs in zip(keys, missed, strict=True):
            started = time.perf_counter()
            async with aclosing(other.wiring.lite.read(key, from_seq=seqs[0], live=True)) as reader:
                got = [(await anext(reader)).seq for _ in seqs]
            taken.append((time.perf_counter() - started) * 1000)
            assert got == seqs, "a reader that resumed lost or repeated something"
    figures.resume.add(taken)


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
        turns = Turns(spec.name, spec.handlers(agent), wiring.caller, wiring.dead)
        mailbox = Mailbox(spec.name, tuple(each.topic.name for each in spec.topics), settings.lease_s)
        pump = Pump(wiring.queue, mailbox, turns.run, slots=8)
        await wiring.queue.declare(mailbox)
        await wiring.registry.advertise(spec.card())
        await wiring.registry.renew(spec.name, wiring.identity.id)
        await turns.start()
        await pump.start()
        pipe.send("ready")
        while True:
            await asyncio.sleep(settings.heartbeat_s)
            await wiring.registry.renew(spec.name, wiring.identity.id)


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
    async with Peer.start(poet, place.settings), Peer.start(ear, place.settings) as peer:
        async with connection(place.settings) as client:
            for _ in range(rounds):
                for _ in range(count):
                    await client.publish(f"{FLOOR}.1", _stamped())
                    await client.flush()
                    await asyncio.sleep(0.002)
                figures.floor.add(list(await peer.tell("taken")))
                figures.first.add([await _first_chunk(place) for _ in range(count)])
                figures.per_second.append(await _long_stream(place, chunks))
                await peer.tell("taken")
    return figures


async def _first_chunk(place: Place) -> float:
    stream, taken = place.squad.stream("bench.poem", chunks=1), 0.0
    async for chunk in stream:
        taken = (time.perf_counter() - chunk["sent"]) * 1000
    (await stream.outcome()).unwrap()
    return taken


async def _long_stream(place: Place, chunks: int) -> float:
    stream = place.squad.stream("bench.poem", chunks=chunks)
    first, heard = 0.0, 0
    async for chunk in stream:
        first, heard = first or chunk["sent"], heard + 1
    taken = time.perf_counter() - first
    (await stream.outcome()).unwrap()
    assert heard == chunks, f"{chunks - heard} chunks were lost"
    return chunks / taken
