"""One replica in a process of its own, which is killed: it bids with confidence, and dies of its first task."""

from __future__ import annotations

import asyncio
import os
import signal

from squadron import Agent, Bid, Settings, bid, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.wire.envelope import AgentIdentity


class Victim(Agent):
    """Dies in the middle."""

    @topic("tie.victim")
    async def tie(self, text: str) -> str:
        """Never returns."""
        os.kill(os.getpid(), signal.SIGKILL)
        return text

    @bid
    async def offer(self) -> Bid:
        """Full of confidence."""
        return Bid(confidence=1)


async def main() -> None:
    """Serve until killed."""
    place = await Wiring.open(Settings.load(), AgentIdentity(id="victim-1", type="victim"))
    spec = AgentSpec.of(Victim)
    host = Host(place, Victim(), spec, slots=1)
    await place.ports.queue.declare(host.mailbox)
    await place.registry.advertise(spec.card())
    await host.start()
    print("ready", flush=True)  # noqa: T201 - what the test waits for
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
