"""What is offered, by name, by family and by intent: the cards that a registry knows, kept ready for look-ups."""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Callable, Iterator

from squadron.runtime.registry.lexical import LexicalRanker
from squadron.runtime.registry.ranker import Ranked, Ranker, TopicKey
from squadron.runtime.wire.topics import AgentCard, ScoredTopic, SemanticTopic

#: Names that share most pairs of letters with one, and are looked at closely.
LIKELY = 50


class ServedTopics:
    """Cards by agent. No look-up by name goes through all topics; a card that changes costs no more than itself.

    Words are read when somebody searches for the first time: most processes never do.
    """

    def __init__(self, ranker: Ranker | None = None) -> None:
        self.cards: dict[str, AgentCard] = {}
        #: The last ones with a topic that their agent serves no more: what it answered may be on its way.
        self._former: dict[str, AgentCard] = {}
        #: Topics and families by name, and who serves them.
        self._served: dict[str, dict[str, SemanticTopic]] = {}
        self._ranker: Ranker = ranker or LexicalRanker()
        #: What the ranker has of an agent, and whose card it has not seen as it is now.
        self._ranked: dict[str, list[TopicKey]] = {}
        self._unseen: dict[str, None] = {}

    def put(self, card: AgentCard) -> None:
        """Take a card in, instead of the agent's last one."""
        last = self._take_out(card.agent)
        if last is not None and {each.name for each in last.topics} - {each.name for each in card.topics}:
            self._former[card.agent] = last
        self.cards[card.agent] = card
        for topic in card.topics:
            self._served.setdefault(topic.name, {})[card.agent] = topic

    def drop(self, agent: str) -> None:
        """An agent has no card any more."""
        if (last := self._take_out(agent)) is not None:
            self._former[agent] = last

    def is_served_by(self, agent: str, topic: str) -> bool:
        """Whether this agent serves the topic by its card, or did so by its last one."""
        return any(agent in of and of[agent].serves(topic) for of in (self.cards, self._former))

    def _take_out(self, agent: str) -> AgentCard | None:
        self._unseen[agent] = None
        if (card := self.cards.pop(agent, None)) is not None:
            for topic in card.topics:
                if (by := self._served.get(topic.name)) is not None:
                    by.pop(agent, None)
                    if not by:
                        del self._served[topic.name]
        return card

    def find(self, name: str, is_live: Callable[[str], bool]) -> SemanticTopic | None:
        """The topic of this name that a living agent serves, or the family it belongs to."""
        for each in _names(name):
            for agent, topic in self._served.get(each, {}).items():
                if is_live(agent):
                    return topic
        return None

    def of(self, name: str) -> dict[str, SemanticTopic]:
        """The topic of this very name, by agent."""
        return dict(self._served.get(name, {}))

    def nearest(self, name: str, most: int, is_live: Callable[[str], bool]) -> list[str]:
        """The names that living agents serve and that look most like this one."""
        living = (each for each, by in self._served.items() if any(map(is_live, by)))
        pairs = _pairs(name)
        # To hold one against ten thousand takes difflib half a second, in which a process would do nothing else.
        likely = heapq.nlargest(LIKELY, living, key=lambda each: _alike(pairs, _pairs(each)))
        return difflib.get_close_matches(name, likely, n=most, cutoff=0.3)

    def rank(self, intent: str, most: int, is_live: Callable[[str], bool]) -> list[ScoredTopic]:
        """The living topics that fit an intent best, best first."""
        for agent in self._unseen:
            for key in self._ranked.pop(agent, ()):
                self._ranker.drop(key)
            if (card := self.cards.get(agent)) is not None:
                topics = {TopicKey(topic.name, agent): topic for topic in card.topics}
                self._ranked[agent] = list(topics)
                for key, topic in topics.items():
                    self._ranker.put(key, topic)
        self._unseen.clear()
        found = self._ranker.rank(intent, most, lambda key: is_live(key.agent))
        return [self._scored(one) for one in found]

    def _scored(self, one: Ranked) -> ScoredTopic:
        name, agent = one.key
        return ScoredTopic(topic=self._served[name][agent], agent=agent, score=round(one.score, 4))


def _pairs(name: str) -> set[tuple[str, str]]:
    return set(itertools.pairwise(name))


def _alike(one: set[tuple[str, str]], other: set[tuple[str, str]]) -> float:
    return 2 * len(one & other) / (len(one) + len(other) or 1)


def _names(name: str) -> Iterator[str]:
    """What a topic may be served as: itself, and the families it can belong to."""
    yield name
    domain, dot, specificity = name.partition(".")
    if dot and "." not in specificity:
        yield from (f"{domain}.*", f"*.{specificity}", "*.*")
