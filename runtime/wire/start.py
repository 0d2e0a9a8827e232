"""Where reading begins: in the log of events, and in a lite topic."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from squadron.runtime.errors import InvalidInputError

#: A time to start at is before the year 10000, in seconds since the epoch: no server reads a later one.
LATEST_S = 253_402_300_800.0


@dataclass(frozen=True, slots=True)
class Tail:
    """To start a reader at the newest `count` messages.

    Raises:
        InvalidInputError: that is no count.
    """

    count: int

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 0:
            raise InvalidInputError(f"a tail can't have {self.count!r} messages", field="start", hint="0 or more")


#: What is stored from now on, the oldest that is kept, a sequence (int), or a time in seconds since the epoch.
StartAt = Literal["new", "first"] | int | float
#: The same; a time may be an aware datetime, too.
Start = StartAt | datetime
#: A lite topic is also read from its end: the newest message, or the newest few.
LiteStart = Start | Literal["last"] | Tail


def check_start(start: Start, *, what: str = "a subscription", more: str = "") -> StartAt:
    """Return `start` with a datetime as seconds since the epoch.

    Args:
        what, more: who can't start there, and where else it could, as an error says it.

    Raises:
        InvalidInputError: it is no place to start at.
    """
    if isinstance(start, str) and start in ("new", "first"):
        return start
    if isinstance(start, datetime) and start.tzinfo is not None and start.timestamp() < LATEST_S:
        # Nothing was stored before the epoch.
        return max(0.0, start.timestamp())
    if isinstance(start, int) and not isinstance(start, bool) and start >= 1:
        return start
    if isinstance(start, float) and 0 <= start < LATEST_S:
        return start
    why = ", which has no time zone" if isinstance(start, datetime) and start.tzinfo is None else ""
    raise InvalidInputError(
        f"{what} can't start at {start!r}{why}",
        field="start",
        hint='"new", "first", a sequence (int), seconds since the epoch (float), or a datetime with a time '
        f"zone{more}",
    )


def check_lite_start(start: LiteStart) -> StartAt | Literal["last"] | Tail:
    """Likewise for a lite topic."""
    if isinstance(start, Tail) or (isinstance(start, str) and start == "last"):
        return start
    return check_start(start, what="the reader of a lite topic", more='; or "last", or Tail(n)')
