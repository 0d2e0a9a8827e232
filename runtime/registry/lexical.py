"""Ranking by words: BM25F over stems (Robertson & Zaragoza 2009, "BM25 and Beyond"), changed in place."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from squadron.runtime.registry.ranker import Ranked, TopicKey
from squadron.runtime.registry.search import K1, terms
from squadron.runtime.wire.topics import SemanticTopic

#: For each field its weight, how much its length counts, and the length that counts as usual, in words: chosen by
#: cross-validation on the development half of MetaTool. The lengths are fixed, so that a card which changes leaves
#: the others as they are, and scores of one environment can be held against those of another.
NAME, ABOUT, EXAMPLES = (2.0, 0.3, 2), (1.0, 0.75, 10), (0.6, 0.9, 60)
#: No more than so many different words of an intent count, the rarest: whole documents are passed as well.
MOST_TERMS = 64
#: Where no topic reaches this, nothing is offered: 1 % of what is right on the development half of MetaTool scores
#: less, without examples.
FITS = 0.21
#: A few topics are taken for a part of so many, in which a word has so many holders more: else no word would be
#: rare among them. Among hundreds that changes nothing.
AMONG, HELD_THERE = 5, 0.02
#: How deep into a schema its words are read: recursive ones have no end, and what lies deep says little.
MOST_DEPTH = 4


def words_of_schema(schema: Any, depth: int = MOST_DEPTH) -> Iterator[str]:
    """Names and descriptions of the fields of a JSON Schema, and the values that it lists."""
    if not isinstance(schema, dict) or depth == 0:
        return
    for said in (schema.get("description"), *_listed(schema.get("enum"))):
        if isinstance(said, str):
            yield said
    fields = schema.get("properties")
    for name, field in fields.items() if isinstance(fields, dict) else ():
        yield str(name)
        yield from words_of_schema(field, depth - 1)
    for inner in (schema.get("items"), *_listed(schema.get("anyOf"))):
        yield from words_of_schema(inner, depth - 1)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def weights(topic: SemanticTopic) -> dict[str, float]:
    """How much each word says of a topic, between 0 and 1."""
    inputs = " . ".join(words_of_schema(topic.input_schema))
    fields: Iterable[tuple[tuple[float, float, int], str]] = (
        (NAME, topic.name),
        (ABOUT, " . ".join([topic.description, *topic.tags, inputs])),
        (EXAMPLES, " . ".join(topic.examples)),
    )
    found: dict[str, float] = defaultdict(float)
    for (weight, by_length, usual), text in fields:
        counts = Counter(terms(text))
        length = 1 - by_length + by_length * counts.total() / usual
        for term, count in counts.items():
            found[term] += weight * count / length
    return {term: seen / (seen + K1) for term, seen in found.items()}


class LexicalRanker:
    """A `Ranker` by shared words: no model, no numbers but those of the words."""

    def __init__(self) -> None:
        #: Who has a word, and how much it says of him, by a number for each topic.
        self._postings: dict[str, dict[int, float]] = {}
        self._numbers: dict[TopicKey, int] = {}
        self._known: dict[int, tuple[TopicKey, tuple[str, ...]]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._known)

    def put(self, key: TopicKey, topic: SemanticTopic) -> None:
        """Take a topic in; see `Ranker`."""
        self.drop(key)
        number, found = self._next, weights(topic)
        self._next += 1
        for term, weight in found.items():
            self._postings.setdefault(term, {})[number] = weight
        self._numbers[key], self._known[number] = number, (key, tuple(found))

    def drop(self, key: TopicKey) -> None:
        """Forget a topic; see `Ranker`."""
        if (number := self._numbers.pop(key, None)) is None:
            return
        for term in self._known.pop(number)[1]:
            holders = self._postings[term]
            del holders[number]
            if not holders:
                del self._postings[term]

    def rank(self, intent: str, most: int, keep: Callable[[TopicKey], bool]) -> list[Ranked]:
        """The topics that share words with an intent; see `Ranker`."""
        found = self._scores(intent)
        known = self._known
        live = ((score, number) for number, score in found.items() if keep(known[number][0]))
        best = heapq.nlargest(most, live)
        ranked = [Ranked(score / (1 + score), known[number][0]) for score, number in best]
        return sorted(ranked, key=lambda one: (-one.score, one.key))

    def scores(self, intent: str) -> dict[TopicKey, float]:
        """How much of an intent each topic shares, from 0 upwards."""
        return {self._known[number][0]: score for number, score in self._scores(intent).items()}

    def _scores(self, intent: str) -> dict[int, float]:
        """A sum over shared words, over the root of what all words of the intent could have come to: a long intent
        is not surer of a topic than a short one."""
        said = set(terms(intent))
        rarity = {term: self._rarity(term) for term in said if term in self._postings}
        wanted = heapq.nlargest(MOST_TERMS, rarity, key=lambda term: (rarity[term], term))
        found: dict[int, float] = defaultdict(float)
        unknown = min(MOST_TERMS, len(said) - len(rarity)) * self._rarity("")
        scale = 1 / math.sqrt(sum(rarity[term] for term in wanted) + unknown or 1.0)
        for term in wanted:
            weight = rarity[term] * scale
            for number, says in self._postings[term].items():
                found[number] += weight * says
        return found

    def _rarity(self, term: str) -> float:
        holders = self._postings.get(term)
        held = len(holders) + HELD_THERE if holders else 0.0
        return math.log(1 + (len(self._known) + AMONG - held + 0.5) / (held + 0.5))
