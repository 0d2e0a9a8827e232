"""How a lite topic is read: what comes straight from the wire, what was missed from the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from squadron.runtime.background import spawn
from squadron.runtime.closing import AsyncClosing
from squadron.runtime.errors import BusUnavailableError, InvalidMessageError, SquadClosedError
from squadron.runtime.lite.believed import TakeEntry
from squadron.runtime.lite.exclusive import ExclusiveCursor, Guarded
from squadron.runtime.lite.followed import Batch
from squadron.runtime.lite.follower import Follower
from squadron.runtime.ports.journal import Entry, Headers
from squadron.runtime.ports.lite_journal import END_HEADER, LiteJournal
from squadron.runtime.steady import AHEAD, Steady
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.start import LiteStart, Tail
from squadron.runtime.wire.subjects import life_of

#: How often a reader says that it uses the topic, in seconds.
USE_S = 1.0
#: How often it looks whether the last message has lapsed, once that is due, in seconds: clocks differ.
LAPSE_LOOK_S = 0.5

#: Units of a duration as Go writes it, in seconds; a bare number is seconds, too.
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s|)")


@dataclass(frozen=True, repr=False)
class LiteMessage:
    """One message of a lite topic.

    Attributes:
        seq: its sequence; a reader goes on with the next one by `start=seq + 1`.
        time: when it was stored, in seconds since the epoch.
        data, headers: as they were sent, by whichever client; what is sealed for this process is opened, and what
            is sealed for others has no `content`.
        missed: whether messages before it, after the one read last, may have lapsed unread.
    """

    seq: int
    time: float
    data: bytes
    headers: Headers = field(default_factory=dict)
    missed: bool = False

    def __repr__(self) -> str:
        content = self.data if self.message is None else self.content
        return f"LiteMessage(seq={self.seq}, time={self.time}, content={content!r:.200})"

    @cached_property
    def message(self) -> AgentMessage | None:
        """The envelope; None if it is none."""
        try:
            return AgentMessage.decode(self.data)
        except InvalidMessageError:
            return None

    @property
    def content(self) -> Any:
        """What was published, if by `LiteTopic.publish` or as an `AgentMessage`; else None."""
        return None if self.message is None else self.message.payload.content


@dataclass(frozen=True, slots=True)
class End:
    """How a lite topic ended.

    Attributes:
        reason: somebody closed it, or it was not used for its life.
        seq: sequence of its end marker: `start=seq + 1` reads the topic that comes after it. 0 if there is none.
        time: when it ended, in seconds since the epoch.
        missed: whether messages after the one read last may have ended with it, unread.
    """

    reason: Literal["closed", "expired"]
    seq: int
    time: float
    missed: bool


class LiteReader(AsyncClosing, AsyncIterator[LiteMessage]):
    """One reader's way through a lite topic; made by `LiteTopic.read`. Who stops waiting for a message loses none.

    Attributes:
        end: after the loop, how the topic ended; None if it did not.
    """

    def __init__(self, reading: LiteReading) -> None:
        self.end: End | None = None
        self._reading = reading
        # Who reads exclusively is done with a message when the next one is asked for.
        self._messages = Steady(reading, ahead=0 if reading.exclusive else AHEAD)

    async def __anext__(self) -> LiteMessage:
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            self.end = self._reading.end
            raise

    async def aclose(self) -> None:
        """Stop reading. May be called twice."""
        await self._messages.aclose()


class LiteReading(AsyncClosing, AsyncIterator[LiteMessage]):
    """What a `LiteReader` hands out."""

    def __init__(
        self,
        lite: LiteJournal,
        key: str,
        start: LiteStart,
        *,
        live: bool,
        clock: Clock,
        used: Callable[[], None],
        take: Callable[[], Awaitable[ExclusiveCursor]] | None = None,
        taken: TakeEntry,
    ) -> None:
        self.end: End | None = None
        self._lite, self._key, self._start, self._live = lite, key, start, live
        self._clock, self._used, self._used_at = clock, used, 0.0
        #: Makes this the only reader of its name.
        self._take = take
        self._taken = taken
        #: All up to this sequence was handed out, or was not wanted; if `anchored`, there was a message at it.
        self._cursor, self._anchored = 0, False
        self._handed_out = False
        #: What is older was not wanted; in seconds since the epoch.
        self._since = 0.0
        self._missed = False
        #: Losses of the connection before the last message was handed out.
        self._sure_until = 0
        #: When the last of the messages that were seen lapses, in seconds since the epoch.
        self._lapses_at, self._may_lapse = 0.0, asyncio.Event()
        self._messages: AsyncGenerator[LiteMessage, None] | Guarded[LiteMessage] = self._read()

    @property
    def exclusive(self) -> bool:
        """Whether this is the only reader of its name."""
        return self._take is not None

    async def __anext__(self) -> LiteMessage:
        if self._take is not None and not isinstance(self._messages, Guarded):
            cursor = await self._take()
            self._start = cursor.seq or self._start
            self._messages = cursor.guard(self._messages)
        return await anext(self._messages)

    async def aclose(self) -> None:
        """Stop reading. May be called twice."""
        await self._messages.aclose()

    async def _read(self) -> AsyncGenerator[LiteMessage, None]:
        self._use()
        await self._find_start()
        async with aclosing(self._followed() if self._live else self._stored()) as batches:
            async for batch in batches:
                self._use()
                async for message in self._hand_out(batch):
                    yield message
                if self.end is not None:
                    return

    def _use(self) -> None:
        now = self._clock.time()
        if now >= self._used_at + USE_S:
            self._used_at = now
            self._used()

    async def _find_start(self) -> None:
        start = self._start
        if isinstance(start, int):
            self._cursor, self._anchored = start - 1, start > 1
        elif isinstance(start, Tail):
            otherwise = await self._newest(to_hand_out=False)
            self._cursor = await before_tail(self._lite, self._key, start.count, otherwise)
        elif isinstance(start, float):
            self._since = start
            otherwise = await self._newest(to_hand_out=False)
            self._cursor = await before_time(self._lite, self._key, start, otherwise)
        elif start != "first":
            self._cursor = await self._newest(to_hand_out=start == "last")

    async def _newest(self, *, to_hand_out: bool) -> int:
        """Where to start for the newest message, or for what comes after it, which may be the end."""
        last = await self._lite.last(self._key)
        if last is None:
            return 0
        self._note_life(last)
        is_end = END_HEADER in last.headers and self._start != "new"
        return last.seq - 1 if to_hand_out or is_end else last.seq

    async def _stored(self) -> AsyncGenerator[Batch, None]:
        lapsed = self._anchored
        from_seq = self._cursor + (not self._anchored)
        async with aclosing(self._lite.read(self._key, from_seq=from_seq)) as entries:
            async for entry in entries:
                if entry.seq > self._cursor:
                    yield Batch(self._key, (entry,), entry.seq, lapsed, self._cursor)
                lapsed = False
        if lapsed and not self._handed_out and await self._is_gone():
            self._end_gone()

    async def _followed(self) -> AsyncGenerator[Batch, None]:
        follower = await Follower.open(self._lite, self._key)
        watching = spawn(self._watch(follower), f"life of {self._key}")
        try:
            follower.add(self._key, after=self._cursor, resumed=self._anchored)
            async for batch in follower:
                self._sure_until = follower.breaks
                yield batch
        finally:
            watching.cancel()
            await follower.aclose()

    async def _watch(self, follower: Follower) -> None:
        """Nobody marks the end of a topic whose messages have lives of their own: it is over with the last one."""
        if not self._anchored:
            await self._may_lapse.wait()
        while self._lapses_at < math.inf:
            with contextlib.suppress(BusUnavailableError, SquadClosedError):
                # What was heard is handed out first, though it may be gone from the store by now.
                due = self._clock.time() >= self._lapses_at
                if due and await self._is_gone() and not follower.has_news(self._key):
                    # While the connection was away a message may have come and gone.
                    self._missed = self._missed or follower.breaks != self._sure_until
                    self._end_gone()
                    return await follower.aclose()
            await asyncio.sleep(max(LAPSE_LOOK_S, self._lapses_at - self._clock.time()))

    async def _is_gone(self) -> bool:
        """Whether there is neither a message, nor an end marker, nor an order to store one."""
        last = await self._lite.last(self._key)
        if last is not None:
            self._note_life(last)
        return last is None and await self._lite.last(life_of(self._key)) is None

    def _end_gone(self) -> None:
        self.end = End("expired", 0, self._clock.time(), missed=self._missed or not self._handed_out)

    async def _hand_out(self, batch: Batch) -> AsyncGenerator[LiteMessage, None]:
        self._missed = self._missed or batch.may_have_missed
        for entry in batch.entries:
            if END_HEADER in entry.headers:
                if not await self._is_of_earlier_life(entry):
                    self.end = read_end(entry, self._cursor, missed=self._missed)
                    return
                self._missed = False
            elif entry.time >= self._since and (data := await self._taken(entry)) is not None:
                missed, self._missed, self._handed_out = self._missed, False, True
                yield LiteMessage(entry.seq, entry.time, data, dict(entry.headers), missed)
            self._cursor = entry.seq
            self._note_life(entry)

    async def _is_of_earlier_life(self, marker: Entry) -> bool:
        """Who comes for the topic as it is now has seen nothing of the one that ended before it."""
        if self._handed_out or isinstance(self._start, int) or marker.previous >= 0:
            return False
        last = await self._lite.last(self._key)
        return last is not None and last.seq > marker.seq

    def _note_life(self, entry: Entry) -> None:
        if self._lapses_at < math.inf:
            self._lapses_at = max(self._lapses_at, entry.time + seconds_of(entry.headers.get("Nats-TTL", "")))
            self._may_lapse.set()


async def before_tail(lite: LiteJournal, key: str, count: int, otherwise: int) -> int:
    """The sequence right before the newest `count` messages of a topic, or `otherwise` if it has none."""
    seqs = deque[int](maxlen=count)
    async with aclosing(lite.read(key)) as entries:
        async for entry in entries:
            if END_HEADER in entry.headers:
                seqs.clear()
            else:
                seqs.append(entry.seq)
    return seqs[0] - 1 if seqs else otherwise


async def before_time(lite: LiteJournal, key: str, time_s: float, otherwise: int) -> int:
    """The sequence right before what was stored from a time on, or `otherwise` if there is nothing."""
    async with aclosing(lite.read(key, from_time=time_s)) as entries:
        first = await anext(entries, None)
    return otherwise if first is None else first.seq - 1


def read_end(marker: Entry, cursor: int, *, missed: bool) -> End:
    """What an end marker says to who has read up to `cursor`, and `missed` something, or not, before that."""
    missed = missed or not (0 <= marker.previous <= cursor)
    with contextlib.suppress(ValueError, TypeError, LookupError, OverflowError, RecursionError):
        # Who closed it knew the last message.
        missed = int(json.loads(marker.data)["last"]) > cursor
    reason = marker.headers[END_HEADER]
    return End("closed" if reason == "closed" else "expired", marker.seq, marker.time, missed)


def seconds_of(ttl: str) -> float:
    """A message's time to live in seconds, as servers read it: `30`, `1m30s`; infinite if it has none."""
    parts = _PART.findall(ttl)
    if not parts or "".join(number + unit for number, unit in parts) != ttl:
        return math.inf
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
