"""How the console comes to know: the bridge, the registry and the stores are asked, what passes is heard."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from squadron.client.deploying import Fleet
from squadron.console.bid_rounds import BidRounds
from squadron.console.board import Board
from squadron.runtime.background import spawn
from squadron.runtime.errors import SquadronError
from squadron.runtime.redact import scrub
from squadron.views.beats import Beats
from squadron.views.listener import Missed
from squadron.views.passing import Passing

#: How often each section is looked up while somebody looks, in seconds: the bridge's answer is one round trip, a
#: list of runs, letters or lite topics reads as many messages as it has rows.
AGENTS_S, TOPICS_S, QUESTIONS_S, RUNS_S, LETTERS_S, LITE_S, NODES_S = 1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0
#: How often what passed is shown, in seconds, how many of it at a time, and how many rows are kept.
EVENTS_S, MOST_AT_ONCE, EVENTS_KEPT = 0.25, 100, 500
#: Rows of runs, letters and lite topics: the newest.
MOST_RUNS, MOST_LETTERS, MOST_LITE = 200, 1000, 2000
#: How much of what a message holds is shown, in characters.
CONTENT_CHARACTERS = 2000


class Lookout:
    """Keeps a board up to date while somebody looks at it; changes nothing itself."""

    def __init__(self, fleet: Fleet, board: Board) -> None:
        self._fleet, self._board = fleet, board
        self._beats = Beats(heartbeat_s=fleet.settings.heartbeat_s)
        self._rounds, self._numbers = BidRounds(), itertools.count(1)
        self._troubles: dict[str, str] = {}
        #: One for all looks: it remembers whose runs they are.
        self._past = fleet.runs

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Look meanwhile.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        heartbeats = await self._fleet.subscribe("status.*")

        async def hear() -> None:
            async for message in heartbeats:
                self._beats.hear(message.payload.content, time.time())

        works = [self._keep(name, every_s, look) for name, every_s, look in self._looks()]
        tasks = [spawn(work, "console", lasting=True) for work in (hear(), self._pass_on(), *works)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await heartbeats.aclose()

    def _looks(self) -> list[tuple[str, float, Callable[[], Awaitable[Mapping[str, Any]]]]]:
        return [
            ("agents", AGENTS_S, self._agents),
            ("topics", TOPICS_S, self._topics),
            ("questions", QUESTIONS_S, self._questions),
            ("runs", RUNS_S, self._runs),
            ("letters", LETTERS_S, self._letters),
            ("lite", LITE_S, self._lite),
            ("nodes", NODES_S, self._nodes),
        ]

    async def _keep(self, name: str, every_s: float, look: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        while True:
            await self._board.watched()
            await self.refresh(name, look)
            await asyncio.sleep(every_s)

    async def refresh(self, name: str, look: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        """Look once; what can't be had now stays as it was, and is told."""
        try:
            self._board.put(name, await look())
            self._troubles.pop(name, None)
        except SquadronError as error:
            self._troubles[name] = scrub(str(error))
        self._board.put("troubles", self._troubles)

    async def look(self, name: str) -> None:
        """Look at one section now: something was done to it."""
        for section, _, look in self._looks():
            if section == name:
                await self.refresh(name, look)

    async def _agents(self) -> Mapping[str, Any]:
        status = await self._fleet.status()
        links = {name: status.get(name, "") for name in ("environment", "dashboard", "metrics", "release")}
        self._board.put("about", links)
        told = {each["agent"]: each for each in status["agents"]}
        rows = {}
        for each in self._beats.figures(status["agents"], time.time()):
            own = told[each.agent]
            row = asdict(each) | {name: own.get(name) for name in ("scale", "bounds", "group", "version", "taken")}
            row["slots_each"] = own.get("slots")
            # Both versions beside each other, if there are two.
            row["canary"] = tried = own.get("canary")
            places = {it["id"]: it for it in [*own.get("replicas", ()), *(tried["replicas"] if tried else ())]}
            names = sorted(places.keys() | {it.id for it in each.replicas})
            beats = {it.id: asdict(it) for it in each.replicas}
            row["replicas"] = [_replica(name, beats.get(name), places.get(name)) for name in names]
            rows[each.agent] = row
        return rows

    async def _topics(self) -> Mapping[str, Any]:
        return {
            each.topic.name: {
                "topic": each.topic.name,
                "agent": each.agent,
                "description": each.topic.description[:300],
                "tags": each.topic.tags,
            }
            for each in self._fleet.topics()
        }

    async def _questions(self) -> Mapping[str, Any]:
        return {each.query_id: each.to_dict() for each in await self._fleet.questions()}

    async def _runs(self) -> Mapping[str, Any]:
        return {each.run: asdict(each) for each in await self._past.list(most=MOST_RUNS)}

    async def _letters(self) -> Mapping[str, Any]:
        rows = {}
        for each in await self._fleet.dead_letters.list(most=MOST_LETTERS):
            row = each.to_dict()
            row = {name: row[name] for name in ("id", "agent", "topic", "attempts", "buried_at", "complete")}
            key = f"{each.agent}/{each.token}"
            rows[key] = row | {"token": each.token, "reason": scrub(each.reason)[:500]}
        return rows

    async def _lite(self) -> Mapping[str, Any]:
        found = (await self._fleet.lite_topics())[:MOST_LITE]
        return {f"{each.owner}/{each.id}": each.to_dict() for each in found}

    async def _nodes(self) -> Mapping[str, Any]:
        return {each["id"]: each for each in await self._fleet.nodes()}

    async def _pass_on(self) -> None:
        """Show what passes, while somebody looks."""
        while True:
            await self._board.watched()
            try:
                listener = await self._fleet.listen(contents=True)
            except SquadronError as error:
                self._troubles["events"] = str(error)
                await asyncio.sleep(1.0)
                continue
            self._troubles.pop("events", None)
            async with listener:
                while self._board.onlookers:
                    self._take(listener.ready(10_000))
                    await asyncio.sleep(EVENTS_S)

    def _take(self, passed: list[Passing | Missed]) -> None:
        shown: list[dict[str, Any]] = []
        missed, bids = 0, False
        for it in passed:
            if isinstance(it, Missed):
                missed += it.count or 1
            elif it.kind != "inner":
                bids |= self._rounds.hear(it)
                shown.append(_passing(it))
        if len(shown) > MOST_AT_ONCE:
            missed += len(shown) - MOST_AT_ONCE
            shown = shown[-MOST_AT_ONCE:]
        if missed:
            shown.insert(0, {"kind": "missed", "at": time.time(), "said": f"{missed} more passed than are shown"})
        self._board.add("events", ((str(next(self._numbers)), row) for row in shown), most=EVENTS_KEPT)
        if bids or "negotiations" not in self._board.rows:
            self._board.put("negotiations", self._rounds.rows())


def _replica(name: str, beat: dict[str, Any] | None, place: dict[str, Any] | None) -> dict[str, Any]:
    row = beat or {"id": name, "slots": 0, "in_flight": 0, "done": 0, "failed": 0, "rate": None}
    row.pop("silent_s", None)
    return row | {key: (place or {}).get(key) for key in ("pid", "node", "version")}


def _passing(it: Passing) -> dict[str, Any]:
    row = it.to_dict()
    if it.content is not None:
        text = json.dumps(it.content, ensure_ascii=False, default=str)
        row["content"] = text if len(text) <= CONTENT_CHARACTERS else f"{text[:CONTENT_CHARACTERS]}…"
    return row
