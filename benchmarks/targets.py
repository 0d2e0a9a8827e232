"""A promise that a benchmark holds or misses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A promise: the median of `rounds` is at most, or at least, `limit`."""

    what: str
    rounds: Sequence[float]
    limit: float
    at_most: bool

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)

    @property
    def held(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        rounds = f"({min(self.rounds):.2f} to {max(self.rounds):.2f})"
        limit = f"{'<=' if self.at_most else '>='} {self.limit:g}"
        return f"{self.what:42}{self.value:8.2f} {rounds:22}{limit:8}{'held' if self.held else 'MISSED'}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"value": self.value, "held": self.held}


def ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(ones, others, strict=True)]
