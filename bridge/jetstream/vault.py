"""`Vault` on a JetStream object store: any NATS client's own object store reads and writes the same bucket.

The layout is that of ADR-20 of NATS, written and read as a journal instead of with nats-py's `ObjectStore`:
`docs/decisions/0012-claim-check.md` says why.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.runtime.background import to_its_end
from squadron.runtime.errors import ClaimLostError, SquadronError

#: Bytes per chunk, where the server takes twice as much: each chunk costs a round trip, and a larger one keeps
#: small messages on the same connection waiting.
CHUNK_BYTES = 1024 * 1024
#: Chunks per read: the server closes a connection that has more than 64 MB before it.
BATCH = 4

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


class JetStreamVault:
    """Large payloads of one environment, in the bucket that is made with its streams."""

    def __init__(self, connection: Connection, names: StreamNames) -> None:
        self._connection, self._names = connection, names
        self._journal = JetStreamJournal(connection, f"OBJ_{names.bucket}", batch=BATCH)

    async def store(self, data: bytes, *, keep_s: float, name: str = "") -> str:
        """Keep `data` for `keep_s` seconds and return its name; it is stored when this returns."""
        name = name or uuid.uuid4().hex
        size = min(CHUNK_BYTES, self._connection.max_payload // 2)
        try:
            starts = range(0, len(data), size)
            # One after the other and each with an id: in order, and once, over a restart of the server too.
            for number, start in enumerate(starts):
                chunk = data[start : start + size]
                sending = self._journal.append(self._chunks(name), chunk, ttl_s=keep_s, msg_id=f"{name}.{number}")
                await to_its_end(sending)
            info = await asyncio.to_thread(self._describe, name, data, size, len(starts))
            await to_its_end(self._journal.append(self._meta(name), info, ttl_s=keep_s, msg_id=name))
        except BaseException:
            with contextlib.suppress(SquadronError):
                await self._journal.erase(self._meta(name))
                await self._journal.erase(self._chunks(name))
            raise
        return name

    async def fetch(self, name: str) -> bytes:
        """What was stored under the name."""
        info = await self._info(name)
        if info is not None:
            # Chunks are written before the entry that names them, so they also end before it.
            data = b"".join([entry.data async for entry in self._journal.read(self._chunks(info["nuid"]))])
            if len(data) == info["size"]:
                return data
        raise ClaimLostError(f"{self._names.bucket} holds nothing, or not all, of {name!r}")

    async def drop(self, name: str) -> None:
        """Forget it now. Unknown names are fine."""
        info = await self._info(name)
        if info is not None:
            await self._journal.erase(self._meta(name))
            await self._journal.erase(self._chunks(info["nuid"]))

    async def _info(self, name: str) -> dict[str, Any] | None:
        entry = await self._journal.last(self._meta(name))
        try:
            info = json.loads(entry.data) if entry is not None else {}
            # Anybody may have written it: a wildcard here would read, or erase, the objects of others.
            whole = not info.get("deleted") and _TOKEN.fullmatch(info["nuid"]) and int(info["size"]) >= 0
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        return info if whole else None

    def _chunks(self, nuid: str) -> str:
        return f"$O.{self._names.bucket}.C.{nuid}"

    def _meta(self, name: str) -> str:
        return f"$O.{self._names.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    def _describe(self, name: str, data: bytes, chunk_bytes: int, chunks: int) -> bytes:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        info = {
            "name": name,
            "bucket": self._names.bucket,
            "nuid": name,
            "size": len(data),
            "chunks": chunks,
            "digest": f"SHA-256={digest}",
            "mtime": datetime.now(UTC).isoformat(),
            "options": {"max_chunk_size": chunk_bytes},
        }
        return json.dumps(info).encode()
