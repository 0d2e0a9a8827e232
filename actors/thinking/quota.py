"""What a provider account allows in a minute, as arithmetic: limits, costs, bookings. No clock, no I/O.

It is the generic cell rate algorithm (ITU-T I.371, annex A): of each kind of unit it is only known when the next
one is free. Who books some moves that instant on, and so everybody has a time of his own, also when more is wanted
than there is: nobody tries in vain, and nobody starves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from squadron.runtime.errors import ConfigError

#: Seconds of the rate that may come at once after some rest. Providers fill a bucket of a whole minute, and warn
#: that 60 a minute may be held as 1 a second: a tenth of the minute lies between.
BURST_S = 6.0
#: How much of its demand a replica books ahead, in seconds: half a write per second and replica (ADR 0025).
AHEAD_S = 2.0
#: How long a replica counts, and keeps its places for calls under way, without renewing them, in seconds.
LISTED_S = 30.0
#: Longest that a 429 holds everybody up, in seconds, whatever its provider asks for: then a call finds out. Longer
#: than the minute by which limits are counted, and short where the told time was a slip (a date, milliseconds).
MOST_PAUSE_S = 300.0

#: Units of each kind, `requests`, `tokens`, `input` and `output`: a cost, or what is left.
Units = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an account may use in a minute, and how many calls at once; None is no limit.

    Attributes:
        tpm: input and output together, counted when the call is made, with all of its `max_tokens`; what is not
            used does not come back. So counts OpenAI.
        input_tpm: input that was not read from the cache. Anthropic counts it and `output_tpm` apart, as used.
    """

    rpm: float | None = None
    tpm: float | None = None
    input_tpm: float | None = None
    output_tpm: float | None = None
    concurrency: int | None = None

    @classmethod
    def parse(cls, raw: Any, name: str) -> Self:
        """Read the limits of one model or provider.

        Raises:
            ConfigError: an unknown field, or a value that is no number above 0; names it.
        """
        known = [each.name for each in fields(cls)]
        for what, value in raw.items() if isinstance(raw, dict) else [("", raw)]:
            if what not in known:
                raise ConfigError(f"limits of {name}: unknown {what!r}", hint=f"use {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"limits of {name}: {what} can't be {value!r}", hint="give a number above 0")
            if what == "concurrency" and value != int(value):
                raise ConfigError(f"limits of {name}: {what} can't be {value!r}", hint="give a whole number")
        return cls(**raw)

    @property
    def rates(self) -> dict[str, float]:
        """Units per second, of the kinds that have a limit."""
        minutely = {"requests": self.rpm, "tokens": self.tpm, "input": self.input_tpm, "output": self.output_tpm}
        return {kind: limit / 60.0 for kind, limit in minutely.items() if limit is not None}

    def share(self, parts: int) -> Limits:
        """An equal part of them, for one who can't ask the others."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        parted = {name: value and value / parts for name, value in values.items()}
        return Limits(**parted | {"concurrency": self.concurrency and max(1, self.concurrency // parts)})


@dataclass(frozen=True, slots=True)
class Booking:
    """What one replica wants.

    Attributes:
        least: the cost of the call that is next; all of it is booked or nothing.
        wanted: what it would need for the next `AHEAD_S` seconds, `least` included.
        back: what it returns of earlier bookings; below zero if more was used than booked.
        running: its calls under way.
        waiting: its calls that wait for a place, the next one included.
        deadline: when the next call is of no use any more, in seconds since the epoch.
    """

    who: str
    least: Units = field(default_factory=dict)
    wanted: Units = field(default_factory=dict)
    back: Units = field(default_factory=dict)
    running: int = 0
    waiting: int = 0
    deadline: float = math.inf


@dataclass(slots=True)
class Allotment:
    """What one replica has booked: of each kind how much is `left`, and `at` which time the next unit is free.

    `places` are the calls it may have under way, None if there is no limit; after `until` it books anew, or after
    one call more if it is `fresh`: nothing was taken yet.
    """

    rates: Units = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    places: int | None = None
    until: float = -math.inf
    fresh: bool = False

    def holds(self, now: float) -> bool:
        """Whether it is to be used still.

        What was booked and not touched serves one call however late: who books anew goes to the end of the line,
        and a replica that is slower than `AHEAD_S` would do so for ever. Its places were others' after `LISTED_S`.
        """
        late_s = math.inf if self.places is None else LISTED_S - AHEAD_S
        return now <= self.until + (late_s if self.fresh else 0.0)

    def covers(self, cost: Units) -> bool:
        """Whether there is enough left."""
        return all(self.left.get(kind, 0.0) >= cost.get(kind, 0.0) for kind in self.rates)

    def ready_at(self) -> float:
        """When the next call may begin: each cost counts from its first unit on."""
        return max(self.at.values(), default=-math.inf)

    def take(self, cost: Units) -> None:
        """Use some of it."""
        self.fresh = False
        for kind, rate in self.rates.items():
            self.left[kind] = self.left.get(kind, 0.0) - cost.get(kind, 0.0)
            self.at[kind] = self.at.get(kind, -math.inf) + cost.get(kind, 0.0) / rate


@dataclass(frozen=True, slots=True)
class AccountState:
    """What all replicas know of one account; times in seconds since the epoch.

    Attributes:
        next_at: when the next unit of each kind is free.
        paused_until: nobody asks before.
        lessees: who uses it: until when that is known, and how many places it holds.
    """

    next_at: Mapping[str, float] = field(default_factory=dict)
    paused_until: float = 0.0
    lessees: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As it is stored."""
        return json.dumps([self.next_at, self.paused_until, self.lessees], separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes, now: float) -> Self:
        """As it was stored; what can't be read is as if nothing had been used.

        What lies later than any pause ends is left out. Twice as long is let pass, because clocks differ.
        """
        try:
            next_at, paused_until, lessees = json.loads(data)
            known = {str(who): (float(until), int(places)) for who, (until, places) in lessees.items()}
            state = cls({str(kind): float(at) for kind, at in next_at.items()}, float(paused_until), known)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return cls()
        times = (*state.next_at.values(), state.paused_until, *(until for until, _ in known.values()))
        if not all(map(math.isfinite, times)):
            return cls()
        latest = now + 2 * MOST_PAUSE_S
        if state.paused_until <= latest:
            return state
        return cls({kind: at for kind, at in state.next_at.items() if at <= latest}, 0.0, known)

    def pause(self, until: float, rates: Units) -> AccountState:
        """Nobody asks before `until`, and from then on at the rate, without a burst."""
        next_at = {kind: max(self.next_at.get(kind, 0.0), until) for kind in {*self.next_at, *rates}}
        return replace(self, paused_until=max(self.paused_until, until), next_at=next_at)

    def others(self, who: str, now: float) -> dict[str, tuple[float, int]]:
        """The other replicas that are known to use it."""
        return {name: seen for name, seen in self.lessees.items() if name != who and seen[0] > now}

    def leave(self, booking: Booking, limits: Limits, now: float) -> AccountState:
        """Give back what is left; who has no call under way does not count any more."""
        lessees = self.others(booking.who, now)
        if booking.running:
            lessees[booking.who] = (now + LISTED_S, booking.running)
        return replace(self, next_at=self._given_back(booking.back, limits.rates), lessees=lessees)

    def book(self, booking: Booking, limits: Limits, now: float) -> tuple[AccountState, Allotment | None]:
        """The state with the booking, and what was booked; None if it would come too late for the next call."""
        if limits == Limits():
            in_time = self.paused_until <= booking.deadline
            return self, Allotment(until=now + AHEAD_S, fresh=True) if in_time else None
        others = self.others(booking.who, now)
        active, places = len(others) + 1, None
        if limits.concurrency is not None:
            places = _places(booking, limits.concurrency, active, sum(held for _, held in others.values()))
        held = 0 if places is None else max(places, booking.running)
        state = replace(self, lessees=others | {booking.who: (now + LISTED_S, held)})
        rates, next_at = limits.rates, state._given_back(booking.back, limits.rates)
        if places is not None and places <= booking.running:
            # Without a place nothing else is of use; but others see that somebody waits.
            return replace(state, next_at=next_at), Allotment(rates, places=places, until=now)
        # The later of: the line, a pause, and a burst after some rest.
        floor = max(now - BURST_S, self.paused_until)
        starts = {kind: max(next_at.get(kind, 0.0), floor) for kind in rates}
        if max(starts.values(), default=floor) > booking.deadline:
            return replace(self, next_at=next_at), None
        left = dict[str, float]()
        for kind, rate in rates.items():
            # An equal part, in whole calls: what is left of half a call would have to go back.
            share, least = rate * AHEAD_S / active, booking.least.get(kind, 0.0)
            part = math.ceil(share / least) * least if least > 0 else share
            left[kind] = max(least, min(booking.wanted.get(kind, 0.0), part))
            next_at[kind] = starts[kind] + left[kind] / rate
        last_at = max((next_at[kind] for kind in rates), default=now)
        allotment = Allotment(rates, left, starts, places, max(now, last_at) + AHEAD_S, fresh=True)
        return replace(state, next_at=next_at), allotment

    def _given_back(self, back: Units, rates: Units) -> dict[str, float]:
        given = {
            kind: self.next_at[kind] - back.get(kind, 0.0) / rate
            for kind, rate in rates.items()
            if kind in self.next_at
        }
        return dict(self.next_at) | given


def _places(booking: Booking, limit: int, active: int, held: int) -> int:
    """How many calls a replica may have under way: a fair part, or more as long as each has one to come to."""
    free = max(0, limit - held)
    fair = max(1, limit // active, free - active)
    return min(booking.running + booking.waiting, free, fair)
