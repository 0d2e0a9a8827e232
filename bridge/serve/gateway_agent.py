"""A gateway as an agent: replicas that Serve heals share one port, and any of them answers any request."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from squadron.actors.operations import Operation
from squadron.actors.remote.remote_agent import RemoteAgent
from squadron.bridge.gateways.doors import gateway_app, load_door
from squadron.bridge.gateways.fronting import GatewayOptions, gateway_in
from squadron.bridge.gateways.http_server import HttpServer
from squadron.bridge.jetstream.link.at_home import with_credentials
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.background import spawn
from squadron.runtime.errors import ConfigError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.envelope import AgentIdentity

#: What it is called, and the domain of its only topic.
GATEWAY = "gateway"


class GatewayAgent(RemoteAgent):
    """Opens doors for clients of other protocols; its topic tells where."""

    grace_s: ClassVar[float] = 8.0
    #: That of the replica, there before `on_start`.
    place: Wiring

    @classmethod
    def opening(cls, options: GatewayOptions, replicas: int) -> type[GatewayAgent]:
        """The agent of one gateway.

        Args:
            replicas: how many run; they share the port on each machine.

        Raises:
            ConfigError: none of its doors listens, or its port is any.
        """
        if not options.needs_http or options.port == 0:
            what = "replicas share the port of a door that listens"
            raise ConfigError(what, hint="name a door, --mcp or --a2a, and a --port")
        described = f"Serves {' and '.join(options.doors)} at {options.url}."
        operation = Operation("doors", cls.topic_for(GATEWAY, "doors", description="Tell where the gateway is."))
        # Sessions are one process's; others would not know them.
        told = options.model_copy(update={"stateless": replicas > 1}).model_dump(mode="json")
        made = cls.serving(GATEWAY, told, [operation], description=described)
        made.min_replicas = made.max_replicas = replicas
        return made

    async def operations_now(self) -> Sequence[Operation]:
        """They never change."""
        return self.current()

    async def perform(self, operation: Operation, content: dict[str, Any], ctx: TurnContext) -> Any:
        """Tell where it is, and which replica answers."""
        options = GatewayOptions.of(self.server)
        return {"url": options.url, "doors": list(options.doors), "pid": os.getpid()}

    async def on_start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address can't be had, or an option is wrong.
        """
        self._leave = asyncio.Event()
        listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Doors are left by the task that entered them.
        self._serving = spawn(self._serve(listening), "gateway", lasting=True)
        await listening

    async def _serve(self, listening: asyncio.Future[None]) -> None:
        try:
            options = GatewayOptions.of(self.server)
            options.check(self.place.settings)
            openers = [load_door(name) for name in options.doors]
            async with AsyncExitStack() as rest:
                place = self.place
                if options.credentials:
                    place = await _as_gateway(place.settings, Path(options.credentials))
                    rest.push_async_callback(place.aclose)
                front, doors = await rest.enter_async_context(options.running(place, openers))
                connection = place.connection
                app = gateway_app(doors, front, lambda: connection.is_connected and not self._leave.is_set())
                server = HttpServer(app, options.host, options.port, front.leaving, shared=True)
                await rest.enter_async_context(server)
                listening.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if listening.done():
                raise
            listening.set_exception(error)

    async def on_stop(self) -> None:
        """Take no more requests, and let those under way end."""
        self._leave.set()
        await self._serving


async def _as_gateway(settings: Settings, file: Path) -> Wiring:
    """A connection with the rights of a gateway, for a replica has those of an agent.

    Raises:
        ConfigError: the file is not there on this machine, or no credentials of a gateway.
    """
    name = await asyncio.to_thread(gateway_in, file, settings)
    own = replace(with_credentials(settings, file, name), nats_own="")
    return await Wiring.open(own, AgentIdentity(id=f"{name}-{uuid.uuid4().hex[:8]}", type="gateway"))
