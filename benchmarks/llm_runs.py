"""What the supervisor costs beside its model: `make bench-llm`.

One nats-server in its default configuration, as `squadron up` starts it; the supervisor, the agents that it asks
and the client have a connection each. The model is a function that takes no time. A figure is held against its
floor, measured in turn with it on the same connections. What a run costs is `benchmarks/llm_cost.py`.

Writes `benchmarks/results/llm-runs.json`; exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.llm_cost import CostFigures, measure_cost
from benchmarks.targets import Target, ratios, verdict
from squadron import Agent, Model, ModelRequest, ModelTurn, Settings, Squad, Supervisor, ToolCall, Usage, topic
from squadron.actors.agent import AgentSpec
from squadron.actors.runs.log import entries_of, read
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.logs import configure_logs
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.testing import FunctionModel

RESULTS = Path(__file__).parent / "results"
#: Calls of one round; agents that work at once, and how long each does, in seconds.
CALLS, SLEEPERS, SLEEP_S = 8, 10, 1.0
#: Lease of the mailboxes where a replica is killed, in seconds.
LEASE_S = 2.0

_SPAWN = multiprocessing.get_context("spawn")


class Echo(Agent):
    """Says it again, or waits."""

    name = "bench-echo"
    slots = 64

    @topic("bench.echo")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text

    @topic("bench.sleep")
    async def sleep(self, for_s: float) -> float:
        """Do nothing for a while."""
        await asyncio.sleep(for_s)
        return for_s


@dataclass
class Figures:
    """Everything that was measured, round by round."""

    asks_ms: list[float] = field(default_factory=list)
    round_ms: list[float] = field(default_factory=list)
    entries: list[float] = field(default_factory=list)
    messages: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    sequence_s: list[float] = field(default_factory=list)
    parallel_s: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    busy_percent: list[float] = field(default_factory=list)
    cost: CostFigures = field(default_factory=CostFigures)


def playing(rounds: Sequence[Sequence[tuple[str, dict[str, Any]]]]) -> FunctionModel:
    """A model that makes the calls of one round after the other, by the conversation alone."""

    def decide(request: ModelRequest) -> ModelTurn:
        done = sum(message.role == "assistant" for message in request.messages)
        usage = Usage(1000, 300)
        if done >= len(rounds):
            return ModelTurn(tool_calls=(ToolCall("end", "finish", {"answer": "done"}),), usage=usage)
        calls = (ToolCall(f"c{done}-{at}", name, given) for at, (name, given) in enumerate(rounds[done]))
        return ModelTurn("I go on.", tuple(calls), usage)

    return FunctionModel(decide)


class Place:
    """A server, a client, and agents with a connection each."""

    def __init__(self, settings: Settings, client: Wiring, stack: AsyncExitStack) -> None:
        self.settings, self.client, self._stack = settings, client, stack
        self.squad, self.supervisor = Squad(client, settings), Supervisor()

    @classmethod
    @asynccontextmanager
    async def open(cls, **how: Any) -> AsyncIterator[Place]:
        with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
            settings = Settings.load({}, home=Path(home), log_level="WARNING", **how)
            try:
                async with AsyncExitStack() as stack:
                    client = await Wiring.open(settings, AgentIdentity(id="client", type="bench"), create=True)
                    stack.push_async_callback(client.aclose)
                    yield cls(settings, client, stack)
            finally:
                await asyncio.to_thread(embedded.stop, settings.home)

    async def serve(self, agent: Agent) -> None:
        """Run an agent here."""
        host = await host_of(self.settings, agent, f"{type(agent).__name__.lower()}-1")
        self._stack.push_async_callback(host.place.aclose)
        self._stack.push_async_callback(host.stop, 1.0)
        await self.client.registry.refresh(60.0)

    async def pursue(self, model: Model, goal: str = "echo and sleep") -> float:
        """Seconds of one run."""
        self.supervisor.given_model = model
        started = time.perf_counter()
        asked = {"goal": goal, "max_rounds": 40}
        (await self.squad.ask("goal.pursue", asked, within_s=120)).unwrap()
        return time.perf_counter() - started

    async def log(self) -> list[tuple[int, Any]]:
        """The messages of the newest run's log: bytes, and the entries in each."""
        ports, runs = self.client.ports, dict[str, list[tuple[int, Any]]]()
        async for _, message in read(ports, ports.subjects.run()):
            size = len(message.encode())
            runs.setdefault(message.correlation_id or "", []).append((size, entries_of(message)))
        return list(runs.values())[-1]


async def host_of(settings: Settings, agent: Agent, name: str) -> Host:
    """One replica, on a connection of its own; it takes tasks when this returns."""
    spec = AgentSpec.of(type(agent))
    place = await Wiring.open(settings, AgentIdentity(id=name, type=spec.name), create=True)
    host = Host(place, agent, spec, slots=64)
    await place.ports.queue.declare(host.mailbox)
    await place.registry.advertise(spec.card())
    await host.start()
    return host


async def measure_rounds(place: Place, figures: Figures, rounds: int) -> None:
    """A round of eight calls, beside eight bare asks; what the log of it holds."""
    calls = [[("bench__echo", {"text": f"{number}-{at}"}) for at in range(CALLS)] for number in range(10)]
    for number in range(rounds + 1):
        asks = list[float]()
        for _ in range(20):
            started = time.perf_counter()
            await asyncio.gather(*(place.squad.ask("bench.echo", {"text": f"{at}"}) for at in range(CALLS)))
            asks.append((time.perf_counter() - started) * 1000)
        await place.pursue(playing(calls))
        log = await place.log()
        thoughts = [entry.at for _, entries in log for entry in entries if entry.kind == "thought"]
        if number:  # The first one warms up.
            spans = [(late - early) * 1000 for early, late in pairwise(thoughts)]
            figures.asks_ms.append(statistics.median(asks))
            figures.round_ms.append(statistics.median(spans))
            figures.messages.append(len(log) / len(calls))
            figures.entries.append(sum(len(entries) for _, entries in log) / len(calls))
            figures.bytes.append(sum(size for size, _ in log) / len(calls))


async def measure_sleepers(place: Place, figures: Figures, rounds: int) -> None:
    """Ten agents of a second each: all in one turn, and one in each."""
    sleep = ("bench__sleep", {"for_s": SLEEP_S})
    for _ in range(rounds):
        one_by_one = [[("bench__sleep", {"for_s": SLEEP_S + number / 1000})] for number in range(SLEEPERS)]
        figures.sequence_s.append(await place.pursue(playing(one_by_one)))
        figures.parallel_s.append(await place.pursue(playing([[sleep] * SLEEPERS])))


def serve_until_killed(settings: Settings, name: str) -> None:
    """A process with one supervisor, which asks for one long call and then for the end."""

    async def serve() -> None:
        supervisor = Supervisor()
        supervisor.given_model = playing([[("bench__sleep", {"for_s": 60.0})], [("bench__echo", {"text": "a"})]])
        await host_of(settings, supervisor, name)
        await asyncio.Event().wait()

    configure_logs("ERROR")
    asyncio.run(serve())


async def measure_resume(figures: Figures, rounds: int) -> None:
    """SIGKILL in the middle of a call, until another process writes on in the log, in seconds."""
    async with Place.open(lease_s=LEASE_S) as place:
        await place.serve(Echo())
        for number in range(rounds):
            names = [f"{which}-{number}" for which in ("one", "other")]
            processes = {name: _started(place, name) for name in names}
            try:
                await _until(partial(_serving, place, names))
                task = await place.squad.submit("goal.pursue", {"goal": "echo and sleep"}, within_s=120)
                begun = await _until(partial(_sent, place, task.task_id))
                processes[begun.replica].kill()
                killed = time.time()
                resumed = await _until(partial(_epoch, place, task.task_id, 2))
                figures.resumed_s.append(resumed.at - killed)
                await task.cancel()
            finally:
                for process in processes.values():
                    process.kill()
                    await asyncio.to_thread(process.join)


def _started(place: Place, name: str) -> Any:
    process = _SPAWN.Process(target=serve_until_killed, args=(place.settings, name), daemon=True)
    process.start()
    return process


async def _serving(place: Place, names: Sequence[str]) -> bool:
    return place.client.registry.replicas("supervisor").keys() >= set(names)


async def _entries(place: Place, task: str) -> list[Any]:
    """What the log of a task's run holds."""
    ports, found = place.client.ports, dict[str, list[Any]]()
    async for _, message in read(ports, ports.subjects.run()):
        found.setdefault(message.correlation_id or "", []).extend(entries_of(message))
    ours = [log for log in found.values() if any(entry.kind == "started" and entry.task == task for entry in log)]
    return ours[0] if ours else []


async def _epoch(place: Place, task: str, number: int) -> Any:
    """The nth attempt at the run of a task, or None."""
    epochs = [entry for entry in await _entries(place, task) if entry.kind == "epoch"]
    return epochs[number - 1] if len(epochs) >= number else None


async def _sent(place: Place, task: str) -> Any:
    """The first attempt, when its calls have gone out, or None."""
    sent = any(entry.kind == "sent" for entry in await _entries(place, task))
    return await _epoch(place, task, 1) if sent else None


async def _until(find: Callable[[], Awaitable[Any]], within_s: float = 60.0) -> Any:
    async with asyncio.timeout(within_s):
        while not (found := await find()):  # noqa: ASYNC110 - it is another process that gets there
            await asyncio.sleep(0.02)
    return found


async def measure(quick: bool) -> Figures:
    """One thing after the other."""
    figures = Figures()
    async with Place.open() as place:
        await place.serve(Echo())
        await place.serve(place.supervisor)
        figures.busy_percent.append(machine.busy_percent())
        await measure_rounds(place, figures, 3 if quick else 15)
        figures.cost = await measure_cost(place)
        await measure_sleepers(place, figures, 1 if quick else 3)
    figures.busy_percent.append(machine.busy_percent())
    await measure_resume(figures, 1 if quick else 5)
    return figures


def judge(figures: Figures) -> list[Target]:
    """The targets that this benchmark is there to hold."""
    overhead = [mine - floor for mine, floor in zip(figures.round_ms, figures.asks_ms, strict=True)]
    faster = ratios(figures.sequence_s, figures.parallel_s)
    over_lease = [each - LEASE_S for each in figures.resumed_s]
    return [
        Target(f"a round of {CALLS} calls over {CALLS} asks, ms", overhead, 10, at_most=True),
        Target(f"{SLEEPERS} agents of {SLEEP_S:g} s: sequence / at once", faster, 9, at_most=False),
        *figures.cost.targets,
        Target("SIGKILL to the next entry, over the lease, s", over_lease, 3, at_most=True),
    ]


def report(figures: Figures, targets: Sequence[Target]) -> None:
    """Print the figures and the targets."""
    rows = {
        f"{CALLS} bare asks at once, ms": figures.asks_ms,
        f"a round of {CALLS} calls, ms": figures.round_ms,
        "entries in the log per round": figures.entries,
        "messages of the log per round": figures.messages,
        "bytes of the log per round": figures.bytes,
        f"{SLEEPERS} agents in sequence, s": figures.sequence_s,
        f"{SLEEPERS} agents at once, s": figures.parallel_s,
        **figures.cost.rows,
        f"SIGKILL to the next entry, lease {LEASE_S:g} s, s": figures.resumed_s,
        "all cores, while nothing was measured, % busy": figures.busy_percent,
    }
    for what, values in rows.items():
        print(f"{what:48}{statistics.median(values):12,.3f} ({min(values):,.3f} to {max(values):,.3f})")
    print(*targets, sep="\n")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    # That replicas are killed is meant.
    configure_logs("ERROR")
    figures = asyncio.run(measure(arguments.quick))
    targets = judge(figures)
    report(figures, targets)
    results: dict[str, Any] = {"machine": machine.facts(), "arguments": vars(arguments)}
    results |= {"targets": [each.as_json() for each in targets], "figures": asdict(figures)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "llm-runs.json").write_text(json.dumps(results, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main())
