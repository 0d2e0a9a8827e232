"""A promise that a benchmark holds or misses."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
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


def verdict(targets: Iterable[Target]) -> int:
    """Exit status of a benchmark that has measured all: 0, or 1 if a target was missed and `BENCH_STRICT` is set.

    What others do on the machine makes a target be missed, which is no fault of what was measured.
    """
    strict = os.environ.get("BENCH_STRICT", "") not in ("", "0")
    return 1 if strict and not all(each.held for each in targets) else 0


def ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(ones, others, strict=True)]
