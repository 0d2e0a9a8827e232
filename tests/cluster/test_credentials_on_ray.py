"""Replicas on Ray: each has a credential of its agent, which the bridge makes, and makes anew before it ends."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from squadron import Agent, Context, Squad, on_durable, topic
from squadron.bridge.auth.authority import Authority
from squadron.bridge.auth.minting import AGENT_KEYS
from squadron.bridge.gateways.fronting import GatewayOptions
from squadron.bridge.jetstream.link.at_home import with_credentials
from squadron.bridge.jetstream.own_streams import OwnStream
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.serve.gateway_agent import GatewayAgent
from squadron.bridge.serve.ray_names import NAMESPACE, bridge_name
from squadron.config import Settings
from squadron.runtime.trust.keys import Key
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from tests.cluster.conftest import until
from tests.contract.nats_cluster import free_port
from tests.contract.own_server import OwnServer

pytestmark = pytest.mark.slow

#: So that it is renewed while a test looks on, in seconds.
LIFE_S = 6.0


class Registrar(Agent):
    """Counts, slowly, and keeps what was told."""

    @topic("registrar.count")
    async def count(self, to: int, context: Context) -> int:
        for number in range(to):
            await context.emit(number)
            await asyncio.sleep(0.1)
        await context.remember(to)
        return to

    @on_durable("birth.*")
    def born(self, message: AgentMessage) -> None:
        Path(message.payload.content).touch()


@dataclass
class Registry:
    """An environment whose authority is in `home`, on a plain server."""

    squad: Squad
    keeper: Settings
    home: Path
    server: OwnServer
    folder: Path

    def log(self) -> str:
        return (self.folder / "nats.log").read_text()


@pytest.fixture
async def registry(cluster: Squad, tmp_path: Path) -> AsyncIterator[Registry]:
    # A bridge outlives its test, on a server that is gone.
    environment = f"issued-{uuid.uuid4().hex[:6]}"
    authority = Authority.create(tmp_path / "home", environment)
    auth = tmp_path / "home" / "auth" / environment
    keys = replace(authority.agent_keys(environment), life_s=LIFE_S)
    (tmp_path / AGENT_KEYS).write_text(keys.to_json())
    (tmp_path / "server").mkdir()
    server = OwnServer(tmp_path / "server", authority.server_conf() + "debug: true\n")
    server.start()
    common = Settings.load({}, home=cluster.settings.home, env=environment, nats_url=server.url, heartbeat_s=1.0)
    # Whoever has a credential signs; who may act on behalf of visitors is seen by it.
    common = replace(common, trust=auth / "trust.json")
    keeper = replace(common, nats_user_credentials=auth / "bridge.creds", agent_keys=tmp_path / AGENT_KEYS)
    try:
        operator = with_credentials(common, auth / "operator.creds", "operator")
        async with Squad.up(keeper), Squad.connect(operator) as squad:
            yield Registry(squad, keeper, tmp_path / "home", server, tmp_path / "server")
            await squad.undeploy("registrar")
    finally:
        server.stop()


async def test_v3_replicas_have_credentials_of_their_agent_which_are_renewed_without_losing_a_task(
    registry: Registry, tmp_path: Path
) -> None:
    squad = registry.squad
    await squad.deploy(Registrar)

    # Longer than two lives of a credential, with a task that spans each renewal.
    for _ in range(3):
        handle = await squad.submit("registrar.count", {"to": 60}, within_s=60)
        assert [chunk async for chunk in handle.chunks()] == list(range(60))
        assert (await handle.outcome()).unwrap() == 60
    # It is a member of its own group of durable events.
    await squad.publish_durable("birth.one", str(tmp_path / "born"))

    async def born() -> bool:
        return await asyncio.to_thread((tmp_path / "born").exists)

    await until(born)
    # What it remembers is in its own stream, and not where others read.
    bridge = await Wiring.open(registry.keeper, AgentIdentity(id="test"))
    subjects, names = bridge.ports.subjects, StreamNames(registry.keeper.env)
    own = OwnStream(bridge.connection, names, "registrar")
    assert [entry.data async for entry in own.read(subjects.lite_of("memory-registrar"))] == [b"60"] * 3
    assert not [entry async for entry in bridge.ports.lite.read(subjects.lite_of("memory-registrar"))]
    await bridge.aclose()
    log = registry.log()
    assert " Violation" not in log
    assert "Authentication Expired" not in log
    # It connected anew, and it was the same replica all the time.
    closed = re.findall(r":(registrar-[0-9a-f]{8})\" - \"[^\"]*\" - Client connection closed", log)
    assert len(closed) > 2
    assert len(set(closed)) == 1


async def test_v3_the_bridge_gives_nobody_its_own_credentials(registry: Registry) -> None:
    await registry.squad.deploy(Registrar)
    bridge: Any = ray.get_actor(bridge_name(registry.squad.settings.env), namespace=NAMESPACE)
    assert not hasattr(bridge, "settings")
    admission = await bridge.admit.remote("registrar", Key.create("U").public, [])
    assert admission.settings.nats_user_credentials is None
    assert admission.settings.agent_keys is None
    assert not re.search(r"S[OAU][A-Z2-7]{56}|\.creds", json.dumps(admission.settings.environ()) + admission.token)
    for agent, groups in (("stranger", []), ("registrar", ["another.sold"])):
        with pytest.raises(ray.exceptions.RayTaskError, match="UntrustedError"):
            await bridge.admit.remote(agent, Key.create("U").public, groups)


async def test_replicas_of_a_gateway_serve_with_credentials_of_their_own(
    registry: Registry, tmp_path: Path
) -> None:
    squad, port = registry.squad, free_port()
    await squad.deploy(Registrar)
    (token := tmp_path / "ann-token").write_text("a-token-of-ann-for-this-test")
    with Authority.open(registry.home) as authority:
        _, file = authority.add(squad.settings.env, "gateway", "doors")
    tokens = {"tokens": (f"ann=file:{token}",), "port": port}
    options = GatewayOptions(doors=("mcp",), credentials=str(file), **tokens)
    await squad.deploy(GatewayAgent.opening(options, 2), within_s=120)
    [shown] = [each for each in await squad.remote_servers() if each.kind == "GatewayAgent"]
    assert GatewayOptions.of(shown.server).url == f"http://127.0.0.1:{port}"
    assert "a-token-of-ann-for-this-test" not in json.dumps(shown.to_dict())

    headers = {"Authorization": "Bearer a-token-of-ann-for-this-test"}
    async with (
        httpx.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{options.url}/mcp", http_client=http), mode="2026-07-28") as client,
    ):
        done = await client.call_tool("registrar__count", {"to": 1})
    assert not done.is_error
    log = registry.log()
    assert " Violation" not in log
    # It is the gateway's user that the visitors come as.
    assert re.search(r"doors-[0-9a-f]{8}", log)
    await squad.undeploy("gateway")
