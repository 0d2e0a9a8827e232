"""The one writer of a run: what is stored is taken in and told of, in this order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.entries import CallsEnded, Entry, Finished, Thought
from squadron.actors.runs.log import RunLog
from squadron.actors.runs.state import RunState
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.queue import Lease


class Recorder:
    """Stores entries, and brings state, books and listeners up to them.

    Attributes:
        lock: whoever decides by the state and stores what it decided holds it meanwhile.
    """

    def __init__(
        self,
        log: RunLog,
        state: RunState,
        books: RunBooks,
        lease: Lease | None,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.state, self._log, self._books, self._lease, self._tell = state, log, books, lease, tell
        self.lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._grown = False
        #: How many entries there are, and how many there were when the loop looked.
        self._taken = self._seen = 0

    async def replay(self) -> None:
        """Take in what is stored.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        for entry in await self._log.load():
            self._take(entry)
        self._seen = self._taken
        self._announce()

    async def look(self) -> None:
        """The loop decides by what is stored now: called before it reads the state, after whatever it waited for.

        A replay hands over what was there then, and no more.
        """
        self._seen = self._taken

    async def decide(self, *entries: Entry) -> None:
        """Store what the loop decided, and by how much of the log; else as `store`."""
        async with self.lock:
            await self.decide_locked(*entries)

    async def decide_locked(self, *entries: Entry) -> None:
        """The same, for whoever holds the lock."""
        await self.store_locked(*(entry.model_copy(update={"seen": self._seen}) for entry in entries))
        # Whoever goes on at once has seen what it stored, and nothing else.
        self._seen = self._taken

    async def store(self, *entries: Entry) -> None:
        """Store entries; they have no effect before this returns.

        Raises:
            SupersededError: another attempt has taken the run over.
            BusUnavailableError: the server was away until the deadline.
        """
        async with self.lock:
            await self.store_locked(*entries)

    async def store_locked(self, *entries: Entry) -> None:
        """The same, for whoever holds the lock; of two ends of a run that come at once the first counts."""
        if self.state.finished is not None:
            entries = tuple(entry for entry in entries if not isinstance(entry, Finished))
            if not entries:
                return
        end = self._log.end
        try:
            await self._log.append(*entries, about=self.state.about(entries))
        finally:
            # Who was cancelled meanwhile has stored it as well.
            if self._log.end != end:
                for entry in entries:
                    self._take(entry)
                self._announce()
        if not self._grown and any(isinstance(entry, Thought | CallsEnded) for entry in entries):
            self._grown = True
            if self._lease is not None:
                # The run came further: that it had to be begun does not count against it.
                with contextlib.suppress(BusUnavailableError):
                    await self._lease.progressed()

    def _take(self, entry: Entry) -> None:
        self._taken += 1
        self._books.apply(entry)
        self.state.apply(entry)

    def _announce(self) -> None:
        events, self.state.events = self.state.events, []
        for event in events:
            self._tell(event)
        self._changed.set()

    async def changed(self, within_s: float | None) -> bool:
        """Wait until something is stored, at most so many seconds; whether that was so."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()
        return self._changed.is_set()
