"""What a gateway holds for tasks that are open, and for streams that clients keep open, in one process.

A nats-server, a replica and the gateway have a process each; this one has the clients. Memory is what no other
process shares (USS): buffers of sockets are the kernel's, and not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks import machine
from benchmarks.gateways import AT_ONCE, A2aCaller, EchoAtTheDoor, McpCaller, free_port, start, until_up
from benchmarks.targets import Target
from squadron.actors.agent import AgentSpec
from squadron.runtime.logs import configure_logs
from tests.contract.own_server import OwnServer

RESULTS = Path(__file__).parent / "results"
#: Tasks and streams that are open at once.
OPEN = 10_000
#: Open files that each process needs beside a socket for each stream.
SPARE_FILES = 500
#: How long is looked at what streams cost that wait, in seconds: longer than the 15 s between two signs of life.
IDLE_S = 60.0
#: In KB of 1,000 bytes. A task is in the store; a stream has a connection, a request and a subscription.
MOST_OF_TASK, MOST_OF_STREAM = 2.0, 120.0
#: Nobody who comes beside them is kept waiting, in milliseconds.
MOST_MEANWHILE_MS = 500.0


def most_open(wanted: int) -> int:
    """How many may be open here: each is an open file of this process, and of the gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    may = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - SPARE_FILES)
    if may < wanted:
        print(f"only {may:,} streams in place of {wanted:,}: a process may open {hard:,} files here (ulimit -Hn)")
    return may


async def hold(port: int, agent: str, number: int) -> asyncio.StreamWriter:
    """Open a stream by `SendStreamingMessage`, and return when its task is known."""
    message: dict[str, Any] = {"messageId": f"held-{number}", "role": "ROLE_USER", "parts": [{"data": {}}]}
    message["metadata"] = {"squadron/topic": "bench.wait"}
    request = {"jsonrpc": "2.0", "id": number, "method": "SendStreamingMessage", "params": {"message": message}}
    body = json.dumps(request).encode()
    head = f"POST /a2a/{agent} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    head += f"A2A-Version: 1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " in status:
            break
        writer.close()
        assert b" 429 " in status, status
        await asyncio.sleep(0.1)
    said = b""
    while b'"TASK_STATE_WORKING"' not in said:
        line = await reader.readline()
        assert line, f"stream {number} has ended: {said.decode()}"
        said += line
    return writer


async def _by_many(wanted: Iterable[int], one: Callable[[int], Awaitable[None]]) -> None:
    numbers = iter(wanted)

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


def _cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


async def _measure(most_tasks: int, most_streams: int) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = OwnServer(folder)
        server.start()
        stack.callback(server.stop)
        start(stack, [sys.executable, "-m", "benchmarks.gateways", "--replica", server.url])
        port, agent = free_port(), AgentSpec.of(EchoAtTheDoor).name
        squadron = str(Path(sys.executable).with_name("squadron"))
        gateway = start(
            stack,
            [squadron, "gateway", "--mcp", "--a2a", "--port", str(port), "--within", "3000"],
            NATS_URL=server.url,
            SQUADRON_ENV="bench",
            SQUADRON_HOME=str(folder / "home"),
            SQUADRON_LOG_LEVEL="WARNING",
        )
        process = psutil.Process(gateway.pid)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=60))
        url = f"http://127.0.0.1:{port}"
        await until_up(client, f"{url}/readyz")
        tools, peer = McpCaller(client, f"{url}/mcp", tasks=True), A2aCaller(client, f"{url}/a2a/{agent}")
        streams = list[asyncio.StreamWriter]()

        def let_go() -> None:
            for each in streams:
                each.close()

        stack.callback(let_go)

        async def mcp(_: int) -> None:
            assert (await tools.call("bench__wait", {}))["resultType"] == "task"

        async def a2a(_: int) -> None:
            assert await peer.send("bench.wait", "", wait=False) == "TASK_STATE_WORKING"

        async def stream(number: int) -> None:
            streams.append(await hold(port, agent, number))

        found: dict[str, float] = {}
        ways = (
            ("MCP tasks", mcp, most_tasks),
            ("A2A tasks", a2a, most_tasks),
            ("A2A streams", stream, most_streams),
        )
        for name, one, many in ways:
            # What the first ones load and fill is not theirs.
            await _by_many(range(-AT_ONCE, 0), one)
            before, began = process.memory_full_info().uss, time.perf_counter()
            await _by_many(range(many), one)
            found[f"{name}: s"] = time.perf_counter() - began
            found[f"{name}: open"], found[f"{name}: bytes"] = (
                many,
                (process.memory_full_info().uss - before) / many,
            )
        spent = _cpu_s(process)
        await asyncio.sleep(IDLE_S)
        found["A2A streams: cpu"] = (_cpu_s(process) - spent) / IDLE_S
        # Each has had its signs of life, and has looked into the store.
        found["A2A streams: bytes"] = (process.memory_full_info().uss - before) / most_streams
        began = time.perf_counter()
        await a2a(0)
        found["meanwhile: ms"] = 1000 * (time.perf_counter() - began)
        return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=OPEN)
    parser.add_argument("--streams", type=int, default=OPEN)
    given = parser.parse_args(arguments)
    configure_logs("WARNING")
    found = asyncio.run(_measure(given.tasks, most_open(given.streams)))
    for name in ("MCP tasks", "A2A tasks", "A2A streams"):
        many, size, took_s = (found[f"{name}: {what}"] for what in ("open", "bytes", "s"))
        print(
            f"{many:,.0f} open {name}: {size:,.0f} bytes each, {many * size / 1e6:,.0f} MB; {many / took_s:.0f}/s"
        )
    cpu, took_ms = found["A2A streams: cpu"], found["meanwhile: ms"]
    print(f"while these wait: {100 * cpu:.0f} % of a core; a message beside them takes {took_ms:.0f} ms")
    targets = [
        Target("an open MCP task, in KB", [found["MCP tasks: bytes"] / 1000], MOST_OF_TASK, at_most=True),
        Target("an open A2A stream, in KB", [found["A2A streams: bytes"] / 1000], MOST_OF_STREAM, at_most=True),
        Target("a message beside open streams, in ms", [found["meanwhile: ms"]], MOST_MEANWHILE_MS, at_most=True),
    ]
    for target in targets:
        print(target)
    result = {"machine": machine.facts(), "measured": found, "targets": [each.as_json() for each in targets]}
    (RESULTS / "gateway-memory.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(target.held for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
