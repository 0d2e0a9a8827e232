"""The lease of one message of a JetStream consumer."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from typing import Any

from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.runtime.errors import BusUnavailableError, FencedError
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.queue import CLOCKS_S

#: Life of a note on how often work on a message began, in seconds: a week.
NOTE_TTL_S = 7 * 24 * 3600.0

#: What we write there.
_COUNT = re.compile(rb"[0-9]{1,9}")
#: The two notes that count nothing: nobody began, and whoever did does not count. Older releases read both as 0.
_NOBODY, _UNCOUNTED = b"0", b"00"


class JetStreamLease:
    """The right to work on one delivered message.

    The server counts deliveries, not beginnings. So whoever hands a first delivery back, or begins a later one,
    leaves a note: the number of beginnings so far. Without a note somebody had the first delivery until its lease
    ran out, and had begun; or, if it is too young for that, it reached nobody: what the server was about to
    deliver to a replica that stopped to pull at that moment comes again at once, as delivered twice.

    Args:
        lease_s: how long a lease is, in seconds; 0 if that is not known.
    """

    __slots__ = (
        "_begun",
        "_connection",
        "_count",
        "_is_back",
        "_lease_s",
        "_note_pattern",
        "_notes",
        "_progressed",
        "_reply",
        "delivered",
        "first",
        "let_go",
        "nth",
        "pending",
        "seq",
        "stored_at",
        "sure_from",
    )

    def __init__(
        self, connection: Connection, notes: Journal, note_pattern: str, reply: str, *, lease_s: float = 0.0
    ) -> None:
        self._connection, self._notes, self._note_pattern, self._reply = connection, notes, note_pattern, reply
        self._lease_s = lease_s
        # Parsed from the right, because the left side grows with acknowledgements v2 (ADR-15).
        _, delivered, seq, nth, stored_ns, pending = reply.rsplit(".", 5)
        self.delivered, self.seq, self.pending = int(delivered), int(seq), int(pending)
        #: Which delivery of its consumer it is, over all messages, from 1.
        self.nth = int(nth)
        #: Called before it is settled or handed back, with whether it is settled.
        self.let_go: Callable[[bool], None] | None = None
        #: When the message was stored, in seconds since the epoch.
        self.stored_at = int(stored_ns) / NANOSECONDS
        # What a server of an earlier connection may have delivered was stored before this connection.
        self.sure_from = connection.connected_at + CLOCKS_S
        self.first = self.delivered == 1 and self.stored_at > self.sure_from
        self._begun = self._progressed = self._is_back = False
        #: Which beginning this is.
        self._count = 1

    @property
    def wake_token(self) -> str:
        """As for whoever takes it over."""
        return self._reply

    @property
    def token(self) -> str:
        """What it is acknowledged on: whoever knows that may do so."""
        return self._reply

    @property
    def _note_key(self) -> str:
        return self._note_pattern.replace("*", str(self.seq))

    async def begin(self) -> int:
        """Note that the work begins; returns which beginning it is."""
        self._begun = True
        if self.first:
            return 1
        while True:
            note = await self._notes.last(self._note_key)
            if self.delivered == 1 and note is None:
                return 1
            # Delivered once, and with a note: the server was killed and forgot what it had delivered before.
            count = (_beginnings(note.data) if note else int(self._has_lapsed)) + 1
            how: dict[str, Any] = {"ttl_s": NOTE_TTL_S, "expect_seq": note.seq if note else 0}
            # Whoever was given it when this lease lapsed may begin in the same moment.
            with contextlib.suppress(FencedError):
                await self._notes.append(self._note_key, str(count).encode(), **how)
                self._count = count
                return count

    async def begun_before(self) -> bool:
        """Whether the work may have begun in an earlier delivery."""
        if self.first:
            return False
        note = await self._notes.last(self._note_key)
        return note.data != _NOBODY if note else self.delivered > 1 and self._has_lapsed

    @property
    def _has_lapsed(self) -> bool:
        return time.time() > self.stored_at + self._lease_s - CLOCKS_S

    async def progressed(self) -> None:
        """Beginnings up to now don't count any more."""
        await self._notes.append(self._note_key, _UNCOUNTED, ttl_s=NOTE_TTL_S)
        # This beginning is among them.
        self._begun, self._progressed = False, True

    async def settle(self, *, confirmed: bool = False) -> None:
        """The message leaves the queue, a moment later; until then a crash would only deliver it again."""
        if self.let_go is not None:
            self.let_go(True)
        if confirmed:
            await self._connection.request(self._reply, b"+ACK")
        else:
            self._connection.publish_soon(self._reply, b"+ACK")

    async def extend(self) -> None:
        """Start the lease's time anew, unless it was handed back: that would end its pause."""
        if self._is_back:
            return
        await self._connection.publish(self._reply, b"+WPI")

    async def release(self, after_s: float = 0.0) -> None:
        """Hand the message back for another delivery."""
        self._is_back = True
        if self.let_go is not None:
            self.let_go(False)
        try:
            is_noted = self._progressed or self.delivered > 1
            if not is_noted and (self.first or await self._notes.last(self._note_key) is None):
                await self._notes.append(self._note_key, b"%d" % self._begun, ttl_s=NOTE_TTL_S)
        except BusUnavailableError:
            # A full server stores no note. What had begun comes again after its lease, which tells as much; of
            # the rest an attempt is lost, but no time.
            if self._begun:
                return
        delay = json.dumps({"delay": round(after_s * NANOSECONDS)})
        await self._connection.publish(self._reply, f"-NAK {delay}".encode())

    async def park(self, after_s: float) -> None:
        """Hand the message back for long; the beginning does not count."""
        self._is_back = True
        if self._begun:
            note = str(self._count - 1).encode() if self._count > 1 else _UNCOUNTED
            await self._notes.append(self._note_key, note, ttl_s=after_s + NOTE_TTL_S)
        delay = json.dumps({"delay": round(after_s * NANOSECONDS)})
        await self._connection.request(self._reply, f"-NAK {delay}".encode())


def _beginnings(note: bytes) -> int:
    """How many a note counts; anybody may write there, and what is no count stands for one."""
    return int(note) if _COUNT.fullmatch(note) else 1
