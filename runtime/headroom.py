"""Room in something bounded that is full elsewhere, too: what a count of it allows until the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self


@dataclass(slots=True)
class Headroom:
    """How many more may be put in, and until when that counts, by the clock of whoever counted.

    A count costs a round trip, so that a quarter of what it found free is used before the next; near the limit
    each that is put in takes a count. Processes don't know of each other: together they may overshoot by what they
    have under way at that moment.
    """

    left: int
    until: float
    full: bool

    @classmethod
    def found(cls, free: int, until: float) -> Self:
        """What may be used of the `free` places that were counted."""
        return cls(math.ceil(max(0, free) / 4), until, free <= 0)

    def has_some(self, now: float) -> bool:
        """Whether there is room without another count."""
        return self.left > 0 and self.until >= now
