"""One process's place on the bus, over whichever ports: what asks from there, and what it knows of the others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable
from functools import cached_property
from typing import TYPE_CHECKING

from squadron.bridge.otel.exporters import traces_of
from squadron.bridge.trusting import Trusting
from squadron.config import Settings
from squadron.runtime.asking.caller import Caller
from squadron.runtime.background import spawn
from squadron.runtime.errors import SquadronError
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.ports.journal import Journal
from squadron.runtime.registry.registry import Registry
from squadron.runtime.store.port_set import Ports
from squadron.runtime.telemetry.observer import load_observer

if TYPE_CHECKING:
    from squadron.runtime.store.dead_letters import DeadLetters
    from squadron.runtime.trust.guard import Refusal
    from squadron.runtime.trust.signer import Signer


class Place:
    """All that clients, replicas and the bridge have in common; `records` is the journal of the registry."""

    def __init__(
        self,
        ports: Ports,
        records: Journal,
        settings: Settings,
        trusting: Trusting = Trusting(),  # noqa: B008  # a value
    ) -> None:
        self._trusting = trusting
        self.ports, self.records, self.settings = ports, records, settings
        self.registry = Registry(
            records,
            ports.bus,
            ports.subjects,
            ports.clock,
            heartbeat_s=settings.heartbeat_s,
            guard=ports.guard,
        )
        lite_topics = LiteTopics(ports, per_owner=settings.lite_topics_per_owner, in_all=settings.lite_topics)
        self.caller = Caller(ports, self.registry, lite_topics)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """What could not be done; who asks needs none of it."""
        from squadron.runtime.store.dead_letters import DeadLetters

        return DeadLetters(self.ports)

    @property
    def signer(self) -> Signer | None:
        """What this process signs with; None if it signs nothing."""
        return self._trusting.signer

    async def start(self) -> None:
        """Be ready to ask.

        Raises:
            ConfigError: one of the observers that are set can't be made.
            BusUnavailableError: the server can't be reached.
        """
        for path in filter(None, map(str.strip, self.settings.observers.split(","))):
            self.ports.observers.add(load_observer(path))
        if (traces := traces_of(self.ports.identity, self.settings.env)) is not None:
            self.ports.observers.add(traces)
        if self.ports.guard is not None:
            self.ports.guard.on_refusal(self._tell_refusal)
        # First: nobody believes what we say before.
        await self._trusting.publish_key(self.records, self.ports.subjects, self.ports.clock.time())
        await self.registry.start()
        await self.caller.start()

    async def renewed(self) -> None:
        """Let others look up credentials that were made anew: of the same key, and good for longer.

        Raises:
            BusUnavailableError: not acknowledged in time.
        """
        self._trusting = Trusting.of(self.settings, self.ports.clock.time)
        await self._trusting.publish_key(self.records, self.ports.subjects, self.ports.clock.time())

    def _tell_refusal(self, refusal: Refusal) -> None:
        from squadron.runtime.telemetry.happenings import Distrusted

        about = {"kind": refusal.kind, "subject": refusal.subject, "reason": refusal.reason}
        self.ports.observers.tell(Distrusted(**about, taken=refusal.taken))
        if refusal.loud:
            me = self.ports.identity.id
            said = {"verb": "distrust", "on": refusal.subject, "by": me, "through": me}
            details = {**about, "taken": refusal.taken}
            filing = self.ports.file_action("distrust", json.dumps(said | {"details": details}).encode())
            spawn(_filed(filing), "files what was distrusted")

    async def disconnect(self) -> None:
        """Give up the connection, if there is one. May be called twice."""

    async def aclose(self) -> None:
        """Leave the bus. May be called twice."""
        async with contextlib.AsyncExitStack() as rest:
            # What comes later is done whatever happens before.
            rest.push_async_callback(self.disconnect)
            rest.push_async_callback(self.ports.observers.aclose)
            rest.push_async_callback(self.registry.aclose)
            await self.caller.aclose()


async def _filed(filing: Awaitable[None]) -> None:
    # It is logged as well.
    with contextlib.suppress(SquadronError):
        await filing
