"""What the audit trail costs: asks per second with it off, without contents, and in full, in the same run.

One client, two workers and the archivist have a process each, on a real nats-server. Rounds go through the modes
in another order each time; ratios are taken within a round. CPU is that of all of these processes and the server.
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
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.lite_store import Place
from benchmarks.processes import TEXT, Call, Client, client, workers
from benchmarks.targets import Target, ratios
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.audit.archive import archive
from squadron.bridge.audit.history import AuditTrail
from squadron.bridge.jetstream.audit_streams import MODES, AuditMode, AuditPolicy, set_policy
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
    #: CPU of all processes, in µs for each ask.
    cpu_us: list[float] = field(default_factory=list)
    #: How long the archivist went on after the last ask, in seconds.
    behind_s: list[float] = field(default_factory=list)


async def measure(rounds: int) -> tuple[dict[AuditMode, ModeFigures], list[float]]:
    """All modes in each round."""
    figures: dict[AuditMode, ModeFigures] = {mode: ModeFigures() for mode in MODES}
    busy = []
    with tempfile.TemporaryDirectory(prefix="squadron-bench-") as home:
        settings = Settings(home=Path(home), env="bench")
        try:
            async with contextlib.AsyncExitStack() as stack:
                place = await stack.enter_async_context(Place.open(settings, create=True))
                for worker in (echo, archivist):
                    await stack.enter_async_context(workers(worker, settings))
                asker = stack.enter_context(client(asks, settings))
                await asyncio.to_thread(asker.per_second, AT_ONCE, 1.0)
                for _ in range(rounds):
                    busy.append(machine.busy_percent())
                    for mode in random.sample(MODES, len(MODES)):
                        await _measure_mode(place.wiring, mode, asker, figures[mode])
        finally:
            embedded.stop(settings.home)
    return figures, busy


async def _measure_mode(wiring: Wiring, mode: AuditMode, asker: Client, figures: ModeFigures) -> None:
    names = StreamNames(wiring.settings.env)
    await set_policy(wiring.connection, names, AuditPolicy(mode))
    # The archivist looks every two seconds what is to be recorded.
    await asyncio.sleep(2.5)
    cpu_s = _cpu_s(wiring.settings)
    figures.per_second.append(await asyncio.to_thread(asker.per_second, AT_ONCE, FOR_S))
    ended = time.perf_counter()
    if mode != "off":
        trail = AuditTrail(wiring.connection, names, wiring.settings.home)
        while (await trail.status())["waiting"]:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)
        figures.behind_s.append(time.perf_counter() - ended)
    figures.cpu_us.append((_cpu_s(wiring.settings) - cpu_s) * 1e6 / (figures.per_second[-1] * FOR_S))


def _cpu_s(settings: Settings) -> float:
    """CPU that this process, those that it started, and the server have had, in seconds."""
    server = embedded.find(settings.home)
    assert server is not None
    me = psutil.Process()
    counted = {each.pid: each for each in (me, *me.children(recursive=True), psutil.Process(server.pid))}
    return sum(sum(each.cpu_times()[:2]) for each in counted.values())


def judge(figures: dict[AuditMode, ModeFigures]) -> list[Target]:
    """The targets that this benchmark is there to hold."""
    off, trail, full = (figures[mode].per_second for mode in MODES)
    return [
        Target("asks per second without contents / off", ratios(trail, off), WITHOUT_CONTENTS, at_most=False),
        Target("asks per second in full / off", ratios(full, off), WITH_CONTENTS, at_most=False),
    ]


def report(figures: dict[AuditMode, ModeFigures], busy: Sequence[float], targets: Sequence[Target]) -> None:
    """Print the figures and the targets."""
    for mode, each in figures.items():
        per_second, cpu = statistics.median(each.per_second), statistics.median(each.cpu_us)
        behind = f", archivist behind by {statistics.median(each.behind_s):.2f} s" if each.behind_s else ""
        print(f"{mode:6}{per_second:10,.0f} asks/s{cpu:10,.0f} µs of CPU each{behind}")
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
    results |= {"figures": {mode: asdict(each) for mode, each in figures.items()}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "audit.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(each.held for each in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
