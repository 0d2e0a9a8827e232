"""How many lite topics there may be, as one process that makes them sees it."""

from __future__ import annotations

import asyncio

from squadron.runtime.errors import QuotaExceededError
from squadron.runtime.headroom import Headroom
from squadron.runtime.ports.lite_journal import LiteJournal
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.subjects import Subjects, life_of

#: Most topics of one owner, and of an environment; RocketMQ allows 2,000 to a client and 20,000 to a broker.
PER_OWNER, IN_ALL = 100_000, 2_000_000
#: How long a count holds, in seconds: others make and end topics, too.
COUNT_S = 5.0
#: The same where no room was found: who is refused tries again.
FULL_S = 0.25
#: After a count that took long the next one waits so many times as long: the server does nothing else meanwhile.
PAUSE = 50
#: Counts that are kept; one too many only costs a round trip.
MOST_ROOMS = 1024


class _Making:
    """Topics that are being made."""

    def __init__(self) -> None:
        self.topics, self.ended = 0, asyncio.Event()

    def __enter__(self) -> None:
        self.topics += 1
        self.ended.clear()

    def __exit__(self, *_: object) -> None:
        self.topics -= 1
        if not self.topics:
            self.ended.set()


class Quotas:
    """Keeps one process from making more lite topics than there may be.

    Counted are the topics with a life: those that were made here, or by another process like this. See `Headroom`.
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
        self._rooms: dict[str, Headroom] = {}
        self._counting = asyncio.Lock()
        self._making = _Making()
        #: Somebody waits for those, so that no more are begun.
        self._settling = False

    def has_room(self, owner: str) -> bool:
        """Whether there surely is room for one topic, so that `room` need not ask."""
        own, all_in_all = self._rooms.get(owner), self._rooms.get("")
        if self._settling or own is None or all_in_all is None:
            return False
        now = self._clock.time()
        return own.has_some(now) and all_in_all.has_some(now)

    async def room(self, owner: str) -> _Making:
        """Room for one topic, which is to be made within what this returns (`with`), and at once.

        Raises:
            QuotaExceededError: there is none; `limit` and `owner` say which quota it was.
            BusUnavailableError: the topics can't be counted.
        """
        if not self.has_room(owner):
            # One counts, the others wait for what it finds; while there is room, nobody stands in line.
            async with self._counting:
                await self._room(owner, self._per_owner)
                await self._room("", self._in_all)
        for room in (self._rooms.get(owner), self._rooms.get("")):
            if room is not None:
                room.left -= 1
        return self._making

    async def _room(self, owner: str, limit: int) -> None:
        room, now = self._rooms.get(owner), self._clock.time()
        # One that was found full stays so for its time; one that was used up is counted anew.
        if room is None or room.until < now or (room.left <= 0 and not room.full):
            free = await self._free(owner, limit)
            counted_at = self._clock.time()
            pause_s = max(COUNT_S if free > 0 else FULL_S, (counted_at - now) * PAUSE)
            if len(self._rooms) >= MOST_ROOMS:
                self._rooms.clear()
            room = self._rooms[owner] = Headroom.found(free, counted_at + pause_s)
        if room.left <= 0:
            whose = f"{owner!r} has" if owner else "the environment has"
            setting = "lite_topics_per_owner" if owner else "lite_topics"
            hint = f"close some, give them shorter lives, or raise {setting}: SQUADRON_{setting.upper()}"
            raise QuotaExceededError(f"{whose} its {limit:,} lite topics", owner=owner, limit=limit, hint=hint)

    async def _free(self, owner: str, limit: int) -> int:
        # Those that are being made may be counted already, or not.
        making = self._making.topics
        free = limit - making - await self._held(owner, limit)
        if free <= 0 and making:
            self._settling = True
            try:
                await self._making.ended.wait()
            finally:
                self._settling = False
            free = limit - await self._held(owner, limit)
        return free

    async def _held(self, owner: str, limit: int) -> int:
        # There are at least as many keys as topics; to know them costs nothing.
        if not owner and (keys := await self._lite.keys()) < limit:
            return keys
        return await self._lite.count(life_of(self._subjects.lite_of(owner)))
