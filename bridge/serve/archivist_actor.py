"""The archivist as a Ray actor: one per environment that is audited, beside its bridge, which keeps it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ray

from squadron.bridge.audit.archive import archive
from squadron.bridge.jetstream.audit_streams import AuditPolicy, read_policy, set_policy
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.otel.exporters import lines_of
from squadron.bridge.serve.ray_names import NAMESPACE, archivist_name
from squadron.config import Settings
from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.logs import configure_logs, get_logger
from squadron.runtime.retries import summary_of
from squadron.runtime.wire.envelope import AgentIdentity

#: How often the bridge looks after the archivist, in seconds.
LOOK_S = 2.0

_log = get_logger("squadron.archivist")


@ray.remote
class ArchivistActor:
    """Runs `archive` for ever."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        identity = AgentIdentity(id=f"archivist-{os.getpid()}", type="archivist")
        configure_logs(settings.log_level, *lines_of(identity, settings.env))
        self._work = spawn(self._archive(settings), "archivist", lasting=True)

    async def _archive(self, settings: Settings) -> None:
        try:
            await archive(settings)
        except Exception as error:
            # Ray starts it anew, wherever there is room.
            _log.error("archivist.broke", error=summary_of(error))
            os._exit(1)

    async def ping(self) -> int:
        """Its process id."""
        return os.getpid()


class ArchivistKeeper:
    """Has the archivist of an environment run as long as it is audited, and the audit go on over a lost store."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection, self._settings = connection, settings
        self._names = StreamNames(settings.env)
        self._policy: AuditPolicy | None = None
        self._actor: Any = None

    async def keep(self) -> None:
        """Look after it for ever."""
        while True:
            try:
                await self._look()
            except (BusUnavailableError, ray.exceptions.RayError) as error:
                _log.warning("archivist.not_kept", error=summary_of(error))
            await asyncio.sleep(LOOK_S)

    async def restore(self) -> None:
        """The server came back without its store: what was audited is audited again."""
        if self._policy is not None:
            await set_policy(self._connection, self._names, self._policy)

    async def _look(self) -> None:
        self._policy = await read_policy(self._connection, self._names) or self._policy
        if self._policy is None:
            return
        # It stays when the audit is switched off: what was taken in before is to be recorded yet.
        if self._actor is None:
            self._actor = ArchivistActor.options(  # type: ignore[attr-defined]  # made by ray.remote
                name=archivist_name(self._settings.env),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                num_cpus=0,
            ).remote(self._settings)
        try:
            await self._actor.ping.remote()
        except ray.exceptions.ActorDiedError:
            # Somebody killed it for good.
            self._actor = None
