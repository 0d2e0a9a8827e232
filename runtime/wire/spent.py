"""What a task has spent, with all that it asked of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from squadron.runtime.wire.amounts import MOST_EXACT

#: Micro-dollars in a dollar: the smallest coin that is counted, a token of the cheapest models.
MICROS = 1_000_000
#: Largest amount of any coin: what JSON carries exactly in a number.
MOST = MOST_EXACT


@dataclass(frozen=True, slots=True)
class Spent:
    """Amounts that were spent: tokens of models, millionths of a US dollar, rounds (calls of a model), and tasks
    that were asked of others, theirs included.

    `told` is False where nobody said what was spent, as after a deadline that passed.
    """

    tokens: int = 0
    usd_micros: int = 0
    rounds: int = 0
    tasks: int = 0
    told: bool = field(default=True, kw_only=True)

    @property
    def usd(self) -> float:
        """The same in US dollars."""
        return self.usd_micros / MICROS

    @property
    def coins(self) -> tuple[int, int, int, int]:
        """The amounts alone: tokens, micro-dollars, rounds, tasks."""
        return self.tokens, self.usd_micros, self.rounds, self.tasks

    def __add__(self, other: Spent) -> Spent:
        # Coin by coin as it stands: a loop takes three times as long, for each task.
        return Spent(
            self.tokens + other.tokens,
            self.usd_micros + other.usd_micros,
            self.rounds + other.rounds,
            self.tasks + other.tasks,
            told=self.told and other.told,
        )

    def __sub__(self, other: Spent) -> Spent:
        return Spent(
            self.tokens - other.tokens,
            self.usd_micros - other.usd_micros,
            self.rounds - other.rounds,
            self.tasks - other.tasks,
            told=self.told and other.told,
        )

    def at_least(self, other: Spent) -> Spent:
        """The larger amount of each coin."""
        return Spent(*map(max, self.coins, other.coins), told=self.told)

    def to_wire(self) -> dict[str, Any] | None:
        """As it travels in `content.spent`; null where nobody knows."""
        if not self.told:
            return None
        return {"tokens": self.tokens, "cost": self.usd, "rounds": self.rounds, "tasks": self.tasks}

    @classmethod
    def of_wire(cls, raw: Any) -> Spent:
        """Read `content.spent`; an amount that is none counts as nothing."""
        if not isinstance(raw, Mapping):
            return NOT_TOLD if raw is None else cls()
        if len(raw) == 1 and not raw.get("tokens"):
            return NOTHING
        tokens, rounds, tasks = (int(_amount(raw.get(name), MOST)) for name in ("tokens", "rounds", "tasks"))
        return cls(tokens, micros(_amount(raw.get("cost"), MOST / MICROS)), rounds, tasks)


#: Nothing was spent, and nobody said what was.
NOTHING, NOT_TOLD = Spent(), Spent(told=False)


def micros(usd: float) -> int:
    """US dollars in millionths, to the nearest one."""
    return round(usd * MICROS)


def _amount(value: Any, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        return 0
    return min(value, most)
