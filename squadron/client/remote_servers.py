"""The part of a squad that has servers of other protocols as agents."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from squadron.client.deploying import DEPLOY_WITHIN_S, Fleet
from squadron.runtime.errors import InvalidAgentError, InvalidInputError

if TYPE_CHECKING:
    from squadron.runtime.wire.deployment import Deployment


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """One server that an agent stands for.

    Attributes:
        kind: the class of its agent, as "McpAgent".
        server: how it is reached; what is secret stands there by the place where it is.
        topics: its operations.
    """

    agent: str
    kind: str
    server: Mapping[str, Any]
    topics: tuple[str, ...]

    @classmethod
    def of(cls, deployment: Deployment) -> RemoteServer | None:
        """That of a deployment; None if it stands for no server."""
        from squadron.bridge.packing.code import Code, unpack

        code = Code(**deployment.code)
        if not code.made_of:
            return None
        agent: Any = unpack(code, b"")
        return cls(deployment.agent, code.import_path.rpartition(":")[2], agent.server, deployment.patterns)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "agent": self.agent,
            "kind": self.kind,
            "server": dict(self.server),
            "topics": list(self.topics),
        }


class RemoteServers(Fleet):
    """Servers elsewhere as topics."""

    async def mcp(
        self,
        name: str,
        *,
        command: str | Sequence[str] = (),
        url: str = "",
        bus: str = "",
        env: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        oauth: Mapping[str, str] | None = None,
        cwd: str = "",
        within_s: float = DEPLOY_WITHIN_S,
        on_progress: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> list[str]:
        """Have the tools of an MCP server as topics `mcp_NAME.TOOL`; returns these. Again, it replaces what was.

        The server is looked at from here first, and then spoken to by each replica of the agent `mcp_NAME`.
        `undeploy` it to have them gone.

        Args:
            name: how the server is called here.
            command: what starts it, a program and its arguments; it is spoken to on its standard streams.
            url: where it listens, for one that speaks HTTP.
            bus: under which name it is asked over NATS.
            env, headers: for the command, or for requests. A secret is given by its place: `${NAME}`, `env:NAME`,
                `file:PATH`; it is looked up by each process that speaks to the server, and stands nowhere else.
            oauth: how access tokens for the URL are got, by client credentials: `issuer`, `client_id`, the place
                of the `client_secret`, and a `scope` if there is one; that of a person's `refresh_token`, too.
            cwd: the folder in which the command is started.
            within_s: how long to wait for its replicas, in seconds.
            on_progress: called with the agent's status while waiting.

        Raises:
            InvalidInputError: something of it is wrong; `field` says what.
            ConfigError: a secret is not to be had here, or the extra `mcp` is not installed.
            ServerUnavailableError: it can't be reached from here, or does not speak MCP.
            InvalidAgentError: it has no tools.
            RouteConflictError, DeployError: as `deploy`.
        """
        from squadron.actors.remote.mcp_agent import McpAgent, look_at
        from squadron.actors.remote.mcp_server import McpServer, agent_of

        words = [command] if isinstance(command, str) else [*command]
        given = {"command": words[0] if words else "", "args": words[1:], "url": url, "bus": bus, "cwd": cwd}
        more = {"env": dict(env or {}), "headers": dict(headers or {})} | ({"oauth": dict(oauth)} if oauth else {})
        server = McpServer.of(given | more)
        agent = agent_of(name)
        operations, said = await look_at(server, agent, self._wiring.ports)
        description = said or f"The MCP server {name}."
        made = McpAgent.serving(agent, server.to_dict(), operations, description=description)
        await self.deploy(made, within_s=within_s, on_progress=on_progress)
        return [each.topic.name for each in operations]

    @contextlib.asynccontextmanager
    async def serve_mcp(self, server_id: str, server: Any) -> AsyncIterator[None]:
        """Have an MCP server of this process answer on the bus as long as this is entered; see `mcp(bus=…)`.

        Args:
            server: an `MCPServer`, or a low-level `Server`, of the SDK.

        Raises:
            ConfigError: the extra `mcp` is not installed, or the credentials of this process say nothing of this
                server; the hint says how to have some.
            InvalidSubjectError: the id is no token.
        """
        from squadron.actors.remote.mcp_agent import check_installed

        check_installed()
        from squadron.actors.remote.mcp_bus import served_on_bus

        # The SDK's high-level server has its low-level one under this name alone.
        async with served_on_bus(self._wiring.ports, server_id, getattr(server, "_lowlevel_server", server)):
            yield

    async def a2a(
        self,
        url: str,
        *,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        keys: Mapping[str, Any] | None = None,
        within_s: float = DEPLOY_WITHIN_S,
        on_progress: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> list[str]:
        """Have the skills of an A2A agent as topics `a2a_NAME.SKILL`; returns these. Again, it replaces what was.

        Its card is looked at from here first; then the replicas of the agent `a2a_NAME` speak to it, and look at
        the card each minute. `undeploy` it to have them gone.

        Args:
            url: of the agent, below which its card is; or of the card.
            name: how it is called here; by default as its card has it.
            headers: of each request. A secret is given by its place: `${NAME}`, `env:NAME`, `file:PATH`; it is
                looked up by each process that speaks to the agent, and stands nowhere else.
            keys: that the card has to be signed by, as a JSON Web Key Set.
            within_s: how long to wait for its replicas, in seconds.
            on_progress: called with the agent's status while waiting.

        Raises:
            InvalidInputError: something of it is wrong; `field` says what.
            ConfigError: a secret is not to be had here, the extra `a2a` is not installed, or nothing of the card
                is spoken here.
            UntrustedError: the card is not signed by one of the keys.
            ServerUnavailableError: it can't be reached from here, or does not speak A2A.
            InvalidAgentError: it has no skills.
            RouteConflictError, DeployError: as `deploy`.
        """
        from squadron.actors.remote.a2a_agent import A2aAgent, look_at_card, skills_of
        from squadron.actors.remote.a2a_server import A2aServer, agent_for, name_from
        from squadron.actors.remote.foreign_schemas import foreign_words

        server = A2aServer.of({"url": url, "headers": dict(headers or {}), "keys": dict(keys or {})})
        if name:
            agent_for(name)
        card = await look_at_card(server)
        agent = agent_for(name or name_from(card.name))
        operations = skills_of(card, agent)
        description = foreign_words(card.description) or f"The A2A agent {agent}."
        made = A2aAgent.serving(agent, server.to_dict(), operations, description=description)
        await self.deploy(made, within_s=within_s, on_progress=on_progress)
        return [each.topic.name for each in operations]

    async def remote_servers(self) -> list[RemoteServer]:
        """The servers that agents stand for, by the names of these."""
        found = map(RemoteServer.of, (await self._declared_now()).values())
        return sorted((each for each in found if each is not None), key=lambda each: each.agent)

    async def remote_server(self, agent: str) -> RemoteServer:
        """That of one agent.

        Raises:
            InvalidInputError: it stands for none.
        """
        servers = {each.agent: each for each in await self.remote_servers()}
        if agent not in servers:
            raise InvalidInputError(
                f"no server {agent!r} was added", hint=f"there are {', '.join(servers) or 'none'}"
            )
        return servers[agent]

    async def synadia(
        self,
        name: str = "synadia",
        *,
        agent: str = "",
        owner: str = "",
        within_s: float = DEPLOY_WITHIN_S,
        on_progress: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> list[str]:
        """Have agents of the Synadia Agent Protocol on the same NATS as topics `NAME.AGENT-OWNER-SESSION`.

        Returns those that are there now. Who comes later is a topic as well, and who leaves is none any more.
        `undeploy` it to have them gone.

        Args:
            name: of the agent that stands for them here, and the domain of its topics.
            agent, owner: only agents of this kind, or of this owner.
            within_s: how long to wait for its replicas, in seconds.
            on_progress: called with the agent's status while waiting.

        Raises:
            InvalidAgentError: nobody is there.
            RouteConflictError, DeployError: as `deploy`.
        """
        from squadron.actors.remote.synadia_remote import SynadiaRemote, operations_of, peers_on

        server = {key: value for key, value in (("agent", agent), ("owner", owner)) if value}
        found = operations_of(await peers_on(self._wiring.ports, **server).now(), name)
        if not found:
            hint = "start one of them first; `nats req '$SRV.PING.agents' ''` tells who is there"
            raise InvalidAgentError("no agent of the Synadia Agent Protocol answers on this NATS", hint=hint)
        made = SynadiaRemote.serving(name, server, found, description="Agents of the Synadia Agent Protocol.")
        await self.deploy(made, within_s=within_s, on_progress=on_progress)
        return [each.topic.name for each in found]
