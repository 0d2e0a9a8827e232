"""Operators' actions on their way to the audit trail."""

from __future__ import annotations

import asyncio
import time
import uuid

from squadron.bridge.jetstream.audit_streams import action_subject, intake_stream
from squadron.bridge.jetstream.journal import PERSIST_S
from squadron.bridge.jetstream.link.connect import RECONNECT_WAIT_S, Connection
from squadron.bridge.jetstream.publish_acks import read_ack
from squadron.bridge.jetstream.stream_configs import STREAM_NOT_FOUND, StreamNames, find
from squadron.runtime.errors import BusUnavailableError

#: How long it is remembered that nothing is audited, in seconds: looking costs two round trips.
OFF_S = 2.0


class Filing:
    """Stores actions for the archivist, if the environment is audited."""

    def __init__(self, connection: Connection, names: StreamNames) -> None:
        self._connection, self._names = connection, names
        self._off_until = 0.0

    async def file(self, verb: str, data: bytes) -> None:
        """Store one action; it is stored when this returns, or nothing is audited.

        Raises:
            BusUnavailableError: not acknowledged in time.
            StorageFullError: there is no room for it.
        """
        give_up_at, id = time.monotonic() + PERSIST_S, uuid.uuid4().hex
        while time.monotonic() >= self._off_until:
            try:
                subject = action_subject(self._names, verb)
                await self._connection.ask(subject, data, read_ack, headers={"Nats-Msg-Id": id})
                return
            except BusUnavailableError:
                if not await self._is_on():
                    self._off_until = time.monotonic() + OFF_S
                elif time.monotonic() > give_up_at:
                    raise
                else:
                    await asyncio.sleep(RECONNECT_WAIT_S)

    async def _is_on(self) -> bool:
        call = f"STREAM.INFO.{intake_stream(self._names)}"
        info = await find(self._connection, call, missing=STREAM_NOT_FOUND)
        return info is not None and bool(info["config"].get("sources"))
