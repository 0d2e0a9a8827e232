"""What replicas tell of themselves, where each may speak of its own agent alone.

A list of permissions looks at subjects, and who is told of stands in the body of a status event. So there replicas
tell on a subject that names their agent, and whoever keeps the environment tells it on to everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, InvalidMessageError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.may_say import only_agent
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import ROOT

#: The events `status.…` that replicas tell of themselves, and with what the bridge tells of the server, all.
OWN_STATUS = ("online", "heartbeat", "offline")
STATUS = (*OWN_STATUS, "store_lost")
#: What may wait to be told on. Of thousands of replicas 500 tell something each second; this many are 2 MB.
MOST_WAITING = 1_000


def own_status(environment: str, agent: str, event: str) -> str:
    """Where the replicas of an agent tell something of themselves, to have it told on."""
    return f"{ROOT}.{environment}.status.{agent}.{event}"


class StatusRelay:
    """Tells on what replicas tell of themselves; `start` it."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._waiting = asyncio.Queue[tuple[str, Any]](MOST_WAITING)
        self._ear: Subscription | None = None
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to hear replicas; of several relays one tells each on."""
        self._telling = spawn(self._tell(), "tells status on", lasting=True)
        pattern = own_status(self._ports.subjects.environment, "*", "*")
        self._ear = await self._ports.bus.subscribe(pattern, self._hear, group="status")

    def _hear(self, note: Note) -> None:
        agent, event = note.subject.split(".")[3:5]
        guard = self._ports.guard
        if guard is None:
            return self._take(agent, event, note.data)
        said = note.subject, note.data, note.headers
        guard.hear("event", *said, lambda _: self._take(agent, event, note.data), at=None, may=only_agent(agent))

    def _take(self, agent: str, event: str, data: bytes) -> None:
        try:
            content: Any = AgentMessage.decode(data).payload.content
            fits = event in OWN_STATUS and (content["agent"], content["event"]) == (agent, f"agent_{event}")
        except (InvalidMessageError, LookupError, TypeError):
            return
        if fits:
            # Who floods it is not told on; the next heartbeat tells the same.
            with contextlib.suppress(asyncio.QueueFull):
                self._waiting.put_nowait((event, content))

    async def _tell(self) -> None:
        while True:
            event, content = await self._waiting.get()
            told = self._ports.pack("event", {"content": content}, conversation_id="system")
            with contextlib.suppress(BusUnavailableError):
                await self._ports.bus.publish(self._ports.subjects.event(f"status.{event}"), told)

    async def aclose(self) -> None:
        """Stop. May be called twice."""
        ear, self._ear = self._ear, None
        if ear is not None:
            await ear.aclose()
        if self._telling is not None:
            self._telling.cancel()
