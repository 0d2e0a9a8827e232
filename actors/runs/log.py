"""The log of one run: a fenced journal, whose entries are stored before their effects."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from squadron.actors.runs.entries import ENTRIES, Entry, Started
from squadron.runtime.background import to_its_end
from squadron.runtime.errors import (
    BusUnavailableError,
    ClaimLostError,
    FencedError,
    InvalidInputError,
    InvalidMessageError,
    Retry,
    SupersededError,
)
from squadron.runtime.store.own_journal import Taken, is_own
from squadron.runtime.store.port_set import Ports
from squadron.runtime.telemetry.happenings import RunGrew
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Deadline

#: Life of a log after its run's deadline, in seconds: a week, to look at it and to go on.
KEEP_S = 7 * 24 * 3600.0
#: What a run is called of which nobody is to know more.
SEALED_TITLE = "(sealed)"
#: Pause before a server that was away is tried again, in seconds.
AGAIN_S = 0.25


class RunLog:
    """One attempt's hold on the log of a run. One writer at a time: whoever appended last knows its end.

    If it is `sealed`, only this agent can read it, and observers do not hear of it. Where it is looked who signed
    what, only what the `agent` wrote is read.
    """

    def __init__(
        self, ports: Ports, run: str, deadline: Deadline, *, agent: str = "", sealed: bool = False
    ) -> None:
        self._ports, self._agent, self.run, self._deadline, self._sealed = ports, agent, run, deadline, sealed
        self._key = ports.subjects.run(run)
        self._seq = 0
        #: Ids of what was cut off while it was appended: it may be stored.
        self._cut = set[str]()

    @property
    def end(self) -> int:
        """Sequence of the newest message that this attempt knows of; 0 if there is none."""
        return self._seq

    async def load(self) -> list[Entry]:
        """All that was stored up to now; from here on this attempt can append, until another one does.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        entries: list[Entry] = []
        async for seq, message in read(self._ports, self._key, by=self._agent):
            self._seq = seq
            entries += entries_of(message)
        return entries

    async def append(self, *entries: Entry, about: dict[str, Any]) -> None:
        """Store entries, all or none; a server that is away is waited for.

        Args:
            about: a few facts about the run as it is now, for who lists runs.

        Raises:
            SupersededError: another attempt has taken the run over.
            BusUnavailableError: the server was away until the deadline.
            Retry: one that was cut off while the server was away is stored; the next attempt goes on from there.
        """
        content = ENTRIES.dump_python(entries, mode="json", exclude_defaults=True)
        for dumped, entry in zip(content, entries, strict=True):
            dumped["kind"] = entry.kind
        id = os.urandom(16).hex()
        keep_s = self._deadline.remaining_s() + KEEP_S
        if self._sealed:
            about = {**about, "title": SEALED_TITLE}
        sealed = await self._ports.pack_for(
            ((await self._ports.claims.seals.ring()).public,) if self._sealed else (),
            self._key,
            "event",
            {"content": content},
            keep_s=keep_s,
            id=id,
            correlation_id=self.run,
            metadata={"about": about},
        )
        self._cut.add(id)
        while True:
            try:
                # To its end, because who is cancelled meanwhile would not know whether it is stored.
                await to_its_end(self._append(sealed, id, keep_s))
                break
            except BusUnavailableError:
                if self._deadline.passed:
                    raise
                await asyncio.sleep(AGAIN_S)
            finally:
                # Told from here: what an observer puts into the context is for what comes next.
                if id not in self._cut and self._ports.observers.on and not self._sealed:
                    self._ports.observers.tell(RunGrew(run=self.run, entries=entries))

    async def _append(self, sealed: bytes, id: str, keep_s: float) -> None:
        try:
            self._seq = await self._ports.runs.append(self._key, sealed, ttl_s=keep_s, expect_seq=self._seq)
        except FencedError:
            # It may be ours, whose acknowledgement was lost.
            last = await self._last()
            if last is None or last[1].id not in self._cut:
                raise SupersededError(f"another attempt goes on with {self.run}") from None
            if last[1].id != id:
                # What it says is not in anybody's mind here: the next attempt finds it in the log.
                raise Retry(f"{self.run} has an entry that was cut off here", after_s=0.0) from None
            self._seq = last[0]
        # Whatever was cut off before can't come after this.
        self._cut.clear()

    async def _last(self) -> tuple[int, AgentMessage] | None:
        entry = await self._ports.runs.last(self._key)
        # Anybody may write there.
        with contextlib.suppress(InvalidMessageError):
            return None if entry is None else (entry.seq, AgentMessage.decode(entry.data))
        return None


async def read(ports: Ports, key: str, *, by: str = "") -> AsyncGenerator[tuple[int, AgentMessage], None]:
    """The messages of logs, oldest first, each with its sequence; what nobody can read is passed over.

    Args:
        by: the agent whose log it is: where it is looked who signed what, only what it wrote is read.
    """
    taken = Taken()
    async for entry in ports.runs.read(key):
        message = AgentMessage.new("event", ports.identity, ())
        # Anybody may write there.
        with contextlib.suppress(InvalidMessageError, ClaimLostError):
            if not by or await is_own(ports, entry, by, taken):
                message = await ports.claims.open(entry.data, entry.key, got_at=entry.got_at)
        yield entry.seq, message


async def started_of(ports: Ports, agent: str, run: str) -> Started | None:
    """How a run of an agent began; None if there is no such run.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    async with aclosing(read(ports, ports.subjects.run(run), by=agent)) as messages:
        async for _, message in messages:
            for entry in entries_of(message):
                if isinstance(entry, Started):
                    return entry
    return None


def entries_of(message: AgentMessage) -> tuple[Entry, ...]:
    """What one message of a log holds; nothing, if it is no such message."""
    try:
        return ENTRIES.validate_python(message.payload.content)
    except (ValidationError, InvalidInputError):
        return ()
