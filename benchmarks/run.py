"""How much a durable ask costs over its floors, measured in the same run: `make bench`.

Floors: a bare nats-py request/reply and a bare call of an async Ray actor. Caller and callee are separate
processes in all three; rounds are interleaved, so that a noisy moment hits all of them. Prints a table and
writes `benchmarks/results/ask.json`. Targets: at most 3 times the NATS request, faster than the Ray actor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats
import ray
from nats.aio.msg import Msg

from squadron import Agent, Settings, Squad, topic
from squadron.bridge.jetstream import embedded

RESULTS = Path(__file__).parent / "results"
PAYLOAD = "x" * 1024
#: The targets that this benchmark is there to hold.
MOST_OVER_NATS, MOST_OVER_RAY = 3.0, 1.0

NATS, ASK, RAY = "bare NATS request", "Squadron ask (durable)", "bare Ray actor call"

Call = Callable[[], Awaitable[object]]


class Echo(Agent):
    """Says it again."""

    @topic("echo.say")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


@ray.remote(num_cpus=0)
class EchoActor:
    """The floor on Ray's side: an async actor, as Serve replicas are."""

    async def say(self, text: str) -> str:
        return text


async def answer_bare(url: str, token: str) -> None:
    """The floor on NATS' side: answers requests until it is killed."""
    client = await nats.connect(url, token=token)

    async def answer(msg: Msg) -> None:
        await client.publish(msg.reply, msg.data)

    await client.subscribe("bench.bare", cb=answer)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def latencies_ms(call: Call, count: int) -> list[float]:
    """`count` calls, one after the other."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


async def per_second(call: Call, count: int, at_once: int) -> float:
    """Throughput with `at_once` calls under way."""
    started = time.perf_counter()
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await call()

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return count / (time.perf_counter() - started)


async def measure(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """p50 and p99 of single calls, and calls per second with 64 under way, for each way."""
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home))
        async with Squad.up(settings) as squad:
            await squad.deploy(Echo)
            endpoint = embedded.find(settings.home)
            assert endpoint is not None
            floor = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--bare", endpoint.url, endpoint.token), stdout=asyncio.subprocess.PIPE
            )
            try:
                assert floor.stdout is not None
                await floor.stdout.readline()
                client = await nats.connect(endpoint.url, token=endpoint.token)
                actor = EchoActor.remote()
                data = PAYLOAD.encode()

                async def ask() -> object:
                    return (await squad.ask("echo.say", text=PAYLOAD)).unwrap()

                async def call_actor() -> object:
                    return await actor.say.remote(PAYLOAD)

                ways: dict[str, Call] = {
                    NATS: lambda: client.request("bench.bare", data, timeout=10),
                    ASK: ask,
                    RAY: call_actor,
                }
                found = await interleave(ways, rounds, calls)
                await client.close()
                return found
            finally:
                floor.kill()
                await floor.wait()


async def interleave(ways: dict[str, Call], rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Measure all ways in turn, `rounds` times; medians over the rounds.

    A ratio is taken within its round, so that a machine that gets slower meanwhile does not bend it.
    """
    samples: dict[str, list[list[float]]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        await latencies_ms(call, 100)
    for _ in range(rounds):
        for name, call in ways.items():
            samples[name].append(await latencies_ms(call, calls))
            rates[name].append(await per_second(call, 5 * calls, 64))
    p50 = {name: [statistics.median(round_) for round_ in samples[name]] for name in ways}

    def over(name: str, floor: str) -> float:
        return statistics.median(one / other for one, other in zip(p50[name], p50[floor], strict=True))

    return {
        name: {
            "p50_ms": statistics.median(p50[name]),
            "p99_ms": statistics.quantiles([each for round_ in samples[name] for each in round_], n=100)[98],
            "per_second_at_64": statistics.median(rates[name]),
            "p50_over_nats": over(name, NATS),
            "p50_over_ray": over(name, RAY),
        }
        for name in ways
    }


def report(found: dict[str, dict[str, float]]) -> bool:
    """Print the table; whether the targets hold."""
    columns = ("p50 ms", "p99 ms", "per s at 64", "p50 / NATS", "p50 / Ray")
    print(f"{'1 KB payload':24}", *(f"{column:>11}" for column in columns))
    for name, row in found.items():
        print(
            f"{name:24} {row['p50_ms']:11.3f} {row['p99_ms']:11.3f} {row['per_second_at_64']:11,.0f}"
            f" {row['p50_over_nats']:11.2f} {row['p50_over_ray']:11.2f}"
        )
    ask = found[ASK]
    held = ask["p50_over_nats"] <= MOST_OVER_NATS and ask["p50_over_ray"] < MOST_OVER_RAY
    print(f"targets (<= {MOST_OVER_NATS:g} x NATS, < {MOST_OVER_RAY:g} x Ray): {'held' if held else 'MISSED'}")
    return held


def main() -> int:
    """Run the benchmark; exit status 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=200, help="single calls per round and way")
    parser.add_argument("--bare", nargs=2, metavar=("URL", "TOKEN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        asyncio.run(answer_bare(*arguments.bare))
        return 0
    found = asyncio.run(measure(arguments.rounds, arguments.calls))
    held = report(found)
    RESULTS.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "ray": ray.__version__}
    (RESULTS / "ask.json").write_text(json.dumps({"machine": machine, "ways": found}, indent=1) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
