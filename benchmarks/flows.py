"""What streams, durable events and new lite topics cost, and how many there are in a second.

Alone: `python -m benchmarks.flows`, one process on each side. On a busy machine the CPU says more than the rate:
what a process can do in a second at most is a second over its share of the CPU. Of chunks and lite topics the
floor is measured, too, round by round (`flow_floors.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.flow_floors import bare_chunks, bare_topics, serve_bare
from benchmarks.processes import workers
from benchmarks.targets import Target, verdict
from squadron import Agent, Context, Settings, Squad, on_durable, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity

RESULTS = Path(__file__).parent / "results"
#: What each message says, in characters, and how many tasks publish at once.
TEXT, AT_ONCE = "x" * 128, 64
#: Messages of a round, and how many a second there are to be.
CHUNKS, EVENTS, TOPICS = 10_000, 6_000, 6_000
LEAST = {"chunks": 40_000, "events in": 10_000, "events in and handled": 8_000, "new lite topics": 25_000}
#: What is measured: that, and the floors.
WHAT = [*LEAST, "chunks, bare", "new lite topics, bare"]


class Speaker(Agent):
    """Streams as fast as it may, and hears of events."""

    name = "bench-speaker"
    slots = AT_ONCE
    heard = 0

    @topic("bench.speak")
    async def speak(self, chunks: int, ctx: Context) -> None:
        """Emit so many chunks."""
        for _ in range(chunks):
            await ctx.emit(TEXT)

    @on_durable("bench.handled")
    async def hear(self, text: str) -> None:
        """Count it."""
        self.heard += 1

    @topic("bench.count")
    async def count(self) -> int:
        """How many were heard."""
        return self.heard


@dataclass
class Flow:
    """Of one kind, round by round: how many in a second, and CPU of each in µs, of this process and the others."""

    per_second: list[float] = field(default_factory=list)
    here_us: list[float] = field(default_factory=list)
    there_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)

    async def measure(self, count: int, work: Awaitable[None], there: Collection[int], server: int) -> None:
        """One round of so many messages."""

        def spent() -> tuple[float, ...]:
            cpu = (sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for pids in (there, [server]))
            return time.perf_counter(), time.process_time(), *cpu

        before = spent()
        await work
        took_s, *cpu_s = (after - one for after, one in zip(spent(), before, strict=True))
        self.per_second.append(count / took_s)
        for rounds, each in zip((self.here_us, self.there_us, self.server_us), cpu_s, strict=True):
            rounds.append(1e6 * each / count)

    def __str__(self) -> str:
        rate, here, there, server = map(statistics.median, asdict(self).values())
        return f"{rate:10,.0f} a second; us of CPU here {here:.0f}, there {there:.0f}, server {server:.0f}"


@asynccontextmanager
async def serve_speaker(settings: Settings) -> AsyncIterator[None]:
    """One replica that streams."""
    configure_logs("WARNING")
    spec = AgentSpec.of(Speaker)
    place = await Wiring.open(settings, AgentIdentity(id=spec.name))
    await Host(place, Speaker(), spec, slots=Speaker.slots).start()
    await serve_bare(place, TEXT)
    yield


async def _at_once(count: int, work: Callable[[], Awaitable[object]]) -> None:
    left = itertools.repeat(None, count)

    async def worker() -> None:
        for _ in left:
            await work()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def _listen(squad: Squad) -> None:
    stream, heard = squad.stream("bench.speak", {"chunks": CHUNKS}), 0
    async for _ in stream:
        heard += 1
    (await stream.outcome()).unwrap()
    assert heard == CHUNKS


async def _through_group(squad: Squad, publish: Callable[[], Awaitable[object]]) -> None:
    before = (await squad.ask("bench.count")).unwrap()
    await _at_once(EVENTS, publish)
    while (await squad.ask("bench.count")).unwrap() < before + EVENTS:  # noqa: ASYNC110 - it is in another process
        await asyncio.sleep(0.01)


async def _measure(settings: Settings, rounds: int) -> dict[str, Flow]:
    flows = {what: Flow() for what in WHAT}
    place = await Wiring.open(settings, AgentIdentity(id="bench"), create=True)
    server = embedded.find(settings.home)
    assert server is not None
    spec, squad, numbers = AgentSpec.of(Speaker), Squad(place, settings), itertools.count()
    await place.ports.queue.declare(Mailbox(spec.name, ("bench.speak", "bench.count"), settings.lease_s))
    await place.registry.advertise(spec.card())
    await place.registry.catch_up()

    async def publish() -> None:
        await squad.publish_durable("bench.event", {"text": TEXT})

    async def publish_for_group() -> None:
        await squad.publish_durable("bench.handled", {"text": TEXT})

    async def create() -> None:
        await squad.lite(f"t-{next(numbers)}", "bench", ttl_s=600.0).publish(TEXT)

    try:
        async with workers(serve_speaker, settings, 1, as_on_ray=True) as speakers:
            for number in range(rounds + 1):
                # The first only warms up.
                kept = flows if number else {what: Flow() for what in WHAT}
                await kept["chunks"].measure(CHUNKS, _listen(squad), speakers, server.pid)
                await kept["chunks, bare"].measure(CHUNKS, bare_chunks(place, CHUNKS), speakers, server.pid)
                await kept["events in"].measure(EVENTS, _at_once(EVENTS, publish), [], server.pid)
                through = _through_group(squad, publish_for_group)
                await kept["events in and handled"].measure(EVENTS, through, speakers, server.pid)
                await kept["new lite topics"].measure(TOPICS, _at_once(TOPICS, create), [], server.pid)
                bare = bare_topics(place, TOPICS, AT_ONCE, TEXT)
                await kept["new lite topics, bare"].measure(TOPICS, bare, [], server.pid)
    finally:
        await place.aclose()
    return flows


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments, before = parser.parse_args(), machine.busy_percent()
    configure_logs("WARNING")
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING")
        try:
            flows = asyncio.run(_measure(settings, arguments.rounds))
        finally:
            embedded.stop(settings.home)
    targets = [
        Target(f"{what} per s", flows[what].per_second, least, at_most=False) for what, least in LEAST.items()
    ]
    print(machine.business(before), *(f"{what:24}{flow}" for what, flow in flows.items()), *targets, sep="\n")
    for what in ("chunks", "new lite topics"):
        pairs = zip(flows[what].per_second, flows[f"{what}, bare"].per_second, strict=True)
        shares = [ours / bare for ours, bare in pairs]
        print(f"{what}: {statistics.median(shares):.2f} of the floor")
    RESULTS.mkdir(exist_ok=True)
    figures = {what: asdict(flow) for what, flow in flows.items()}
    made = {"machine": machine.facts(), "busy_before": before, "figures": figures}
    (RESULTS / "flows.json").write_text(json.dumps(made, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main())
