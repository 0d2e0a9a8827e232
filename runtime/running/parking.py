"""Parked tasks: what only waits for people holds no slot. See ADR 0023.

The task stays in its queue, handed back until the deadline, so that nobody has to be alive for it to come again. A
note beside it says what it waits for; whoever keeps the environment up has it delivered when that is there.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from squadron.runtime.asking.cancel import Cancellable, cancellable, is_cancelled
from squadron.runtime.asking.question_records import PEOPLE, read_question
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import InvalidMessageError, InvalidSubjectError, Park
from squadron.runtime.lite.feed import LiteFeed, LiteItems
from squadron.runtime.lite.reader import End
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.once import cancelled_with
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import check_token, token_of

#: Owner of the lite topics that say what parked tasks wait for.
PARKED = "parked"
#: How long after its deadline a note is kept, in seconds: a task that waits for a slot then still has it.
KEPT_BEYOND_S = 24 * 3600.0
#: How long the end of a note is kept, in seconds; who follows it hears of that at once.
END_KEPT_S = 60.0
#: A note is this old before its task is woken, in seconds: it is written before the task is handed back.
WAKE_AFTER_S = 0.5
#: A task comes this much after its deadline, in seconds, so that the default counts by then.
AFTER_DEADLINE_S = 0.05
#: From so long before its deadline on a task is woken by nobody, in seconds: it comes by itself, and a look at its
#: note and what wakes it take some ms, after which it might run already.
UNWOKEN_S = 0.1

_log = get_logger("squadron.parking")


class Parking:
    """One replica's side: parks tasks, and takes up those that were."""

    def __init__(self, ports: Ports, agent: str) -> None:
        self._ports, self._agent = ports, agent

    def _key(self, message: AgentMessage) -> str:
        return self._ports.subjects.lite(PARKED, token_of(message.id))

    async def park(self, delivery: Delivery, message: AgentMessage, park: Park) -> None:
        """Hand a task back until what it waits for is there; it can't be lost when this returns.

        Raises:
            BusUnavailableError: not acknowledged in time; the task comes again when its lease ends.
        """
        left_s = max(0.0, park.deadline_ms / 1000 - self._ports.clock.time()) + AFTER_DEADLINE_S
        note = {
            "token": delivery.lease.wake_token,
            "queries": list(park.queries),
            "agent": self._agent,
            "until": park.deadline_ms / 1000,
            # A bridge of an older release knows the task's own sender alone.
            "source": message.source.id,
            "cancelledWith": cancelled_with(message),
        }
        # First: who dies in between leaves a lease that ends, and no task that nobody wakes.
        await self._ports.lite.append(self._key(message), json.dumps(note).encode(), ttl_s=left_s + KEPT_BEYOND_S)
        await delivery.lease.park(left_s)

    async def take_up(self, message: AgentMessage) -> None:
        """A task is here that may have been parked; from here on nobody wakes it.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        note = await self._ports.lite.last(self._key(message))
        if note is not None and END_HEADER not in note.headers:
            await self._ports.lite.end(self._key(message), b"{}", keep_s=END_KEPT_S)


@dataclass(slots=True)
class _Parked:
    """One note: how to wake its task, and what that waits for."""

    token: str
    queries: tuple[str, ...]
    agent: str
    until: float
    cancelled_with: tuple[Cancellable, ...]
    seq: int
    written_at: float
    is_woken: bool = False


class Waker:
    """Wakes parked tasks when a question of theirs is answered or withdrawn, or they are cancelled.

    One for each environment. It keeps nothing: whoever comes after it finds all notes, and what was answered.
    """

    def __init__(self, ports: Ports, lite_topics: LiteTopics) -> None:
        self._ports = ports
        self._feeds = {owner: lite_topics.follow(owner) for owner in (PARKED, PEOPLE, "cancel")}
        self._parked: dict[str, _Parked] = {}
        self._serving: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin; all notes are looked at.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        for feed in self._feeds.values():
            await feed.__aenter__()
        # What is answered while the notes are read is heard.
        for owner, handler in ((PEOPLE, self._answered), ("cancel", self._cancelled)):
            self._feeds[owner].add_all()
            self._serve(self._feeds[owner].serve(handler), owner)
        self._feeds[PARKED].add_all("first")
        self._serve(self._feeds[PARKED].serve(self._noted), PARKED)

    def _serve(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._serving.append(spawn(work, f"wakes {name}", lasting=True))

    async def aclose(self) -> None:
        """Stop. May be called twice."""
        feeds: list[LiteFeed] = list(self._feeds.values())
        for feed in feeds:
            await feed.aclose()
        await cancel_all(self._serving)

    def parked(self) -> Counter[str]:
        """How many tasks of each agent are parked now: they need no replica."""
        now = self._ports.clock.time()
        self._parked = {task: each for task, each in self._parked.items() if each.until + KEPT_BEYOND_S > now}
        return Counter(each.agent for each in self._parked.values() if not each.is_woken and each.until > now)

    async def _noted(self, task: str, items: LiteItems) -> None:
        last = items[-1]
        known = self._parked.pop(task, None)
        if isinstance(last, End):
            return
        if known is not None and known.seq == last.seq:
            # Whether it was woken is known here alone.
            self._parked[task] = known
            return await self._consider(task)
        try:
            raw = json.loads(last.data)
            # One that is none would end the look at all others that wait for a question of this note.
            queries = tuple(check_token(str(each), "query") for each in raw["queries"])
            until = float(raw["until"])
            own, told = cancellable(task, str(raw.get("source", ""))), raw.get("cancelledWith")
            # Of an older release it says nothing of who asked for it.
            stops = (own,) if told is None else tuple((token_of(token), str(by)) for token, by in told)
            note = _Parked(str(raw["token"]), queries, str(raw["agent"]), until, stops, last.seq, last.time)
        except (ValueError, TypeError, LookupError, RecursionError, InvalidSubjectError):
            # Anybody may write there.
            return
        self._parked[task] = note
        await self._consider(task)

    async def _answered(self, query_id: str, _: LiteItems) -> None:
        for task in [task for task, each in self._parked.items() if query_id in each.queries]:
            await self._consider(task)

    async def _cancelled(self, task: str, _: LiteItems) -> None:
        # Whoever asked for it may be dead when that one is cancelled, and tells nobody.
        for each in [each for each, note in self._parked.items() if task in dict(note.cancelled_with)]:
            await self._consider(each)

    async def _consider(self, task: str) -> None:
        """Wake a task if what it waits for is there. Whoever serves the feeds calls again if this raises.

        Once: of one that is woken again while it runs the server takes the lease, and gives it to another.
        """
        note = self._parked.get(task)
        if note is None or note.is_woken or not await self._is_due(note):
            return
        age_s = max(0.0, self._ports.clock.time() - note.written_at)
        await asyncio.sleep(max(0.0, WAKE_AFTER_S - age_s))
        stored = await self._ports.lite.last(self._ports.subjects.lite(PARKED, task))
        if stored is None or stored.seq != note.seq:
            # Somebody has taken it up already.
            return
        if note.is_woken or self._ports.clock.time() > note.until - UNWOKEN_S:
            return
        note.is_woken = True
        try:
            await self._ports.queue.wake(note.token)
        except InvalidMessageError as error:
            _log.warning("parking.no_token", task=task, error=str(error))
        except BaseException:
            note.is_woken = False
            raise

    async def _is_due(self, note: _Parked) -> bool:
        for query_id in note.queries:
            if not (await read_question(self._ports, query_id)).is_open(self._ports.clock):
                return True
        for each in note.cancelled_with:
            if await is_cancelled(self._ports, each):
                return True
        return False
