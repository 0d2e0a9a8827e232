"""What a task may still spend; time is the first coin, told by a clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

from squadron.runtime.errors import InvalidInputError


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
    """Limits that travel with a task; None means unlimited.

    Raises:
        InvalidInputError: a limit is no whole number, or there are fewer tokens than none.
    """

    tokens: int | None = None
    #: Below zero when it is used up: 0 allows the task itself.
    hops: int | None = None

    def __post_init__(self) -> None:
        for name, limit in (("tokens", self.tokens), ("hops", self.hops)):
            if limit is not None and type(limit) is not int:
                raise InvalidInputError(
                    f"{name} of a budget can't be {limit!r}", field=name, hint="a whole number"
                )
        if self.tokens is not None and self.tokens < 0:
            raise InvalidInputError(f"a budget can't be {self.tokens} tokens", field="tokens", hint="0 or more")

    def spend(self, *, tokens: int = 0) -> Budget:
        """The budget left after `tokens` more were used; never below zero."""
        if self.tokens is None:
            return self
        return replace(self, tokens=max(0, self.tokens - tokens))

    def child(self) -> Budget:
        """What a task asked from here may spend: the same tokens, one hop less."""
        return self if self.hops is None else replace(self, hops=self.hops - 1)

    def within(self, other: Budget) -> Budget:
        """The tighter of the two, limit by limit."""
        return Budget(tokens=_least(self.tokens, other.tokens), hops=_least(self.hops, other.hops))

    @property
    def exhausted(self) -> str:
        """Which limit is used up ("tokens", "hops"), or the empty string."""
        if self.tokens is not None and self.tokens <= 0:
            return "tokens"
        if self.hops is not None and self.hops < 0:
            return "hops"
        return ""


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
