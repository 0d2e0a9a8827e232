"""What a call through a gateway costs, over a native ask and against the SDKs' own echo servers, in one run.

A nats-server, a replica, the gateway and the SDK's server have a process each; this one calls them. Each round
goes through them in another order; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvloop

from benchmarks import machine
from benchmarks.processes import GARBAGE, TEXT
from benchmarks.targets import Target, ratios, verdict
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.own_server import OwnServer

RESULTS = Path(__file__).parent / "results"
#: Calls one after the other, and so many more, so many at once, in each round.
ALONE, MANY, AT_ONCE = 200, 1_000, 16
#: A call is parsed, checked and answered by the SDK, as each of its servers does it, and is an ask between.
MOST_ADDED_MS, LEAST_OF_SAMPLE = 6.0, 0.5
VERSION = "2026-07-28"


class EchoAtTheDoor(Agent):
    """Says it again, or waits."""

    @topic("bench.echo")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text

    @topic("bench.wait", run_timeout_s=600)
    async def wait(self) -> str:
        """Wait for ten minutes."""
        await asyncio.sleep(600)
        return "awake"


@dataclass
class Way:
    """One way to call, and what was measured, round by round."""

    call: Callable[[], Awaitable[None]]
    p50_ms: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)

    async def measure(self) -> None:
        """One round."""
        took = []
        for _ in range(ALONE):
            began = time.perf_counter()
            await self.call()
            took.append(time.perf_counter() - began)
        self.p50_ms.append(1000 * statistics.median(took))
        self.per_s.append(MANY / await self.burst(MANY))

    async def burst(self, calls: int) -> float:
        """Make so many calls, 16 at once; returns how long they took, in seconds."""
        left, began = calls, time.perf_counter()

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.call()

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        return time.perf_counter() - began


async def measure_all(ways: Mapping[str, Way], rounds: int) -> None:
    """Measure them side by side, in another order each round."""
    for number in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            await ways[name].measure()
        if number == 0:
            # The first only warms up.
            for way in ways.values():
                way.p50_ms.clear()
                way.per_s.clear()


class McpCaller:
    """Calls tools by hand, so that the client's cost is small and the same for all servers."""

    def __init__(self, client: httpx2.AsyncClient, url: str, *, tasks: bool = False) -> None:
        self._client, self._url, self._ids = client, url, itertools.count()
        self._meta = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": {
                "extensions": {"io.modelcontextprotocol/tasks": {}} if tasks else {}
            },
        }

    async def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        params = {"name": name, "arguments": arguments, "_meta": self._meta}
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": "tools/call", "params": params}
        headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": VERSION}
        headers |= {"Mcp-Method": "tools/call", "Mcp-Name": name}
        while True:
            answer = await self._client.post(self._url, json=body, headers=headers)
            if answer.status_code != 429:
                break
            await asyncio.sleep(0.05)
        result: dict[str, Any] = answer.json()["result"]
        return result


class A2aCaller:
    """Sends messages by hand, as `McpCaller` calls tools."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client, self._url, self._ids = client, url, itertools.count()

    async def send(self, skill: str, text: str, *, wait: bool = True) -> str:
        """The state that the task is in then."""
        number = next(self._ids)
        part: dict[str, Any] = {"text": text} if text else {"data": {}}
        message: dict[str, Any] = {"messageId": f"{os.getpid()}-{skill}-{number}", "role": "ROLE_USER"}
        message |= {"parts": [part], "metadata": {"squadron/topic": skill}}
        params = {"message": message, "configuration": {"returnImmediately": not wait}}
        body = {"jsonrpc": "2.0", "id": number, "method": "SendMessage", "params": params}
        while True:
            answer = await self._client.post(self._url, json=body, headers={"A2A-Version": "1.0"})
            if answer.status_code != 429:
                break
            await asyncio.sleep(0.05)
        state: str = answer.json()["result"]["task"]["status"]["state"]
        return state


def sample(port: int) -> None:
    """The SDK's own way to serve an echo."""
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("echo")

    @server.tool()
    async def say(text: str) -> str:
        """Say it again."""
        return text

    server.run(transport="streamable-http", port=port)


async def replica(url: str) -> None:
    """Serve the agent until the end."""
    spec = AgentSpec.of(EchoAtTheDoor)
    place = await Wiring.open(Settings(nats_url=url, env="bench"), AgentIdentity(id="echo-1"), create=True)
    patterns = tuple(each.name for each in spec.card().topics)
    await place.ports.queue.declare(Mailbox(spec.name, patterns, place.settings.lease_s))
    await place.registry.advertise(spec.card())
    host = Host(place, EchoAtTheDoor(), spec, slots=64)
    await host.start()
    # As on Ray.
    gc.freeze()
    gc.set_threshold(GARBAGE)
    await asyncio.Event().wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(stack: AsyncExitStack, command: list[str], **env: str) -> subprocess.Popen[bytes]:
    """A process of its own, killed with the stack."""
    process = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


async def until_up(client: httpx2.AsyncClient, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await client.get(url)
                return
            except httpx2.TransportError:
                await asyncio.sleep(0.1)


async def _measure(rounds: int) -> dict[str, Way]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = OwnServer(folder)
        server.start()
        stack.callback(server.stop)
        ports = free_port(), free_port()
        me = [sys.executable, "-m", "benchmarks.gateways"]
        start(stack, [*me, "--replica", server.url])
        asker = await Wiring.open(
            Settings(nats_url=server.url, env="bench"), AgentIdentity(id="asker"), create=True
        )
        stack.push_async_callback(asker.aclose)
        squadron = str(Path(sys.executable).with_name("squadron"))
        start(
            stack,
            # What it can do is measured, and not what one visitor may.
            [squadron, "gateway", "--mcp", "--a2a", f"--port={ports[0]}", "--within=600", "--rate=100000"],
            NATS_URL=server.url,
            SQUADRON_ENV="bench",
            SQUADRON_HOME=str(folder / "home"),
            SQUADRON_LOG_LEVEL="WARNING",
        )
        start(stack, [*me, "--sample", str(ports[1])])
        neighbour_port = free_port()
        start(stack, [sys.executable, "-m", "tests.a2a_neighbour", str(neighbour_port)])
        limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=60, limits=limits))
        await until_up(client, f"http://127.0.0.1:{ports[0]}/readyz")
        await until_up(client, f"http://127.0.0.1:{ports[1]}/mcp")
        await until_up(client, f"http://127.0.0.1:{neighbour_port}/rpc")
        ours, theirs = (McpCaller(client, f"http://127.0.0.1:{port}/mcp") for port in ports)
        agent = A2aCaller(client, f"http://127.0.0.1:{ports[0]}/a2a/{AgentSpec.of(EchoAtTheDoor).name}")
        neighbour = A2aCaller(client, f"http://127.0.0.1:{neighbour_port}/rpc")

        async def native() -> None:
            (await asker.caller.ask("bench.echo", {"text": TEXT}, AskOptions())).unwrap()

        async def mcp() -> None:
            assert not (await ours.call("bench__echo", {"text": TEXT}))["isError"]

        async def echo() -> None:
            assert not (await theirs.call("say", {"text": TEXT}))["isError"]

        async def a2a() -> None:
            assert await agent.send("bench.echo", TEXT) == "TASK_STATE_COMPLETED"

        async def a2a_echo() -> None:
            assert await neighbour.send("talk", f"echo {TEXT}") == "TASK_STATE_COMPLETED"

        ways = {"ask": Way(native), "mcp": Way(mcp), "sample": Way(echo)}
        ways |= {"a2a": Way(a2a), "a2a sample": Way(a2a_echo)}
        await measure_all(ways, rounds)
        return ways


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replica", help=argparse.SUPPRESS)
    parser.add_argument("--sample", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    configure_logs("WARNING")
    if given.replica:
        # As on Ray.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(replica(given.replica))
    if given.sample:
        sample(given.sample)
        return 0
    ways = asyncio.run(_measure(given.rounds))
    for name, way in ways.items():
        p50, per_s = statistics.median(way.p50_ms), statistics.median(way.per_s)
        print(f"{name:12}p50 {p50:6.2f} ms, {per_s:7.0f} calls/s with {AT_ONCE} at once")
    targets: list[Target] = []
    for name, sampled in (("mcp", "sample"), ("a2a", "a2a sample")):
        added = [each - ask for each, ask in zip(ways[name].p50_ms, ways["ask"].p50_ms, strict=True)]
        as_many = ratios(ways[name].per_s, ways[sampled].per_s)
        targets += [
            Target(f"{name.upper()}: p50 over a native ask, in ms", added, MOST_ADDED_MS, at_most=True),
            Target(f"{name.upper()}: calls/s over the SDK's echo", as_many, LEAST_OF_SAMPLE, at_most=False),
        ]
    for target in targets:
        print(target)
    measured = {name: {"p50_ms": way.p50_ms, "per_s": way.per_s} for name, way in ways.items()}
    result: dict[str, Any] = {"machine": machine.facts(), "measured": measured}
    result["targets"] = [each.as_json() for each in targets]
    (RESULTS / "gateways.json").write_text(json.dumps(result, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
