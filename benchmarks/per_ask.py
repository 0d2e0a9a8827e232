"""What an ask costs each process, and how full slots are: replicas, a client and a nats-server, without Ray.

Alone: `python -m benchmarks.per_ask`; the slots are a part of `make bench`, too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks import floors, machine
from benchmarks.processes import TEXT, Call, workers
from benchmarks.targets import Target, verdict
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity

RESULTS = Path(__file__).parent / "results"
#: Asks of a round and how many are under way at once; and of those in order, over how many conversations.
ASKS, AT_ONCE = 6_000, 128
IN_ORDER, CONVERSATIONS = 1_500, 100
#: Slots of a replica, how long each task works, in seconds, and how many tasks each slot gets in a round.
SLOTS, WORK_S, EACH = 4, 0.1, 30
#: Replicas for which it is measured how full their slots are.
CROWDS = (1, 2, 4, 8)
#: Targets: share of the time that they work, and time between two tasks, in milliseconds.
LEAST_FILL, MOST_GAP_MS = 0.97, 3.0


class Worker(Agent):
    """Works for a while, and says when it did so."""

    name = "bench-worker"
    slots = SLOTS

    @topic("bench.work")
    async def work(self, for_s: float) -> list[float]:
        """Work for so many seconds; the process, and when it began and ended."""
        began = time.monotonic()
        await asyncio.sleep(for_s)
        return [os.getpid(), began, time.monotonic()]


class Teller(Agent):
    """Says it again."""

    name = "bench-teller"
    slots = 64

    @topic("bench.tell")
    async def say(self, text: str) -> list[object]:
        """Say it again, and which process said it."""
        return [os.getpid(), text]


class Liner(Agent):
    """Says it again, one after the other of a conversation."""

    name = "bench-liner"
    slots = 64
    ordered_by = "conversation"

    @topic("bench.line")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


@dataclass
class Cost:
    """CPU of an ask in µs, round by round, and how many end in a second."""

    client_us: list[float] = field(default_factory=list)
    workers_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        client, theirs, server, rate = map(statistics.median, asdict(self).values())
        parts = f"client {client:.0f} + workers {theirs:.0f} + server {server:.0f}"
        return f"{parts} = {client + theirs + server:.0f} us; {rate:,.0f} a second"

    async def measure(self, call: Call, count: int, pids: Sequence[int], server_pid: int) -> None:
        """One round of so many calls."""
        server, theirs = [psutil.Process(server_pid)], [psutil.Process(pid) for pid in pids]
        left = count

        async def asker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await call()

        before = time.perf_counter(), time.process_time(), _cpu_s(theirs), _cpu_s(server)
        await asyncio.gather(*(asker() for _ in range(AT_ONCE)))
        after = time.perf_counter(), time.process_time(), _cpu_s(theirs), _cpu_s(server)
        took_s, *cpu_s = (one - other for one, other in zip(after, before, strict=True))
        self.per_second.append(count / took_s)
        for rounds, each in zip((self.client_us, self.workers_us, self.server_us), cpu_s, strict=True):
            rounds.append(1e6 * each / count)


@dataclass
class PerAskFigures:
    """What was measured, round by round."""

    #: By way: bare messages that are stored once, bare pairs of task and outcome, asks, and asks in order.
    costs: dict[str, Cost] = field(default_factory=dict)
    #: By number of replicas: the share of the time that their slots work, and what is between two tasks.
    fill: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in CROWDS})
    gap_ms: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in CROWDS})

    def targets(self) -> list[Target]:
        """What `make bench` holds us to."""
        full = [
            Target(f"{SLOTS} slots of {count} replicas are full", rounds, LEAST_FILL, at_most=False)
            for count, rounds in self.fill.items()
        ]
        late = [
            Target(f"ms between two tasks of a slot, {count} replicas", rounds, MOST_GAP_MS, at_most=True)
            for count, rounds in self.gap_ms.items()
        ]
        return [*full, *late]

    def __str__(self) -> str:
        return "\n".join(f"CPU of {what}, {AT_ONCE} under way: {cost}" for what, cost in self.costs.items())


@asynccontextmanager
async def serve_worker(settings: Settings) -> AsyncIterator[None]:
    """One replica that works."""
    async with _serve(settings, Worker()):
        yield


@asynccontextmanager
async def serve_teller(settings: Settings) -> AsyncIterator[None]:
    """One replica that answers at once."""
    async with _serve(settings, Teller()):
        yield


@asynccontextmanager
async def serve_liner(settings: Settings) -> AsyncIterator[None]:
    """One replica that answers in order."""
    async with _serve(settings, Liner()):
        yield


@asynccontextmanager
async def _serve(settings: Settings, agent: Agent) -> AsyncIterator[None]:
    configure_logs("WARNING")
    spec = AgentSpec.of(type(agent))
    place = await Wiring.open(settings, AgentIdentity(id=f"{spec.name}-{os.getpid()}"))
    await Host(place, agent, spec, slots=type(agent).slots, ordered=bool(type(agent).ordered_by)).start()
    yield


async def declare(place: Wiring, kind: type[Agent]) -> None:
    """Have a mailbox of an agent, and its card."""
    spec = AgentSpec.of(kind)
    patterns = tuple(each.name for each in spec.card().topics)
    box = Mailbox(spec.name, patterns, place.settings.lease_s, ordered=bool(kind.ordered_by))
    await place.ports.queue.declare(box)
    await place.registry.advertise(spec.card())
    await place.registry.catch_up()


async def _cost(settings: Settings, place: Wiring, rounds: int, figures: PerAskFigures) -> None:
    await declare(place, Teller)
    await declare(place, Liner)
    numbers = itertools.count()

    async def ask() -> None:
        (await place.caller.ask("bench.tell", {"text": TEXT})).unwrap()

    async def ask_in_order() -> None:
        conversation = f"line-{next(numbers) % CONVERSATIONS}"
        (await place.caller.ask("bench.line", {"text": TEXT}, AskOptions(conversation_id=conversation))).unwrap()

    found = embedded.find(settings.home)
    assert found is not None
    async with AsyncExitStack() as stack:
        tellers = await stack.enter_async_context(workers(serve_teller, settings, as_on_ray=True))
        liners = await stack.enter_async_context(workers(serve_liner, settings, as_on_ray=True))
        once, once_pids = await _bare(stack, floors.jetstream(settings))
        twice, twice_pids = await _bare(stack, floors.jetstream_twice(settings))
        ways: dict[str, tuple[Call, int, Collection[int]]] = {
            "a bare message": (once, ASKS, once_pids),
            "a bare task and its outcome": (twice, ASKS, twice_pids),
            "an ask": (ask, ASKS, tellers),
            "an ask in order": (ask_in_order, IN_ORDER, liners),
        }
        for number in range(rounds + 1):
            for what, (one, count, pids) in random.sample(list(ways.items()), len(ways)):
                # The first only warms up.
                cost = figures.costs.setdefault(what, Cost()) if number else Cost()
                await cost.measure(one, count, list(pids), found.pid)


async def _bare(stack: AsyncExitStack, way: AbstractAsyncContextManager[Call]) -> tuple[Call, Collection[int]]:
    """Enter a floor's way; how to call it, and the processes that it brought along."""
    before = {each.pid for each in psutil.Process().children()}
    call = await stack.enter_async_context(way)
    return call, {each.pid for each in psutil.Process().children()} - before


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes)


async def _fill(place: Wiring, count: int, figures: PerAskFigures) -> None:
    """Give each slot so many tasks at once, and look at what lies between the first and the last of each."""
    asks = [place.caller.ask("bench.work", {"for_s": WORK_S}) for _ in range(count * SLOTS * EACH)]
    answers = [each.unwrap() for each in await asyncio.gather(*asks)]
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for pid, began, ended in answers:
        spans[int(pid)].append((began, ended))
    gaps: list[float] = []
    for each in spans.values():
        starts, ends = sorted(one for one, _ in each), sorted(other for _, other in each)
        # The slot that is free first takes what begins next.
        gaps += [later - ended for ended, later in zip(ends, starts[SLOTS:], strict=False)]
    # Not the last of each slot: then there is nothing more to begin with.
    figures.gap_ms[count].append(1000 * statistics.median(gaps))
    work_s = statistics.mean(ended - began for _, began, ended in answers)
    figures.fill[count].append(work_s / (work_s + statistics.mean(gaps)))


async def _measure(settings: Settings, rounds: int, cost: bool) -> PerAskFigures:
    figures = PerAskFigures()
    place = await Wiring.open(settings, AgentIdentity(id="bench"), create=True)
    try:
        if cost:
            await _cost(settings, place, rounds, figures)
        await declare(place, Worker)
        async with AsyncExitStack() as crowd:
            there = 0
            for count in CROWDS:
                await crowd.enter_async_context(workers(serve_worker, settings, count - there))
                there = count
                for _ in range(rounds):
                    await _fill(place, count, figures)
    finally:
        await place.aclose()
    return figures


def measure(rounds: int = 1, *, cost: bool = False) -> PerAskFigures:
    """Measure the slots, and what an ask costs if that is wanted."""
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING")
        try:
            return asyncio.run(_measure(settings, rounds, cost))
        finally:
            embedded.stop(settings.home)


def main() -> int:
    """Run this benchmark alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    configure_logs("WARNING")
    arguments, before = parser.parse_args(), machine.busy_percent()
    figures = measure(arguments.rounds, cost=True)
    print(machine.business(before), figures, *figures.targets(), sep="\n")
    RESULTS.mkdir(exist_ok=True)
    made = {"machine": machine.facts(), "busy_before": before, "figures": asdict(figures)}
    (RESULTS / "per-ask.json").write_text(json.dumps(made, indent=1) + "\n")
    return verdict(figures.targets())


if __name__ == "__main__":
    sys.exit(main())
