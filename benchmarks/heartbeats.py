"""What heartbeats cost: `python -m benchmarks.heartbeats`, the last part of `make bench-discovery`.

Thirty thousand replicas show signs of life over a real nats-server, as often as the registry has them do. Measured
is the CPU of a process that follows the registry, and of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import REPLICAS as PROCESSES
from benchmarks.processes import workers
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.registry.presence import beat_s
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.topics import AgentCard

AGENTS, REPLICAS = 10_000, 3
#: As a replica tells them.
FACTS: dict[str, Any] = {"version": "abcdef123456", "release": "1.0.0", "pid": 12345, "node": "node-1"}
#: How many are stored at once, and for how long is measured, in seconds.
AT_ONCE, FOR_S = 20, 20.0


@contextlib.asynccontextmanager
async def hearts(settings: Settings) -> AsyncIterator[None]:
    """The replicas of one process: first each once, and then each in its turn."""
    wiring = await Wiring.open(settings, AgentIdentity(id="hearts"))
    registry, own = wiring.registry, AGENTS // PROCESSES
    names = [(f"agent{os.getpid()}x{at % own}", at // own) for at in range(own * REPLICAS)]

    async def beat(agent: str, replica: int) -> None:
        await registry.renew(agent, f"{agent}-{replica}", **FACTS)

    for some in _batches(names, 500):
        await asyncio.gather(*(beat(*name) for name in some))

    async def go_on() -> None:
        due, turns = time.monotonic(), itertools.cycle(_batches(names, AT_ONCE))
        for some in turns:
            due += AT_ONCE * registry.beat_s / len(names)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*(beat(*name) for name in some))

    beating = asyncio.create_task(go_on())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await wiring.aclose()


def _batches(names: list[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    return [names[first : first + size] for first in range(0, len(names), size)]


async def measure(cards: Sequence[AgentCard] = ()) -> None:
    """Print it, and how long it takes to join them where there are these cards, too."""
    with tempfile.TemporaryDirectory(prefix="squadron-bench-") as home:
        settings = Settings(home=Path(home), env="bench", log_level="WARNING")
        try:
            bridge = await Wiring.open(settings, AgentIdentity(id="bridge"), create=True)
            for at in range(0, len(cards), 200):
                await asyncio.gather(*(bridge.registry.advertise(card) for card in cards[at : at + 200]))
            await bridge.aclose()
            async with workers(hearts, settings):
                began_s = time.perf_counter()
                follower = await Wiring.open(settings, AgentIdentity(id="follower"))
                joined_s = time.perf_counter() - began_s
                server = psutil.Process(embedded.find(settings.home).pid)  # type: ignore[union-attr]
                began, served, began_at = time.process_time(), _cpu_s(server), time.perf_counter()
                await asyncio.sleep(FOR_S)
                took_s = time.perf_counter() - began_at
                own, its = (time.process_time() - began) / took_s, (_cpu_s(server) - served) / took_s
                count = len(follower.registry._present)
                await follower.aclose()
        finally:
            embedded.stop(settings.home)
    every_s = beat_s(settings.heartbeat_s, count)
    print(
        f"\nHeartbeats of {count:,} replicas, each one in {every_s:g} s, {count / every_s:,.0f} a second in all: "
        f"{own:.1%} of a core for a process that follows the registry, {its:.1%} for the server. To join them and "
        f"{len(cards):,} cards, over the server, took {joined_s:.2f} s."
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    asyncio.run(measure())
