"""How a lite topic is read: what comes straight from the wire, what was missed from the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from squadron.runtime.envelope import AgentMessage
from squadron.runtime.errors import InvalidInputError, InvalidMessageError
from squadron.runtime.ports import END_HEADER, Clock, Entry, Headers, LiteJournal

#: Messages that wait for a slow reader here; the rest is read from the store when its turn comes.
MOST_HELD = 256
#: A reader that hears nothing looks into the store so often, in seconds; one whose topic may have lapsed, so often.
LOOK_S, LAPSE_LOOK_S = 5.0, 0.5
#: A reader says that it uses the topic at most so often, in seconds.
TOUCH_S = 1.0
#: What is told of is stored, but a replica of the store may not have it yet: pauses before it is given up, in seconds.
SETTLE_S = (0.0, 0.01, 0.05, 0.2)

#: Units of a duration as Go writes it, in seconds; a bare number is seconds, too.
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s|)")


@dataclass(frozen=True, slots=True)
class Tail:
    """To start a reader at the newest `count` messages."""

    count: int


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
    elif start in ("first", "last", "new") or (isinstance(start, int) and not isinstance(start, bool) and start >= 1):
        return start
    elif isinstance(start, float) and 0 <= start < LATEST_S:
        return start
    raise InvalidInputError(
        f"a lite topic can't be read from {start!r}",
        field="start",
        hint='"first", "last", "new", a sequence (int), seconds since the epoch (float), a datetime with a time zone, '
        "or Tail(n)",
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
        live: bool,
        touch: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.end: End | None = None
        self._lite, self._key, self._start, self._live = lite, key, start, live
        self._touch, self._clock = touch, clock
        self._touched_at = 0.0
        #: What was heard and not handed out yet; when it was full, the store has the rest.
        self._heard: deque[Entry] = deque()
        self._is_to_look = False
        self._waiting: asyncio.Future[None] | None = None
        #: All up to this sequence was handed out, or was not wanted.
        self._cursor = 0
        #: When the entry at the cursor lapses, in seconds since the epoch.
        self._lapses_at = float("inf")
        self._messages = self._run()

    def __aiter__(self) -> LiteReader:
        return self

    async def __anext__(self) -> LiteMessage:
        message = await anext(self._messages)
        return message

    async def aclose(self) -> None:
        """Stop reading. May be called twice."""
        await self._messages.aclose()

    def look(self) -> None:
        """Look into the store soon: something may have been missed."""
        self._is_to_look = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _hear(self, entry: Entry) -> None:
        if len(self._heard) < MOST_HELD:
            self._heard.append(entry)
        else:
            self._is_to_look = True
        self._wake()
