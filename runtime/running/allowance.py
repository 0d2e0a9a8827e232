"""What a principal has asked and spent under the limits of the policy, counted by all replicas together.

The counts are lite topics, changed by compare-and-set, so that replicas and restarts change nothing about them.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Self

from squadron.runtime.errors import BusUnavailableError, FencedError, ForbiddenError, UntrustedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.store.port_set import Ports
from squadron.runtime.texts import digest_of
from squadron.runtime.trust.may_say import only
from squadron.runtime.wire.limits import UNLIMITED, Budget
from squadron.runtime.wire.policy import Limit
from squadron.runtime.wire.spent import MICROS, Spent
from squadron.runtime.wire.subjects import token_of

#: A day, and how long a count is kept after it was changed: the day that it is of is over then. In seconds.
DAY_S, KEPT_S = 86_400.0, 2 * 86_400.0
#: Counts that a replica keeps in mind, of some 300 bytes each.
MOST_COUNTS = 10_000


@dataclass(frozen=True, slots=True)
class Count:
    """What was asked and spent.

    Attributes:
        at: when it was changed, in seconds since the epoch.
        tasks: those that count against the rate: a leaking bucket, which a minute empties of a minute's worth.
        day: which day (UTC) the rest is of, as a number of days since the epoch.
    """

    at: float = 0.0
    tasks: float = 0.0
    day: int = 0
    tokens: int = 0
    usd_micros: int = 0

    def at_time(self, now: float, per_minute: int | None) -> Self:
        """What is left of it now."""
        leaked = max(0.0, now - self.at) * (per_minute or 0) / 60
        today = int(now // DAY_S)
        same = {} if today == self.day else {"day": today, "tokens": 0, "usd_micros": 0}
        return replace(self, at=now, tasks=max(0.0, self.tasks - leaked), **same)

    def encode(self) -> bytes:
        """As it is stored."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """What `encode` made; None if that is something else."""
        try:
            made = cls(**json.loads(data))
            return made if all(0 <= each < 2**53 for each in asdict(made).values()) else None
        except (ValueError, TypeError, RecursionError):
            return None


@dataclass(slots=True)
class _Seen:
    """A count as it was seen last, at its place in the journal; None until it was looked up."""

    seq: int | None = None
    count: Count = Count()
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Allowance:
    """Counts what principals ask and spend."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._known: OrderedDict[str, _Seen] = OrderedDict()

    async def take(self, payers: Iterable[str], topic: str, *, first: bool) -> Budget:
        """Count a task for these principals, if it is the first time; returns what it may spend.

        Raises:
            ForbiddenError: one of them has nothing left.
            BusUnavailableError: the server does not say.
        """
        budget, now = UNLIMITED, self._ports.clock.time()
        for who in payers:
            for number, limit in self._ports.policy.limits_of(who, topic):
                budget = budget.within(limit.per_task)
                if limit.is_counted:
                    taken = _Taking(who, number, limit, now, 1.0 if first else 0.0)
                    count = await self._change(_key(who, limit), taken)
                    budget = budget.within(limit.left_of_day(count.tokens, count.usd_micros / MICROS))
        return budget

    async def charge(self, payers: Iterable[str], topic: str, spent: Spent) -> None:
        """Write down what a task has spent; what can't be stored is not counted."""
        now = self._ports.clock.time()

        def add(count: Count) -> Count:
            return replace(
                count, tokens=count.tokens + spent.tokens, usd_micros=count.usd_micros + spent.usd_micros
            )

        for who in payers:
            for _, limit in self._ports.policy.limits_of(who, topic):
                if limit.tokens_per_day is not None or limit.usd_per_day is not None:
                    per_minute = limit.tasks_per_minute
                    with suppress(BusUnavailableError):
                        await self._change(
                            _key(who, limit),
                            lambda count, per_minute=per_minute: add(count.at_time(now, per_minute)),  # type: ignore[misc]
                        )

    async def _change(self, name: str, change: Callable[[Count], Count]) -> Count:
        key, known = self._ports.subjects.lite("allowance", name), self._mind(name)
        async with known.changing:
            if known.seq is None:
                await self._look(key, known)
            while True:
                # What is refused by an old count is refused by a newer one: they only grow, but for time.
                count = change(known.count)
                try:
                    seq = await self._ports.lite.append(key, count.encode(), ttl_s=KEPT_S, expect_seq=known.seq)
                except FencedError:
                    await self._look(key, known)
                    continue
                except BusUnavailableError:
                    # It may have been stored all the same.
                    known.seq = None
                    raise
                known.seq, known.count = seq, count
                return count

    def _mind(self, name: str) -> _Seen:
        known = self._known.setdefault(name, _Seen())
        self._known.move_to_end(name)
        if len(self._known) > MOST_COUNTS:
            self._known.popitem(last=False)
        return known

    async def _look(self, key: str, known: _Seen) -> None:
        entry = await self._ports.lite.last(key)
        known.seq = 0 if entry is None else entry.seq
        if entry is not None and (count := await self._believed(entry)):
            known.count = count

    async def _believed(self, entry: Entry) -> Count | None:
        """What an entry says, if an agent wrote it; anything else is not believed, and ours is written over it."""
        guard = self._ports.guard
        if guard is not None:
            try:
                said = entry.key, entry.data, entry.headers
                may = only("agent", "bridge")
                await guard.admit("record", *said, at=entry.time, may=may, seq=entry.seq)
            except UntrustedError:
                return None
        return Count.read(entry.data)


@dataclass(frozen=True, slots=True)
class _Taking:
    """One more task under a limit."""

    who: str
    number: int
    limit: Limit
    now: float
    tasks: float

    def __call__(self, count: Count) -> Count:
        limit = self.limit
        count = count.at_time(self.now, limit.tasks_per_minute)
        per_minute = limit.tasks_per_minute
        if per_minute is not None and self.tasks and count.tasks + self.tasks > per_minute:
            wait_s = (count.tasks + self.tasks - per_minute) * 60 / per_minute
            raise self._over(f"tasks_per_minute is {per_minute}; there is room in {wait_s:.1f} s")
        if spent := limit.left_of_day(count.tokens, count.usd_micros / MICROS).exhausted:
            raise self._over(
                f"{spent}_per_day is {getattr(limit, f'{spent}_per_day'):g}, and spent until 0:00 UTC"
            )
        return replace(count, tasks=count.tasks + self.tasks)

    def _over(self, why: str) -> ForbiddenError:
        return ForbiddenError(f"{self.who} may ask no more of it: {why}", field=f"limits.{self.number}")


def _key(who: str, limit: Limit) -> str:
    return token_of(f"{who.replace(':', '-')}-{digest_of(limit.model_dump(mode='json'))[:16]}")
