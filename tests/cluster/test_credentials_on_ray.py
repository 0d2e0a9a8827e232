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

import pytest
import ray

from squadron import Agent, Context, Squad, on_durable, topic
from squadron.bridge.auth.authority import Authority
from squadron.bridge.auth.minting import AGENT_KEYS
from squadron.bridge.jetstream.link.at_home import with_credentials
from squadron.bridge.serve.ray_names import NAMESPACE, bridge_name
from squadron.config import Settings
from squadron.runtime.trust.keys import Key
from squadron.runtime.wire.envelope import AgentMessage
from tests.cluster.conftest import until
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
        return to

    @on_durable("birth.*")
    def born(self, message: AgentMessage) -> None:
        Path(message.payload.content).touch()


@dataclass
class Registry:
    """An environment whose authority is in `home`, on a plain server."""

    squad: Squad
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
    keeper = replace(common, nats_user_credentials=auth / "bridge.creds", agent_keys=tmp_path / AGENT_KEYS)
    try:
        operator = with_credentials(common, auth / "operator.creds", "operator")
        async with Squad.up(keeper), Squad.connect(operator) as squad:
            yield Registry(squad, tmp_path / "home", server, tmp_path / "server")
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
