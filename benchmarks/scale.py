"""Scaling: how long agents take to wake and to grow, what is lost when they go, and what each of them costs.

One local cluster. An agent's tasks sleep, so that its own work takes no CPU: measured is what we make of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.targets import Target, verdict
from squadron import Agent, Settings, Squad, topic
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.serve import local
from squadron.runtime.logs import configure_logs

RESULTS = Path(__file__).parent / "results"
#: What is promised: seconds, changes of the number of replicas, and shares.
MOST_WAKE_S, MOST_GROW_S, MOST_CHANGES, LEAST_LINEAR = 4.0, 8.0, 2, 0.95
MOST_ASLEEP_MB, MOST_CONTROL_CPU = 1000.0, 0.10
#: So many agents share a process; in 24 GiB there is to be room beside them.
SHARING, MOST_SEAT_MB = 100, 50.0
#: A task of the throughput table, in seconds, and how many of them one replica has at once.
TASK_S, SLOTS = 0.1, 8
#: How long the throughput is measured, and the control plane looked at, in seconds.
FLOW_S, LOOK_S = 5.0, 20.0
#: Whatever takes longer than this, in seconds, is a fault.
WITHIN_S = 180.0
#: How many agents are said to be asleep at most; how many are really declared is an argument.
ASLEEP = 200


class Sleeper(Agent):
    """Sleeps as long as it is told."""

    name = "sleeper"
    slots = SLOTS
    min_replicas, max_replicas = 0, 8

    @topic("bench.sleep")
    async def sleep(self, seconds: float) -> int:
        """Sleep, and tell in which process."""
        await asyncio.sleep(seconds)
        return os.getpid()


def _asleep(number: int) -> type[Agent]:
    class Dormant(Agent):
        """Is never asked."""

        min_replicas, max_replicas = 0, 1

        @topic(f"dormant{number}.say")
        async def say(self, text: str) -> str:
            """Say it again."""
            return text

    Dormant.__name__ = Dormant.__qualname__ = f"Dormant{number}"
    Dormant.name = f"dormant-{number}"
    return Dormant


@dataclass
class Figures:
    """What was measured."""

    wake_s: list[float] = field(default_factory=list)
    grow_s: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    per_s: dict[int, float] = field(default_factory=dict)
    replica_mb: dict[str, float] = field(default_factory=dict)
    #: By whether they share a group: what agents take that are declared and asleep.
    asleep_mb: dict[str, float] = field(default_factory=dict)
    control_cpu: dict[str, float] = field(default_factory=dict)
    #: Of one that waits for tasks in a process that it shares with many: memory, and cores.
    seat_mb: float = 0.0
    seat_cpu: float = 0.0


class Bench:
    """The measures, one after the other, on one squad."""

    def __init__(self, squad: Squad, figures: Figures) -> None:
        self._squad, self._figures = squad, figures

    async def _row(self) -> tuple[int, int]:
        """How many replicas of the sleeper run, and how many there are to be."""
        for each in (await self._squad.status())["agents"]:
            if each["agent"] == "sleeper":
                return each["running"], each["target"]
        return 0, 0

    async def _until(self, replicas: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while await self._row() != (replicas, replicas):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)

    async def _at(self, replicas: int) -> None:
        await self._squad.scale("sleeper", replicas)
        await self._until(replicas)

    async def _gone(self) -> None:
        """Until no replica tells of itself: one that is stopping may still take a task."""
        async with asyncio.timeout(WITHIN_S):
            while any(  # noqa: ASYNC110 - nobody tells
                each["replicas"] for each in (await self._squad.status())["agents"] if each["agent"] == "sleeper"
            ):
                await asyncio.sleep(0.05)

    async def wake(self) -> None:
        """From none to one: from the publishing of a task to its answer."""
        await self._at(0)
        await self._gone()
        await self._squad.scale("sleeper", "0..8")
        began = time.monotonic()
        (await self._squad.ask("bench.sleep", {"seconds": 0}, within_s=WITHIN_S)).unwrap()
        self._figures.wake_s.append(time.monotonic() - began)

    async def grow(self) -> None:
        """From one to four, under a backlog."""
        await self._at(1)
        await self._squad.scale("sleeper", "1..4")
        began = time.monotonic()
        handles = [
            await self._squad.submit("bench.sleep", {"seconds": 1.0}, within_s=WITHIN_S) for _ in range(400)
        ]
        while (await self._row())[0] < 4:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)
        self._figures.grow_s.append(time.monotonic() - began)
        for handle in handles:
            (await handle.outcome()).unwrap()

    async def go(self) -> None:
        """From four to none with work under way, and back: each task has its result, and ran once."""
        await self._at(4)
        handles = [
            await self._squad.submit("bench.sleep", {"seconds": 0.5}, within_s=WITHIN_S) for _ in range(300)
        ]
        await self._at(0)
        await self._squad.scale("sleeper", "0..8")
        outcomes = [await handle.outcome() for handle in handles]
        self._figures.lost.append(sum(not (each.ok and each.attempt == 1) for each in outcomes))

    async def border(self, seconds: float) -> None:
        """A load that one replica can just not carry, coming at random: how often the number changes.

        Once from one to two is right; what comes after that is flapping.
        """
        await self._at(1)
        await self._squad.scale("sleeper", "1..4")
        ends_at, chance = time.monotonic() + seconds, random.Random(1)
        changes, last = 0, (await self._row())[1]
        async with asyncio.TaskGroup() as asking:
            while time.monotonic() < ends_at:
                asking.create_task(self._squad.ask("bench.sleep", {"seconds": TASK_S}, within_s=WITHIN_S))
                # As many as its slots are full with, in the mean.
                await asyncio.sleep(chance.expovariate(SLOTS / TASK_S))
                if time.monotonic() % 1.0 < TASK_S:
                    wanted = (await self._row())[1]
                    changes, last = changes + (wanted != last), wanted
        self._figures.changes.append(changes)

    async def flow(self, replicas: int) -> None:
        """Tasks a second, with as many under way as all slots hold, and as many again."""
        await self._at(replicas)
        done, under_way = 0, 2 * replicas * SLOTS
        began = time.monotonic() + 1.0
        ends_at = began + FLOW_S

        async def keep_asking() -> None:
            nonlocal done
            while time.monotonic() < ends_at:
                (await self._squad.ask("bench.sleep", {"seconds": TASK_S}, within_s=WITHIN_S)).unwrap()
                done += began <= time.monotonic() < ends_at

        async with asyncio.TaskGroup() as asking:
            for _ in range(under_way):
                asking.create_task(keep_asking())
        self._figures.per_s[replicas] = done / FLOW_S
        if replicas == 8:
            application = f"{self._squad.settings.env}.sleeper"
            self._figures.replica_mb = machine.replica_mb(self._squad.settings, application)

    async def sleep(self, agents: int, group: str) -> None:
        """What agents that are declared and asleep cost: memory of the control plane, and its CPU."""
        await self._at(0)
        settings, how = self._squad.settings, "in one group" if group else "each alone"
        before = _memory_mb(settings)
        dormant = [_asleep(number) for number in range(agents)]
        await self._squad.deploy(*dormant, group=group, within_s=WITHIN_S * 4)
        await asyncio.sleep(5.0)
        self._figures.asleep_mb[how] = (_memory_mb(settings) - before) * ASLEEP / agents
        seconds = _cpu_s(settings)
        await asyncio.sleep(LOOK_S)
        self._figures.control_cpu[how] = (_cpu_s(settings) - seconds) / LOOK_S
        for each in dormant:
            await self._squad.undeploy(each.name)

    async def share(self, agents: int) -> None:
        """What an agent costs that waits for tasks in a process which so many share."""
        settings, application = self._squad.settings, f"{self._squad.settings.env}.group.shared"
        took: list[float] = []
        for count in (1, agents):
            awake = [_asleep(number) for number in range(count)]
            for each in awake:
                each.min_replicas = 1
            await self._squad.deploy(*awake, group="shared", within_s=WITHIN_S * 4)
            took.append(machine.replica_mb(settings, application)["own"])
        bare, full = took
        self._figures.seat_mb = (full - bare) / (agents - 1)
        seconds = machine.replica_cpu_s(settings, application)
        await asyncio.sleep(LOOK_S)
        self._figures.seat_cpu = (machine.replica_cpu_s(settings, application) - seconds) / LOOK_S / agents


def _control_plane(settings: Settings) -> list[psutil.Process]:
    """All that runs while no agent does: Ray, Serve, the bridge and NATS. Not what Ray started ahead."""
    cluster, server = local.find(settings.home), embedded.find(settings.home)
    assert cluster is not None
    assert server is not None
    found = [psutil.Process(server.pid)]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == cluster.session_id and not words[0].startswith(
                ("ray::ServeReplica", "ray::IDLE")
            ):
                found.append(process)
    return found


def _memory_mb(settings: Settings) -> float:
    total = 0
    for process in _control_plane(settings):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total / 1e6


def _cpu_s(settings: Settings) -> float:
    total = 0.0
    for process in _control_plane(settings):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@contextlib.asynccontextmanager
async def _bench(figures: Figures) -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="sq-scale-") as home:
        async with Squad.up(Settings.load({}, home=Path(home))) as squad:
            await squad.deploy(Sleeper)
            yield Bench(squad, figures)


async def _measure(rounds: int, steady_s: float, asleep: int) -> Figures:
    figures = Figures()
    async with _bench(figures) as bench:
        await bench.wake()
        # The first only warms up.
        figures.wake_s.clear()
        for _ in range(rounds):
            await bench.wake()
            await bench.grow()
            await bench.go()
        for replicas in (1, 2, 4, 8):
            await bench.flow(replicas)
        await bench.border(steady_s)
        await bench.sleep(asleep, "dormant")
        await bench.sleep(asleep, "")
        await bench.share(SHARING)
    return figures


def _targets(figures: Figures) -> list[Target]:
    linear = [rate / (count * figures.per_s[1]) for count, rate in figures.per_s.items() if count > 1]
    return [
        Target("0 -> 1, from publish to answer, s", figures.wake_s, MOST_WAKE_S, at_most=True),
        Target("1 -> 4 under a backlog, s", figures.grow_s, MOST_GROW_S, at_most=True),
        Target("4 -> 0, tasks lost or run twice", figures.lost, 0, at_most=True),
        Target("changes under a steady load at the border", figures.changes, MOST_CHANGES, at_most=True),
        Target("tasks/s at 2, 4, 8 replicas, over linear", linear, LEAST_LINEAR, at_most=False),
        *(
            Target(f"MB of {ASLEEP} agents asleep, {how}", [value], MOST_ASLEEP_MB, at_most=True)
            for how, value in figures.asleep_mb.items()
        ),
        *(
            Target(f"cores that the control plane takes, {how}", [value], MOST_CONTROL_CPU, at_most=True)
            for how, value in figures.control_cpu.items()
        ),
        Target(f"MB of one of {SHARING} that share a process", [figures.seat_mb], MOST_SEAT_MB, at_most=True),
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steady", type=float, default=600.0, help="seconds of the steady load")
    parser.add_argument("--asleep", type=int, default=ASLEEP, help="agents to declare and leave asleep")
    given = parser.parse_args(arguments)
    configure_logs("WARNING")
    busy = machine.busy_percent()
    figures = asyncio.run(_measure(given.rounds, given.steady, given.asleep))
    print(f"the machine was {busy:.0f} % busy before\n\nreplicas  tasks/s  of linear")
    for count, rate in figures.per_s.items():
        print(f"{count:8} {rate:8.0f} {rate / (count * figures.per_s[1]):10.2f}")
    memory = ", ".join(f"{value:.0f} MB {name}" for name, value in figures.replica_mb.items())
    print(
        f"\na replica: {memory}; a seat in a group: {figures.seat_mb:.1f} MB, {figures.seat_cpu:.2%} of a core\n"
    )
    targets = _targets(figures)
    for target in targets:
        print(target)
    result = {
        "machine": machine.facts() | {"busy_percent": busy},
        "steady_s": given.steady,
        "tasks_per_s": figures.per_s,
        "replica_mb": figures.replica_mb,
        "seat_cpu": figures.seat_cpu,
        "median_wake_s": statistics.median(figures.wake_s),
        "targets": [each.as_json() for each in targets],
    }
    (RESULTS / "scale.json").write_text(json.dumps(result, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
