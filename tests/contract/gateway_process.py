"""A gateway in this process, and one in a process of its own, as tests open them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from squadron.bridge.gateways.door_secret import DoorSecret
from squadron.bridge.gateways.doors import Front, gateway_app, load_door
from squadron.bridge.gateways.http_guard import GuardRules
from squadron.bridge.gateways.http_server import HttpServer
from squadron.bridge.gateways.open_questions import OpenQuestions
from squadron.bridge.place import Place
from squadron.config import Settings

#: The secret of all gateways in tests, as processes of one gateway share it.
SECRET = DoorSecret(b"of the tests, and of nobody else")


@contextlib.asynccontextmanager
async def opened_gateway(
    place: Place, *doors: str, rules: GuardRules | None = None, port: int = 0, **options: Any
) -> AsyncIterator[str]:
    """A gateway on a place, on a port of its own or this one; gives its URL."""
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()
    # In a task of its own: fixtures begin and end in different ones, which cancel scopes of anyio must not.
    running = asyncio.create_task(_run_gateway(place, doors, rules or GuardRules(), port, options, url, leave))
    await asyncio.wait((running, url), return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    try:
        yield url.result()
    finally:
        leave.set()
        await running


async def _run_gateway(
    place: Place,
    doors: tuple[str, ...],
    rules: GuardRules,
    port: int,
    options: dict[str, Any],
    url: asyncio.Future[str],
    leave: asyncio.Event,
) -> None:
    questions = OpenQuestions(place)
    questions.start()
    front = Front(place=place, secret=SECRET, questions=questions, rules=rules, **options)
    async with contextlib.AsyncExitStack() as rest:
        rest.push_async_callback(questions.aclose)
        opened = [await load_door(name)(front) for name in doors]
        for door in opened:
            await rest.enter_async_context(door.running())
        app = gateway_app(opened, front, lambda: True)
        server = await rest.enter_async_context(HttpServer(app, "127.0.0.1", port, front.leaving))
        url.set_result(server.url)
        await leave.wait()


@contextlib.asynccontextmanager
async def gateway_command(
    settings: Settings, port: int, *options: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`squadron gateway` in a process of its own, once it is ready; killed at the end if it still runs."""
    command = [
        str(Path(sys.executable).with_name("squadron")),
        "--home",
        str(settings.home),
        "--env",
        settings.env,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, "gateway", "--port", str(port), *options, env=dict(os.environ), stderr=asyncio.subprocess.PIPE
    )
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                        break
                assert process.returncode is None, "the gateway did not start"
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
