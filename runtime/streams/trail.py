"""The entries of one lite topic, each once and in order: live, and from the store what was missed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.wire.limits import Deadline

#: What is held for a reader that is behind, in entries and bytes; the rest stays in the store until its turn.
MOST_HELD, MOST_HELD_BYTES = 1024, 8 * 1024 * 1024
#: A reader that heard nothing for so long looks into the store, in seconds: the last live message may be lost.
#: While it goes on hearing nothing it waits twice as long each time, up to the second figure: what was lost comes
#: after twice the silence at most, and ten thousand readers that wait make some 170 looks a second.
UNHEARD_S, LONGEST_UNHEARD_S = 5.0, 60.0
#: Pause before a bus that did not answer is tried again, in seconds.
AGAIN_S = 0.25
#: What a look into the store may take when the time is up, in seconds: what is there need not be lost.
LAST_LOOK_S = 1.0

#: As `Journal.follow`.
Follow = Callable[..., Awaitable[Subscription]]


class Trail:
    """A reader of one lite topic.

    Args:
        after: the cursor: only entries with a later sequence.
        live: whether to wait for more.
        until: when to stop waiting.
        follow: hears what is stored from now on; by default `Journal.follow`.
    """

    def __init__(
        self,
        lite: Journal,
        key: str,
        *,
        after: int = 0,
        live: bool = True,
        until: Deadline | None = None,
        follow: Follow | None = None,
    ) -> None:
        self.cursor, self._follow = after, follow or lite.follow
        self._lite, self._key, self._live, self._until = lite, key, live, until
        self._held: deque[Entry] = deque()
        self._held_bytes = 0
        #: Whether there may be something in the store that we did not hear of.
        self._missed = True
        self._waiting: asyncio.Future[None] | None = None
        self._unheard_s = UNHEARD_S

    def wind_up(self) -> None:
        """End with what is stored now."""
        self._live = False
        self._wake()

    @property
    def _late(self) -> bool:
        return self._until is not None and self._until.passed

    async def entries(self) -> AsyncGenerator[Entry, None]:
        """Each entry once, in order, none left out. A slow reader holds up nobody and misses nothing.

        Raises:
            BusUnavailableError: the server is away, and this neither waits for more nor has a time to stop at.
        """
        # Listening starts before the first look, so nothing can fall between the two.
        subscription = await self._followed() if self._live else None
        try:
            while True:
                live = self._live
                self._held.clear()
                self._missed, self._held_bytes = False, 0
                async with aclosing(self._stored()) as stored:
                    async for entry in stored:
                        yield entry
                        if self._held and 0 <= self._held[0].previous <= self.cursor:
                            # From here on it was heard: else who is slow would read all of it twice.
                            break
                if not live or self._late:
                    return
                while (heard := self._take()) or await self._more():
                    if heard:
                        yield heard
        finally:
            if subscription is not None:
                await subscription.aclose()

    async def _followed(self) -> Subscription | None:
        while True:
            try:
                return await self._follow(self._key, self._hear, lost=self._miss)
            except BusUnavailableError:
                if self._late:
                    return None
                await asyncio.sleep(AGAIN_S)

    def _hear(self, entry: Entry) -> None:
        if len(self._held) < MOST_HELD and self._held_bytes < MOST_HELD_BYTES:
            self._held.append(entry)
            self._held_bytes += len(entry.data)
            self._wake()
        else:
            self._miss()

    def _miss(self) -> None:
        self._missed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _take(self) -> Entry | None:
        """The next entry, if it was heard; if one before it was not, a look into the store is due."""
        while self._held:
            entry = self._held.popleft()
            self._held_bytes -= len(entry.data)
            if entry.seq <= self.cursor:
                continue
            if 0 <= entry.previous <= self.cursor:
                self.cursor = entry.seq
                return entry
            self._missed = True
            self._held.clear()
        return None

    async def _more(self) -> bool:
        """Wait until something was heard; False if it is better to look into the store."""
        if self._missed or not self._live:
            return False
        if self._held:
            return True
        loop = asyncio.get_running_loop()
        within_s = self._unheard_s if self._until is None else self._until.earliest(self._unheard_s)
        self._waiting = loop.create_future()
        # A plain timer: `asyncio.timeout` costs three times as much, and there may be one for each entry.
        late = loop.call_later(within_s, self._wake)
        try:
            await self._waiting
        finally:
            late.cancel()
            self._waiting = None
        self._unheard_s = UNHEARD_S if self._held else min(2 * self._unheard_s, LONGEST_UNHEARD_S)
        return bool(self._held) and self._live

    async def _stored(self) -> AsyncGenerator[Entry, None]:
        """What the store has past the cursor; goes on over an absence of the server, until the time is up."""
        reader = self._lite.read(self._key, from_seq=self.cursor + 1)
        try:
            while True:
                left_s = None if self._until is None else max(LAST_LOOK_S, self._until.remaining_s())
                try:
                    # Not around the yield: the time is up for us, not for whoever reads.
                    async with asyncio.timeout(left_s):
                        entry = await anext(reader, None)
                except TimeoutError:
                    return
                except BusUnavailableError:
                    if self._late:
                        return
                    if self._until is None and not self._live:
                        # The journal has waited for it long enough.
                        raise
                    await asyncio.sleep(AGAIN_S)
                    reader = self._lite.read(self._key, from_seq=self.cursor + 1)
                    continue
                if entry is None:
                    return
                self.cursor = entry.seq
                yield entry
        finally:
            await reader.aclose()
