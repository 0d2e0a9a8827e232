"""Room in bounded mailboxes, as one publisher sees it."""

from __future__ import annotations

import asyncio

from squadron.runtime.headroom import Headroom
from squadron.runtime.ports.queue import Queue
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.topics import SemanticTopic

#: How long a look at a mailbox counts, in seconds, and the pause before the next when it was full.
COUNT_S = 0.25
#: How long after its outcome was heard a task may still be counted, in seconds.
SETTLED_S = 0.03
#: When a rejected caller may try again, in seconds.
RETRY_AFTER_S = 1.0


class Admission:
    """Keeps one process from putting more into a bounded mailbox than it holds.

    See `Headroom`. Each publisher counts what it has under way itself, which a look may have missed.
    """

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self._queue, self._clock = queue, clock
        self._rooms: dict[str, Headroom] = {}
        self._looking: dict[str, asyncio.Lock] = {}
        #: Mailboxes of tasks that have their room but are not stored yet.
        self._under_way: dict[str, str] = {}

    async def enter(self, topic: SemanticTopic, task_id: str, *, within_s: float) -> bool:
        """Take up room for one task, waiting up to `within_s` seconds for it if the topic says so.

        Who gets it says `entered` when the task is stored, or will never be.
        """
        if not await self._wait(topic, within_s):
            return False
        self._under_way[task_id] = topic.mailbox
        return True

    def entered(self, task_id: str) -> None:
        """A look at the mailbox counts it from now on."""
        self._under_way.pop(task_id, None)

    async def _wait(self, topic: SemanticTopic, within_s: float) -> bool:
        looking = self._looking.setdefault(topic.mailbox, asyncio.Lock())
        if topic.when_full == "reject":
            async with looking:
                if await self._take(topic):
                    return True
                # Who just heard an outcome may find its task in the mailbox still.
                await asyncio.sleep(SETTLED_S)
                return await self._take(topic)
        try:
            async with asyncio.timeout(within_s), looking:
                while not await self._take(topic):  # noqa: ASYNC110 - it is another process that makes room
                    await asyncio.sleep(COUNT_S)
        except TimeoutError:
            return False
        return True

    async def _take(self, topic: SemanticTopic) -> bool:
        room = self._rooms.get(topic.mailbox)
        if room is None or not room.has_some(self._clock.time()):
            unseen = list(self._under_way.values()).count(topic.mailbox)
            backlog = await self._queue.backlog(topic.mailbox)
            free = topic.mailbox_limit - backlog.waiting - backlog.taken - unseen
            room = self._rooms[topic.mailbox] = Headroom.found(free, self._clock.time() + COUNT_S)
        if room.left <= 0:
            return False
        room.left -= 1
        return True
