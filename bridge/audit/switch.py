"""The audit of an environment, switched as the settings say."""

from __future__ import annotations

from squadron.bridge.jetstream.audit_streams import AuditPolicy, read_policy, set_policy
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import ConfigError
from squadron.runtime.store.operating import operating


async def switch_audit(wiring: Wiring) -> None:
    """Have the environment audited as the settings of this place say, if they say anything; on the record.

    Raises:
        ConfigError: the settings name no mode.
        BusUnavailableError: the server can't be reached, or refuses.
    """
    settings, names = wiring.settings, StreamNames(wiring.settings.env)
    match settings.audit:
        case "":
            return
        case "off" | "trail" | "full" as mode:
            chunks = settings.audit_chunks == "yes"
            wanted = AuditPolicy(mode, settings.audit_keep_days, settings.audit_max_bytes, chunks)
        case other:
            raise ConfigError(f"audit: {other!r} can't be used", hint="SQUADRON_AUDIT: use off, trail or full")
    present = await read_policy(wiring.connection, names)
    if wanted == present or (present is None and wanted.mode == "off"):
        return
    before = present.mode if present is not None else "off"
    if before == "off":
        # Else nobody would keep it that the audit began.
        await set_policy(wiring.connection, names, wanted)
    async with operating(wiring.ports, "audit", wanted.mode, before=before, keep_days=wanted.keep_days):
        await set_policy(wiring.connection, names, wanted)
