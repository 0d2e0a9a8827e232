"""A replica of a canary in a process of its own, which is killed in the middle of its tasks."""

from __future__ import annotations

import asyncio
import sys

from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.wire.envelope import AgentIdentity


class Press(Agent):
    """Prints a page, which takes its time."""

    name = "press"

    @topic("press.print", max_attempts=8)
    async def print_page(self, page: int) -> int:
        """Print a page."""
        await asyncio.sleep(0.05)
        return page


async def main(id: str) -> None:
    """Serve until killed."""
    place = await Wiring.open(Settings.load(), AgentIdentity(id=id, type="press"))
    host = Host(place, Press(), AgentSpec.of(Press), slots=4, canary=True, facts={"version": "new"})
    await host.start()
    print("ready", flush=True)  # noqa: T201 - what the test waits for
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
