"""What a prompt of the Synadia Agent Protocol costs over a native ask, and against the SDK's own host, in one run.

All prompts are made by the protocol's official client. A nats-server, a replica, the gateway and the SDK's host
have a process each; this one calls them. Each round goes through the ways in another order; ratios are taken
within a round. The host stores nothing; the gateway stores each prompt before it acknowledges it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats
import psutil
from nats.aio.client import Client
from synadia_ai.agents import Agents, ResponseChunk

from benchmarks import machine
from benchmarks.gateways import AT_ONCE, Way, measure_all, start
from benchmarks.processes import TEXT
from benchmarks.targets import Target, ratios, verdict
from squadron import Settings
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.logs import configure_logs
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.contract.own_server import OwnServer

RESULTS = Path(__file__).parent / "results"
#: Agents that are found at once, and how long that may take: the client gives up then, unless told otherwise.
CROWD, FOUND_WITHIN_S = 2_000, 2.0
#: An ask is stored, run, stored and told either way; a prompt adds its parsing, its note and four messages.
MOST_ADDED_MS, LEAST_OF_SAMPLE = 1.5, 0.5
#: Rounds in which processor time is looked at, and prompts in each: the least of them has least to do with others.
#: The system counts in steps of 10 ms, which is 4 µs of each.
CPU_ROUNDS, CPU_CALLS = 4, 2_500


async def sample(url: str) -> None:
    """The SDK's own way to serve an echo."""
    from synadia_ai.agent_service import AgentService

    connection = await nats.connect(url)
    service = AgentService(
        agent="sample", owner="sdk", session_name="echo", nc=connection, max_concurrent_prompts=AT_ONCE
    )

    async def say(envelope: Any, stream: Any) -> None:
        await stream.send(envelope.prompt)

    service.on_prompt(say)
    await service.start()
    await asyncio.Event().wait()


async def _agent(client: Client, session: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            for each in await Agents(nc=client).discover(stall=0.5):
                if each.session_name == session:
                    return each


async def _crowd(place: Wiring) -> None:
    """Have many agents that nobody runs, by their cards."""
    place.registry.heartbeat_s = 200.0
    cards = [AgentCard(agent=f"crowd{n}", topics=(SemanticTopic(name=f"crowd.n{n}"),)) for n in range(CROWD)]
    for first in range(0, CROWD, 100):
        some = cards[first : first + 100]
        await asyncio.gather(*(place.registry.advertise(each) for each in some))
        await asyncio.gather(*(place.registry.renew(each.agent, f"{each.agent}-0") for each in some))


async def _cpu_us(ways: dict[str, Way], pids: dict[str, int]) -> dict[str, dict[str, float]]:
    """What a call costs each process, in µs of processor time."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}

    def now() -> dict[str, float]:
        times = {name: each.cpu_times() for name, each in processes.items()}
        return {name: 1e6 * (each.user + each.system) / CPU_CALLS for name, each in times.items()}

    least = {name: dict.fromkeys(processes, float("inf")) for name in ways}
    for _ in range(CPU_ROUNDS):
        for name in random.sample(list(ways), len(ways)):
            before = now()
            await ways[name].burst(CPU_CALLS)
            after = now()
            least[name] = {each: min(us, after[each] - before[each]) for each, us in least[name].items()}
    return least


async def _measure(rounds: int) -> tuple[dict[str, Way], list[float], dict[str, dict[str, float]]]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = OwnServer(folder)
        server.start()
        stack.callback(server.stop)
        pids = {"client": os.getpid(), "server": server.pid}
        pids["replica"] = start(stack, [sys.executable, "-m", "benchmarks.gateways", "--replica", server.url]).pid
        pids["sample"] = start(
            stack, [sys.executable, "-m", "benchmarks.gateway_synadia", "--sample", server.url]
        ).pid
        settings = Settings(nats_url=server.url, env="bench")
        asker = await Wiring.open(settings, AgentIdentity(id="asker"), create=True)
        stack.push_async_callback(asker.aclose)
        squadron = str(Path(sys.executable).with_name("squadron"))
        home = {"NATS_URL": server.url, "SQUADRON_ENV": "bench", "SQUADRON_HOME": str(folder / "home")}
        door = start(stack, [squadron, "gateway", "--synadia"], **home, SQUADRON_LOG_LEVEL="WARNING")
        pids["gateway"] = door.pid
        client = await nats.connect(server.url)
        stack.push_async_callback(client.close)
        ours, theirs = await _agent(client, "bench-echo"), await _agent(client, "echo")

        async def native() -> None:
            (await asker.caller.ask("bench.echo", {"text": TEXT}, AskOptions())).unwrap()

        async def prompt(agent: Any) -> None:
            said = [each.text async for each in agent.prompt(TEXT) if isinstance(each, ResponseChunk)]
            assert said == [TEXT], said

        ways = {"ask": Way(native), "synadia": Way(lambda: prompt(ours)), "sample": Way(lambda: prompt(theirs))}
        await measure_all(ways, rounds)
        cpu_us = await _cpu_us(ways, pids)
        await _crowd(asker)
        found_s = []
        for _ in range(rounds):
            began = time.perf_counter()
            # Its own pause behind the last answer counts; its own limit of 2 s would hide how late the others are.
            found = await Agents(nc=client).discover(max_wait=30)
            found_s.append(time.perf_counter() - began)
            assert len(found) >= CROWD, len(found)
        return ways, found_s, cpu_us


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    configure_logs("WARNING")
    if given.sample:
        asyncio.run(sample(given.sample))
    ways, found_s, cpu_us = asyncio.run(_measure(given.rounds))
    for name, way in ways.items():
        p50, per_s = statistics.median(way.p50_ms), statistics.median(way.per_s)
        print(f"{name:8}p50 {p50:6.2f} ms, {per_s:7.0f} prompts/s with {AT_ONCE} at once")
        spent = {each: us for each, us in cpu_us[name].items() if us > 10}
        print(
            f"        {sum(spent.values()):4.0f} µs of processor time: "
            + ", ".join(f"{each} {us:.0f}" for each, us in spent.items())
        )
    added = [prompt - ask for prompt, ask in zip(ways["synadia"].p50_ms, ways["ask"].p50_ms, strict=True)]
    targets = [
        Target("Synadia: p50 over a native ask, in ms", added, MOST_ADDED_MS, at_most=True),
        Target(
            "Synadia: prompts/s over the SDK's echo",
            ratios(ways["synadia"].per_s, ways["sample"].per_s),
            LEAST_OF_SAMPLE,
            at_most=False,
        ),
        Target(f"Synadia: {CROWD:,} agents found, in s", found_s, FOUND_WITHIN_S, at_most=True),
    ]
    for target in targets:
        print(target)
    measured = {name: {"p50_ms": way.p50_ms, "per_s": way.per_s} for name, way in ways.items()}
    result: dict[str, Any] = {"machine": machine.facts(), "measured": measured, "found_s": found_s}
    result["cpu_us"] = cpu_us
    result["targets"] = [each.as_json() for each in targets]
    (RESULTS / "gateway-synadia.json").write_text(json.dumps(result, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
