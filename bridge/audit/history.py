"""The trail, read: what happened, whether it is as it was recorded, and a copy of it for elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from squadron.bridge.audit.anchors import Anchor, read_anchors
from squadron.bridge.audit.chain import Flaw, SealedBatch, Verifier
from squadron.bridge.audit.records import Record
from squadron.bridge.audit.tables import write_parquet
from squadron.bridge.jetstream.audit_streams import (
    DAY_S,
    AuditPolicy,
    audit_stream,
    audit_subject,
    intake_stream,
    make_trail,
    read_policy,
)
from squadron.bridge.jetstream.intake import archivists, is_used
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.stream_configs import STREAM_NOT_FOUND, StreamNames, find
from squadron.runtime.errors import BusUnavailableError, ConfigError, InvalidInputError, InvalidMessageError
from squadron.runtime.wire.start import LATEST_S

#: A batch is sealed so much after its entries, at most, in seconds: a read from some time on begins that earlier.
_SLACK_S = 5.0
#: How often it is looked for new batches while following, in seconds.
FOLLOW_S = 0.3
#: What an export may be.
ExportFormat: TypeAlias = Literal["jsonl", "parquet"]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found.

    Attributes:
        first, last: numbers of the entries that are there; older ones have lapsed.
        gaps: entries that say that something was not recorded.
        anchors: how many anchors the trail was held against.
        faults: what is not as it was recorded.
        unproven: why something could not be checked.
        proven: whether it was held against an anchor, if it was to be: there was a file of them, or a key.
    """

    first: int
    last: int
    gaps: int
    anchors: int
    faults: tuple[Flaw, ...]
    unproven: tuple[str, ...]
    proven: bool = True

    @property
    def ok(self) -> bool:
        return self.proven and not self.faults

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        head = {"ok": self.ok, "first": self.first, "last": self.last, "gaps": self.gaps, "anchors": self.anchors}
        return head | {"faults": [each.to_dict() for each in self.faults], "unproven": list(self.unproven)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which entries; what is empty fits all. `since` and `until` are in seconds since the epoch."""

    conversation: str = ""
    agent: str = ""
    task: str = ""
    kind: str = ""
    since: float = 0.0
    until: float = float("inf")

    def fits(self, record: Record) -> bool:
        """Whether an entry is one of them."""
        if not self.since <= record["at"] < self.until or self.kind not in ("", record["kind"]):
            return False
        if self.conversation not in ("", record.get("conversation")):
            return False
        if self.task and self.task not in (record.get("task"), record.get("id"), record.get("parent")):
            return False
        # Who said it, or in whose mailbox it was given up.
        owner = record.get("subject", "").split(".")[3:4] if record["kind"] == "dead" else []
        return self.agent in ("", record.get("agent"), record.get("source"), *owner)


def moment(text: str, *, now: Callable[[], float] = time.time) -> float:
    """A time as people write it: `15m`, `2h`, `3d` ago, or ISO 8601; in seconds since the epoch.

    Raises:
        InvalidInputError: it is none.
    """
    at = float("inf")
    if found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text.strip()):
        at = now() - float(found[1]) * _UNITS_S[found[2]]
    else:
        with contextlib.suppress(ValueError):
            read = datetime.fromisoformat(text.strip())
            at = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    if at >= LATEST_S:
        hint = "like 15m, 2h, 3d, 2026-11-28 or 2026-11-28T17:00:00Z"
        raise InvalidInputError(f"{text!r} is no time", field="since", hint=hint)
    # Before the epoch nothing was, and few can tell of it.
    return max(0.0, at)


class AuditTrail:
    """The audit trail of one environment: `squad.audit`."""

    def __init__(self, connection: Connection, names: StreamNames, home: Path) -> None:
        self._connection, self._names, self._home = connection, names, home
        self._journal = JetStreamJournal(connection, audit_stream(names), batch=64)

    @property
    def anchor_file(self) -> Path:
        """Where the archivist of this home writes its anchors."""
        return self._home / "audit" / f"{self._names.environment}.anchors.jsonl"

    async def _policy(self) -> AuditPolicy:
        policy = await read_policy(self._connection, self._names)
        if policy is None:
            raise ConfigError(
                f"environment {self._names.environment!r} has no audit trail",
                hint="begin one with SQUADRON_AUDIT=trail (or full) squadron up",
            )
        return policy

    async def _batches(self, since: float = 0.0) -> AsyncGenerator[SealedBatch, None]:
        await self._policy()
        from_time = since - _SLACK_S if since > _SLACK_S else None
        async for entry in self._journal.read(audit_subject(self._names), from_time=from_time):
            yield SealedBatch.unpacked(entry.data, entry.headers.get("Nats-Msg-Id", ""))
            # Many come at once, with many entries each: others have the loop between them.
            await asyncio.sleep(0)

    async def query(self, **wanted: Any) -> AsyncGenerator[Record, None]:
        """Entries, oldest first, each a plain JSON object with its number `n`.

        Args:
            wanted: `conversation`, `agent`, `task`, `kind`, `since`, `until`; see `Wanted`.

        Raises:
            ConfigError: there is no trail.
            InvalidMessageError: it is damaged; `verify` says where.
            BusUnavailableError: the server can't be reached.
        """
        chosen = Wanted(**wanted)
        async for batch in self._batches(chosen.since):
            for record in batch.entries():
                if chosen.fits(record):
                    yield record

    async def follow(self, **wanted: Any) -> AsyncIterator[Record]:
        """Entries from now on, as they are recorded; for ever, and over the loss of the server's store, too."""
        chosen = Wanted(**wanted)
        await self._policy()
        made, seq = await self._newest() or ("", 0)
        while True:
            # While the server is away the read waits for it.
            with contextlib.suppress(BusUnavailableError):
                if (found := await self._newest()) is not None and (found[0] != made or found[1] < seq):
                    made, seq = found[0], 0
            async for entry in self._journal.read(audit_subject(self._names), from_seq=seq + 1):
                seq = entry.seq
                for record in SealedBatch.unpacked(entry.data, "").entries():
                    if chosen.fits(record):
                        yield record
            await asyncio.sleep(FOLLOW_S)

    async def _newest(self) -> tuple[str, int] | None:
        """When the trail's stream was made, and the number of its newest batch; None if there is no stream."""
        call = f"STREAM.INFO.{audit_stream(self._names)}"
        info = await find(self._connection, call, missing=STREAM_NOT_FOUND)
        return None if info is None else (str(info["created"]), int(info["state"]["last_seq"]))

    async def verify(self, *, anchors: Path | None = None, public_key: str = "") -> Verified:
        """Look at each entry that is there: whether it is what was recorded, where it was recorded.

        Args:
            anchors: a file of anchors; by default that of this home, if it has one.
            public_key: whose anchors count, in hexadecimal.

        Raises:
            ConfigError: there is no trail, or the file can't be read.
            BusUnavailableError: the server can't be reached.
        """
        verifier = Verifier()
        keep_s = (await self._policy()).keep_days * DAY_S
        chosen = anchors if anchors is not None else self.anchor_file if self.anchor_file.exists() else None
        # Before the trail: what is anchored meanwhile may not have been there yet.
        held = _anchors(chosen, public_key)
        async for entry in self._journal.read(audit_subject(self._names)):
            try:
                verifier.take(SealedBatch.unpacked(entry.data, entry.headers.get("Nats-Msg-Id", "")))
            except InvalidMessageError as error:
                verifier.unreadable(error)
        # While an archivist works, the newest batch is at most half as old: what a later anchor knows of is there.
        lapsed = time.time() - keep_s / 2 if keep_s else 0.0
        return _verdict(verifier, held, wanted=chosen is not None or bool(public_key), lapsed=lapsed)

    async def export(self, file: IO[bytes], format: ExportFormat = "jsonl") -> int:
        """Write the whole trail; returns how many entries.

        Args:
            format: `jsonl` has all that `verify` and `restore` need: a batch is its first line, its entries, and a
                line with its head. `parquet` is a table of the entries alone.

        Raises:
            ConfigError: there is no trail, or no pyarrow for Parquet.
            InvalidInputError: it is no format.
        """
        if format == "parquet":
            return await write_parquet(self.query(), file)
        if format != "jsonl":
            raise InvalidInputError(f"{format!r} is no format", field="format", hint="use jsonl or parquet")
        count = 0
        async for batch in self._batches():
            file.write(b"\n".join(batch.lines) + b"\n" + json.dumps({"head": batch.head}).encode() + b"\n")
            count += len(batch.records)
        return count

    async def restore(self, file: IO[bytes]) -> int:
        """Bring an export into this environment, which must have no trail yet; returns how many entries.

        Args:
            file: is read twice, so that nothing is begun by one that is no export.

        Raises:
            ConfigError: there is a trail already.
            InvalidMessageError: the file is no export, or not what was recorded.
            InvalidInputError: it can't be read twice.
        """
        if await read_policy(self._connection, self._names) is not None:
            raise ConfigError(
                f"environment {self._names.environment!r} has a trail already", hint="name another with --env"
            )
        if not file.seekable():
            raise InvalidInputError("the export has to be a file", field="file", hint="a pipe can't be read twice")
        begins = file.tell()
        _check_export(file)
        file.seek(begins)
        await make_trail(self._connection, self._names)
        count = seq = 0
        for batch in batches_in(file):
            headers = {"Nats-Expected-Last-Sequence": str(seq)}
            seq = await self._journal.append(
                audit_subject(self._names), batch.packed(), msg_id=batch.head, headers=headers
            )
            count += len(batch.records)
        return count

    async def status(self) -> dict[str, Any]:
        """What is recorded, how much there is, and how far the archivist is behind."""
        policy = await self._policy()
        last = await self._journal.last(audit_subject(self._names))
        facts: dict[str, Any] = {"mode": policy.mode, "chunks": policy.chunks, "keep_days": policy.keep_days}
        if last is not None:
            batch = SealedBatch.unpacked(last.data, last.headers.get("Nats-Msg-Id", ""))
            link, _ = batch.link()
            count = link.first + len(batch.records) - 1
            facts |= {"entries": count, "head": batch.head, "newest_at": last.time, "gaps": link.gaps}
        trail, intake = [
            await find(self._connection, f"STREAM.INFO.{stream}", missing=STREAM_NOT_FOUND)
            for stream in (audit_stream(self._names), intake_stream(self._names))
        ]
        facts |= {} if trail is None else {"trail_bytes": trail["state"]["bytes"]}
        facts |= {} if intake is None else {"intake_bytes": intake["state"]["bytes"]}
        consumers = await archivists(self._connection, self._names)
        facts["waiting"] = _waiting(intake, consumers)
        facts["archivist"] = any(map(is_used, consumers))
        if self.anchor_file.exists():
            anchors, wrong = read_anchors(self.anchor_file)
            facts["bad_anchors"] = len(wrong)
            if anchors:
                facts |= {"anchored": anchors[-1].count, "anchored_at": anchors[-1].at}
        return facts


async def behind(connection: Connection, names: StreamNames) -> tuple[int, int] | None:
    """Messages that the archivist has yet to take up, and gaps that it recorded; None if nothing was ever audited.

    Raises:
        BusUnavailableError: the server can't be reached.
        InvalidMessageError: the newest batch is damaged.
    """
    intake = await find(connection, f"STREAM.INFO.{intake_stream(names)}", missing=STREAM_NOT_FOUND)
    if intake is None:
        return None
    last = await JetStreamJournal(connection, audit_stream(names)).last(audit_subject(names))
    gaps = SealedBatch.unpacked(last.data, "").link()[0].gaps if last is not None else 0
    return _waiting(intake, await archivists(connection, names)), gaps


def _waiting(intake: dict[str, Any] | None, consumers: list[dict[str, Any]]) -> int:
    """Messages that no archivist has taken up; all that are there, if none has begun."""
    if intake is None or consumers:
        return sum(each["num_pending"] for each in consumers)
    return int(intake["state"]["messages"])


def verify_file(path: Path, *, anchors: Path | None = None, public_key: str = "") -> Verified:
    """`AuditTrail.verify` of an export, without a server.

    Raises:
        InvalidMessageError: the file is no export.
    """
    verifier = Verifier()
    with path.open("rb") as file:
        for batch in batches_in(file):
            verifier.take(batch)
    wanted = anchors is not None or bool(public_key)
    return _verdict(verifier, _anchors(anchors, public_key), wanted=wanted)


def _anchors(path: Path | None, public_key: str) -> tuple[list[Anchor], list[str]]:
    """Anchors to hold a trail against, and why there may be fewer than there should."""
    if path is None:
        return [], ["no anchors: a tail that was cut off, or a whole other trail, would not show"]
    found, wrong = read_anchors(path, public_key=public_key)
    return found, wrong if found or wrong else [f"{path} holds no anchor"]


def _verdict(
    verifier: Verifier, anchors: tuple[list[Anchor], list[str]], *, wanted: bool, lapsed: float = 0.0
) -> Verified:
    """What there is to say once all batches were taken, with the anchors, and whether there were to be any.

    Args:
        lapsed: if nothing is there, all that was anchored before this time may have lapsed.
    """
    found, unproven = anchors
    lapsed_at = datetime.fromtimestamp(lapsed, UTC).isoformat(timespec="milliseconds")
    held = 0
    for anchor in found:
        if anchor.count < verifier.first and anchor.head not in verifier.heads[anchor.count]:
            continue  # what it is about has lapsed
        if not verifier.next and anchor.at < lapsed_at:
            continue  # so it may have, with all
        verifier.hold(anchor.count, anchor.head, anchor.at)
        held += 1
    last = max(0, verifier.next - 1)
    if found and not held:
        unproven = [*unproven, "all that the anchors are about has lapsed"]
    faults, proven = tuple(verifier.faults), bool(held) or not wanted
    return Verified(verifier.first, last, verifier.gaps, held, faults, tuple(unproven), proven)


def _check_export(file: IO[bytes]) -> None:
    """Look at all batches of an export.

    Raises:
        InvalidMessageError: the file is none, or one of them is not what was recorded.
    """
    verifier = Verifier()
    for batch in batches_in(file):
        verifier.take(batch)
    if not verifier.heads and not verifier.faults:
        raise InvalidMessageError("the export has no batch")
    if verifier.faults:
        fault = verifier.faults[0]
        hint = "`squadron audit verify FILE` says all that is wrong with it"
        raise InvalidMessageError(f"entry {fault.first} of the export {fault.what}: {fault.why}", hint=hint)


def batches_in(file: IO[bytes]) -> Iterator[SealedBatch]:
    """The batches of an export.

    Raises:
        InvalidMessageError: the file is none.
    """
    lines: list[bytes] = []
    for number, line in enumerate(file, 1):
        line = line.rstrip(b"\n")
        if line.startswith(b'{"head"'):
            try:
                yield SealedBatch(tuple(lines), str(json.loads(line)["head"]))
            except (ValueError, LookupError):
                raise InvalidMessageError(f"line {number} is no line of an export") from None
            lines = []
        else:
            lines.append(line)
    if lines:
        raise InvalidMessageError("the export ends in the middle of a batch")
