"""Speed and memory, as ratios to what they stand on: `make bench`.

Each way to call an echo has a client process of its own, and two workers, actors or replicas; all use the same
NATS server and the same Ray. They are measured in turn, and a ratio is taken within its round, so that a
machine that gets slower meanwhile does not bend it. Figures are medians over the rounds.

Prints a table and the targets, and writes them into `docs/architecture.md`; all is in
`benchmarks/results/delivery.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import counting, floors, machine, ours, peers, per_ask, speed_table, telemetry
from benchmarks.processes import Way, client
from benchmarks.targets import Target, ratios, verdict
from squadron import Settings, Squad

#: Calls under way at once for throughput; the second is ours only.
AT_ONCE, MANY_AT_ONCE = 64, 512

ASK, NATS, JETSTREAM = "Squadron ask (durable)", "bare NATS request", "bare JetStream task"
TWICE = "bare task and outcome, JetStream"
RAY, SERVE, OPTIMISED = "bare Ray actor", "Serve handle", "Serve handle, optimised"
FASTSTREAM, TASKIQ, SYNADIA = "FastStream, JetStream", "taskiq, JetStream", "Synadia agent"

WAYS: Mapping[str, Way] = {
    NATS: floors.nats_request,
    JETSTREAM: floors.jetstream,
    TWICE: floors.jetstream_twice,
    ASK: ours.ask,
    FASTSTREAM: peers.faststream,
    TASKIQ: peers.taskiq,
    SYNADIA: peers.synadia,
    RAY: floors.ray_actor,
    OPTIMISED: floors.serve_optimised,
    SERVE: floors.serve_handle,
}


@dataclass
class Found:
    """What one way did in each round."""

    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)

    def add_latencies(self, taken_ms: list[float]) -> None:
        """The latencies of one round."""
        self.p50_ms.append(statistics.median(taken_ms))
        self.p99_ms.append(statistics.quantiles(taken_ms, n=100)[98])


@dataclass
class Figures:
    """Everything that was measured."""

    ways: dict[str, Found]
    many_per_second: list[float]
    sleepers_ms: list[float]
    #: Per replica, in MB: bare Serve's and ours, before the first call and after the last one.
    memory_mb: dict[str, dict[str, float]]
    #: Of all cores, each time while nothing was measured: what else went on.
    busy_percent: list[float]


def measure(rounds: int, calls: int, for_s: float) -> Figures:
    """Bring everything up, and let the ways take turns."""
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home, ExitStack() as stack:
        settings = Settings.load({}, home=Path(home), log_level="WARNING")
        squad = stack.enter_context(Squad.up(settings))
        squad.deploy(ours.Echo, ours.Sleeper)
        clients = {name: stack.enter_context(client(way, settings)) for name, way in WAYS.items()}
        sleepers = stack.enter_context(client(ours.ask_sleeper, settings))
        figures = Figures({name: Found() for name in WAYS}, [], [], _memory(settings, "at rest"), [])
        for each in clients.values():
            each.latencies_ms(calls)
            each.per_second(AT_ONCE, for_s)
        sleepers.burst_ms(ours.SLEEPERS)
        # Each time in another order, the same in every run: the one before leaves its traces on the machine.
        order = random.Random(0)
        for number in range(rounds):
            figures.busy_percent.append(machine.busy_percent())
            names = order.sample([*clients], len(clients))
            for name in names:
                figures.ways[name].add_latencies(clients[name].latencies_ms(calls))
            for name in names:
                figures.ways[name].per_second.append(clients[name].per_second(AT_ONCE, for_s))
            figures.many_per_second.append(clients[ASK].per_second(MANY_AT_ONCE, for_s))
            figures.sleepers_ms.append(sleepers.burst_ms(ours.SLEEPERS))
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        figures.memory_mb |= _memory(settings, "after load")
        return figures


def _memory(settings: Settings, when: str) -> dict[str, dict[str, float]]:
    names = {"Serve": floors.SERVE_APPLICATION, "Squadron": f"{settings.env}.{ours.Echo.name}"}
    return {f"{who}, {when}": machine.replica_mb(settings, name) for who, name in names.items()}


def judge(figures: Figures) -> list[Target]:
    """The targets that this benchmark is there to hold."""
    ways, memory = figures.ways, figures.memory_mb

    def times_as_many(floor: str, limit: float) -> Target:
        rounds = ratios(ways[ASK].per_second, ways[floor].per_second)
        return Target(f"asks per s / {floor}", rounds, limit, at_most=False)

    slower = ratios(ways[ASK].p50_ms, ways[NATS].p50_ms)
    extra_mb = memory["Squadron, at rest"]["own"] - memory["Serve, at rest"]["own"]
    sleepers = f"{ours.SLEEPERS} tasks of {ours.SLEEP_S * 1000:g} ms on one replica, ms"
    return [
        Target(f"ask p50 / {NATS}", slower, 2.0, at_most=True),
        times_as_many(SERVE, 15),
        times_as_many(RAY, 5),
        times_as_many(FASTSTREAM, 4),
        times_as_many(JETSTREAM, 0.9),
        Target(sleepers, figures.sleepers_ms, 90, at_most=True),
        Target("a replica over a bare Serve replica, MB", [extra_mb], 15, at_most=True),
    ]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=150, help="single calls per round and way")
    parser.add_argument("--for-s", type=float, default=0.8, help="seconds of throughput per round and way")
    arguments = parser.parse_args()
    before = machine.busy_percent()
    figures = measure(arguments.rounds, arguments.calls, arguments.for_s)
    counted = counting.measure()
    watched = telemetry.measure()
    slots = per_ask.measure(rounds=3)
    targets = [*judge(figures), *slots.targets(), *counted.targets(), *watched.targets()]
    more = {"counting": asdict(counted), "telemetry": asdict(watched), "slots": asdict(slots)}
    results: dict[str, Any] = {
        "machine": machine.facts(),
        "arguments": vars(arguments),
        "busy_before": before,
        "first": ASK,
        "at_once": AT_ONCE,
        "targets": [each.as_json() for each in targets],
        "figures": asdict(figures) | more,
    }
    shown = speed_table.table(results)
    many = statistics.median(figures.many_per_second)
    print(shown, f"{MANY_AT_ONCE} asks at once: {many:,.0f} a second", slots, counted, watched, sep="\n")
    for name, memory in figures.memory_mb.items():
        print(f"replica of {name}:", ", ".join(f"{kind} {mb:.0f} MB" for kind, mb in memory.items()))
    print(f"all cores, while nothing was measured: {statistics.median(figures.busy_percent):.0f} % busy")
    print(machine.business(before))
    speed_table.FIGURES.write_text(json.dumps(results, indent=1) + "\n")
    speed_table.PAGE.write_text(speed_table.put_into(speed_table.PAGE.read_text(), shown))
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main())
