"""Liveness and readiness, asked while all is well and while something is away."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import pytest

from squadron import Settings
from squadron.bridge.gateways.fronting import GatewayOptions
from squadron.bridge.health.probes import LAG_MOST_S, Probes, loop_lag
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.serve.gateway_agent import GatewayAgent
from squadron.runtime.ports.bus import Note
from squadron.runtime.wire.envelope import AgentIdentity
from tests.conftest import freeze
from tests.contract.conftest import until
from tests.contract.own_server import OwnServer

#: An answer comes within it however busy the machine is: what is away is told by other means, or waited for.
PLENTY_S = 10.0


@pytest.fixture
async def answering(wiring: Wiring) -> AsyncIterator[Wiring]:
    """A place where a bridge answers to `ping`."""
    answers = set[asyncio.Task[None]]()

    def hear(note: Note) -> None:
        answers.add(asyncio.ensure_future(wiring.ports.bus.publish(note.reply, b'{"ok": {}}')))

    ear = await wiring.ports.bus.subscribe(wiring.ports.subjects.control("ping"), hear)
    yield wiring
    await ear.aclose()


def _probes(wiring: Wiring, within_s: float = PLENTY_S) -> Probes:
    return Probes(wiring.connection, wiring.ports.subjects, within_s=within_s)


async def _get(probes: Probes, path: str, method: str = "GET") -> tuple[int, Any]:
    """One request, as an ASGI server makes it."""
    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await probes({"type": "http", "path": path, "method": method}, None, send)
    start, body = sent
    assert (b"content-type", b"application/json") in start["headers"]
    return start["status"], json.loads(body["body"] or b"null")


async def _until_alive(probes: Probes) -> Any:
    """What it says then; a machine that stalls holds up a loop, too, and that is told."""
    while (answer := await _get(probes, "/healthz"))[0] != 200:
        await asyncio.sleep(0.01)
    return answer[1]


async def test_who_is_well_says_so(answering: Wiring) -> None:
    probes = _probes(answering)

    status, body = await _get(probes, "/readyz")
    assert (status, body["ok"], body["nats"]["ok"], body["bridge"]["ok"]) == (200, True, True, True)
    body = await _until_alive(probes)
    assert (body["ok"], body["loop"]["trouble"]) == (True, "")
    # Mounted below another path, and asked for the head alone.
    assert await _get(probes, "/squadron/readyz", "HEAD") == (200, None)
    assert await _get(probes, "/") == (404, {"paths": ["/healthz", "/readyz"]})


async def test_without_a_bridge_nobody_is_ready_and_all_are_alive(wiring: Wiring) -> None:
    status, body = await _get(_probes(wiring), "/readyz")

    assert (status, body["nats"]["ok"], body["bridge"]["trouble"]) == (503, True, "the bridge does not answer")
    await _until_alive(_probes(wiring))


async def test_a_server_that_hangs_is_told_within_the_time_that_is_given(tmp_path: Path) -> None:
    endpoint = embedded.ensure(tmp_path)
    settings = Settings(home=tmp_path, env="probed")
    wiring = await Wiring.open(settings, AgentIdentity(id="tester"), create=True)
    try:
        freeze(endpoint.pid)
        ready = await _probes(wiring, within_s=0.2).ready()
    finally:
        os.kill(endpoint.pid, signal.SIGCONT)
        await wiring.aclose()
        embedded.stop(tmp_path)

    assert (ready["nats"].ok, ready["nats"].trouble) == (False, "NATS does not answer")
    assert not ready["bridge"].ok


async def test_a_connection_that_is_closed_is_not_ready(wiring: Wiring) -> None:
    await wiring.connection.aclose()

    ready = await _probes(wiring).ready()

    assert ready["nats"].trouble == "the connection to NATS is lost"
    assert not ready["bridge"].ok


async def test_a_loop_that_is_blocked_is_told(wiring: Wiring) -> None:
    watched = asyncio.create_task(loop_lag())
    await asyncio.sleep(0)
    time.sleep(1.2 * LAG_MOST_S)  # noqa: ASYNC251 - what nobody should do
    probe = await watched

    assert not probe.ok
    assert probe.seconds >= LAG_MOST_S
    assert probe.trouble == "the event loop is blocked"


async def test_a_port_that_threads_serve_tells_the_same_and_a_loop_that_is_blocked_for_good(
    answering: Wiring,
) -> None:
    application = _probes(answering, within_s=0.1).over_wsgi(asyncio.get_running_loop())
    server = make_server("127.0.0.1", 0, application, handler_class=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    asked = concurrent.futures.ThreadPoolExecutor(1)

    def fetch(path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    while (answer := await asyncio.wrap_future(asked.submit(fetch, "/healthz")))[0] != 200:
        await asyncio.sleep(0.01)
    assert answer[1]["ok"]
    # Nobody comes round here until it is told.
    status, body = asked.submit(fetch, "/healthz").result()
    assert (status, body["loop"]["trouble"]) == (503, "the event loop is blocked")
    server.shutdown()
    thread.join()
    server.server_close()


class Silent(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, *_: Any) -> None:
        pass


async def test_a_gateway_on_the_cluster_is_ready_as_long_as_it_is_connected(tmp_path: Path) -> None:
    """Whoever balances visitors over replicas asks this."""
    server = OwnServer(tmp_path)
    server.start()
    settings = Settings(home=tmp_path, env="probed", nats_url=server.url)
    wiring = await Wiring.open(settings, AgentIdentity(id="gateway-1"), create=True)
    try:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        agent = GatewayAgent.opening(GatewayOptions(doors=("mcp",), port=port), 1)()
        agent.place = wiring
        await agent.on_start()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as visitor:

                async def is_told(status: int, path: str = "/readyz") -> bool:
                    return (await visitor.get(path)).status_code == status

                await until(lambda: is_told(200))
                server.stop()
                await until(lambda: is_told(503))
                await until(lambda: is_told(200, "/livez"))
                server.start()
                await until(lambda: is_told(200))
        finally:
            await agent.on_stop()
    finally:
        await wiring.aclose()
        server.stop()
