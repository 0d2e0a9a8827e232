"""One replica in a process of its own, whose first attempt at a task is its death."""

from __future__ import annotations

import asyncio
import os
import signal

from squadron import Agent, Context, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.wire.envelope import AgentIdentity


class Frail(Agent):
    """Works, unless it is to die."""

    @topic("frail.work", max_attempts=3)
    async def work(self, ctx: Context, text: str) -> str:
        """Give it back, or die of it."""
        if os.environ.get("FRAIL"):
            os.kill(os.getpid(), signal.SIGKILL)
        ctx.charge(tokens=7)
        return text


async def main() -> None:
    """Serve until killed."""
    name = f"frail-{os.environ['FRAIL']}"
    place = await Wiring.open(Settings.load(), AgentIdentity(id=name, type="frail"))
    spec = AgentSpec.of(Frail)
    host = Host(place, Frail(), spec, slots=1)
    await place.ports.queue.declare(host.mailbox)
    await place.registry.advertise(spec.card())
    await host.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
