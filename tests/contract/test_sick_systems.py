"""Each sickness that the doctor knows is brought about on a real nats-server, and is found there."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.health.examining import CHECKS, examine
from squadron.bridge.health.finding import Finding
from squadron.bridge.health.gathering import gather
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.deployment import Deployment, Scale
from squadron.runtime.wire.envelope import AgentMessage
from tests.contract.own_server import OwnServer


class Reader(Agent):
    """Reads books."""

    @topic("book.read")
    async def read(self, text: str) -> str:
        return text


async def look(settings: Settings, **options: Any) -> dict[str, Finding]:
    """What the doctor finds, the worst of each name."""
    findings = examine(await gather(settings, **({"watch_s": 0.05} | options)))
    assert {each.name for each in findings} <= {each.name for each in CHECKS} | {"not looked at"}
    worst = sorted(findings, key=lambda each: ("ok", "warn", "fail").index(each.level))
    return {each.name: each for each in worst}


async def record(wiring: Wiring, scale: str = "1..2", agent: type[Agent] = Reader) -> None:
    """What the bridge writes when an agent is deployed, and its mailbox."""
    spec = AgentSpec.of(agent)
    bounds = Scale(minimum=1, maximum=2)
    deployment = Deployment(
        card=spec.card(),
        code={"version": "x"},
        slots=1,
        grace_s=1,
        bounds=bounds,
        scale=Scale.parse(scale, bounds),
    )
    key = wiring.ports.subjects.record("deployment", spec.name)
    await wiring.records.append(key, deployment.model_dump_json().encode())
    await wiring.ports.queue.declare(Mailbox(spec.name, deployment.patterns, wiring.settings.lease_s))


async def put(wiring: Wiring, topic: str, count: int = 1) -> None:
    for _ in range(count):
        message = AgentMessage.new("task", wiring.ports.identity, {"text": "x"})
        await wiring.ports.queue.put(wiring.ports.subjects.task(topic), message.encode(), msg_id=message.id)


@contextlib.asynccontextmanager
async def bridge(wiring: Wiring, **status: Any) -> AsyncIterator[None]:
    """Who answers as the bridge does, and says what it is told to say."""
    # The bridge itself needs Ray; what it says of agents is Ray's word.
    facts = {"environment": wiring.settings.env, "losses": [], **status}

    async def answer(note: Any) -> None:
        import json

        await wiring.ports.bus.publish(note.reply, json.dumps({"ok": facts}).encode())

    pending = set[asyncio.Task[None]]()
    ear = await wiring.ports.bus.subscribe(
        wiring.ports.subjects.control("*"), lambda note: pending.add(asyncio.ensure_future(answer(note)))
    )
    yield
    await ear.aclose()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Start a nats-server of its own, and return the settings for it."""
    servers = []

    def start(extra: str = "", *, jetstream: str = "", user: str = "") -> Settings:
        folder = tmp_path / uuid.uuid4().hex[:8]
        folder.mkdir()
        server = OwnServer(folder, extra, jetstream=jetstream)
        server.start()
        servers.append(server)
        url = server.url.replace("://", f"://{user}@") if user else server.url
        return Settings(home=tmp_path, nats_url=url, env="sick")

    yield start
    for server in servers:
        server.stop()


# --- the server --------------------------------------------------------------------------------------


async def test_a_healthy_system_has_nothing_to_tell(wiring: Wiring) -> None:
    await record(wiring)
    host = Host(wiring, Reader(), AgentSpec.of(Reader), slots=1)
    await host.start()
    async with bridge(wiring):
        found = await look(wiring.settings)
    await host.stop(1.0)

    assert {name: each for name, each in found.items() if each.level != "ok"} == {}
    assert found.keys() == {each.name for each in CHECKS}


async def test_no_server_is_told(tmp_path: Path) -> None:
    found = await look(Settings(home=tmp_path, nats_url="nats://127.0.0.1:1"))

    assert "127.0.0.1:1 can't be reached" in found["nats answers"].found
    assert found["nats answers"].level == "fail"


async def test_refused_credentials_are_told(serve: Callable[..., Settings]) -> None:
    settings = serve('authorization { user: eve, password: "right" }', user="eve:wrong")

    found = await look(settings)

    assert "refused the credentials" in found["nats answers"].found
    assert "NATS_URL" in found["nats answers"].fix


async def test_a_server_without_jetstream_is_told(serve: Callable[..., Settings]) -> None:
    accounts = "accounts {\nA: {\nusers: [{user: a, password: b}]\n}\n}\n"
    refused = await look(serve(accounts, user="a:b"))

    assert refused["jetstream"].level == "fail"
    assert "not enabled for account" in refused["jetstream"].found
    assert refused["bridge"].level == "fail"
    assert "topics" in refused["not looked at"].found
