"""The part of a squad that looks: what is served, what passes, what was thought, what was given up."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from squadron.bridge.place import Place
from squadron.runtime.asking.searching import search
from squadron.runtime.closing import AsyncClosing
from squadron.runtime.wire.topics import ScoredTopic, TopicList

if TYPE_CHECKING:
    from squadron.replay.past_runs import RunArchive
    from squadron.runtime.lite.listing import LiteInfo
    from squadron.runtime.store.dead_letters import DeadLetters
    from squadron.views.listener import Listener
    from squadron.views.talk_map import TalkMap


class Looking(AsyncClosing):
    """A place on the bus, and all that can be seen from there."""

    @property
    @abstractmethod
    def _wiring(self) -> Place:
        """The place on the bus, for as long as it can be used."""

    def discover(self, intent: str, *, most: int = 8, least: float | None = None) -> TopicList:
        """The served topics that fit an intent in plain words, best first; none with a score below `least`.
        Without `least` nothing is found if the best one most likely does not fit."""
        return TopicList(self._wiring.registry.discover(intent, most=most, least=least))

    async def search(self, intent: str, *, most: int = 8, least: float | None = None) -> TopicList:
        """As `discover`, but the bridge is asked: it knows meanings, where it has an embedder, what was learned
        from use, and who is busy; `why` of what is found says so. Where no bridge answers, it is `discover`."""
        wiring = self._wiring
        return TopicList(await search(wiring.ports, wiring.registry, intent, most=most, least=least))

    def topics(self) -> TopicList:
        """All topics that are served now."""
        served = self._wiring.registry.topics()
        return TopicList(ScoredTopic(topic=topic, agent=agent, score=0.0) for topic, agent in served)

    async def lite_topics(self, owner: str = "", *, everything: bool = False) -> list[LiteInfo]:
        """The lite topics of an owner, or all, the newest message first; of a million that takes some seconds.

        Args:
            everything: also those without an idle life: outcomes of tasks, and what the runtime keeps for itself.

        Raises:
            InvalidSubjectError: `owner` is not a token.
            BusUnavailableError: the server can't be reached.
        """
        from squadron.runtime.lite.listing import list_lite

        return await list_lite(self._wiring.ports, owner, everything=everything)

    async def listen(self, *, contents: bool = False) -> Listener:
        """Hear all messages as they pass, from now on: tasks, results, events and what the runtime tells itself.

            async with await squad.listen() as passing:
                async for it in passing:
                    print(it)

        Nothing is sent. What comes faster than it is read is dropped, and counted in a `Missed`.

        Args:
            contents: whether to read what messages hold, too, but for secrets.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        from squadron.views.listener import Listener

        return await Listener.open(self._wiring.ports, self._wiring.registry, contents=contents)

    async def map(self, seconds: float = 5.0) -> TalkMap:
        """Who talks to whom: listen for so many seconds, and draw the ways that messages take.

        Nothing is sent. In a notebook the map is a picture, elsewhere a table.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        from squadron.views.talk_map import draw_map

        return await draw_map(self._wiring.ports, self._wiring.registry, seconds)

    @property
    def dead_letters(self) -> DeadLetters:
        """What was given up: list it, put it back, or drop it."""
        return self._wiring.dead_letters

    @property
    def runs(self) -> RunArchive:
        """What supervisors and LLM agents have thought: list it, look into it, stop it, export or replay it."""
        from squadron.replay.past_runs import RunArchive

        return RunArchive(self._wiring.caller, self._wiring.settings.env)
