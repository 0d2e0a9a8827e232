"""What tests of the audit trail share: an environment that is audited, and its archivist."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from squadron.bridge.audit.anchors import Seal
from squadron.bridge.audit.archivist import Archivist
from squadron.bridge.audit.history import AuditTrail
from squadron.bridge.audit.records import RecordMaker
from squadron.bridge.audit.redaction import Redaction
from squadron.bridge.jetstream.audit_streams import AuditPolicy, set_policy
from squadron.bridge.jetstream.intake import Intake
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.wire.envelope import AgentIdentity


def trail_of(wiring: Wiring) -> AuditTrail:
    """The trail, read over this place's connection."""
    return AuditTrail(wiring.connection, StreamNames(wiring.settings.env), wiring.settings.home)


async def audited(wiring: Wiring, mode: Any, **policy: Any) -> AuditTrail:
    """Switch the audit of the environment; returns its trail."""
    await set_policy(wiring.connection, StreamNames(wiring.settings.env), AuditPolicy(mode, **policy))
    return trail_of(wiring)


@contextlib.asynccontextmanager
async def archiving(
    settings: Settings, *, rules: str = "", anchor_s: float = 0.2, intake: type[Intake] = Intake
) -> AsyncIterator[Archivist]:
    """An archivist at work, on a connection of its own."""
    place = await Wiring.open(settings, AgentIdentity(id="archivist", type="archivist"))
    seal = Seal(settings.home, settings.env)
    recorder = RecordMaker(Redaction(rules), seal.commitment_key)
    archivist = Archivist(intake(place.connection, StreamNames(settings.env)), recorder, seal, anchor_s=anchor_s)
    work = asyncio.create_task(archivist.run())
    try:
        yield archivist
        assert not work.done(), work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await place.aclose()


async def entries(trail: AuditTrail, **wanted: Any) -> list[dict[str, Any]]:
    """What the trail holds now."""
    return [record async for record in trail.query(**wanted)]


async def recorded(trail: AuditTrail, count: int, **wanted: Any) -> list[dict[str, Any]]:
    """The trail's entries that fit, as soon as there are so many."""
    async with asyncio.timeout(30.0):
        while len(found := await entries(trail, **wanted)) < count:
            await asyncio.sleep(0.05)
    return found
