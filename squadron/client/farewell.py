"""What is left to say once an environment was stopped on a NATS server that goes on."""

from __future__ import annotations

import contextlib

from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.jetstream.link.at_home import as_user
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.errors import SquadronError
from squadron.runtime.registry.registry import STAND_IN
from squadron.runtime.wire.envelope import AgentIdentity


async def tell_gone(settings: Settings) -> None:
    """After the bridge was stopped: take its agents out of who is alive, so that nobody waits for it.

    Otherwise their last signs of life would count for some heartbeats, as after a crash. Where that can't be told
    they do.
    """
    with contextlib.suppress(SquadronError):
        wiring = await Wiring.open(as_user(settings, "bridge"), AgentIdentity(id="down", type="client"))
        try:
            ports, registry = wiring.ports, wiring.registry
            if await Control(ports.bus, ports.subjects, ports.guard).bridge() is not None:
                return
            for entry in await wiring.records.latest(ports.subjects.registry("deployment")):
                agent = entry.key.rpartition(".")[2]
                for replica in (*registry.replicas(agent), STAND_IN) if entry.data else ():
                    await registry.depart(agent, replica)
        finally:
            await wiring.aclose()
