"""`Vault` on a JetStream object store: any NATS client's own object store reads and writes the same bucket.

The layout is that of ADR-20 of NATS, written and read as a journal instead of with nats-py's `ObjectStore`:
`docs/decisions/0012-claim-check.md` says why. Who reaches the streams from another account has its own place
there, where nobody else writes: one more token in the subjects, `docs/decisions/0047-own-payloads.md`.
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

from squadron.bridge.jetstream.bus import listen
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.runtime.background import spawn, to_its_end
from squadron.runtime.errors import ClaimLostError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.vault import name_of
from squadron.runtime.wire.subjects import MAX_TOKEN

#: Bytes per chunk, where the server takes twice as much: each chunk costs a round trip, and a larger one keeps
#: small messages on the same connection waiting.
CHUNK_BYTES = 1024 * 1024
#: Chunks per read: the server closes a connection that has more than 64 MB before it.
BATCH = 4

#: Wishes to remove something that may wait, and how many are carried out at once: anybody may send them. One is a
#: name of some 100 bytes; a removal takes the server two calls.
MOST_WANTED, ERASED_AT_ONCE = 10_000, 4

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
#: The name of what stands in a principal's own place: who stored it, and the digest of its key.
_OWNED = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOKEN}}}\.[0-9a-f]{{64}}")

_log = get_logger("squadron.vault")


class JetStreamVault:
    """Large payloads of one environment, in the bucket that is made with its streams.

    Args:
        owner: the user that this process is, if the server lets it store in its own place, and remove nothing.
    """

    def __init__(self, connection: Connection, names: StreamNames, owner: str = "") -> None:
        self._connection, self._names, self._owner = connection, names, owner
        self._journal = JetStreamJournal(connection, f"OBJ_{names.bucket}", batch=BATCH)

    async def store(self, data: bytes, *, keep_s: float, key: str = "") -> str:
        """Keep `data` for `keep_s` seconds and return its name; it is stored when this returns."""
        key = key or uuid.uuid4().hex
        name = f"{self._owner}.{name_of(key)}" if self._owner else name_of(key)
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
                await (self.drop(name, key) if self._owner else self.erase(name))
            raise
        return name

    async def fetch(self, name: str) -> bytes:
        """What was stored under the name."""
        info = await self._info(name)
        if info is not None:
            # Chunks are written before the entry that names them, so they also end before it.
            data = b"".join([entry.data async for entry in self._journal.read(self._chunks(name, info["nuid"]))])
            if len(data) == info["size"]:
                return data
        raise ClaimLostError(f"{self._names.bucket} holds nothing, or not all, of {name!r}")

    async def drop(self, name: str, key: str = "") -> None:
        """Forget it now. Unknown names are fine."""
        if self._owner and key:
            # Nobody waits for it: what is not heard ends with its time.
            wish = json.dumps({"name": name, "key": key}).encode()
            await self._connection.publish(self._names.forget, wish)
        elif not self._owner and (info := await self._info(name)) is not None:
            await self.erase(name, info["nuid"])

    async def erase(self, name: str, nuid: str = "") -> None:
        """Remove what is stored under a name; the right to do so is one to remove all.

        Raises:
            BusUnavailableError: the server can't be reached, or refuses.
        """
        await self._journal.erase(self._meta(name))
        await self._journal.erase(self._chunks(name, nuid))

    async def _info(self, name: str) -> dict[str, Any] | None:
        entry = await self._journal.last(self._meta(name))
        try:
            info = json.loads(entry.data) if entry is not None else {}
            # Anybody may have written it: a wildcard here would read, or erase, the objects of others.
            whole = not info.get("deleted") and _TOKEN.fullmatch(info["nuid"]) and int(info["size"]) >= 0
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        return info if whole else None

    def _chunks(self, name: str, nuid: str = "") -> str:
        return f"$O.{self._names.bucket}.C.{_place(name)}{nuid or _last(name)}"

    def _meta(self, name: str) -> str:
        place = _place(name)
        last = base64.urlsafe_b64encode(name.removeprefix(place).encode()).decode()
        return f"$O.{self._names.bucket}.M.{place}{last}"

    def _describe(self, name: str, data: bytes, chunk_bytes: int, chunks: int) -> bytes:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        info = {
            "name": name,
            "bucket": self._names.bucket,
            "nuid": _last(name),
            "size": len(data),
            "chunks": chunks,
            "digest": f"SHA-256={digest}",
            "mtime": datetime.now(UTC).isoformat(),
            "options": {"max_chunk_size": chunk_bytes},
        }
        return json.dumps(info).encode()


def _place(name: str) -> str:
    """What stands before the last token of a name's subjects: who stored it, if that one has its own place."""
    return name.partition(".")[0] + "." if _OWNED.fullmatch(name) else ""


def _last(name: str) -> str:
    """What a name of ours ends with: the digest of its key."""
    return name.rpartition(".")[2]


class Forgetting:
    """Removes large payloads for those who may not: of whoever has the key that a payload was stored with.

    Names can be looked up by all who read payloads. A key stands in the message that the payload belongs to.
    """

    def __init__(self, vault: JetStreamVault, connection: Connection, names: StreamNames) -> None:
        self._vault, self._connection, self._names = vault, connection, names
        #: Names of what is to be removed. What finds no place here ends with its time.
        self._wanted = asyncio.Queue[str](MOST_WANTED)
        self._erasing: list[asyncio.Task[None]] = []
        self._hearing: Subscription | None = None

    async def start(self) -> None:
        """Begin to hear wishes; of several that hear them one does."""
        self._erasing = [spawn(self._erase(), "forgets", lasting=True) for _ in range(ERASED_AT_ONCE)]
        self._hearing = await listen(self._connection, self._names.forget, self._hear, group="forgetting")

    def _hear(self, msg: Heard) -> None:
        try:
            wish = json.loads(msg.data)
            name, key = str(wish["name"]), str(wish["key"])
        except (ValueError, TypeError, LookupError, RecursionError):
            return  # Anybody may send anything.
        if _last(name) == name_of(key) and (_OWNED.fullmatch(name) or "." not in name):
            with contextlib.suppress(asyncio.QueueFull):
                self._wanted.put_nowait(name)

    async def _erase(self) -> None:
        while True:
            name = await self._wanted.get()
            try:
                await self._vault.erase(name)
            except SquadronError as error:
                _log.info("vault.not_forgotten", name=name, error=str(error))

    async def aclose(self) -> None:
        """Stop. May be called twice."""
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            await hearing.aclose()
        for task in self._erasing:
            task.cancel()
