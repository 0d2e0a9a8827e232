"""Who serves what, and who is alive: a live view of the registry journal, searchable by intent."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from squadron.runtime.errors import InvalidSubjectError
from squadron.runtime.ports import Clock, Journal, Note, Subscription, UnreliableBus
from squadron.runtime.search import Index, document
from squadron.runtime.subjects import Subjects, matches
from squadron.runtime.topics import AgentCard, ScoredTopic, SemanticTopic

#: An agent that was not heard of for so many heartbeats is dead (Synadia Agent Protocol 0.3, liveness).
MISSED_HEARTBEATS = 3
#: Name under which the bridge keeps an agent alive that may be scaled to zero.
STAND_IN = "bridge"


class Presence(BaseModel):
    """One replica's sign of life. `expires_at` is in seconds since the epoch, 0 says farewell."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    expires_at: float = Field(allow_inf_nan=False)
    #: Digest of the code it runs.
    version: str = ""
    pid: int = 0
    node: str = ""
    #: What this replica offers to tasks that ask for it.
    capabilities: tuple[str, ...] = ()


class Registry:
    """A local copy of the registry, kept current by the bus and corrected from the journal.

    A card says what an agent offers. A presence says that a replica of it lives, or, when it is scaled to
    zero, that the bridge would start one; it must be renewed every `heartbeat_s`.
    """

    def __init__(
        self, journal: Journal, bus: UnreliableBus, subjects: Subjects, clock: Clock, *, heartbeat_s: float
    ) -> None:
        self._journal, self._bus, self._subjects, self._clock = journal, bus, subjects, clock
        self.heartbeat_s = heartbeat_s
        self._cards: dict[str, AgentCard] = {}
        self._present: dict[str, dict[str, Presence]] = {}
        self._subscriptions: list[Subscription] = []
        self._changed = asyncio.Event()
        self._search: tuple[Index, list[tuple[SemanticTopic, str]]] | None = None
        #: More than one has a name only while a card is left behind by an agent that died.
        self._by_name: dict[str, list[tuple[SemanticTopic, str]]] = {}

    @property
    def presence_ttl_s(self) -> float:
        """How long one heartbeat keeps an agent in the results."""
        return MISSED_HEARTBEATS * self.heartbeat_s

    async def start(self) -> None:
        """Begin to follow the registry; what it holds is known when this returns."""
        for kind in ("card", "presence"):
            pattern = self._subjects.registry(kind)
            self._subscriptions.append(await self._bus.subscribe(pattern, self._hear))
        self._bus.on_reconnect(self.refresh)
        await self.refresh()

    async def refresh(self) -> None:
        """Read the journal anew: after a reconnect something may have been missed."""
        for kind in ("card", "presence"):
            for entry in await self._journal.latest(self._subjects.registry(kind)):
                self._hear(Note(entry.key, entry.data))

    async def aclose(self) -> None:
        """Stop following. May be called twice."""
        while self._subscriptions:
            await self._subscriptions.pop().aclose()

    def _hear(self, note: Note) -> None:
        match note.subject.split("."):
            case [_, _, _, "card", agent]:
                self._hear_card(agent, note.data)
            case [_, _, _, "presence", agent, replica]:
                self._hear_presence(agent, replica, note.data)
        self._changed.set()

    def _hear_card(self, agent: str, data: bytes) -> None:
        if data:
            try:
                card = AgentCard.model_validate_json(data)
            except (ValidationError, InvalidSubjectError):
                # Written by somebody who does not know the format: what was said before still counts.
                return
            if card.agent != agent:
                return
            self._cards[agent] = card
        else:
            # Withdrawn.
            self._cards.pop(agent, None)
        self._search = None
        self._by_name = {}
        for card in self._cards.values():
            for topic in card.topics:
                self._by_name.setdefault(topic.name, []).append((topic, card.agent))

    def _hear_presence(self, agent: str, replica: str, data: bytes) -> None:
        with contextlib.suppress(ValidationError):
            self._present.setdefault(agent, {})[replica] = Presence.model_validate_json(data)

    async def advertise(self, card: AgentCard) -> None:
        """Offer what the card says, to everybody, until it is withdrawn."""
        data = card.model_dump_json().encode()
        key = self._subjects.card(card.agent)
        await self._journal.append(key, data)
        self._hear_card(card.agent, data)

    async def withdraw(self, agent: str) -> None:
        """Take an agent's topics out of the registry."""
        await self._journal.append(self._subjects.card(agent), b"", ttl_s=self.presence_ttl_s)
        self._hear_card(agent, b"")

    async def renew(self, agent: str, replica: str, **facts: Any) -> None:
        """One heartbeat: this replica lives for another `presence_ttl_s`; `facts` go into its presence."""
        until = self._clock.time() + self.presence_ttl_s
        await self._write_presence(agent, replica, Presence(expires_at=until, **facts))

    async def depart(self, agent: str, replica: str) -> None:
        """This replica is gone; nobody needs to wait for its heartbeat to lapse."""
        await self._write_presence(agent, replica, Presence(expires_at=0))

    async def _write_presence(self, agent: str, replica: str, presence: Presence) -> None:
        data = presence.model_dump_json().encode()
        key = self._subjects.presence(agent, replica)
        await self._journal.append(key, data, ttl_s=self.presence_ttl_s)
        self._hear_presence(agent, replica, data)

    def replicas(self, agent: str) -> dict[str, Presence]:
        """Living replicas of an agent; the bridge's own stand-in is not one."""
        now = self._clock.time()
        present = sorted(self._present.get(agent, {}).items())
        return {name: it for name, it in present if it.expires_at > now and name != STAND_IN}

    def lapsed(self) -> list[tuple[str, str]]:
        """Forget and return the (agent, replica) pairs whose heartbeat stopped without a farewell."""
        now = self._clock.time()
        gone = [
            (agent, replica, it.expires_at)
            for agent, present in self._present.items()
            for replica, it in present.items()
            if it.expires_at <= now
        ]
        for agent, replica, _ in gone:
            del self._present[agent][replica]
        # A farewell writes zero.
        return [(agent, replica) for agent, replica, at in gone if at > 0 and replica != STAND_IN]

    def is_live(self, agent: str) -> bool:
        """Whether somebody would take a task of this agent now."""
        now = self._clock.time()
        return any(it.expires_at > now for it in self._present.get(agent, {}).values())

    def cards(self) -> list[AgentCard]:
        """The cards of all living agents, by name."""
        return [card for name, card in sorted(self._cards.items()) if self.is_live(name)]

    def topics(self) -> list[tuple[SemanticTopic, str]]:
        """All topics that are served now, each with its agent."""
        return [(topic, card.agent) for card in self.cards() for topic in card.topics]

    def find(self, topic: str) -> SemanticTopic | None:
        """The served topic of this name, or the family (`domain.*`) it belongs to."""
        for exact, agent in self._by_name.get(topic, ()):
            if self.is_live(agent):
                return exact
        return next((found for found, _ in self.topics() if found.is_pattern and matches(found.name, topic)), None)

    async def wait_for(self, topic: str, *, within_s: float) -> SemanticTopic | None:
        """Like `find`, but gives a topic that is about to appear a moment to do so."""
        try:
            async with asyncio.timeout(within_s):
                while (found := self.find(topic)) is None:
                    self._changed.clear()
                    await self._changed.wait()
                return found
        except TimeoutError:
            return None

    def nearest(self, topic: str, *, most: int = 3) -> list[str]:
        """Served topics whose names look most like this one."""
        return difflib.get_close_matches(topic, self._names(), n=most, cutoff=0.3)

    def _names(self) -> Iterable[str]:
        return [topic.name for topic, _ in self.topics()]

    def discover(self, intent: str, *, most: int = 8) -> list[ScoredTopic]:
        """The served topics that fit an intent best, best first; those that share no word are left out."""
        if self._search is None:
            known = [(topic, card.agent) for card in self._cards.values() for topic in card.topics]
            self._search = Index(document(topic) for topic, _ in known), known
        index, known = self._search
        ranked = sorted(zip(index.scores(intent), known, strict=True), key=lambda row: (-row[0], row[1][0].name))
        hits = (
            ScoredTopic(topic=topic, agent=agent, score=round(score, 4))
            for score, (topic, agent) in ranked
            if score > 0 and self.is_live(agent)
        )
        return [hit for _, hit in zip(range(most), hits, strict=False)]
