"""What it costs to be watched, in CPU of an ask.

Alone: `python -m benchmarks.telemetry`; else a part of `make bench`.

Asker and replica are in one process over a real nats-server, so that its CPU time is all that an ask costs in
Python. Each way has an environment of its own. They are measured in turn, and the least of all rounds
counts. Spans go over OTLP to a receiver in another process.
"""

from __future__ import annotations

import asyncio
import gc
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
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.targets import Target, verdict
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.logs import configure_logs
from squadron.runtime.telemetry.happenings import Happening
from squadron.runtime.telemetry.observer import Observers
from squadron.runtime.wire.envelope import AgentIdentity

#: Rounds, asks of each way in a round and how many are under way at once.
ROUNDS, ASKS, AT_ONCE = 7, 1000, 64
#: Share of an ask's CPU that being watched by nobody may cost: what everything that is always on may.
LIMIT_PERCENT = 3
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
class TelemetryFigures:
    """CPU of an ask in µs, by way and round; how often it looks for observers, and what a look costs."""

    cpu_us: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in SAMPLED})
    looks: float = 0.0
    look_us: float = 0.0

    def targets(self) -> list[Target]:
        """What is promised of them."""
        # Of what is on the price is told, too, but no promise: it is that of OpenTelemetry's SDK above all.
        shares = [100 * self.looks * self.look_us / ask_us for ask_us in self.cpu_us[OFF]]
        return [Target("traces that are off, % of the CPU of an ask", shares, LIMIT_PERCENT, at_most=True)]

    def __str__(self) -> str:
        off = min(self.cpu_us[OFF])
        lines = [f"{'CPU of an ask, caller and replica':36}{'least, µs':>10}{'median':>8}{'over off':>10}"]
        for way, found in self.cpu_us.items():
            # Others on the machine only add.
            lines.append(f"{way:36}{min(found):10.0f}{statistics.median(found):8.0f}{min(found) / off - 1:10.0%}")
        return "\n".join([*lines, f"off: {self.looks:.0f} looks of {self.look_us:.3f} µs"])


def measure() -> TelemetryFigures:
    """Measure it, in some 20 seconds."""
    configure_logs("WARNING")
    receiver = subprocess.Popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    address = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING")
        try:
            return asyncio.run(_measure(settings, address))
        finally:
            embedded.stop(settings.home)
            receiver.kill()


async def _measure(settings: Settings, address: str) -> TelemetryFigures:
    """Open all ways, and let them take turns."""
    figures = TelemetryFigures()
    async with AsyncExitStack() as stack:
        asks = {}
        for number, (way, sampled) in enumerate(SAMPLED.items()):
            with _environ(address, sampled):
                asks[way], observers = await _open(stack, replace(settings, env=f"bench{number}"))
            if way == IDLE:
                for each in observers:
                    each.add(Idle())
            await _cpu_us(asks[way], ASKS)
        for _ in range(ROUNDS):
            for way in random.sample(list(asks), len(asks)):
                figures.cpu_us[way].append(await _cpu_us(asks[way], ASKS))
        counted, observers = await _open(stack, replace(settings, env="looks"))
        for each in observers:
            each.__class__ = Counting
        await _cpu_us(counted, ASKS)
        for each in observers:
            each.__class__ = Observers
        figures.looks = Counting.looks / ASKS
    tries = 1_000_000
    figures.look_us = timeit.timeit("if it.on: pass", globals={"it": Observers()}, number=tries) / tries * 1e6
    return figures


def main() -> int:
    """Run this benchmark alone."""
    figures = measure()
    print(figures, *figures.targets(), sep="\n")
    return verdict(figures.targets())


if __name__ == "__main__":
    sys.exit(main())
