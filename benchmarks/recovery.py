"""How long it takes until all is done when a replica is killed, by default: on Ray, which starts another.

Two replicas with four slots each have 200 tasks of 0.1 s at once. One of them is killed by SIGKILL some time after
the first was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.targets import Target, verdict
from squadron import Agent, Settings, Squad, topic

RESULTS = Path(__file__).parent / "results"
TASKS, WORK_S = 200, 0.1
#: When one is killed, in seconds after the first task was sent; 2.5 s after it all would be done.
KILLED_AT_S = (0.3, 0.6, 1.0, 1.3, 1.6, 2.0)
#: Until the last answer, in seconds.
DONE_WITHIN_S = 4.0


class Mortal(Agent):
    """Works for a while, and tells which process did."""

    name = "bench-mortal"
    slots = 4
    min_replicas = max_replicas = 2

    @topic("bench.mortal")
    async def work(self, for_s: float) -> int:
        """Work for so many seconds."""
        await asyncio.sleep(for_s)
        return os.getpid()


async def burst(squad: Squad, kill_at_s: float = 0.0) -> float:
    """Seconds until the last answer; kills who gave the last one so many seconds after the first was sent."""
    told: list[int] = []

    async def ask() -> None:
        told.append((await squad.ask("bench.mortal", {"for_s": WORK_S})).unwrap())

    began = time.monotonic()
    asks = [asyncio.create_task(ask()) for _ in range(TASKS)]
    if kill_at_s:
        await asyncio.sleep(kill_at_s)
        os.kill(told[-1], signal.SIGKILL)
    await asyncio.gather(*asks)
    return time.monotonic() - began


async def two_work(squad: Squad) -> None:
    """Wait until both replicas take tasks."""
    while len(squad._wiring.registry.replicas(Mortal.name)) != 2:  # noqa: ASYNC110  # nobody announces it
        await asyncio.sleep(0.2)


async def measure(settings: Settings, rounds: int) -> dict[float, list[float]]:
    """By the time of the kill (0 for none), seconds until the last answer, round by round."""
    found: dict[float, list[float]] = {at_s: [] for at_s in (0.0, *KILLED_AT_S)}
    async with Squad.connect(settings) as squad:
        await burst(squad)
        for _ in range(rounds):
            for at_s, taken in found.items():
                await two_work(squad)
                taken.append(await burst(squad, at_s))
    return found


def main() -> int:
    """Run this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments, before = parser.parse_args(), machine.busy_percent()
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING")
        with Squad.up(settings) as squad:
            squad.deploy(Mortal)
            found = asyncio.run(measure(settings, arguments.rounds))
    for at_s, taken in found.items():
        low, high = min(taken), max(taken)
        when = f"one killed after {at_s:g} s" if at_s else "none killed"
        print(f"{when}: the last answer after {statistics.median(taken):.2f} s ({low:.2f} to {high:.2f})")
    killed = [each for at_s, taken in found.items() if at_s for each in taken]
    targets = [
        Target("one of two replicas is killed: until the last answer, s", killed, DONE_WITHIN_S, at_most=True)
    ]
    print(*targets, machine.business(before), sep="\n")
    made = {"machine": machine.facts(), "busy_before": before, "figures": found}
    (RESULTS / "recovery.json").write_text(json.dumps(made, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main())
