"""Who serves what, and who is alive: a live view of the registry journal, searchable by intent."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, InvalidSubjectError
from squadron.runtime.ports.bus import Subscription, UnreliableBus
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.registry.lexical import FITS
from squadron.runtime.registry.presence import MISSED_HEARTBEATS, Presence, beat_s
from squadron.runtime.registry.present import Present
from squadron.runtime.registry.ranker import offered
from squadron.runtime.registry.served_topics import ServedTopics
from squadron.runtime.registry.signed_entries import Newest, SignedEntries
from squadron.runtime.trust.guard import Guard
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.replies import principal_of
from squadron.runtime.wire.subjects import Subjects
from squadron.runtime.wire.topics import AgentCard, ScoredTopic, SemanticTopic

#: Name under which the bridge keeps an agent alive that may be scaled to zero.
STAND_IN = "bridge"
#: The journal counts lives in whole seconds, rounded up.
ROUNDED_S = 1.0
#: How often it is looked for heartbeats that are overdue, in seconds, and how many are then asked for at once.
OVERDUE_LOOK_S, LOOKS_AT_ONCE = 1.0, 100
#: How long an unknown topic may take to appear before it counts as unserved, in seconds: a deploy that was
#: acknowledged a moment ago may reach this process a moment later.
GRACE_S = 0.25
#: How long somebody waits for what others have seen already, in seconds.
CATCH_UP_S = 5.0
#: How long it is remembered that a replica fell silent, in seconds, and of how many of an agent.
LAPSES_FOR_S, LAPSES_KEPT = 600.0, 100
#: How long a change is news that others may not have heard of yet, in seconds.
NEWS_S = 30.0


class Registry:
    """A local copy of the registry: read from the journal, then followed, and read anew after each gap.

    A card says what an agent offers. A presence says that a replica of it lives, or, when it is scaled to
    zero, that the bridge would start one; it must be renewed every `beat_s`.

    The journal is right, also about time: it drops a presence whose life is over. One that seems overdue here is
    asked for there before it is forgotten, since the late one may be this process, or its connection.
    """

    def __init__(
        self,
        journal: Journal,
        bus: UnreliableBus,
        subjects: Subjects,
        clock: Clock,
        *,
        heartbeat_s: float,
        guard: Guard | None = None,
    ) -> None:
        self._entries = SignedEntries(guard)
        self._journal, self._bus, self._subjects, self._clock = journal, bus, subjects, clock
        self.heartbeat_s, self.grace_s = heartbeat_s, GRACE_S
        self._served = ServedTopics()
        self._cards = self._served.cards
        #: Those that live, by agent and replica; an agent without any has no entry.
        self._present = Present()
        self._places: dict[str, Newest] = {}
        #: When it is to be asked whether an entry still is in the journal, for those that have a life.
        self._due: dict[str, float] = {}
        self._subscriptions: list[Subscription] = []
        self._changed = asyncio.Event()
        #: How often the connection was lost, and how often it was when the view was last complete.
        self._losses, self._complete_at = 0, -1
        #: All that was stored by then is known here, by the journal's clock.
        self._told_until = 0.0
        #: When what is served last changed, by the journal's clock, and when that was heard, by ours.
        self._change, self._change_heard_at = 0.0, -math.inf
        self._reading = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._on_lapse: Callable[[str, str], None] = lambda _agent, _replica: None
        self._on_card: list[Callable[[str], None]] = []
        #: When replicas fell silent without a farewell, by agent, on our clock.
        self._lapses: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LAPSES_KEPT))

    @property
    def beat_s(self) -> float:
        """Seconds between two heartbeats of ours: `heartbeat_s`, or more where there are thousands of replicas."""
        return beat_s(self.heartbeat_s, len(self._present))

    @property
    def presence_ttl_s(self) -> float:
        """How long one heartbeat keeps an agent in the results."""
        return MISSED_HEARTBEATS * self.beat_s

    def on_lapse(self, sink: Callable[[str, str], None]) -> None:
        """Call `sink` with agent and replica when a heartbeat stopped without a farewell."""
        self._on_lapse = sink

    def on_card(self, sink: Callable[[str], None]) -> None:
        """Call `sink` with each agent that has a card, and from now on when one came, changed or went."""
        self._on_card.append(sink)
        for agent in self._cards:
            sink(agent)

    async def start(self) -> None:
        """Begin to follow the registry; what it holds is known when this returns."""
        for kind in ("presence", "card"):
            pattern = self._subjects.registry(kind)
            self._subscriptions.append(await self._journal.follow(pattern, self._hear_told, lost=self._doubt))
        self._bus.on_reconnect(lambda: self.refresh(math.inf))
        await self.refresh()
        self._looking = spawn(self._keep_looking(), "registry", lasting=True)

    async def refresh(self, time: float = 0.0) -> None:
        """Read the journal anew, unless all that was stored by `time` is known, by the journal's clock.

        Raises:
            BusUnavailableError: no answer in time.
        """
        async with self._reading:
            if not self.knows_of(time):
                await self._read()

    async def _read(self) -> None:
        losses = self._losses
        presences = await self._journal.latest(self._subjects.registry("presence"))
        # The cards last: so they hold all that was stored before any of the presences.
        for entry in presences + await self._journal.latest(self._subjects.registry("card")):
            if await self._entries.passes(entry):
                self._hear(entry)
        self._told_until = max([self._told_until, *(entry.time for entry in presences)])
        self._complete_at = losses
        self._changed.set()

    def _doubt(self) -> None:
        """The connection is lost, and with it what is told until it is back."""
        self._losses += 1

    async def aclose(self) -> None:
        """Stop following. May be called twice."""
        if self._looking is not None:
            self._looking.cancel()
        while self._subscriptions:
            await self._subscriptions.pop().aclose()

    # --- what is current -----------------------------------------------------------------------------

    def knows_of(self, time: float = 0.0) -> bool:
        """Whether nothing is missing here that was stored by `time`, by the journal's clock."""
        return self._complete_at == self._losses and self._told_until >= time

    async def catch_up(self, time: float = 0.0, *, within_s: float = CATCH_UP_S) -> None:
        """Wait until nothing is missing here that was stored by `time`, or that can't be found out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.knows_of(time):
                    try:
                        return await self.refresh(time)
                    except BusUnavailableError:
                        await asyncio.sleep(GRACE_S)

    @property
    def news(self) -> float:
        """When what is served last changed, by the journal's clock, if others may not know it yet; else 0."""
        return self._change if self._clock.time() - self._change_heard_at < NEWS_S else 0.0

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(min(OVERDUE_LOOK_S, self.heartbeat_s))
            with contextlib.suppress(BusUnavailableError):
                await self.refresh()
                await self.look()

    async def look(self) -> None:
        """Forget those whose life is over, once the journal has said so.

        Raises:
            BusUnavailableError: it can't be asked; until it can, nobody is forgotten.
        """
        now = self._clock.time()
        late = [(key, self._places[key]) for key, due in self._due.items() if due <= now]
        for first in range(0, len(late), LOOKS_AT_ONCE):
            some = late[first : first + LOOKS_AT_ONCE]
            stored = await asyncio.gather(*(self._journal.last(key) for key, _ in some))
            for (key, place), entry in zip(some, stored, strict=True):
                newest = self._places.get(key)
                if newest is not None and newest.seq == place.seq:
                    await self._look_at(key, place, entry)

    async def _look_at(self, key: str, place: Newest, entry: Entry | None) -> None:
        other = entry is not None and entry.seq != place.seq
        if other and entry is not None and await self._entries.passes(entry):
            self._hear(entry)
        elif other and not self._is_past(key):
            # Somebody else wrote there: what was heard before counts until it is over by its own word.
            self._due[key] = self._clock.time() + self.heartbeat_s
        elif entry is None or other or self._is_over(Presence.read(entry.data)):
            self._forget(key)
        else:
            self._due[key] = self._clock.time() + self.heartbeat_s

    def _is_past(self, key: str) -> bool:
        agent, replica = key.split(".")[-2:]
        return self._is_over(self._present.of(agent).get(replica))

    def _is_over(self, presence: Presence | None) -> bool:
        """Whether it ended by what it says, if the journal has no end of it; clocks may differ by a life."""
        return presence is None or presence.expires_at + self.presence_ttl_s < self._clock.time()

    def _forget(self, key: str) -> None:
        self._places.pop(key, None)
        self._due.pop(key, None)
        self._entries.forget(key)
        match key.split("."):
            case [_, _, _, "presence", agent, replica] if (
                self._present.remove(agent, replica) and replica != STAND_IN
            ):
                self._lapses[agent].append(self._clock.time())
                self._on_lapse(agent, replica)

    def lapsed(self, agent: str) -> int:
        """How many of its replicas fell silent without a farewell in the last `LAPSES_FOR_S` seconds."""
        since = self._clock.time() - LAPSES_FOR_S
        return sum(at >= since for at in self._lapses.get(agent, ()))

    # --- what is heard -------------------------------------------------------------------------------

    def _hear_told(self, entry: Entry) -> None:
        self._entries.hear(entry, self._take_told)

    def _take_told(self, entry: Entry) -> None:
        self._hear(entry)
        self._told_until = max(self._told_until, entry.time)
        self._changed.set()

    async def _hear_own(self, key: str, seq: int) -> None:
        """See to it that what we wrote counts from here on; mostly it was told before it was acknowledged."""
        place = self._places.get(key)
        if place is None or place.seq != seq:
            with contextlib.suppress(BusUnavailableError):
                if (entry := await self._journal.last(key)) and await self._entries.passes(entry):
                    self._hear(entry)

    def _hear(self, entry: Entry) -> None:
        """Take up an entry, unless a newer one of its key was heard: told and read ones come in any order."""
        place, before = Newest(entry.seq, entry.time), self._places.get(entry.key)
        if before is not None and entry.seq <= before.seq and entry.time <= before.time:
            return
        # One that was stored later, but has a lower sequence, is of a journal that was made anew.
        match entry.key.split("."):
            case [_, _, _, "card", agent]:
                known = self._hear_card(agent, entry)
            case [_, _, _, "presence", agent, replica]:
                known = self._hear_presence(agent, replica, entry)
            case _:
                return
        if known:
            self._places[entry.key] = place

    def _hear_card(self, agent: str, entry: Entry) -> bool:
        if entry.data:
            try:
                card = AgentCard.model_validate_json(entry.data)
            except (ValidationError, InvalidSubjectError):
                # Written by somebody who does not know the format: what was said before still counts.
                return False
            if card.agent != agent:
                return False
            self._served.put(card)
            self._due.pop(entry.key, None)
        else:
            self._served.drop(agent)
            self._due[entry.key] = self._clock.time() + self.presence_ttl_s + ROUNDED_S
        for sink in self._on_card:
            sink(agent)
        self._note_change(entry)
        return True

    def _hear_presence(self, agent: str, replica: str, entry: Entry) -> bool:
        presence = Presence.read(entry.data)
        if presence is None:
            return False
        if agent not in self._present:
            self._note_change(entry)
        life_s = presence.life_s(MISSED_HEARTBEATS * self.heartbeat_s)
        self._due[entry.key] = self._clock.time() + life_s + ROUNDED_S
        if presence.expires_at > 0:
            self._present.put(agent, replica, presence)
        else:
            self._present.remove(agent, replica)
        return True

    def _note_change(self, entry: Entry) -> None:
        if self._change < entry.time:
            self._change, self._change_heard_at = entry.time, self._clock.time()

    async def advertise(self, card: AgentCard) -> None:
        """Offer what the card says, to everybody, until it is withdrawn."""
        data = card.model_dump_json().encode()
        key = self._subjects.card(card.agent)
        await self._hear_own(key, await self._journal.append(key, data))

    async def withdraw(self, agent: str) -> None:
        """Take an agent's topics out of the registry."""
        key = self._subjects.card(agent)
        await self._hear_own(key, await self._journal.append(key, b"", ttl_s=self.presence_ttl_s))

    async def renew(self, agent: str, replica: str, *, least_s: float = 0.0, **facts: Any) -> None:
        """One heartbeat, with `facts`: the replica lives for another `presence_ttl_s`, or longer if the next is
        given in `least_s`."""
        now, life_s = self._clock.time(), max(self.presence_ttl_s, MISSED_HEARTBEATS * least_s)
        await self._write_presence(agent, replica, Presence(expires_at=now + life_s, at=now, **facts), life_s)

    def is_due(self, agent: str, replica: str, *, least_s: float = 0.0) -> bool:
        """Whether this presence, which is ours, wants to be renewed; for `least_s` as for `renew`."""
        known = self._present.of(agent).get(replica)
        return known is None or known.is_due(self._clock.time(), max(self.beat_s, least_s))

    async def depart(self, agent: str, replica: str) -> None:
        """This replica is gone; nobody needs to wait for its heartbeat to lapse."""
        await self._write_presence(agent, replica, Presence(expires_at=0), self.presence_ttl_s)

    async def _write_presence(self, agent: str, replica: str, presence: Presence, ttl_s: float) -> None:
        data = presence.model_dump_json().encode()
        key = self._subjects.presence(agent, replica)
        await self._hear_own(key, await self._journal.append(key, data, ttl_s=ttl_s))

    def replicas(self, agent: str) -> dict[str, Presence]:
        """Living replicas of an agent; the bridge's own stand-in is not one."""
        return {name: it for name, it in sorted(self._present.of(agent).items()) if name != STAND_IN}

    def is_live(self, agent: str) -> bool:
        """Whether somebody would take a task of this agent now."""
        return agent in self._present

    def cards(self) -> list[AgentCard]:
        """The cards of all living agents, by name."""
        return [card for name, card in sorted(self._cards.items()) if self.is_live(name)]

    def card(self, agent: str) -> AgentCard | None:
        """The card of an agent, whether or not it lives."""
        return self._cards.get(agent)

    def topics(self) -> list[tuple[SemanticTopic, str]]:
        """All topics that are served now, each with its agent."""
        return [(topic, card.agent) for card in self.cards() for topic in card.topics]

    def find(self, topic: str) -> SemanticTopic | None:
        """The served topic of this name, or the family (`domain.*`) it belongs to."""
        return self._served.find(topic, self.is_live)

    def serves(self, agent: str, topic: str) -> bool:
        """Whether this agent serves the topic by its card, or did so by its last one."""
        return self._served.is_served_by(agent, topic)

    def refutes(self, source_id: str, topic: str) -> bool:
        """Whether a source is of an agent that is known to serve other topics, and this one is served."""
        card = self._cards.get(source_id) or self._cards.get(principal_of(source_id))
        return card is not None and not self.serves(card.agent, topic) and self.find(topic) is not None

    async def wait_for(self, topic: str, *, within_s: float) -> SemanticTopic | None:
        """Like `find`, but waits until nothing is missing here, and then `grace_s` for the topic to appear."""
        await self.catch_up(within_s=within_s)
        try:
            async with asyncio.timeout(min(self.grace_s, within_s)):
                while (found := self.find(topic)) is None:
                    self._changed.clear()
                    await self._changed.wait()
                return found
        except TimeoutError:
            return None

    def nearest(self, topic: str, *, most: int = 3) -> list[str]:
        """Served topics whose names look most like this one."""
        return self._served.nearest(topic, most, self.is_live)

    def discover(self, intent: str, *, most: int = 8, least: float | None = None) -> list[ScoredTopic]:
        """The served topics that fit an intent best, best first; those that share no word are left out.

        Args:
            least: the lowest score that is offered, between 0 and 1; scores of different intents can be compared.
                None offers all that is found, or nothing if the best of it most likely does not fit.
        """
        return offered(self._served.rank(intent, most, self.is_live), least, FITS)

    def servers(self, topic: str) -> dict[str, SemanticTopic]:
        """The topic of this very name, by agent, as cards have it."""
        return self._served.of(topic)
