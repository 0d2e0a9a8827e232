"""What is done for principals that are apart by whoever may all in the account of the streams: the bridge."""

from __future__ import annotations

import asyncio

from squadron.bridge.jetstream.line_queue import keep_lines_called
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.vault import Forgetting, JetStreamVault
from squadron.bridge.status_relay import StatusRelay
from squadron.runtime.background import spawn
from squadron.runtime.store.port_set import Ports


class Keeping:
    """Removes what others want removed, tells on what replicas tell of themselves, and calls lines that nobody
    called; `start` it.
    """

    def __init__(self, connection: Connection, vault: JetStreamVault, ports: Ports) -> None:
        self._connection, self._subjects = connection, ports.subjects
        self._forgetting = Forgetting(vault, connection, StreamNames(ports.subjects.environment))
        self._status = StatusRelay(ports)
        self._calling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        await self._forgetting.start()
        await self._status.start()
        self._calling = spawn(keep_lines_called(self._connection, self._subjects), "lines", lasting=True)

    async def aclose(self) -> None:
        """Stop. May be called twice."""
        await self._forgetting.aclose()
        await self._status.aclose()
        if self._calling is not None:
            self._calling.cancel()
