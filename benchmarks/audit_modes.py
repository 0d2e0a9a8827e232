"""What the audit trail costs: asks per second with it off, without contents, and in full, in the same run.

One client, two workers and the archivist have a process each, on a real nats-server. Rounds go through the modes
in another order each time; ratios are taken within a round. CPU is that of all of these processes and the server,
until the archivist has recorded all: what it puts off is counted. `captured` is the floor: the server takes in
what is to be recorded, and nobody reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import psutil

from benchmarks import machine
from benchmarks.lite_store import Place
from benchmarks.processes import TEXT, Call, Client, client, workers
from benchmarks.targets import Target, ratios, verdict
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.audit.archive import archive
from squadron.bridge.audit.history import AuditTrail
from squadron.bridge.jetstream.audit_streams import AuditPolicy, set_policy
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns

RESULTS = Path(__file__).parent / "results"
#: Asks under way at once, and how long each mode is measured in a round, in seconds.
AT_ONCE, FOR_S = 64, 3.0
#: Who has a process, or two.
ROLES = ("asker", "workers", "server", "archivist")
#: Modes of the audit, and the one without an archivist.
Way: TypeAlias = Literal["off", "captured", "trail", "full"]
WAYS: tuple[Way, ...] = get_args(Way)
#: So much less may there be than with the audit off.
WITHOUT_CONTENTS, WITH_CONTENTS = 0.9, 0.65


class AuditedEcho(Agent):
    """Says it again."""

    @topic("bench.echo")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


@contextlib.asynccontextmanager
async def asks(settings: Settings) -> AsyncIterator[Call]:
    """A durable ask, and its durable outcome."""
    async with Place.open(settings) as place:
        await place.wiring.registry.catch_up()

        async def call() -> object:
            return (await place.wiring.caller.ask("bench.echo", {"text": TEXT}, AskOptions())).unwrap()

        yield call


@contextlib.asynccontextmanager
async def echo(settings: Settings) -> AsyncIterator[None]:
    """One replica, without Ray."""
    async with Place.open(settings) as place:
        wiring, spec = place.wiring, AgentSpec.of(AuditedEcho)
        turns = Turns(spec.name, spec.handlers(AuditedEcho()), wiring.caller)
        pump = Pump(wiring.ports.queue, Mailbox(spec.name, ("bench.echo",), settings.lease_s), turns.run, slots=64)
        await wiring.ports.queue.declare(Mailbox(spec.name, ("bench.echo",), settings.lease_s))
        await wiring.registry.advertise(spec.card())
        # Ten minutes of presence, so that nothing but asks goes over the bus.
        wiring.registry.heartbeat_s = 200.0
        await wiring.registry.renew(spec.name, wiring.ports.identity.id)
        await turns.start()
        await pump.start()
        yield


@contextlib.asynccontextmanager
async def archivist(settings: Settings) -> AsyncIterator[None]:
    """The archivist, of which one of the two processes works."""
    work = asyncio.create_task(archive(settings))
    try:
        yield
    finally:
        work.cancel()


@dataclass
class ModeFigures:
    """One mode's, of each round."""

    per_second: list[float] = field(default_factory=list)
    #: CPU of all processes, in µs for each ask, and whose it was.
    cpu_us: list[float] = field(default_factory=list)
    cpu_us_of: dict[str, list[float]] = field(default_factory=lambda: {role: [] for role in ROLES})
    #: How long the archivist went on after the last ask, in seconds.
    behind_s: list[float] = field(default_factory=list)


async def measure(rounds: int) -> tuple[dict[Way, ModeFigures], list[float]]:
    """All modes in each round."""
    figures: dict[Way, ModeFigures] = {way: ModeFigures() for way in WAYS}
    busy = []
    with tempfile.TemporaryDirectory(prefix="squadron-bench-") as home:
        settings = Settings(home=Path(home), env="bench")
        try:
            async with contextlib.AsyncExitStack() as stack:
                place = await stack.enter_async_context(Place.open(settings, create=True))
                pids = _Pids()
                await stack.enter_async_context(workers(echo, settings))
                pids.take("workers")
                await stack.enter_async_context(workers(archivist, settings))
                pids.take("archivist")
                asker = stack.enter_context(client(asks, settings))
                pids.take("asker")
                server = embedded.find(settings.home)
                assert server is not None
                pids.of["server"] = [server.pid]
                await asyncio.to_thread(asker.per_second, AT_ONCE, 1.0)
                for _ in range(rounds):
                    busy.append(machine.busy_percent())
                    for way in random.sample(WAYS, len(WAYS)):
                        await _measure_way(place.wiring, way, asker, pids, figures[way])
        finally:
            embedded.stop(settings.home)
    return figures, busy


async def _measure_way(wiring: Wiring, way: Way, asker: Client, pids: _Pids, figures: ModeFigures) -> None:
    names = StreamNames(wiring.settings.env)
    await set_policy(wiring.connection, names, AuditPolicy("trail" if way == "captured" else way))
    # The archivist looks every two seconds what is to be recorded.
    await asyncio.sleep(2.5)
    trail = AuditTrail(wiring.connection, names, wiring.settings.home)
    with pids.suspended("archivist") if way == "captured" else contextlib.nullcontext():
        before = pids.cpu_s()
        figures.per_second.append(await asyncio.to_thread(asker.per_second, AT_ONCE, FOR_S))
        ended = time.perf_counter()
        if way in ("trail", "full"):
            await _until_recorded(trail)
            figures.behind_s.append(time.perf_counter() - ended)
        after = pids.cpu_s()
    if way == "captured":
        await _until_recorded(trail)
    asked = figures.per_second[-1] * FOR_S
    for role in ROLES:
        figures.cpu_us_of[role].append((after[role] - before[role]) * 1e6 / asked)
    figures.cpu_us.append(sum(each[-1] for each in figures.cpu_us_of.values()))


async def _until_recorded(trail: AuditTrail) -> None:
    while (await trail.status())["waiting"]:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.05)


class _Pids:
    """Which processes are whose."""

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    def take(self, role: str) -> None:
        """All that were started since the last time are this one's."""
        known = {pid for pids in self.of.values() for pid in pids}
        self.of[role] = [each.pid for each in psutil.Process().children(recursive=True) if each.pid not in known]

    @contextlib.contextmanager
    def suspended(self, role: str) -> Iterator[None]:
        """Stop this one's processes for a while, with all that they hold."""
        processes = [psutil.Process(pid) for pid in self.of[role]]
        for each in processes:
            each.suspend()
        try:
            yield
        finally:
            for each in processes:
                each.resume()

    def cpu_s(self) -> dict[str, float]:
        """CPU that each role has had, in seconds."""
        return {
            role: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for role, pids in self.of.items()
        }


def judge(figures: dict[Way, ModeFigures]) -> list[Target]:
    """The targets that this benchmark is there to hold."""
    off, trail, full = figures["off"].per_second, figures["trail"].per_second, figures["full"].per_second
    return [
        Target("asks per second without contents / off", ratios(trail, off), WITHOUT_CONTENTS, at_most=False),
        Target("asks per second in full / off", ratios(full, off), WITH_CONTENTS, at_most=False),
    ]


def report(figures: dict[Way, ModeFigures], busy: Sequence[float], targets: Sequence[Target]) -> None:
    """Print the figures and the targets."""
    off = figures["off"]
    for way, each in figures.items():
        per_second, cpu = statistics.median(each.per_second), statistics.median(each.cpu_us)
        behind = f", archivist behind by {statistics.median(each.behind_s):.2f} s" if each.behind_s else ""
        print(f"{way:9}{per_second:10,.0f} asks/s{cpu:10,.0f} µs of CPU each{behind}")
        asks, share = (ratios(each.per_second, off.per_second), ratios(off.cpu_us, each.cpu_us))
        print(f"{'':9} {statistics.median(asks):.2f} of off; by CPU {statistics.median(share):.2f}")
        print("".join(f"{role:>14} {statistics.median(us):,.0f} µs" for role, us in each.cpu_us_of.items()))
    print(f"all cores, while nothing was measured: {statistics.median(busy):.0f} % busy")
    print(*targets, sep="\n")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="how many rounds")
    arguments = parser.parse_args()
    configure_logs("ERROR")
    figures, busy = asyncio.run(measure(arguments.rounds))
    targets = judge(figures)
    report(figures, busy, targets)
    results = {"machine": machine.facts(), "arguments": vars(arguments), "busy_percent": busy}
    results |= {"targets": [each.as_json() for each in targets]}
    results |= {"figures": {way: asdict(each) for way, each in figures.items()}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "audit.json").write_text(json.dumps(results, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main())
