"""One process's place on the bus, as a value: who it is, and every role that it needs from the outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

from squadron.runtime.ports.bus import UnreliableBus
from squadron.runtime.ports.events import EventLog
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.lite_journal import LiteJournal
from squadron.runtime.ports.queue import Queue
from squadron.runtime.store.claims import Claims
from squadron.runtime.telemetry.observer import Observers
from squadron.runtime.texts import encoded
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.principals import Principal
from squadron.runtime.trust.sealing import Box, SealKey
from squadron.runtime.wire.envelope import AgentIdentity, Head, MessageType, lay_out
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.policy import NO_POLICY, Policy
from squadron.runtime.wire.subjects import Subjects


async def unrecorded(_verb: str, _data: bytes) -> None:
    """Nobody keeps a record of what operators do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What everything that runs or asks is given.

    `lite` holds lite topics, `dead` the dead letters, `own` what an agent keeps for itself, `runs` the logs of
    runs; `own_is_apart` says that nobody else may write to these two; `observers` hear what happens.
    `file_action` stores what an operator does for the audit trail, if there is one: verb and JSON. `guard` checks
    who said what comes, if anything is checked; `principal` is who this process signs as, if it does; `policy`
    says who may ask what, beside what cards say.
    """

    identity: AgentIdentity
    subjects: Subjects
    clock: Clock
    bus: UnreliableBus
    queue: Queue
    events: EventLog
    lite: LiteJournal
    dead: Journal
    own: Journal
    runs: Journal
    own_is_apart: bool = False
    claims: Claims
    observers: Observers = field(default_factory=Observers)
    file_action: Callable[[str, bytes], Awaitable[None]] = unrecorded
    guard: Guard | None = None
    principal: Principal | None = None
    policy: Policy = NO_POLICY

    def pack(self, type: MessageType, payload: dict[str, Any], **head: Unpack[Head]) -> bytes:
        """A message of this process, by its clock; see `wire.envelope.lay_out`."""
        head.setdefault("timestamp", self.clock.time())
        return encoded(lay_out(type, self.identity, payload, **head))

    async def pack_for(
        self,
        readers: Sequence[SealKey],
        place: str,
        type: MessageType,
        payload: dict[str, Any],
        *,
        keep_s: float,
        box: Box | None = None,
        **head: Unpack[Head],
    ) -> bytes:
        """A message of this process as it can travel: sealed if there are readers, a large payload in the vault.

        Args:
            place, box: see `Claims.seal_for`.
            keep_s: how long a payload in the vault is kept, in seconds.

        Raises:
            MessageTooLargeError, BusUnavailableError, ConfigError: see `Claims.seal_for`.
            pydantic_core.PydanticSerializationError: something in it is not JSON.
        """
        if not readers:
            return await self.claims.seal(self.pack(type, payload, **head), keep_s=keep_s)
        head.setdefault("timestamp", self.clock.time())
        head["sensitive"] = True
        wire = lay_out(type, self.identity, payload, **head)
        return await self.claims.seal_for(readers, wire, place, keep_s=keep_s, box=box)
