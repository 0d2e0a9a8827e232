"""An environment for the console: a real nats-server, the real bridge, and replicas that run in this process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from squadron import Agent, Context, Settings, Squad, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.control.control import Bridge
from squadron.bridge.host import Host
from squadron.bridge.jetstream.queue import subjects_held
from squadron.bridge.jetstream.stream_configs import StreamNames, Streams
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.wire.deployment import AgentState, Deployment
from squadron.runtime.wire.envelope import AgentIdentity


class Clerk(Agent):
    """Stamps what it is given."""

    min_replicas, max_replicas = 1, 4

    @topic("clerk.stamp", examples=("stamp a letter",), tags=("office",))
    async def stamp(self, ctx: Context, text: str, copies: int = 1, urgent: bool = False) -> str:
        """Stamp a text, so many times."""
        await ctx.emit("inking ")
        return f"{text} stamped {copies} times{', at once' if urgent else ''}"


class Till(Agent):
    """Has no change, until somebody brings some."""

    change = False

    @topic("till.pay", max_attempts=1)
    async def pay(self, amount: int) -> int:
        """Pay an amount."""
        if not Till.change:
            raise ValueError("no change")
        return amount


class Shop(Agent):
    """Asks people before it sells."""

    @topic("shop.order", run_timeout_s=600)
    async def order(self, ctx: Context, colour: str) -> str:
        """Order a shirt."""
        sizes = {"size": {"type": "string", "enum": ["S", "M"]}}
        schema = {"type": "object", "properties": sizes, "required": ["size"]}
        reply = await ctx.ask_person(f"Which size in {colour}?", schema=schema, within_s=300)
        return f"{colour}, size {reply.value}" if reply.accepted else "nothing"


AGENTS: dict[str, type[Agent]] = {AgentSpec.of(each).name: each for each in (Clerk, Till, Shop)}


@dataclass
class HostedReplicas:
    """A cluster in this process: real hosts on real connections, as many as the least of an agent's bounds."""

    settings: Settings
    hosts: dict[str, list[Host]] = field(default_factory=dict)
    #: Generation and version of each agent that runs.
    running: dict[str, tuple[int, str]] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        async with self.lock:
            wanted = {each.agent: each for each in deployments}
            for agent in [*self.hosts]:
                if agent not in wanted:
                    await self._to(agent, 0)
                    del self.hosts[agent]
            for agent, each in wanted.items():
                now = each.generation, each.code["version"]
                if self.running.setdefault(agent, now) != now:
                    self.running[agent] = now
                    await self._to(agent, 0)
                await self._to(agent, each.scale.minimum)

    async def _to(self, agent: str, count: int) -> None:
        hosts = self.hosts.setdefault(agent, [])
        while len(hosts) < count:
            identity = AgentIdentity(id=f"{agent}-{next(self.numbers)}", type=agent)
            place = await Wiring.open(self.settings, identity)
            facts = {"version": self.running[agent][1], "pid": 1, "node": "here"}
            host = Host(place, AGENTS[agent](), AgentSpec.of(AGENTS[agent]), slots=4, facts=facts)
            await host.start()
            hosts.append(host)
        while len(hosts) > count:
            host = hosts.pop()
            await host.stop(5.0)
            await host.place.aclose()

    async def states(self, wanted: Sequence[Deployment]) -> dict[str, AgentState]:
        return {
            each.agent: AgentState(
                status="RUNNING", running=len(self.hosts.get(each.agent, ())), target=each.scale.minimum
            )
            for each in wanted
        }

    async def capacity(self) -> int:
        return 20


@dataclass
class ConsoleWorld:
    """What a test of the console has."""

    squad: Squad
    replicas: HostedReplicas

    def ids(self, agent: str) -> list[str]:
        """The replicas of an agent that run."""
        return [host.id for host in self.replicas.hosts.get(agent, ())]


async def nodes() -> dict[str, Any]:
    """As Ray would tell of this machine."""
    has, free = {"CPU": 2.0, "memory": 8e9}, {"CPU": 1.0, "memory": 6e9}
    told = {"name": "here", "address": "127.0.0.1", "alive": True, "head": True, "has": has, "free": free}
    return {"nodes": [{"id": "n1", **told, "bridge": True, "replicas": {"clerk": 1}}]}


@contextlib.asynccontextmanager
async def console_world(settings: Settings, *agents: type[Agent]) -> AsyncIterator[ConsoleWorld]:
    """All of it, with these agents deployed."""
    wiring = await Wiring.open(settings, AgentIdentity(id="bridge-1", type="bridge"), create=True)
    names, replicas = StreamNames(settings.env), HostedReplicas(settings)
    held = functools.partial(subjects_held, wiring.connection, names.tasks, [f"agents.{names.environment}.task.>"])
    streams = Streams(wiring.connection, names)
    bridge = Bridge(
        wiring.ports, wiring.registry, wiring.records, replicas, held, streams.keep, {}, lease_s=settings.lease_s,
        more={"nodes": nodes},
    )  # fmt: skip
    await bridge.start()
    try:
        async with Squad.connect(settings) as squad:
            for each in agents or AGENTS.values():
                deployment = await squad._pack(AgentSpec.of(each))
                await squad._control.call("deploy", deployments=[deployment.model_dump(mode="json")])
            async with asyncio.timeout(120):
                while len(squad.topics()) < len(agents or AGENTS):
                    await asyncio.sleep(0.05)
            yield ConsoleWorld(squad, replicas)
    finally:
        await bridge.aclose()
        await replicas.apply([])
        await wiring.aclose()
