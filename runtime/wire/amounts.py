"""Numbers that others told: JSON of strangers has NaN, and digits that no double holds."""

from __future__ import annotations

from typing import Any, TypeGuard

#: The year 9999, in seconds since the epoch: the last time that has a date.
LAST_S = 253402300799.0
#: Beyond this a double loses the last digits of a whole number.
MOST_EXACT = 2**53


def is_amount(value: Any, most: float = MOST_EXACT) -> TypeGuard[float]:
    """Whether that is a number from 0 to `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
