"""How many lite topics there may be, as one process that makes them sees it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from squadron.runtime.errors import QuotaExceededError
from squadron.runtime.ports import Clock, LiteJournal
from squadron.runtime.subjects import Subjects, life_of

#: Most topics of one owner, and of an environment; RocketMQ allows 2,000 to a client and 20,000 to a broker.
PER_OWNER, IN_ALL = 100_000, 2_000_000
#: How long a count holds, in seconds: others make and end topics, too.
COUNT_S = 5.0
#: The same where no room was found: who is refused tries again.
FULL_S = 0.25
#: Counts that are kept; one too many only costs a round trip.
MOST_ROOMS = 1024


@dataclass(slots=True)
class _Room:
    """How many more topics may be made until the next count."""

    left: int
    until: float
    full: bool


class Quotas:
    """Keeps one process from making more lite topics than there may be.

    Counted are the topics with a life: those that were made here, or by another process like this. A count
    costs a round trip, so that a quarter of the room found is used before the next. Processes don't know of each
    other: together they may overshoot by what they make at that moment.
    """

    def __init__(
        self,
        lite: LiteJournal,
        subjects: Subjects,
        clock: Clock,
        *,
        per_owner: int = PER_OWNER,
        in_all: int = IN_ALL,
    ) -> None:
        self._lite, self._subjects, self._clock = lite, subjects, clock
        self._per_owner, self._in_all = per_owner, in_all
        self._rooms: dict[str, _Room] = {}
        self._counting = asyncio.Lock()

    def take(self, owner: str) -> bool:
        """Take up room for one topic if there surely is some; whether there is."""
        now = self._clock.time()
        rooms = [room for room in map(self._rooms.get, (owner, "")) if room is not None]
        if len(rooms) < 2 or any(room.left <= 0 or room.until < now for room in rooms):
            return False
        for room in rooms:
            room.left -= 1
        return True

    async def enter(self, owner: str) -> None:
        """Take up room for one topic.

        Raises:
            QuotaExceededError: there is none; `limit` and `owner` say which quota it was.
            BusUnavailableError: the topics can't be counted.
        """
        wanted = {owner: self._per_owner, "": self._in_all}
        while any(self._is_stale(whose) for whose in wanted):
            # One counts, the others wait for what it finds; while there is room, nobody waits.
            async with self._counting:
                for whose, limit in wanted.items():
                    if self._is_stale(whose):
                        await self._count(whose, limit)
        for whose, limit in wanted.items():
            if self._rooms[whose].left <= 0:
                has = f"{whose!r} has" if whose else "the environment has"
                setting = "lite_topics_per_owner" if whose else "lite_topics"
                hint = f"close some, give them shorter lives, or raise {setting}"
                raise QuotaExceededError(f"{has} its {limit:,} lite topics", owner=whose, limit=limit, hint=hint)
        for whose in wanted:
            self._rooms[whose].left -= 1

    def _is_stale(self, whose: str) -> bool:
        room = self._rooms.get(whose)
        return room is None or room.until < self._clock.time() or (room.left <= 0 and not room.full)

    async def _count(self, whose: str, limit: int) -> None:
        held = await self._lite.count(life_of(self._subjects.lite_of(whose)))
        left = math.ceil(max(0, limit - held) / 4)
        if len(self._rooms) >= MOST_ROOMS:
            self._rooms.clear()
        self._rooms[whose] = _Room(left, self._clock.time() + (COUNT_S if left else FULL_S), not left)
