"""Where everybody has a credential: MCP servers on the bus, and agents of the Synadia Agent Protocol, by their
official clients and hosts, with the rights of roles on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from synadia_ai.agent_service import AgentService
from synadia_ai.agents import Agents, Identity, ResponseChunk, _inbox, _mux
from synadia_ai.agents.errors import SenderSignatureRequiredError
from synadia_ai.agents.identity import signer_from_creds_file

from squadron import Agent, Context, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.actors.operations import Operation
from squadron.actors.remote.mcp_agent import McpAgent, look_at
from squadron.actors.remote.mcp_bus import BusTransport, served_on_bus
from squadron.actors.remote.mcp_server import McpServer
from squadron.actors.remote.synadia_peers import response
from squadron.actors.remote.synadia_remote import SynadiaRemote, peers_on
from squadron.bridge.auth.authority import Authority
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.at_home import as_user, credentials_of
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.packing.code import pack
from squadron.bridge.serve.offers import peers_of
from squadron.runtime.errors import ConfigError, Terminal
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.deployment import Deployment, Scale
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests import mcp_neighbour
from tests.contract.gateway_process import opened_gateway
from tests.contract.test_synadia_agents import answers

#: Whom the tests let in: role, name, and who of other protocols they are or ask.
USERS = (
    ("gateway", "tools", ["mcp:near"]),
    ("gateway", "silent", []),
    ("agent", "mcp_near", ["mcp:near"]),
    ("agent", "analyst", []),
    ("foreign", "pi", ["synadia:pi.acme"]),
    ("agent", "synadia", ["synadia:*.*"]),
    ("agent", "teller", []),
    ("gateway", "web", []),
    ("foreign", "ann", ["prompts:*.squadron-dev"]),
)


class Teller(Agent):
    """Says it again."""

    name = "teller"

    @topic("tell.again")
    async def again(self, text: str) -> str:
        return text

    @topic("tell.behalf")
    async def behalf(self, text: str, ctx: Context) -> str:
        return " ".join(ctx.behalf) or "nobody"


class Home:
    """A home with an authority, and its server."""

    def __init__(self, home: Path) -> None:
        self.path = home
        Authority.create(home, "dev")
        with Authority.open(home) as authority:
            for role, name, peers in USERS:
                authority.add("dev", role, name, peers=peers)
        self._open = contextlib.AsyncExitStack()

    async def join(self, name: str, *, create: bool = False, **more: Any) -> Wiring:
        settings = replace(as_user(Settings.load({}, home=self.path), name), **more)
        wiring = await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=create)
        self._open.push_async_callback(wiring.aclose)
        return wiring

    async def aclose(self) -> None:
        await self._open.aclose()

    def violations(self) -> list[str]:
        """What the server refused."""
        logs = [path.read_text() for path in self.path.glob("**/server.log")]
        assert logs
        lines = [line for log in logs for line in log.splitlines() if " Violation" in line]
        # Its host would also answer who asks after services of any name.
        return [line for line in lines if re.search(r'"\$SRV\.(PING|INFO|STATS)"', line) is None]


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    embedded.stop(tmp_path)


@pytest.fixture
async def home(stopped: Path) -> AsyncIterator[Home]:
    made = Home(stopped)
    await made.join("bridge", create=True)
    yield made
    await made.aclose()


@contextlib.asynccontextmanager
async def tools(home: Home) -> AsyncIterator[None]:
    """The neighbour of the tests, on the bus."""
    there = await home.join("tools")
    async with served_on_bus(there.ports, "near", mcp_neighbour.server._lowlevel_server):
        yield


async def test_an_mcp_server_on_the_bus_is_asked_by_whoever_may(home: Home) -> None:
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with tools(home):
        # An operator looks at it, then an agent works with it: more progress than a server may answer by default.
        operator, agent = await home.join("operator"), await home.join("mcp_near")
        operations, _ = await look_at(McpServer(bus="near"), "mcp_near", operator.ports)
        assert "mcp_near.add" in [each.topic.name for each in operations]
        async with Client(BusTransport(agent.ports, "near"), mode="2026-07-28") as client:
            assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
            await client.call_tool("count", {"to": 40}, progress_callback=hear)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.call_tool("forever", {})
    assert told == [*range(1, 41)]
    assert home.violations() == []


async def test_an_mcp_server_on_the_bus_is_closed_to_all_others(home: Home) -> None:
    async with tools(home):
        analyst = await home.join("analyst")
        with pytest.raises((MCPError, TimeoutError)):
            async with (
                asyncio.timeout(1),
                Client(BusTransport(analyst.ports, "near"), mode="2026-07-28") as client,
            ):
                await client.list_tools()
    assert any("agents.dev.mcp.near" in each for each in home.violations())


@pytest.mark.parametrize("name", ["silent", "operator", "mcp_near"])
async def test_who_may_not_answer_as_a_server_is_told_what_to_do(home: Home, name: str) -> None:
    ports = (await home.join(name)).ports
    with pytest.raises(ConfigError, match=f"{name} may not answer") as refused:
        async with served_on_bus(ports, "near", mcp_neighbour.server._lowlevel_server):
            pass
    assert "--peer mcp:near" in str(refused.value.hint)


async def test_a_synadia_agent_is_found_and_prompted_by_whoever_may(home: Home) -> None:
    endpoint = embedded.ensure(home.path)
    creds = str(credentials_of(home.path, "dev", "pi"))
    connection = await nats.connect(endpoint.url, user_credentials=creds)
    host = AgentService(agent="pi", owner="acme", session_name="main", nc=connection, description="Says it again.")
    host.on_prompt(answers)
    await host.start()
    try:
        operator, ours = await home.join("operator"), await home.join("synadia")
        assert [each.subject for each in await peers_on(operator.ports).now()] == ["agents.prompt.pi.acme.main"]
        peers = peers_on(ours.ports)
        await peers.start()
        assert len(await peers.now()) == 1
        said: list[str] = []
        async for kind, data in peers.prompt("agents.prompt.pi.acme.main", b"count 40"):
            if kind == "response":
                said.append(response(data)[0])
        assert said == [f"{number} " for number in range(40)]
        assert home.violations() == []
        # Where its host would hear an answer all clients of the protocol hear theirs.
        with pytest.raises(Terminal, match="500"):
            async for _ in peers.prompt("agents.prompt.pi.acme.main", b"ask"):
                pass
        await peers.aclose()
    finally:
        await host.stop()
        await connection.close()


async def teller_and_web(home: Home, **more: Any) -> tuple[Host, Wiring]:
    """An agent that serves, and the place of a gateway to it."""
    bridge, spec = await home.join("bridge", **more), AgentSpec.of(Teller)
    patterns = tuple(each.name for each in spec.card().topics)
    await bridge.ports.queue.declare(Mailbox("teller", patterns, bridge.settings.lease_s))
    await bridge.registry.advertise(spec.card())
    host = Host(await home.join("teller", **more), Teller(), spec, slots=1)
    await host.start()
    web = await home.join("web", **more)
    await web.registry.refresh(float("inf"))
    return host, web


async def found(agents: Agents, session: str) -> Any:
    there = await agents.discover(stall=2.0, max_wait=30.0)
    return next(each for each in there if each.session_name == session)


async def test_a_caller_of_the_synadia_agent_protocol_that_signs_is_believed(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, web = await teller_and_web(home, verify="require")
    inbox = "_INBOX.our-agents.ann"
    monkeypatch.setattr(_inbox, "SDK_INBOX_PREFIX", inbox)
    monkeypatch.setattr(_mux, "SDK_INBOX_PREFIX", inbox)
    endpoint, creds = embedded.ensure(home.path), str(credentials_of(home.path, "dev", "ann"))
    connection = await nats.connect(endpoint.url, user_credentials=creds, inbox_prefix=inbox)
    identity = Identity(signer=signer_from_creds_file(creds), name="ann")
    try:
        async with opened_gateway(web, "synadia"):
            agent = await found(Agents(nc=connection, identity=identity), "tell-behalf")
            said = [each.text async for each in agent.prompt("who?") if isinstance(each, ResponseChunk)]
            assert said == ["foreign:ann gateway:web"]
            agent = await found(Agents(nc=connection), "tell-behalf")
            with pytest.raises(SenderSignatureRequiredError):
                async for _ in agent.prompt("who?"):
                    pass
    finally:
        await connection.close()
        await host.stop(0)
    assert home.violations() == []


async def test_a_caller_of_the_synadia_agent_protocol_has_its_own_credential_and_inbox(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, web = await teller_and_web(home)
    inbox = "_INBOX.our-agents.ann"
    # Its official client has no setting for that.
    monkeypatch.setattr(_inbox, "SDK_INBOX_PREFIX", inbox)
    monkeypatch.setattr(_mux, "SDK_INBOX_PREFIX", inbox)
    endpoint, creds = embedded.ensure(home.path), str(credentials_of(home.path, "dev", "ann"))
    connection = await nats.connect(endpoint.url, user_credentials=creds, inbox_prefix=inbox)
    try:
        async with opened_gateway(web, "synadia"):
            agent = await found(Agents(nc=connection), "tell-again")
            said = [each.text async for each in agent.prompt("hello") if isinstance(each, ResponseChunk)]
            assert said == ["hello"]
            assert (await agent.status()).agent == "teller"
    finally:
        await connection.close()
        await host.stop(0)
    assert home.violations() == []


def deployed(agent: type[Any]) -> Deployment:
    bounds = Scale(minimum=1, maximum=1)
    return Deployment(
        card=AgentCard(agent=agent.name, topics=()),
        code=pack(agent)[0].to_dict(),
        slots=1,
        grace_s=1,
        bounds=bounds,
        scale=bounds,
    )


def test_replicas_get_the_rights_that_their_server_needs_and_no_others() -> None:
    near = [Operation("add", SemanticTopic(name="mcp_near.add"))]
    pi = [Operation("agents.prompt.pi.acme.main", SemanticTopic(name="synadia.pi"))]
    for agent, peers in (
        (McpAgent.serving("mcp_near", {"bus": "near"}, near), ("mcp:near",)),
        (McpAgent.serving("mcp_near", {"url": "http://127.0.0.1:9/mcp"}, near), ()),
        (SynadiaRemote.serving("synadia", {}, pi), ("synadia:*.*",)),
        (SynadiaRemote.serving("synadia", {"owner": "acme"}, pi), ("synadia:*.acme",)),
    ):
        assert peers_of(deployed(agent)) == peers


def test_who_can_have_no_peers_is_told(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, "dev")
    for role, peer, match in (
        ("client", "mcp:near", "has no peers"),
        ("agent", "prompts:pi.acme", "prompts nobody"),
        ("gateway", "http:near", "no peer"),
        ("gateway", "near", "no peer"),
    ):
        with pytest.raises(ConfigError, match=match):
            authority.add("dev", role, "somebody", peers=[peer])
