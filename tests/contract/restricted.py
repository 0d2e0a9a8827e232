"""A server with the two accounts, on which each process has the least that its role needs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from squadron.actors.agent import Agent, AgentSpec
from squadron.bridge.auth.roles import API_PREFIX, Role, inbox_prefix, rights
from squadron.bridge.auth.server_conf import Login, accounts
from squadron.bridge.jetstream.link.at_home import OF_ALL
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.seal_rings import AgentRings
from squadron.config import Settings
from squadron.runtime.errors import BridgeUnavailableError, BusUnavailableError, ConfigError, SquadronError
from squadron.runtime.store.seals import LoadRing
from squadron.runtime.trust.sealing import KeyRing
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.own_server import OwnServer

#: The same for all of them: it is a server of a test.
PASSWORD = "of a test"


class RestrictedServer:
    """One nats-server of one environment, whose users come as they are asked for."""

    def __init__(self, folder: Path, environment: str, **settings: Any) -> None:
        self._logins: dict[str, Login] = {}
        self._environment, self._settings, self.folder = environment, settings, folder
        self.server = OwnServer(folder)
        # So that it is seldom told of others: while it reads them anew, calls of the others may be lost.
        self.admit("bridge", "bridge")
        self.admit("client", "client")
        self.admit("operator", "operator")
        # At once: a process that has run many tests has thousands of agents.
        for name, how in _written().items():
            self._know("agent", name, **how)
        self._tell()

    def admit(self, role: Role, name: str, **more: Any) -> bool:
        """Have such a user; whether it is new."""
        if role == "agent" and "serves" not in more:
            more = _written(name).get(name, {"serves": ["*.*"]}) | more
        is_new = self._know(role, name, **more)
        self._tell()
        return is_new

    def _know(self, role: Role, name: str, **more: Any) -> bool:
        login = Login(name, rights(role, name, self._environment, **more), PASSWORD)
        known, self._logins[name] = self._logins.get(name), login
        return known != login

    def _tell(self) -> None:
        # As the embedded server has it.
        self.server.extra = f"max_payload: 8MB\n{accounts(self._logins.values())}"

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    def settings(self, role: Role, name: str, **more: Any) -> Settings:
        """Those of a process of this role and name; the server knows it when it is reached with them.

        Args:
            more: as `rights` takes it.
        """
        if self.admit(role, name, **more):
            self.server.reload()
        own = {"nats_api_prefix": API_PREFIX, "nats_inbox_prefix": inbox_prefix(name)}
        if role in ("bridge", "agent"):
            own = {"nats_own": OF_ALL} if role == "bridge" else {**own, "nats_own": name}
        login = {"nats_url": self.server.url, "nats_user": name, "nats_password": PASSWORD}
        # By default not the home of who runs the tests.
        general = {"home": self.folder, **self._settings}
        return Settings(env=self._environment, **login, **own, **general)  # type: ignore[arg-type]

    async def open(self, role: Role, name: str, *, id: str = "", **more: Any) -> Wiring:
        """A place on the bus with the rights of this role."""
        settings = self.settings(role, name, **more)
        identity = AgentIdentity(id=id or name, type="test")
        give_up_at = time.monotonic() + 10
        while True:
            try:
                ring = self.ring(name) if role == "agent" else None
                return await Wiring.open(settings, identity, create=role == "bridge", ring=ring)
            except (ConfigError, BusUnavailableError, BridgeUnavailableError):
                # The server has not read its new users yet, or is about to.
                assert time.monotonic() < give_up_at
                await asyncio.sleep(0.01)

    def ring(self, agent: str) -> LoadRing:
        """Loads the keys of an agent."""
        rings = AgentRings(self.settings("bridge", "bridge"))

        async def load() -> KeyRing:
            return rings.ring(agent)

        return load

    def violations(self) -> list[str]:
        """What the server refused so far."""
        log = (self.folder / "nats.log").read_text()
        return [line.partition("] ")[2] for line in log.splitlines() if " Violation" in line]


def _written(name: str = "") -> dict[str, dict[str, Any]]:
    """What the rights of each agent that is written so far follow from, or of one: several classes may be of one
    name."""
    served: dict[str, dict[str, None]] = {}
    ordered: set[str] = set()
    for spec in _agents(Agent):
        if name in ("", spec.name):
            served.setdefault(spec.name, {}).update((topic.name, None) for topic in spec.card().topics)
            ordered |= {spec.name} if spec.agent_class.ordered_by else set()
    return {agent: {"serves": [*topics], "ordered": agent in ordered} for agent, topics in served.items()}


def _agents(base: type[Agent]) -> Iterator[AgentSpec]:
    """All agents that are written so far."""
    for each in base.__subclasses__():
        # Some are written to be refused.
        with contextlib.suppress(SquadronError):
            if each.__module__.startswith("tests."):
                yield AgentSpec.of(each)
        yield from _agents(each)
