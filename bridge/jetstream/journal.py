"""`Journal` on a JetStream stream, without any consumer: direct gets to read, `republish` to follow."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from squadron.bridge.jetstream.bus import listen
from squadron.bridge.jetstream.fast_batches import FastBatches
from squadron.bridge.jetstream.link.connect import RECONNECT_WAIT_S, Connection
from squadron.bridge.jetstream.link.lasting_client import HeadersOf, Heard
from squadron.bridge.jetstream.publish_acks import read_ack
from squadron.runtime.errors import BusUnavailableError, FencedError, StorageFullError
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Counts, Entry
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.texts import encoded
from squadron.runtime.wire.subjects import life_of, live_of

#: Entries per direct-get batch.
BATCH = 512
#: How long to go on over an absence of the server, in seconds: with an entry that has an id, and with a read. A
#: restart takes one or two.
PERSIST_S = 20.0

#: Header of an entry whose id somebody had taken: that id.
ID_HEADER = "Squadron-Msg-Id"

#: What the server puts behind the headers of an entry that it tells of (`republish`): so the last of them count.
_TOLD = re.compile(
    rb"(?s).*\r\nNats-Subject: (\S+)\r\nNats-Sequence: (\d+)\r\nNats-Time-Stamp: (\S+)"
    rb"\r\nNats-Last-Sequence: (\d+)\r\n"
)


class JetStreamJournal:
    """A keyed log; keys are the subjects of one stream.

    Args:
        batch: how many entries are asked for at once.
        shared_ids: a message id that was seen for any key is not stored again.
    """

    def __init__(
        self, connection: Connection, stream: str, *, batch: int = BATCH, shared_ids: bool = False
    ) -> None:
        self._connection, self._stream, self._batch, self._shared_ids = connection, stream, batch, shared_ids
        self._get = f"{connection.api_prefix}.DIRECT.GET.{stream}"
        self._batches = FastBatches(connection)

    async def append(
        self,
        key: str,
        data: bytes,
        *,
        ttl_s: float | None = None,
        msg_id: str | None = None,
        expect_seq: int | None = None,
        headers: Mapping[str, str] | None = None,
        counts: Counts | None = None,
    ) -> int:
        """Append one entry and return its sequence; it is stored when this returns."""
        all_headers = {**(headers or {}), **_headers(ttl_s, msg_id)}
        if expect_seq is not None:
            return await self._put(key, data, all_headers, expect_seq)
        return await self._persist(key, data, all_headers, None, counts)

    async def append_and_end(
        self,
        key: str,
        data: bytes,
        order: bytes,
        *,
        at: float,
        keep_s: float,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Append one entry, and right before it the order to end the key, which has then come as well."""
        all_headers = {**(headers or {}), **_headers(None, msg_id)}
        return await self._persist(key, data, all_headers, (order, order_headers(key, at, keep_s)))

    async def _persist(
        self,
        key: str,
        data: bytes,
        headers: dict[str, str],
        order: tuple[bytes, dict[str, str]] | None,
        counts: Counts | None = None,
    ) -> int:
        give_up_at = time.monotonic() + PERSIST_S
        while True:
            try:
                if order is not None:
                    # One connection, one stream: what is sent first is stored first, so that the other's
                    # acknowledgement is enough.
                    await self._connection.publish(life_of(key), order[0], headers=order[1])
                return await self._put(key, data, headers, None, counts)
            except BusUnavailableError:
                # With an id the same entry is stored once, so that it may be sent again.
                if "Nats-Msg-Id" not in headers or time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(RECONNECT_WAIT_S)

    def append_soon(
        self, key: str, entries: Sequence[tuple[bytes, str]], *, ttl_s: float | None = None
    ) -> asyncio.Future[int]:
        """Send entries without waiting until they are stored; the future ends with how many of them are."""
        return self._batches.append(key, entries, _headers(ttl_s, None))

    async def _put(
        self,
        key: str,
        data: bytes,
        headers: dict[str, str],
        expect_seq: int | None,
        counts: Counts | None = None,
    ) -> int:
        if expect_seq is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expect_seq)
        await self._connection.client.give_way()
        seq, known = await self._connection.ask(self._subject(key), data, _read_stored, headers=headers)
        if known and not self._shared_ids and not await self._is_of(key, seq, data, counts):
            return await self._put_all_the_same(key, data, headers, counts)
        return seq

    async def _is_of(self, key: str, seq: int, data: bytes, counts: Counts | None) -> bool:
        """Whether the entry of a sequence has this key, is there, and is these data or what counts."""
        answer = await self._connection.request(self._get, encoded({"seq": seq}))
        if answer.headers.get("Nats-Subject") != self._subject(key):
            return False
        return counts is None or answer.data == data or await counts(self._entry(answer))

    async def _put_all_the_same(
        self, key: str, data: bytes, headers: dict[str, str], counts: Counts | None
    ) -> int:
        """Store an entry whose message id somebody has used for another key: ids are the stream's, keys are not.

        Or for something of this key that does not count.

        It has its id in a header of ours, by which whoever comes with the same finds it.
        """
        headers = dict(headers)
        id = headers.pop("Nats-Msg-Id")
        while True:
            seq = 0
            async for entry in self.read(key):
                seq = entry.seq
                is_known = entry.headers.get(ID_HEADER) == id
                if is_known and (counts is None or entry.data == data or await counts(entry)):
                    return seq
            try:
                return await self._put(key, data, {**headers, ID_HEADER: id}, seq)
            except FencedError:
                continue  # somebody was faster: is it the same?

    async def end(self, key: str, data: bytes, *, keep_s: float, expect_seq: int | None = None) -> int:
        """Append an end marker and drop what the key held, in one step."""
        headers = {END_HEADER: "closed", "Nats-Rollup": "sub", "Nats-TTL": _seconds(keep_s)}
        try:
            return await self._put(key, data, headers, expect_seq)
        except StorageFullError:
            # What is to be dropped goes first, and may make room for the marker.
            await self.erase(key, through_seq=expect_seq)
            return await self._put(key, data, headers, None if expect_seq is None else 0)

    async def end_at(
        self, key: str, data: bytes, *, at: float, keep_s: float, expect_seq: int | None = None
    ) -> int:
        """Have the server do so by itself, by a message schedule (ADR-51 of NATS)."""
        return await self._put(life_of(key), data, order_headers(key, at, keep_s), expect_seq)

    async def count(self, pattern: str) -> int:
        """How many entries have a key that matches: the server says how many come after the first."""
        found = await self._fetch(pattern, {"seq": 1}, 1)
        return int(found[0].headers["Nats-Num-Pending"]) + 1 if found else 0

    async def keys(self) -> int:
        """How many keys there are."""
        answer = await self._connection.api(f"STREAM.INFO.{self._stream}", {})
        if error := answer.get("error"):
            raise BusUnavailableError(f"{self._stream}: {error.get('description')}")
        return int(answer["state"].get("num_subjects", 0))

    async def last(self, key: str) -> Entry | None:
        """The newest entry of one key, or of all that match a pattern: the server finds it as fast."""
        answer = await self._connection.request(f"{self._get}.{self._subject(key)}", b"")
        headers = answer.headers
        if "Nats-Sequence" not in headers:
            if headers.get("Status") != "404":
                raise BusUnavailableError(f"{key}: the stream answered {headers.get('Status')}")
            return None
        return self._entry(answer)

    async def latest(self, pattern: str) -> list[Entry]:
        """The newest entry of each key that matches, oldest first."""
        newest = {entry.key: entry async for entry in self.read(pattern)}
        return sorted(newest.values(), key=lambda entry: entry.seq)

    async def read(
        self, pattern: str, *, from_seq: int = 1, from_time: float | None = None
    ) -> AsyncGenerator[Entry, None]:
        """What is stored, in order, from `from_seq` or `from_time` on."""
        start: dict[str, Any] = {"seq": from_seq}
        if from_time is not None:
            start = {"start_time": datetime.fromtimestamp(from_time, UTC).isoformat()}
        give_up_at = time.monotonic() + PERSIST_S
        while True:
            try:
                batch = await self._fetch(pattern, start, self._batch)
            except BusUnavailableError:
                # The server is away; what is stored stays stored.
                if time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(RECONNECT_WAIT_S)
                continue
            for entry in batch:
                yield entry
            # Not the batch's length: the server ends an answer early when it grows past 64 MB.
            if not batch or batch[-1].headers.get("Nats-Num-Pending") == "0":
                return
            start = {"seq": batch[-1].seq + 1}

    async def follow(
        self, pattern: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        """Hear of each entry right after it was stored, by the stream's `republish`; active on return."""

        def hear(msg: Heard) -> None:
            # Not all of the headers: that costs as much as all else.
            told = _TOLD.match(msg.raw_headers)
            # Anybody may publish there; what the server tells has its headers.
            if told is None:
                return
            subject, seq, at, previous = told.groups()
            try:
                time_s, key = datetime.fromisoformat(at.decode()).timestamp(), self._key(subject.decode())
            except ValueError:
                return
            sink(Entry(int(seq), key, msg.data, HeadersOf(msg), time_s, int(previous)))

        return await listen(self._connection, live_of(pattern), hear, lost=lost)

    async def _fetch(self, pattern: str, start: dict[str, Any], most: int) -> list[Entry]:
        query = start | {"batch": most, "next_by_subj": self._subject(pattern)}
        answers = await self._connection.request_many(self._get, encoded(query))
        return [self._entry(answer) for answer in answers]

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        """Remove all entries of one key, or those up to and with `through_seq`."""
        # The server purges below a sequence, so that one itself is the next.
        below = {} if through_seq is None else {"seq": through_seq + 1}
        answer = await self._connection.api(
            f"STREAM.PURGE.{self._stream}", {"filter": self._subject(key), **below}
        )
        if error := answer.get("error"):
            raise BusUnavailableError(f"{key} can't be erased: {error.get('description')}")

    def _entry(self, msg: Heard) -> Entry:
        headers = msg.headers
        stored_at = datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp()
        key = self._key(headers["Nats-Subject"])
        return Entry(int(headers["Nats-Sequence"]), key, msg.data, headers, stored_at)

    def _subject(self, key: str) -> str:
        """Where the entries of a key are stored, or pattern of that for a pattern."""
        return key

    def _key(self, subject: str) -> str:
        """The key of what is stored there."""
        return subject


def order_headers(key: str, at: float, keep_s: float) -> dict[str, str]:
    """What makes a message the order to end a key; see `end_at`."""
    return {
        END_HEADER: "expired",
        "Nats-Schedule": f"@at {datetime.fromtimestamp(at, UTC).isoformat()}",
        "Nats-Schedule-Target": key,
        "Nats-Schedule-Rollup": "sub",
        "Nats-Schedule-TTL": _seconds(keep_s),
    }


def _headers(ttl_s: float | None, msg_id: str | None) -> dict[str, str]:
    headers = {}
    if ttl_s is not None:
        headers["Nats-TTL"] = _seconds(ttl_s)
    if msg_id is not None:
        headers["Nats-Msg-Id"] = msg_id
    return headers


def _seconds(time_s: float) -> str:
    return f"{max(1, math.ceil(time_s))}s"


def _read_stored(answer: Heard, subject: str) -> tuple[int, bool]:
    """The sequence, and whether the message was not stored because its id was known."""
    return read_ack(answer, subject), b'"duplicate"' in answer.data
