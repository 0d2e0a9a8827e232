"""What a store of many lite topics costs: to fill, to hold, to recover, and to empty when they lapse."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from benchmarks.floors import connection
from squadron import Settings, Squad
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.wire.envelope import AgentIdentity

#: Content of a message: a chunk of a model's answer with what belongs to it.
TEXT = "x" * 256
#: Topics of one owner.
PER_OWNER = 1000
#: Publishes under way at once when it is about how many.
AT_ONCE = 256
#: The same for nats-py alone, which waits for none of them; its `publish_async` allows 4,000.
WINDOW = 4000
#: Longer than a size takes.
TTL_S = 3600.0
#: Publishes per second while topics lapse.
MEANWHILE_PER_S = 500
#: Topics per round that nothing else is measured on; they are of another environment, and gone afterwards.
FLOOR_TOPICS = 4000


def key_of(number: int) -> tuple[str, str]:
    """Owner and id of a topic."""
    return f"owner-{number // PER_OWNER}", f"topic-{number}"


@dataclass
class StoreFigures:
    """One size's. Rates are per second, of each round; memory is in MB of a million bytes."""

    topics: int = 0
    fill: list[float] = field(default_factory=list)
    floor_fill: list[float] = field(default_factory=list)
    lite_fill: list[float] = field(default_factory=list)
    consumers: int = 0
    empty_mb: float = 0.0
    full_mb: float = 0.0
    recover_s: float = 0.0
    recovered_mb: float = 0.0
    drained: int = 0
    drain_s: float = 0.0
    meanwhile_ms: list[float] = field(default_factory=list)

    @property
    def bytes_per_topic(self) -> float:
        return (self.full_mb - self.empty_mb) * 1e6 / self.topics


class Place:
    """A squad without agents on a server of its own."""

    def __init__(self, settings: Settings, wiring: Wiring) -> None:
        self.settings, self.wiring = settings, wiring
        self.squad = Squad(wiring, settings)
        self.stream = StreamNames(settings.env).lite

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, *, create: bool = False) -> AsyncIterator[Place]:
        """Connect; `create` starts the server and makes the streams."""
        wiring = await Wiring.open(settings, AgentIdentity(id="bench", type="bench"), create=create)
        try:
            yield cls(settings, wiring)
        finally:
            await wiring.aclose()

    async def state(self) -> dict[str, Any]:
        """The stream's own count."""
        answer = await self.wiring.connection.api(f"STREAM.INFO.{self.stream}", {})
        state: dict[str, Any] = answer["state"]
        return state

    def server_mb(self) -> float:
        """Memory of the server that is resident."""
        server = embedded.find(self.settings.home)
        assert server is not None
        return float(psutil.Process(server.pid).memory_info().rss / 1e6)

    async def create(self, number: int, ttl_s: float = TTL_S) -> None:
        """The first publish on a topic, which lives as long as its message."""
        await self.wiring.ports.lite.append(
            self.wiring.ports.subjects.lite(*key_of(number)), TEXT.encode(), ttl_s=ttl_s
        )

    async def create_lite(self, number: int) -> None:
        """The same by `Squad.lite`: the topic lives as long as it is used, and its end is told."""
        await self.publish(key_of(number), TEXT)

    async def publish(self, name: tuple[str, str], content: Any) -> int:
        """Publish by `Squad.lite`; the sequence."""
        owner, id = name
        return await self.squad.lite(id, owner, ttl_s=TTL_S).publish(content)


async def at_once(count: int, work: Callable[[int], Awaitable[object]], first: int = 0) -> float:
    """Do it for every number, `AT_ONCE` at once; how many per second."""
    numbers = iter(range(first, first + count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return count / (time.perf_counter() - started)


async def fill(place: Place, topics: int, rounds: int, by_lite: bool, figures: StoreFigures) -> None:
    """Make the topics, in turn with nats-py alone, which makes its own in another environment.

    Args:
        by_lite: the topics that stay are made by `Squad.lite`.
    """
    create = place.create_lite if by_lite else place.create
    floor = Settings.load({}, home=place.settings.home, env="floor", log_level="WARNING")
    async with Place.open(floor, create=True) as other, connection(place.settings) as client:
        figures.topics, figures.empty_mb = topics, place.server_mb()
        for number in range(rounds):
            aside = 2 * FLOOR_TOPICS * number
            figures.floor_fill.append(await _floor_fill(client, floor.env, aside))
            first = topics * number // rounds
            made = await at_once(topics * (number + 1) // rounds - first, create, first)
            beside = await at_once(
                FLOOR_TOPICS, other.create if by_lite else other.create_lite, aside + FLOOR_TOPICS
            )
            figures.fill.append(beside if by_lite else made)
            figures.lite_fill.append(made if by_lite else beside)
        await other.wiring.connection.api(f"STREAM.DELETE.{other.stream}", {})
    state = await place.state()
    figures.consumers = state["consumer_count"]
    assert state["num_subjects"] >= topics, "topics are missing"
    assert figures.consumers == 0, "there are consumers"


async def _floor_fill(client: Nats, environment: str, first: int) -> float:
    inbox, room, acked = client.new_inbox(), asyncio.Event(), 0

    async def hear(msg: Msg) -> None:
        nonlocal acked
        assert b'"error"' not in msg.data
        acked += 1
        room.set()

    acks = await client.subscribe(inbox, cb=hear)
    headers, data = {"Nats-TTL": f"{TTL_S:.0f}s"}, TEXT.encode()
    started = time.perf_counter()
    for sent in range(FLOOR_TOPICS):
        while sent - acked >= WINDOW:
            room.clear()
            await room.wait()
        owner, id = key_of(first + sent)
        await client.publish(f"agents.{environment}.lite.{owner}.{id}", data, reply=inbox, headers=headers)
    while acked < FLOOR_TOPICS:
        room.clear()
        await room.wait()
    taken_s = time.perf_counter() - started
    await acks.unsubscribe()
    return FLOOR_TOPICS / taken_s


async def restart(place: Place, figures: StoreFigures) -> None:
    """SIGKILL the server, start it again on its store, and wait until a publish is acknowledged again."""
    before = await place.state()
    server = embedded.find(place.settings.home)
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    started = time.perf_counter()
    await asyncio.to_thread(psutil.wait_procs, [psutil.Process(server.pid)])
    starting = asyncio.create_task(asyncio.to_thread(embedded.ensure, place.settings.home))
    while not figures.recover_s:
        with suppress(BusUnavailableError):
            await place.create(0)
            figures.recover_s = time.perf_counter() - started
        await asyncio.sleep(0.01)
    await starting
    # What is asked while nats-py still works off its reconnecting is given up once more.
    await asyncio.sleep(0.5)
    after = await place.state()
    assert after["num_subjects"] == before["num_subjects"], "topics were lost"
    figures.recovered_mb = place.server_mb()


async def drain(place: Place, topics: int, figures: StoreFigures) -> None:
    """Make topics that all lapse within one second, and go on publishing until they are gone."""
    await place.wiring.connection.api(f"STREAM.PURGE.{place.stream}", {})
    end_at = time.time() + topics / min(figures.fill) * 1.3 + 3

    async def create(number: int) -> None:
        await place.create(number, math.ceil(end_at - time.time()))

    await at_once(topics, create)
    assert time.time() < end_at, "some have lapsed already"
    await asyncio.sleep(end_at - time.time())
    started, published = time.perf_counter(), 0
    gone = asyncio.Event()

    async def go_on() -> None:
        nonlocal published
        while not gone.is_set():
            sent_at = time.perf_counter()
            published += 1
            await place.create(topics + published)
            figures.meanwhile_ms.append((time.perf_counter() - sent_at) * 1000)
            await asyncio.sleep(max(0.0, started + published / MEANWHILE_PER_S - time.perf_counter()))

    going_on = asyncio.create_task(go_on())
    while (await place.state())["messages"] > published:  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.02)
    figures.drained, figures.drain_s = topics, time.perf_counter() - started
    gone.set()
    await going_on
