"""What it costs to be watched, in CPU of an ask: `make bench-telemetry`.

Asker and replica are in one process over a real nats-server, so that its CPU time is all that an ask costs in
Python. Each way has an environment of its own. They are measured in turn, and the least of all rounds
counts. Spans go over OTLP to a receiver in another process.

Prints a table, writes `benchmarks/results/telemetry.json`; exit status 1 when nobody's watching costs too much.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import machine
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.logs import configure_logs
from squadron.runtime.telemetry.happenings import Happening
from squadron.runtime.telemetry.observer import Observers
from squadron.runtime.wire.envelope import AgentIdentity

RESULTS = Path(__file__).parent / "results"
AT_ONCE = 64
#: Most of an ask's CPU that being watched by nobody may cost.
MOST_OFF = 0.03
OFF, IDLE, NOTHING, ONE_PERCENT, ALL = "off", "an idle observer", "traces, 0 %", "traces, 1 %", "traces, 100 %"
#: The share of asks that each way samples; None where there are no traces.
SAMPLED = {OFF: None, IDLE: None, NOTHING: "0", ONE_PERCENT: "0.01", ALL: "1"}

_RECEIVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class Echo(Agent):
    """Says it again."""

    name = "bench-echo"

    @topic("bench.echo")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


class Idle:
    """Hears all, and does nothing."""

    def hear(self, happening: Happening) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


class Counting(Observers):
    """Counts how often somebody looks whether anybody listens, which nobody does."""

    looks = 0

    @property
    def on(self) -> bool:  # type: ignore[override]
        """Nobody does."""
        Counting.looks += 1
        return False


Ask = Callable[[], Awaitable[object]]


async def _open(stack: AsyncExitStack, settings: Settings) -> tuple[Ask, list[Observers]]:
    """An asker and a replica; returns how to ask, and who observes the two."""
    places = []
    for name in ("asker", "replica"):
        place = await Wiring.open(settings, AgentIdentity(id=name, type=name), create=True)
        stack.push_async_callback(place.aclose)
        places.append(place)
    asker, replica = places
    spec = AgentSpec.of(Echo)
    host = Host(replica, Echo(), spec, slots=AT_ONCE)
    await replica.registry.advertise(spec.card())
    await replica.ports.queue.declare(host.mailbox)
    await host.start()
    stack.push_async_callback(host.stop, 0.0)

    async def ask() -> object:
        return (await asker.caller.ask("bench.echo", {"text": "x" * 100})).unwrap()

    await ask()
    return ask, [place.ports.observers for place in places]


async def _cpu_us(ask: Ask, count: int) -> float:
    """CPU of one ask, in microseconds, with many under way."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await ask()

    gc.collect()
    before = time.process_time()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return (time.process_time() - before) / count * 1e6


@contextmanager
def _environ(address: str, sampled: str | None) -> Iterator[None]:
    """The variables of one way, while its processes start."""
    if sampled is None:
        yield
        return
    said = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": sampled,
    }
    os.environ.update(said)
    try:
        yield
    finally:
        for name in said:
            del os.environ[name]


@dataclass
class Figures:
    """CPU of an ask in µs, by way and round; how often it looks for observers, and what a look costs."""

    cpu_us: dict[str, list[float]]
    looks: float
    look_us: float

    def more(self, way: str) -> float:
        """How much more a way costs than being off, by the least of each: others on the machine only add."""
        return min(self.cpu_us[way]) / min(self.cpu_us[OFF]) - 1

    @property
    def off(self) -> float:
        """The share of an ask that goes into looking for observers where there are none."""
        return self.looks * self.look_us / min(self.cpu_us[OFF])


async def measure(settings: Settings, address: str, rounds: int, count: int) -> Figures:
    """Open all ways, and let them take turns."""
    figures = Figures({way: [] for way in SAMPLED}, 0.0, 0.0)
    async with AsyncExitStack() as stack:
        asks = {}
        for number, (way, sampled) in enumerate(SAMPLED.items()):
            with _environ(address, sampled):
                asks[way], observers = await _open(stack, replace(settings, env=f"bench{number}"))
            if way == IDLE:
                for each in observers:
                    each.add(Idle())
            await _cpu_us(asks[way], count)
        for _ in range(rounds):
            for way in random.sample(list(asks), len(asks)):
                figures.cpu_us[way].append(await _cpu_us(asks[way], count))
        counted, observers = await _open(stack, replace(settings, env="looks"))
        for each in observers:
            each.__class__ = Counting
        await _cpu_us(counted, count)
        for each in observers:
            each.__class__ = Observers
        figures.looks = Counting.looks / count
    tries = 1_000_000
    figures.look_us = timeit.timeit("if it.on: pass", globals={"it": Observers()}, number=tries) / tries * 1e6
    return figures


def report(figures: Figures) -> None:
    """Print the figures."""
    print(f"{'an ask, asker and replica':30}{'CPU, µs: least':>15}{'median':>8}{'more than off':>15}")
    for way, found in figures.cpu_us.items():
        print(f"{way:30}{min(found):15.0f}{statistics.median(found):8.0f}{figures.more(way):15.0%}")
    share = f"{figures.off:.2%} of an ask (at most {MOST_OFF:.0%})"
    print(f"off: {figures.looks:.0f} looks of {figures.look_us:.3f} µs, {share}")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--asks", type=int, default=2000, help="of each way in a round")
    arguments = parser.parse_args()
    configure_logs("WARNING")
    receiver = subprocess.Popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    address = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING")
        try:
            figures = asyncio.run(measure(settings, address, arguments.rounds, arguments.asks))
        finally:
            embedded.stop(settings.home)
            receiver.kill()
    report(figures)
    results = {"machine": machine.facts(), "arguments": vars(arguments), "figures": asdict(figures)}
    more = {way: figures.more(way) for way in figures.cpu_us}
    results |= {"more_than_off": more, "share_of_looks": figures.off}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "telemetry.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0 if figures.off <= MOST_OFF else 1


if __name__ == "__main__":
    sys.exit(main())
