"""The bridge as a Ray actor: one per environment, named, detached, restarted for ever.

Who gets a handle of it imports this, as each replica does, and none of what the bridge is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import ray

from squadron.runtime.asking.options import AskOptions

if TYPE_CHECKING:
    from squadron.bridge.serve.login import Enrolled
    from squadron.config import Settings
    from squadron.runtime.asking.options import AskKeywords
    from squadron.runtime.wire.outcome import Outcome


@ray.remote
class BridgeActor:
    """Maps subjects to mailboxes, and gives Ray-native code the bus.

    Get it with `ray.get_actor("squadron-bridge-ENV", namespace="squadron")`.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, settings: Settings, dashboard_url: str
    ) -> None:
        from squadron.bridge.serve.bridge_process import BridgeProcess

        self._process = BridgeProcess()
        await self._process.begin(settings, dashboard_url)

    async def admit(self, agent: str, user: str, groups: Sequence[str]) -> Enrolled:
        """For replicas: what they connect with; see `BridgeProcess.admit`."""
        return await self._process.admit(agent, user, groups)

    async def hand_ring(self, agent: str, to: str) -> dict[str, Any]:
        """For replicas: the key ring of their agent, sealed for a public key of theirs."""
        return await self._process.hand_ring(agent, to)

    async def tell_seat(self, agent: str, version: str, fault: str, process: str) -> None:
        """For processes of groups: an agent could not start there; with no fault, it did."""
        self._process.replicas.seat_faults.tell(agent, version, fault, process)

    async def ping(self) -> dict[str, Any]:
        """Who answers."""
        return await self._process.bridge.ping()

    async def figures(self, seen: str) -> tuple[str, dict[str, dict[str, int | None]]]:
        """For the autoscaler: tasks held per agent, and its pinned number, once they are others than `seen`."""
        return await self._process.bridge.figures.after(seen)

    async def backlogs(self) -> dict[str, dict[str, int | None]]:
        """As `figures`, now: for a controller that has loaded an older release."""
        return self._process.bridge.backlogs()

    async def bind(
        self, pattern: str, target: Any, method: str, *, slots: int = 32, description: str = ""
    ) -> None:
        """Serve a topic or family with a method of any Ray actor or Serve handle.

        The method is called with the message's content: an object's fields as keyword arguments, anything
        else as the one argument. At most `slots` calls are under way at once.

        Raises:
            RouteConflictError: somebody serves an overlapping pattern.
            InvalidSubjectError: the pattern breaks the grammar.
        """
        await self._process.bindings.bind(pattern, target, method, slots=slots, description=description)

    async def unbind(self, pattern: str) -> None:
        """Take a binding away; what waits in its mailbox stays.

        Raises:
            ConfigError: there is no such binding.
        """
        await self._process.bindings.unbind(pattern)

    async def routes(self) -> list[dict[str, Any]]:
        """The map: each pattern, the mailbox it leads to, and what kind of target that is."""
        agents = [
            {"pattern": topic.name, "mailbox": card.agent, "kind": "agent"}
            for card in self._process.wiring.registry.cards()
            for topic in card.topics
        ]
        bound = self._process.bindings.routes()
        taken = {route["pattern"] for route in bound}
        return [route for route in agents if route["pattern"] not in taken] + bound

    async def ask(self, topic: str, content: Any = None, **options: Unpack[AskKeywords]) -> Outcome:
        """For Ray tasks and actors without a connection of their own: ask and wait for the outcome."""
        return await self._process.wiring.caller.ask(topic, content, AskOptions.of(options))

    async def publish(self, topic: str, content: Any) -> None:
        """For Ray tasks and actors: send an event."""
        await self._process.wiring.caller.sender.publish(topic, content)

    async def append(self, owner: str, id: str, data: bytes, *, ttl_s: float = 3600.0) -> int:
        """For Ray tasks and actors: append to a lite topic; returns the sequence."""
        ports = self._process.wiring.ports
        return await ports.lite.append(ports.subjects.lite(owner, id), data, ttl_s=ttl_s)

    async def read(self, owner: str, id: str, *, from_seq: int = 1) -> list[tuple[int, bytes]]:
        """For Ray tasks and actors: what a lite topic holds, as (sequence, bytes)."""
        ports = self._process.wiring.ports
        key = ports.subjects.lite(owner, id)
        return [(entry.seq, entry.data) async for entry in ports.lite.read(key, from_seq=from_seq)]
