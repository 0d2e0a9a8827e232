"""What seals cost: CPU of an ask without and with them, in turn, and how fast a large payload is sealed.

Caller and replica are one process, on a real nats-server: `make bench-trust`, in a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.targets import Target, ratios
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory.vault import MemoryVault
from squadron.bridge.seal_rings import AgentRings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.logs import configure_logs
from squadron.runtime.store.claims import Claims
from squadron.runtime.trust.sealing import KeyRing
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, lay_out

#: Rounds, asks of each, and how many are under way at once.
ROUNDS, ASKS, AT_ONCE = 16, 500, 32
#: An input of 1 KB, and a large one.
TEXT, LARGE = "x" * 1000, "x" * 10_000_000
#: How often the large one is sealed and opened.
LARGE_ROUNDS = 8
#: What is promised: issue "Trust".
CPU_RATIO, MB_PER_S = 1.30, 300.0

WAYS = ("readable", "sealed")


class Keeper(Agent):
    """Says it again."""

    name = "keeper"
    slots = AT_ONCE

    @topic("bench.keep")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


@dataclass
class SealingFigures:
    """CPU in µs of one ask, caller and replica together, by way; and MB/s of a large payload; of each round."""

    cpu_us: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    seal_mb_s: list[float] = field(default_factory=list)
    open_mb_s: list[float] = field(default_factory=list)

    def targets(self) -> list[Target]:
        """What is promised of them."""
        cpu = ratios(self.cpu_us["sealed"], self.cpu_us["readable"])
        return [
            Target("CPU of an ask of 1 KB, sealed / readable", cpu, CPU_RATIO, at_most=True),
            Target("MB/s of 10 MB that are sealed", self.seal_mb_s, MB_PER_S, at_most=False),
        ]

    def __str__(self) -> str:
        ratio = statistics.median(ratios(self.cpu_us["sealed"], self.cpu_us["readable"]))
        cpu = ", ".join(f"{way} {min(took):.0f} µs" for way, took in self.cpu_us.items())
        return (
            f"CPU of an ask of 1 KB: {cpu} (least of rounds); ratio {ratio:.2f} (median)\n"
            f"10 MB: sealed at {statistics.median(self.seal_mb_s):.0f} MB/s, opened at "
            f"{statistics.median(self.open_mb_s):.0f} MB/s"
        )


@contextlib.asynccontextmanager
async def _squad(settings: Settings) -> AsyncIterator[Wiring]:
    """A replica of the agent, and who asks it."""
    rings = AgentRings(settings)

    async def ring() -> KeyRing:
        return rings.ring("keeper")

    async with contextlib.AsyncExitStack() as stack:
        caller = await Wiring.open(settings, AgentIdentity(id="caller", type="bench"), create=True)
        stack.push_async_callback(caller.aclose)
        place = await Wiring.open(settings, AgentIdentity(id="keeper-1", type="keeper"), ring=ring)
        stack.push_async_callback(place.aclose)
        host = Host(place, Keeper(), AgentSpec.of(Keeper), slots=AT_ONCE)
        await caller.ports.queue.declare(host.mailbox)
        await caller.registry.advertise(host.spec.card().with_key(rings.seal_key("keeper")))
        await host.start()
        stack.push_async_callback(host.stop, 5)
        yield caller


async def _cpu_us(caller: Wiring, *, sealed: bool) -> float:
    slots, options = asyncio.Semaphore(AT_ONCE), AskOptions(sealed=sealed)

    async def ask() -> None:
        async with slots:
            (await caller.caller.ask("bench.keep", {"text": TEXT}, options)).unwrap()

    gc.collect()
    began = time.process_time()
    await asyncio.gather(*(ask() for _ in range(ASKS)))
    return (time.process_time() - began) / ASKS * 1e6


async def _large(figures: SealingFigures) -> None:
    """From data to what is stored, and back, JSON included; in time of the processor, which others use as well."""
    ring = KeyRing.create()
    claims = Claims(MemoryVault())
    claims.seals.known = ring
    for number in range(LARGE_ROUNDS + 1):
        wire = lay_out("task", AgentIdentity(id="bench"), {"content": {"text": LARGE}})
        began = time.process_time()
        data = await claims.seal_for((ring.public,), wire, "bench", keep_s=60)
        between = time.process_time()
        whole = await claims.resolve(AgentMessage.decode(data), "bench")
        ended = time.process_time()
        assert whole.payload.content["text"] == LARGE
        # The first round warms up.
        if number:
            figures.seal_mb_s.append(len(LARGE) / 1e6 / (between - began))
            figures.open_mb_s.append(len(LARGE) / 1e6 / (ended - between))


def measure() -> SealingFigures:
    """Measure it, in some 20 seconds."""
    return asyncio.run(_measure())


async def _measure() -> SealingFigures:
    figures = SealingFigures()
    configure_logs("WARNING")
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING", heartbeat_s=600)
        try:
            async with _squad(settings) as caller:
                for number in range(ROUNDS + 1):
                    for way in WAYS if number % 2 else reversed(WAYS):
                        cpu_us = await _cpu_us(caller, sealed=way == "sealed")
                        # The first round warms everything up.
                        if number:
                            figures.cpu_us[way].append(cpu_us)
            await _large(figures)
        finally:
            embedded.stop(settings.home)
    return figures


if __name__ == "__main__":
    measured = measure()
    sys.stdout.write(f"{measured}\n" + "".join(f"{target}\n" for target in measured.targets()))
    (Path(__file__).parent / "results" / "sealing.json").write_text(json.dumps(asdict(measured), indent=1) + "\n")
