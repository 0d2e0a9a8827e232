"""How a lite topic is read: what comes straight from the wire, what was missed from the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from squadron.runtime.envelope import AgentMessage
from squadron.runtime.errors import BusUnavailableError, InvalidInputError, InvalidMessageError
from squadron.runtime.follow import Follower
from squadron.runtime.followed import Batch
from squadron.runtime.ports import END_HEADER, Clock, Entry, Headers, LiteJournal
from squadron.runtime.subjects import life_of

#: How often a reader says that it uses the topic, in seconds.
USE_S = 1.0
#: How often it looks whether the last message has lapsed, once that is due, in seconds: clocks differ.
LOOK_S = 0.5

#: Units of a duration as Go writes it, in seconds; a bare number is seconds, too.
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s|)")


@dataclass(frozen=True, slots=True)
class Tail:
    """To start a reader at the newest `count` messages."""

    count: int


#: A time to start at is before the year 10000, in seconds since the epoch: no server reads a later one.
LATEST_S = 253_402_300_800.0

LiteStart = Literal["first", "last", "new"] | int | float | datetime | Tail


def check_lite_start(start: LiteStart) -> LiteStart:
    """Return `start` with a datetime as seconds since the epoch.

    Raises:
        InvalidInputError: it is not a place in a topic.
    """
    if isinstance(start, Tail):
        if isinstance(start.count, int) and start.count >= 0:
            return start
    elif isinstance(start, datetime):
        if start.tzinfo is not None:
            return start.timestamp()
    elif isinstance(start, str):
        if start in ("first", "last", "new"):
            return start
    elif isinstance(start, int) and not isinstance(start, bool):
        if start >= 1:
            return start
    elif isinstance(start, float) and 0 <= start < LATEST_S:
        return start
    raise InvalidInputError(
        f"a lite topic can't be read from {start!r}",
        field="start",
        hint='"first", "last", "new", a sequence (int), seconds since the epoch (float), a datetime with a time '
        "zone, or Tail(n)",
    )


@dataclass(frozen=True)
class LiteMessage:
    """One message of a lite topic.

    Attributes:
        seq: its sequence; a reader goes on with the next one by `start=seq + 1`.
        time: when it was stored, in seconds since the epoch.
        data, headers: as they were sent, by whichever client.
        missed: whether messages before it, after the one read last, may have lapsed unread.
    """

    seq: int
    time: float
    data: bytes
    headers: Headers = field(default_factory=dict)
    missed: bool = False

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


class LiteReader(AsyncIterator[LiteMessage]):
    """One reader's way through a lite topic; made by `LiteTopic.read`.

    Attributes:
        end: after the loop, how the topic ended; None if it did not.
    """

    def __init__(
        self,
        lite: LiteJournal,
        key: str,
        start: LiteStart,
        *,
        live: bool,
        clock: Clock,
        used: Callable[[], None],
    ) -> None:
        self.end: End | None = None
        self._lite, self._key, self._start, self._live = lite, key, start, live
        self._clock, self._used, self._used_at = clock, used, 0.0
        #: All up to this sequence was handed out, or was not wanted; if `anchored`, there was a message at it.
        self._cursor, self._anchored = 0, False
        #: An end before this one is of an earlier life, and not told to a reader who has seen nothing of it.
        self._newest_at_start, self._is_told_all = 0, False
        #: What is older was not wanted; in seconds since the epoch.
        self._since = 0.0
        self._missed = False
        #: When the last of the messages that were seen lapses, in seconds since the epoch.
        self._lapses_at, self._may_lapse = 0.0, asyncio.Event()
        self._messages = self._run()

    async def __anext__(self) -> LiteMessage:
        return await anext(self._messages)

    async def aclose(self) -> None:
        """Stop reading. May be called twice."""
        await self._messages.aclose()

    async def _run(self) -> AsyncGenerator[LiteMessage, None]:
        self._use()
        await self._find_start()
        if self.end is None:
            async with aclosing(self._followed() if self._live else self._stored()) as batches:
                async for batch in batches:
                    self._use()
                    for message in self._hand_out(batch):
                        yield message
                    if self.end is not None:
                        return

    def _use(self) -> None:
        now = self._clock.time()
        if now >= self._used_at + USE_S:
            self._used_at = now
            self._used()

    async def _find_start(self) -> None:
        start, last = self._start, await self._lite.last(self._key)
        newest = self._newest_at_start = 0 if last is None else last.seq
        # What comes next is wanted, and that the topic has ended.
        rest = newest - 1 if last is not None and END_HEADER in last.headers else newest
        if start == "last":
            self._cursor = max(0, newest - 1)
        elif start == "new":
            self._cursor = newest
        elif isinstance(start, Tail):
            self._cursor = await self._before_tail(start.count, rest)
        elif isinstance(start, float):
            self._since = start
            async with aclosing(self._lite.read(self._key, from_time=start)) as entries:
                first = await anext(entries, None)
            self._cursor = rest if first is None else first.seq - 1
        elif isinstance(start, int):
            self._cursor, self._anchored, self._is_told_all = start - 1, start > 1, True
            if start > 1 and await self._is_gone():
                self.end = End("expired", 0, self._clock.time(), missed=True)
        if last is not None and last.seq == self._cursor:
            self._note_life(last)

    async def _before_tail(self, count: int, otherwise: int) -> int:
        seqs = deque[int](maxlen=count)
        async with aclosing(self._lite.read(self._key)) as entries:
            async for entry in entries:
                if END_HEADER in entry.headers:
                    seqs.clear()
                else:
                    seqs.append(entry.seq)
        return seqs[0] - 1 if seqs else otherwise

    async def _is_gone(self) -> bool:
        """Whether there is neither a message, nor an end marker, nor an order to store one."""
        return await self._lite.last(self._key) is None and await self._lite.last(life_of(self._key)) is None

    async def _stored(self) -> AsyncGenerator[Batch, None]:
        lapsed = self._anchored
        from_seq = self._cursor + (not self._anchored)
        async with aclosing(self._lite.read(self._key, from_seq=from_seq)) as entries:
            async for entry in entries:
                if entry.seq > self._cursor:
                    yield Batch(self._key, (entry,), entry.seq, lapsed)
                lapsed = False

    async def _followed(self) -> AsyncGenerator[Batch, None]:
        follower = await Follower.open(self._lite, self._key)
        watching = asyncio.create_task(self._watch(follower), name=f"life of {self._key}")
        try:
            follower.add(self._key, after=self._cursor, resumed=self._anchored)
            async for batch in follower:
                yield batch
        finally:
            watching.cancel()
            await follower.aclose()

    async def _watch(self, follower: Follower) -> None:
        """Nobody marks the end of a topic whose messages have lives of their own: it is over with the last one."""
        await self._may_lapse.wait()
        while self._lapses_at < math.inf:
            await asyncio.sleep(max(LOOK_S, self._lapses_at - self._clock.time()))
            with contextlib.suppress(BusUnavailableError):
                if self._clock.time() >= self._lapses_at and await self._is_gone():
                    self.end = End("expired", 0, self._clock.time(), missed=False)
                    return await follower.aclose()

    def _hand_out(self, batch: Batch) -> Iterator[LiteMessage]:
        # Right behind the cursor there can't have been another one.
        if batch.lapsed and not (batch.entries and batch.entries[0].seq == self._cursor + 1):
            self._missed = True
        for entry in batch.entries:
            if reason := entry.headers.get(END_HEADER):
                if entry.seq >= self._newest_at_start or self._is_told_all:
                    self.end = self._ended(entry, reason)
                    return
                self._missed = False
            elif entry.time >= self._since:
                missed, self._missed, self._is_told_all = self._missed, False, True
                yield LiteMessage(entry.seq, entry.time, entry.data, entry.headers, missed)
            self._cursor = entry.seq
            self._note_life(entry)

    def _note_life(self, entry: Entry) -> None:
        if self._lapses_at < math.inf:
            self._lapses_at = max(self._lapses_at, entry.time + seconds_of(entry.headers.get("Nats-TTL", "")))
            self._may_lapse.set()

    def _ended(self, marker: Entry, reason: str) -> End:
        missed = self._missed or not (0 <= marker.previous <= self._cursor)
        with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
            # Who closed it knew the last message.
            missed = int(json.loads(marker.data)["last"]) > self._cursor
        return End("closed" if reason == "closed" else "expired", marker.seq, marker.time, missed)


def seconds_of(ttl: str) -> float:
    """A message's time to live in seconds, as servers read it: `30`, `1m30s`; infinite if it has none."""
    parts = _PART.findall(ttl)
    if not parts or "".join(number + unit for number, unit in parts) != ttl:
        return math.inf
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
