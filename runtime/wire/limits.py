"""What a task may still spend; time is the first coin, told by a clock."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.spent import MICROS, MOST, NOTHING, Spent, micros

#: Largest budget in US dollars: a billion, so that millionths of it are exact in a float. Longest time of work, in
#: seconds: as `within_s` of asking, a hundred years.
MOST_USD, MOST_SECONDS = 1e9, 100 * 365.25 * 24 * 3600


class Clock(Protocol):
    """Time, so that tests can turn it."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant after which nobody waits any more; travels as unix milliseconds."""

    at_ms: int
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> Self:
        """The deadline `seconds` from now."""
        return cls(round((clock.time() + seconds) * 1000), clock)

    def remaining_s(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at_ms / 1000 - self.clock.time())

    @property
    def passed(self) -> bool:
        return self.remaining_s() <= 0

    def earliest(self, seconds: float) -> float:
        """The shorter of `seconds` and what is left: a child gets no more time than its parent."""
        return min(seconds, self.remaining_s())


@dataclass(frozen=True, slots=True)
class Budget:
    """What a task may spend, with all that it asks of others; None is no limit.

    Attributes:
        tokens: of models, input and output.
        usd: US dollars; counted in millionths.
        rounds: calls of a model.
        tasks: tasks that are asked of others, theirs included.
        hops: how far it may be passed on. Below zero when it is used up: 0 allows the task itself.
        seconds: time that each attempt may work.

    Raises:
        InvalidInputError: a limit is no number that it can be; names it.
    """

    tokens: int | None = None
    hops: int | None = None
    usd: float | None = None
    rounds: int | None = None
    #: Below zero when it is used up, as hops.
    tasks: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "rounds", "tasks", "hops"):
            limit = getattr(self, name)
            least = -1 if name in ("tasks", "hops") else 0
            if limit is not None and (type(limit) is not int or not least <= limit <= MOST):
                raise _bad(name, limit, f"a whole number from 0 to {MOST:,}")
        for name, most in (("usd", MOST_USD), ("seconds", MOST_SECONDS)):
            limit = getattr(self, name)
            if limit is not None and (type(limit) not in (int, float) or not 0 <= limit <= most):
                raise _bad(name, limit, f"a number from 0 to {most:,.0f}")

    @property
    def coins(self) -> tuple[int | None, ...]:
        """What can be spent, in the order of `Spent.coins`; US dollars in millionths."""
        return self.tokens, None if self.usd is None else micros(self.usd), self.rounds, self.tasks

    def with_coins(self, *coins: int | None) -> Self:
        """The same limits with other amounts to spend, in the order of `coins`."""
        tokens, usd_micros, rounds, tasks = coins
        usd = None if usd_micros is None else usd_micros / MICROS
        return replace(self, tokens=tokens, usd=usd, rounds=rounds, tasks=tasks)

    def minus(self, spent: Spent) -> Self:
        """What is left when so much was spent; who overspends has nothing left."""
        if spent is NOTHING:
            return self
        pairs = zip(self.coins, spent.coins, strict=True)
        return self.with_coins(
            *(None if limit is None else max(min(0, limit), limit - used) for limit, used in pairs)
        )

    def share(self, shares: int) -> Self:
        """What each of so many tasks may spend, if one more share is to be left; other limits stay.

        The tasks themselves are taken from the number of tasks first.
        """
        free = self if self.tasks is None else replace(self, tasks=max(0, self.tasks - shares))
        return self.with_coins(*(None if limit is None else limit // (shares + 1) for limit in free.coins))

    def within(self, other: Budget) -> Budget:
        """The tighter of the two, limit by limit."""
        names = (one.name for one in fields(self))
        return Budget(**{name: least(getattr(self, name), getattr(other, name)) for name in names})

    @property
    def exhausted(self) -> str:
        """Which limit leaves nothing ("tokens", "usd", "tasks", "hops", "seconds"), or the empty string.

        No rounds are left for whom calls no model: `Ledger.reserve` refuses them.
        """
        if self is UNLIMITED:
            return ""
        for name in ("tokens", "usd", "seconds"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                return name
        return next((name for name in ("tasks", "hops") if (getattr(self, name) or 0) < 0), "")

    def to_wire(self) -> dict[str, Any]:
        """As it travels in `payload.constraints`: `cost` in US dollars, `time` in milliseconds of work."""
        if self is UNLIMITED:
            return {}
        time_ms = None if self.seconds is None else self.seconds * 1000
        limits = {"tokens": self.tokens, "hops": self.hops, "cost": self.usd, "rounds": self.rounds}
        limits |= {"tasks": self.tasks, "time": time_ms}
        return {name: limit for name, limit in limits.items() if limit is not None}


#: What a task may spend when nobody says: what it likes.
UNLIMITED = Budget()


def least(*limits: Any) -> Any:
    """The tightest of some limits, None being none."""
    return min((limit for limit in limits if limit is not None), default=None)


def _bad(name: str, limit: Any, hint: str) -> InvalidInputError:
    shown = limit if not isinstance(limit, int) or abs(limit) < 10**30 else "so large a number"
    return InvalidInputError(f"{name} of a budget can't be {shown!r}", field=name, hint=hint)
