"""Many lite topics of one owner, followed at once: only those that have something to read wake the reader."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Literal, Self

from squadron.runtime.calling import Threads, call
from squadron.runtime.errors import InvalidInputError, SquadronError
from squadron.runtime.lite.believed import TakeEntry
from squadron.runtime.lite.followed import Batch
from squadron.runtime.lite.follower import Follower, FollowStatistics
from squadron.runtime.lite.reader import (
    End,
    LiteMessage,
    before_tail,
    before_time,
    read_end,
)
from squadron.runtime.ports.lite_journal import END_HEADER, LiteJournal
from squadron.runtime.steady import Steady
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.start import LiteStart, Tail, check_lite_start
from squadron.runtime.wire.subjects import Subjects

#: A message that is older than this when it is handed out, in seconds, counts as a use of its topic; who stored
#: a younger one has just used it.
USED_AFTER_S = 1.0

LiteItems = Sequence[LiteMessage | End]
#: A plain function runs in a thread.
LiteHandler = Callable[[str, LiteItems], Awaitable[None] | None]


class LiteFeed:
    """Follows any number of lite topics of one owner over one subscription; made by `squad.follow`.

        async with squad.follow("chat-7") as feed:
            await feed.add("session-42", start="first")
            await feed.serve(handler)

    `handler(id, items)` gets the next messages of one topic, oldest first, and an `End` where the topic ended.
    Different topics are handled at once, one topic one call at a time. Messages that come meanwhile wait, in the
    store if they are many, and are one call when the topic's turn comes: up to 512 messages.

    When a handler raises, that is logged, and its topic comes again after a second at most, after two when it
    raises then, and so on up to half a minute, with the same messages and what came since. So each message is
    handled at least once; none is lost, or overtakes one before it.
    """

    def __init__(
        self,
        lite: LiteJournal,
        subjects: Subjects,
        owner: str,
        clock: Clock,
        used: Callable[[str], None],
        taken: TakeEntry,
    ) -> None:
        self.owner = owner
        self._taken = taken
        self._lite, self._subjects, self._clock, self._used = lite, subjects, clock, used
        self._pattern = subjects.lite_of(owner)
        self._opened: Follower | None = None
        #: By topic, its newest sequence when it was added: an end before it was that of an earlier life.
        self._newest: dict[str, int] = {}
        #: Topics of which something may have lapsed unread, with nothing after it yet that could say so.
        self._missed: set[str] = set()

    async def __aenter__(self) -> Self:
        self._opened = await Follower.open(self._lite, self._pattern)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop; `serve` ends when the handlers that run have. May be called twice."""
        if self._opened is not None:
            await self._opened.aclose()

    @property
    def _follower(self) -> Follower:
        if self._opened is None:
            raise SquadronError("the feed is not open", hint="async with squad.follow(owner) as feed")
        return self._opened

    async def add(self, id: str, start: LiteStart = "new") -> None:
        """Follow a topic from now on; one that is followed already moves to `start`.

        Args:
            start: as for `LiteTopic.read`. "new" costs nothing; "first" and a sequence the reading of what is
                there, when the topic's turn comes; the others look for their place first.

        Raises:
            InvalidSubjectError: `id` is not a token.
            InvalidInputError: `start` is not a place in a topic.
            BusUnavailableError: the place had to be looked for, and the server can't be reached.
        """
        start, key = check_lite_start(start), self._subjects.lite(self.owner, id)
        if start == "new":
            return self._follower.add(key)
        if isinstance(start, int):
            return self._follower.add(key, after=start - 1, resumed=start > 1)
        last = await self._lite.last(key)
        newest = 0 if last is None else last.seq
        after = 0
        if start == "last":
            after = max(0, newest - 1)
        elif isinstance(start, Tail):
            after = await before_tail(self._lite, key, start.count, newest)
        elif isinstance(start, float):
            after = await before_time(self._lite, key, start, newest)
        self._newest[key] = newest
        return self._follower.add(key, after=after)

    def remove(self, id: str) -> None:
        """Follow a topic no more: it is handed out nothing from now on. Unknown ones are fine."""
        key = self._subjects.lite(self.owner, id)
        self._follower.remove(key)
        self._newest.pop(key, None)
        self._missed.discard(key)

    def add_all(self, start: Literal["new", "first"] | int = "new") -> None:
        """Follow every topic of the owner, future ones as well, but for those removed later; what was added stays.

        Args:
            start: "new", "first", or a sequence of any topic: what was stored from there on.

        Raises:
            InvalidInputError: `start` is none of these.
        """
        checked = check_lite_start(start)
        if checked not in ("new", "first") and not isinstance(checked, int):
            hint = '"new", "first", or a sequence'
            raise InvalidInputError(f"all topics can't be followed from {start!r}", field="start", hint=hint)
        first = 1 if checked == "first" else checked
        self._follower.add_all(after=first - 1 if isinstance(first, int) else None)

    def __contains__(self, id: str) -> bool:
        return self._subjects.lite(self.owner, id) in self._follower

    def statistics(self) -> FollowStatistics:
        """Figures of now and since the start."""
        return self._follower.statistics()

    async def serve(self, handler: LiteHandler, *, slots: int = 64) -> None:
        """Run `handler` for topics that have something to read, `slots` at once, until the feed is closed.

        Raises:
            InvalidInputError: `slots` is not a number from 1.
        """
        if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
            raise InvalidInputError(f"{slots!r} handlers can't run at once", field="slots", hint="1 or more")

        async def handle(batch: Batch) -> None:
            if items := await self._items(batch):
                await call(Threads(), handler, _id(batch.key), items)
            self._settle(batch, items)

        await self._follower.serve(handle, slots=slots)

    def __aiter__(self) -> Steady[tuple[str, LiteItems]]:
        """What `serve` hands to its handler, one after the other; each is done when the next one is asked for."""
        return Steady(self._all_items())

    async def _all_items(self) -> AsyncGenerator[tuple[str, LiteItems], None]:
        async with aclosing(aiter(self._follower)) as batches:
            async for batch in batches:
                if items := await self._items(batch):
                    yield _id(batch.key), items
                self._settle(batch, items)

    async def _items(self, batch: Batch) -> LiteItems:
        key, cursor = batch.key, batch.after
        missed = key in self._missed or batch.may_have_missed
        items: list[LiteMessage | End] = []
        for entry in batch.entries:
            if END_HEADER not in entry.headers:
                if (data := await self._taken(entry)) is not None:
                    items.append(LiteMessage(entry.seq, entry.time, data, dict(entry.headers), missed))
            elif entry.seq >= self._newest.get(key, 0):
                items.append(read_end(entry, cursor, missed=missed))
            cursor, missed = entry.seq, False
        return items

    def _settle(self, batch: Batch, items: LiteItems) -> None:
        if items:
            self._missed.discard(batch.key)
            if self._clock.time() - batch.entries[-1].time > USED_AFTER_S:
                self._used(_id(batch.key))
        elif batch.lapsed and batch.key in self._follower:
            self._missed.add(batch.key)


def _id(key: str) -> str:
    return key.rsplit(".", 1)[-1]
