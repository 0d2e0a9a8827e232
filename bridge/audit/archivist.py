"""The archivist: takes in what was said and done, redacts it, chains it, stores it, and anchors what is stored.

It can be killed at any time. Each batch says how far the intake was taken in: whoever goes on does so right there,
with nothing twice. One archivist works at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from squadron.bridge.audit.anchors import Seal
from squadron.bridge.audit.chain import Link, SealedBatch, sealed
from squadron.bridge.audit.records import Record, RecordMaker
from squadron.bridge.jetstream.audit_streams import AuditPolicy
from squadron.bridge.jetstream.intake import Caught, Intake, Stored
from squadron.runtime.background import to_its_end
from squadron.runtime.errors import BusUnavailableError, FencedError, InvalidMessageError, MessageTooLargeError
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of

#: A batch has at most so many entries, is made of at most so many bytes, and waits at most so long for more.
BATCH, BATCH_BYTES, GATHER_S = 256, 256 * 1024, 0.2
#: How often the trail is anchored, in seconds: what is cut off its end shows but for the last minute.
ANCHOR_S = 60.0
#: How often the policy is read, and how long one who waits for his turn waits before he looks again, in seconds.
LOOK_S = 2.0
#: How long a batch is tried to be stored before all is read anew, in seconds.
APPEND_S = 20.0
#: How often the intake is purged of what is recorded, in seconds. The server writes anew what is left of a block
#: of its file, so that seldom costs it less: 3 µs for both messages of an ask, where each 2,000 messages it was 9.
PURGE_S = 5.0
#: What stands for the message of an entry that is larger than the server takes.
_CUT = "[too large]"

_log = get_logger("squadron.archivist")


@dataclass
class _State:
    """How far the trail has come."""

    seq: int
    link: Link
    #: How far the intake was taken in by what is stored, and how far it was purged.
    stored: int = 0
    purged: int = 0
    #: How many entries there were at the last anchor.
    anchored: int = -1

    @property
    def count(self) -> int:
        return self.link.first - 1


class Archivist:
    """Keeps one environment's trail, from `run` until it is cancelled."""

    def __init__(
        self,
        intake: Intake,
        recorder: RecordMaker,
        seal: Seal,
        *,
        anchor_s: float = ANCHOR_S,
        purge_s: float = PURGE_S,
    ) -> None:
        self._intake, self._recorder, self._seal = intake, recorder, seal
        self._anchor_s, self._purge_s = anchor_s, purge_s
        self._state: _State | None = None
        self._anchor_at = self._purge_at = 0.0

    @property
    def count(self) -> int | None:
        """How many entries the trail has; None if this archivist never kept it."""
        return None if self._state is None else self._state.count

    async def run(self) -> None:
        """Work, or wait until there is work and nobody else does it."""
        try:
            while True:
                try:
                    if await self._intake.wanted() and not await self._intake.taken():
                        try:
                            await self._keep()
                        finally:
                            await self._intake.aclose()
                except FencedError:
                    _log.info("archivist.yields")
                except (BusUnavailableError, InvalidMessageError) as error:
                    _log.warning("archivist.again", error=summary_of(error))
                await asyncio.sleep(LOOK_S)
        finally:
            self._anchor()

    async def _keep(self) -> None:
        state = self._state = await self._begin()
        _log.info("archivist.begins", entries=state.count)
        policy, look_at = AuditPolicy(), 0.0
        while True:
            if time.monotonic() >= look_at:
                found = await self._intake.policy()
                if found is None:
                    raise BusUnavailableError("the trail is gone")
                policy, look_at = found, time.monotonic() + LOOK_S
            caught = await self._intake.next(BATCH, most_bytes=BATCH_BYTES, gather_s=GATHER_S, within_s=LOOK_S)
            await self._take(state, caught, policy)
            if state.stored > state.purged and time.monotonic() >= self._purge_at:
                await self._intake.purge(state.stored)
                state.purged, self._purge_at = state.stored, time.monotonic() + self._purge_s
            if time.monotonic() >= self._anchor_at:
                self._anchor()

    async def _begin(self) -> _State:
        made_at, before, last = await self._intake.look()
        state = self._state_after(made_at, before, last)
        await self._intake.begin(state.link.intake[0])
        return state

    @staticmethod
    def _state_after(made_at: str, before: dict[str, int], last: Stored | None) -> _State:
        if last is None:
            return _State(0, Link(intake=(0, made_at), cursors=before))
        batch = SealedBatch.unpacked(last.data, last.head)
        link, _ = batch.link()
        if link.intake[1] != made_at:
            # The server came back without it: its numbers begin anew.
            link = replace(link, intake=(0, made_at))
        link = replace(link, first=link.first + len(batch.records), previous=last.head)
        return _State(last.seq, link, stored=link.intake[0])

    async def _take(self, state: _State, caught: Sequence[Caught], policy: AuditPolicy) -> None:
        records: list[Record] = []
        intake, cursors = state.link.intake[0], dict(state.link.cursors)
        for each in caught:
            if each.place:
                if intake and each.place > intake + 1:
                    records.append(_gap(each, "intake", intake + 1, each.place - 1))
                intake = each.place
            elif policy.mode == "off":
                # Only heard, and not to be: what was taken in before it was switched off is recorded yet.
                continue
            if each.stream and not self._follows(each, cursors, records):
                continue
            record = self._recorder.record(each, contents=policy.mode == "full", chunks=policy.chunks)
            if record is not None:
                records.append(record)
        gaps = state.link.gaps + sum(each["kind"] == "gap" for each in records)
        state.link = replace(state.link, intake=(intake, state.link.intake[1]), cursors=cursors, gaps=gaps)
        # What is passed over is not forgotten by whoever goes on: now and then a batch without entries says so.
        if records or intake - state.stored >= BATCH:
            # Who is stopped meanwhile anchors what is stored, not what was known to be.
            await to_its_end(self._store(state, records))

    def _follows(self, each: Caught, cursors: dict[str, int], records: list[Record]) -> bool:
        """Whether it is new; what is missing between it and the one before of its stream is recorded as a gap."""
        before = cursors.get(each.stream)
        is_sourced = "Nats-Stream-Source" in each.headers
        if before is not None and is_sourced and each.seq <= before:
            # The server, restarted, had to read its sources anew.
            return False
        if before is not None and each.seq > before + 1:
            records.append(_gap(each, each.stream, before + 1, each.seq - 1))
        cursors[each.stream] = each.seq
        return True

    async def _store(self, state: _State, records: list[Record]) -> None:
        link = state.link = replace(state.link, at=round(time.time(), 3))
        batch = sealed(link, records)
        try:
            seq = await self._append(batch, state.seq)
        except MessageTooLargeError:
            records = [each | {"message": _CUT} if "message" in each else each for each in records]
            batch = sealed(link, records)
            seq = await self._append(batch, state.seq)
        state.seq = seq
        state.link = replace(link, first=link.first + len(records), previous=batch.head)
        state.stored = link.intake[0]

    async def _append(self, batch: SealedBatch, after: int) -> int:
        give_up_at = time.monotonic() + APPEND_S
        while True:
            try:
                return await self._intake.append(batch.packed(), batch.head, after=after)
            except BusUnavailableError:
                # Stored or not: the same head is stored once.
                if time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(0.25)

    def _anchor(self) -> None:
        """Anchor what is stored, if something is that was not."""
        state = self._state
        self._anchor_at = time.monotonic() + self._anchor_s
        if state is not None and state.count > state.anchored and state.count > 0:
            line = self._seal.anchor(state.count, state.link.previous)
            state.anchored = state.count
            _log.info("archivist.anchor", anchor=line)


def _gap(each: Caught, stream: str, first: int, last: int) -> Record:
    """What is known to be missing; `stream` is "intake" for what the intake lost, whatever it was."""
    return {"at": round(each.at, 6), "kind": "gap", "stream": stream, "seq": first, "until": last}
