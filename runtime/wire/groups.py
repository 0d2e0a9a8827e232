"""Groups of durable subscribers: what they hear, and from where on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.subjects import check_pattern, check_token

#: Where a new group begins: with what is stored from now on, with the oldest event that is kept, with a
#: sequence (int), or with a time (an aware datetime, or a float of seconds since the epoch).
Start = Literal["new", "first"] | int | float | datetime

#: A time to start at is before the year 10000, in seconds since the epoch: no server reads a later one.
LATEST_S = 253_402_300_800.0


def check_start(start: Start) -> Literal["new", "first"] | int | float:
    """Return `start` with a datetime as seconds since the epoch.

    Raises:
        InvalidInputError: it is not a place in the log.
    """
    if isinstance(start, str) and start in ("new", "first"):
        return start
    if isinstance(start, datetime) and start.tzinfo is not None:
        return start.timestamp()
    if isinstance(start, int) and not isinstance(start, bool) and start >= 1:
        return start
    if isinstance(start, float) and 0 <= start < LATEST_S:
        return start
    raise InvalidInputError(
        f"a subscription can't start at {start!r}",
        field="start",
        hint='"new", "first", a sequence (int), seconds since the epoch (float), or a datetime with a time zone',
    )


@dataclass(frozen=True, slots=True)
class EventGroup:
    """Those who share a durable subscription: each event that matches goes to one of them, at least once.

    `start` counts when the group is made; later it goes on where it was. `lease_s` is how long a silent member
    keeps an event before it is given to another.

    Raises:
        InvalidSubjectError: `name` is not a token (an agent's: `agent.method`), or `pattern` breaks the grammar.
        InvalidInputError: `start` is not a place in the log.
    """

    name: str
    pattern: str
    start: Start = "new"
    lease_s: float = 2.5

    def __post_init__(self) -> None:
        check_group(self.name)
        check_pattern(self.pattern)
        check_start(self.start)


def check_group(name: str) -> str:
    """Return `name` if a group can be called so.

    Raises:
        InvalidSubjectError: it is not a token, nor two of them with a dot between.
    """
    for token in name.split(".", 1) if isinstance(name, str) else [name]:
        check_token(token, f"subscription {name!r}:")
    return name
