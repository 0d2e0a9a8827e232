"""Following many lite topics over one subscription: the interest set, and the ready set.

What is followed is told once (`add`, `remove`); what wakes a reader is a topic that has something to read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, SquadClosedError
from squadron.runtime.lite.followed import Batch, Followed
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.retries import backoff_s, places_of, summary_of, traceback_of

#: Most entries of one batch from the store: as many as a journal asks for at once.
MOST_READ = 512
#: Most bytes that are held for all topics together; what comes beyond it waits in the store.
MOST_HELD_BYTES = 64 * 1024 * 1024
#: How often it is made sure, in seconds, that nothing was missed: one question of 0.2 ms for all topics.
UNHEARD_S = 5.0
#: Pause before a topic is tried again whose handler raised, doubled each time it does so again, with jitter, and
#: the longest one; and pause before the server that was away is asked again; in seconds.
RETRY_S, LONGEST_RETRY_S, AWAY_S = 1.0, 30.0, 0.1
#: An entry that was told of may be missing for a moment on the replica of the stream that answers; it is looked
#: for again after these pauses, in seconds. Then it is gone.
SETTLE_S = (0.02, 0.1, 0.5)

_log = get_logger("squadron.follow")

Handler = Callable[[Batch], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FollowStatistics:
    """Of now: topics followed, ready and running, and bytes held. Since the start: ready marks, reads, looks."""

    followed: int
    ready: int
    running: int
    held_bytes: int
    marks: int
    reads: int
    looks: int


class Follower:
    """Reads any number of keys that match one pattern, each from a place of its own, over one subscription.

    What is heard live is handed on if it goes on exactly where its topic is (`Entry.previous`); what was missed
    is read from the store when the topic's turn comes. So nothing is lost, repeated or out of order within a
    topic, over reconnects too, and a reader that is slow costs no more than `MOST_LIVE` entries.

    Different topics are handed out at once, one topic one batch at a time; news of a topic that waits or is
    being read is one mark, however many messages it is.
    """

    def __init__(self, journal: Journal, pattern: str) -> None:
        self._journal, self._pattern = journal, pattern
        self._topics: dict[str, Followed] = {}
        #: Follow every topic that matches, but for these.
        self._all, self._without = False, set[str]()
        #: Holds each followed topic once at most.
        self._ready: asyncio.Queue[Followed | None] = asyncio.Queue()
        self._running: set[str] = set()
        #: The highest sequence heard; and that up to which none of the pattern was missed: the same, but after
        #: the connection was lost, until that was made good.
        self._heard = self._sure = 0
        self._unsure, self._breaks, self._rewinds, self._lost = False, 0, 0, asyncio.Event()
        self._held = self._marks = self._reads = self._looks = 0
        self._subscription: Subscription | None = None
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, journal: Journal, pattern: str) -> Self:
        """Listen; what is stored from now on can be followed.

        Raises:
            InvalidSubjectError: `pattern` is not of lite topics.
            BusUnavailableError: the server can't be reached.
        """
        follower = cls(journal, pattern)
        follower._subscription = await journal.follow(pattern, follower._hear, lost=follower._doubt)
        try:
            newest = await journal.last(pattern)
        except BaseException:
            await follower.aclose()
            raise
        if newest is not None:
            follower._sure = max(follower._sure, newest.seq)
            follower._heard = max(follower._heard, newest.seq)
        follower._looking = spawn(follower._keep_looking(), f"follow {pattern}", lasting=True)
        return follower

    async def aclose(self) -> None:
        """Stop; `serve` and iterations end when what they work on is done. May be called twice."""
        if self._looking is not None:
            self._looking.cancel()
        if self._subscription is not None:
            await self._subscription.aclose()
        self._topics.clear()
        self._ready.put_nowait(None)

    # --- the interest set ------------------------------------------------------------------------------

    def add(self, key: str, *, after: int | None = None, resumed: bool = False) -> None:
        """Follow a topic, at once; one that is followed already moves.

        Args:
            after: hand out what comes after this sequence; None: what is stored from now on.
            resumed: the entry at `after` was read before, so that it is told if it is gone.
        """
        self.remove(key)
        self._without.discard(key)
        start = max(self._heard, self._sure) if after is None else after
        topic = Followed(key, start, start, unread=after is not None, anchored=resumed)
        self._topics[key] = topic
        self._mark(topic)

    def remove(self, key: str) -> None:
        """Follow a topic no more; of a batch that is being read nothing is taken back. Unknown ones are fine."""
        if self._all:
            self._without.add(key)
        topic = self._topics.pop(key, None)
        if topic is not None:
            self._held -= topic.drop(len(topic.live))

    def add_all(self, *, after: int | None = None) -> None:
        """Follow every topic that matches the pattern, those that don't exist yet as well; what is followed stays.

        Args:
            after: from this sequence on; None: what is stored from now on.
        """
        self._all = True
        if after is not None and after < self._sure:
            self._sure = after
            self._rewinds += 1
            self._doubt()

    def __contains__(self, key: str) -> bool:
        return key in self._topics

    def has_news(self, key: str) -> bool:
        """Whether something of a topic waits to be handed out, is being handed out, or may be in the store."""
        return key in self._topics and self._topics[key].has_news

    def cursor(self, key: str) -> int:
        """The sequence up to which a followed topic was handed out and done with."""
        return self._topics[key].cursor

    def statistics(self) -> FollowStatistics:
        """Figures of now and since the start."""
        return FollowStatistics(
            followed=len(self._topics),
            ready=sum(topic.queued for topic in self._topics.values()),
            running=len(self._running),
            held_bytes=self._held,
            marks=self._marks,
            reads=self._reads,
            looks=self._looks,
        )

    # --- hearing ---------------------------------------------------------------------------------------

    def _hear(self, entry: Entry) -> None:
        topic = self._topic(entry.key)
        self._heard = max(self._heard, entry.seq)
        if not self._unsure:
            self._sure = self._heard
        if topic is not None:
            self._take_in(topic, entry, entry.previous)

    def _topic(self, key: str) -> Followed | None:
        topic = self._topics.get(key)
        if topic is None and self._all and key not in self._without:
            # Had it an entry up to there that is not read, it would be here.
            topic = self._topics[key] = Followed(key, self._sure, self._sure, passing=True)
        return topic

    def _take_in(self, topic: Followed, entry: Entry, previous: int) -> None:
        """There is none of the topic between `previous` and this entry; -1: that is not known."""
        if entry.seq <= topic.newest:
            return
        keep = previous >= 0 and self._held + len(entry.data) <= MOST_HELD_BYTES
        self._held += topic.hear(entry, previous, keep=keep)
        self._mark(topic)

    @property
    def breaks(self) -> int:
        """How often something may have been missed since the start: it was looked for, unless it had lapsed."""
        return self._breaks

    def _doubt(self) -> None:
        """From here on something may be missed."""
        self._unsure = True
        self._breaks += 1
        self._lost.set()

    async def _keep_looking(self) -> None:
        """Find what was not heard: at once when the connection was lost, else every `UNHEARD_S`."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNHEARD_S):
                    await self._lost.wait()
            try:
                await self._look()
            except BusUnavailableError:
                self._lost.set()
                await asyncio.sleep(AWAY_S)
            except SquadClosedError:
                # Nothing more can come: those who read are told.
                self._topics.clear()
                return self._ready.put_nowait(None)
            except Exception as error:
                _log.error("follow.look", pattern=self._pattern, traceback=traceback_of(error))
                await asyncio.sleep(RETRY_S)

    async def _look(self) -> None:
        """Read of all topics at once what came after what was surely heard: one question if that is nothing."""
        self._lost.clear()
        self._looks += 1
        breaks, rewinds = self._breaks, self._rewinds
        newest = await self._journal.last(self._pattern)
        if newest is not None and newest.seq > self._sure:
            async with aclosing(self._journal.read(self._pattern, from_seq=self._sure + 1)) as stored:
                async for entry in stored:
                    if self._rewinds != rewinds:
                        # The next look begins earlier.
                        return
                    if topic := self._topic(entry.key):
                        # All before it was heard or read, so that the one before it is the newest there is.
                        self._take_in(topic, entry, -1 if topic.unread else topic.newest)
                    self._sure = max(self._sure, entry.seq)
                    if entry.seq >= newest.seq:
                        break
        if self._breaks == breaks:
            # What was stored since the question is heard: the connection is the same.
            self._unsure = False
            self._sure = self._heard = max(self._sure, self._heard)

    # --- the ready set ---------------------------------------------------------------------------------

    def _mark(self, topic: Followed) -> None:
        if topic.has_news and not topic.queued and topic.key not in self._running:
            topic.queued = True
            self._marks += 1
            self._ready.put_nowait(topic)

    async def _take(self) -> tuple[Followed, Batch] | None:
        """What the topic that has waited longest has to read, with the right to do so; None when closed."""
        while (topic := await self._ready.get()) is not None:
            topic.queued = False
            if topic.key in self._running or not self._follows(topic):
                continue
            self._running.add(topic.key)
            try:
                batch = await self._batch(topic)
            except Exception as error:
                more = {} if isinstance(error, BusUnavailableError) else {"traceback": traceback_of(error)}
                _log.warning("follow.put_off", key=topic.key, error=summary_of(error), **more)
                self._put_off(topic, RETRY_S)
                continue
            except BaseException:
                self._release(topic)
                raise
            if self._follows(topic) and (batch.entries or batch.lapsed):
                return topic, batch
            self._done(topic, batch)
        self._ready.put_nowait(None)
        return None

    def _follows(self, topic: Followed) -> bool:
        return self._topics.get(topic.key) is topic

    async def _batch(self, topic: Followed) -> Batch:
        """What comes after the cursor; nothing of it is done yet."""
        for pause_s in SETTLE_S:
            if topic.is_contiguous:
                return Batch(topic.key, tuple(topic.live), topic.live[-1].seq, after=topic.cursor)
            batch = await self._stored(topic)
            if batch.entries or topic.newest <= topic.cursor:
                return batch
            await asyncio.sleep(pause_s)
        # Told of, and gone from the store before it was read; what is held of it is handed out.
        return Batch(topic.key, tuple(topic.live), topic.newest, lapsed=True, after=topic.cursor)

    async def _stored(self, topic: Followed) -> Batch:
        self._reads += 1
        entries: list[Entry] = []
        anchor = topic.cursor if topic.anchored else 0
        lapsed = bool(anchor)
        async with aclosing(self._journal.read(topic.key, from_seq=anchor or topic.cursor + 1)) as stored:
            async for entry in stored:
                if entry.seq == anchor:
                    lapsed = False
                    continue
                entries.append(entry)
                if len(entries) == MOST_READ:
                    break
            else:
                topic.unread = False
        if not entries:
            return Batch(topic.key, (), topic.cursor, lapsed, topic.cursor)
        topic.newest = max(topic.newest, entries[-1].seq)
        return Batch(topic.key, tuple(entries), entries[-1].seq, lapsed, topic.cursor)

    def _done(self, topic: Followed, batch: Batch) -> None:
        if self._follows(topic):
            if batch.seq > topic.cursor:
                topic.anchored = bool(batch.entries)
            self._held -= topic.advance(batch.seq)
            if topic.passing and not topic.has_news and topic.cursor <= self._sure:
                del self._topics[topic.key]
        self._release(topic)

    def _release(self, topic: Followed) -> None:
        """Its turn is over. If it was added anew meanwhile, that one may run now."""
        self._running.discard(topic.key)
        if (current := self._topics.get(topic.key)) is not None:
            self._mark(current)

    def _put_off(self, topic: Followed, pause_s: float) -> None:
        """Its turn is over, and comes again after a pause, with the same messages."""
        topic.queued = True
        self._release(topic)
        asyncio.get_running_loop().call_later(pause_s, self._ready.put_nowait, topic)

    # --- reading ---------------------------------------------------------------------------------------

    async def serve(self, handler: Handler, *, slots: int = 64) -> None:
        """Run `handler` on every batch, of up to `slots` topics at once, of one topic one at a time; until closed.

        When it returns, its batch is done. When it raises, that is logged, and the topic is tried again after
        a pause with the same messages, and what came since: they come at least once.
        """
        async with asyncio.TaskGroup() as group:
            for slot in range(slots):
                group.create_task(self._work(handler), name=f"follow {self._pattern} {slot}")

    async def _work(self, handler: Handler) -> None:
        while (taken := await self._take()) is not None:
            topic, batch = taken
            try:
                await handler(batch)
            except Exception as error:
                topic.failures += 1
                pause_s = backoff_s(topic.failures, RETRY_S, LONGEST_RETRY_S)
                _log.error(
                    "follow.handler_raised",
                    key=topic.key,
                    failures=topic.failures,
                    error=summary_of(error),
                    at=places_of(error),
                    again_in_s=round(pause_s, 3),
                )
                self._put_off(topic, pause_s)
            except BaseException:
                self._release(topic)
                raise
            else:
                topic.failures = 0
                self._done(topic, batch)

    async def __aiter__(self) -> AsyncGenerator[Batch, None]:
        """Batches, one after the other; each is done when the next one is asked for."""
        while (taken := await self._take()) is not None:
            topic, batch = taken
            try:
                yield batch
            except BaseException:
                # It was left in the middle of this one.
                self._release(topic)
                raise
            self._done(topic, batch)
