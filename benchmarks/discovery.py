"""How well, how fast and how small: `make bench-discovery` measures how topics are found.

Args (all optional): `--data FOLDER` with the files of MetaTool (also `SQUADRON_TOPIC_SEARCH`); without it the
sample of the tests is measured, whose figures are noisier and not those of the table. Everything is scored by
cross-validation: the examples of a topic are of other folds than the queries.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import random
import re
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks import heartbeats
from squadron.actors.thinking.embedding import LocalEmbedder
from squadron.bridge.control.finding import FULL, WORDS
from squadron.bridge.jetstream.wiring import SystemClock
from squadron.bridge.memory import MemoryBus, MemoryJournal
from squadron.runtime.errors import ConfigError
from squadron.runtime.registry.learned import Learned
from squadron.runtime.registry.lexical import LexicalRanker
from squadron.runtime.registry.meaning import MeaningRanker
from squadron.runtime.registry.presence import Presence
from squadron.runtime.registry.ranker import Ranked, Ranker, TopicKey
from squadron.runtime.registry.registry import Registry
from squadron.runtime.wire.subjects import Subjects
from squadron.runtime.wire.topics import AgentCard, SemanticTopic

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "topic_search" / "sample.json"
MULTILINGUAL = SAMPLE.with_name("multilingual.json")
#: Examples of a topic, folds, and how many queries of each fold are scored.
EXAMPLES, FOLDS, SCORED = 10, 5, 800
#: Of what others reach on 4,000 queries of the same data, recall at 1, 5 and 10: the README beside the data.
REFERENCE = {
    "BM25 (stemmed), description only": (0.362, 0.571, 0.644),
    "all-MiniLM-L6-v2, description only": (0.527, 0.749, 0.820),
    "BM25, 10 examples": (0.616, 0.830, 0.880),
    "MiniLM, best of 10 examples": (0.617, 0.843, 0.906),
    "both, reciprocal rank fusion, 10 examples": (0.656, 0.874, 0.917),
}
#: Where a threshold is put for the rate of false offers: so much of what is right is lost by it.
LOST = 0.01
#: Intents of a replay of use.
REPLAYED = 2000


class Meant:
    """Words and meaning together, as the bridge ranks, over an embedder whose vectors are kept in this process."""

    _vectors: ClassVar[dict[str, Any]] = {}
    _embedder = None

    def __init__(self) -> None:
        self._words, self._meaning = LexicalRanker(), MeaningRanker()

    @classmethod
    def over(cls, embedder: LocalEmbedder) -> type[Meant]:
        cls._embedder = embedder
        return cls

    def _of(self, text: str) -> Any:
        if text not in self._vectors:
            assert self._embedder is not None
            self._vectors[text] = np.asarray(self._embedder.vectors([text])[0], np.float32)
        return self._vectors[text]

    def put(self, key: TopicKey, topic: SemanticTopic) -> None:
        self._words.put(key, topic)
        about = self._of(f"{key.name}: {topic.description}")
        examples = [self._of(each) for each in topic.examples]
        self._meaning.put(key, about, np.vstack(examples) if examples else np.zeros((0, len(about)), np.float32))

    def drop(self, key: TopicKey) -> None:
        self._words.drop(key)
        self._meaning.drop(key)

    def rank(self, intent: str, most: int, keep: Callable[[TopicKey], bool]) -> list[Ranked]:
        words, near = self._words.scores(intent), self._meaning.scores(self._of(intent))
        found = near.best(most, keep, {key: WORDS * said for key, said in words.items()})
        return [Ranked(score / FULL, key) for score, key in found]


RANKERS: dict[str, Callable[[], Ranker]] = {"words": LexicalRanker}
with contextlib.suppress(ConfigError):
    RANKERS["words and meaning (local)"] = Meant.over(LocalEmbedder())


@dataclass
class Labelled:
    """Topics by name with what they say, queries with the right one, and queries that need two."""

    about: dict[str, str]
    rows: list[tuple[str, str]]
    pairs_about: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[str, list[str]]] = field(default_factory=list)


def load(folder: str) -> Labelled:
    """The data of a folder, or the sample."""
    if not folder:
        sample = json.loads(SAMPLE.read_text())
        about = {each["name"]: each["description"] for each in sample["topics"]}
        rows = [(query, each["name"]) for each in sample["topics"] for query in each["examples"]]
        return Labelled(about, rows + [(each["query"], each["topic"]) for each in sample["queries"]])
    at = Path(folder)
    with (at / "queries_dev.csv").open(newline="") as file:
        rows = [(row["query"], row["topic"]) for row in csv.DictReader(file)]
    pairs = json.loads((at / "multi_topic_dev.json").read_text())
    return Labelled(
        json.loads((at / "topics.json").read_text()),
        rows,
        json.loads((at / "topics_multi.json").read_text()),
        [(each["query"], each["tool"]) for each in pairs],
    )


def topic_of(name: str, about: str, examples: Sequence[str] = ()) -> SemanticTopic:
    """A topic that says what a tool of the data says."""
    token = re.sub("[^A-Za-z0-9_-]", "_", name)[:60]
    return SemanticTopic(name=f"tool.{token}", description=about, examples=tuple(examples))


def filled(make: Callable[[], Ranker], about: dict[str, str], examples: dict[str, list[str]]) -> Ranker:
    """A ranker with one topic for each tool; its key holds the tool's own name."""
    ranker = make()
    for name, text in about.items():
        ranker.put(TopicKey(name, "agent"), topic_of(name, text, examples.get(name, ())))
    return ranker


def folds_of(rows: list[tuple[str, str]]) -> list[tuple[list[tuple[str, str]], dict[str, list[str]]]]:
    """For each fold the queries that are scored, and examples from the others."""
    mixed = sorted(rows)
    random.Random(7).shuffle(mixed)
    folds = [mixed[at::FOLDS] for at in range(FOLDS)]
    made = []
    for at, scored in enumerate(folds):
        examples: dict[str, list[str]] = defaultdict(list)
        for query, name in (row for other, fold in enumerate(folds) if other != at for row in fold):
            if len(examples[name]) < EXAMPLES:
                examples[name].append(query)
        made.append((scored[:SCORED], examples))
    return made


def recalls(ranker: Ranker, scored: list[tuple[str, str]]) -> list[float]:
    """How often the right topic is among the first one, five, ten."""
    ranks = []
    for query, right in scored:
        names = [one.key.name for one in ranker.rank(query, 10, lambda _: True)]
        ranks.append(names.index(right) if right in names else 10)
    return [sum(rank < most for rank in ranks) / len(ranks) for most in (1, 5, 10)]


def false_offers(
    make: Callable[[], Ranker], data: Labelled, examples: dict[str, list[str]], fold: int
) -> tuple[float, float]:
    """How many queries whose right topic is not served, and how many that want nothing, are offered a topic at a
    threshold that loses `LOST`."""
    gone = set(random.Random(fold).sample(sorted(data.about), len(data.about) // 5))
    ranker = filled(make, {name: text for name, text in data.about.items() if name not in gone}, examples)
    best: dict[bool, list[float]] = {True: [], False: []}
    for query, right in folds_of(data.rows)[fold][0]:
        first = ranker.rank(query, 1, lambda _: True)
        best[right in gone].append(first[0].score if first else 0.0)
    threshold = statistics.quantiles(best[False], n=round(1 / LOST))[0]
    far = far_off(ranker)
    near = sum(score > threshold for score in best[True]) / len(best[True])
    return near, sum(score > threshold for score in far) / len(far)


def quality(name: str, make: Callable[[], Ranker], data: Labelled) -> None:
    """Print the recalls of one ranker."""
    for count in (0, EXAMPLES):
        found, offered = [], []
        for at, (scored, examples) in enumerate(folds_of(data.rows)):
            given = examples if count else {}
            found.append(recalls(filled(make, data.about, given), scored))
            offered.append(false_offers(make, data, given, at))
        told = [statistics.mean(column) for column in zip(*found, strict=True)]
        near, far = (statistics.mean(column) for column in zip(*offered, strict=True))
        label = f"{name}, {f'{count} examples' if count else 'no examples'}"
        print(f"| {label} | {' | '.join(f'{each:.3f}' for each in told)} | {near:.2f}, {far:.2f} |")
    if data.pairs:
        ranker, both = filled(make, data.pairs_about, {}), 0
        for query, wanted in data.pairs:
            names = {one.key.name for one in ranker.rank(query, 10, lambda _: True)}
            both += names.issuperset(wanted)
        print(f"| {name}, pairs, no examples: both among the first ten | | | {both / len(data.pairs):.3f} | |")


def languages(name: str, make: Callable[[], Ranker]) -> None:
    """Print how well queries in five languages find topics that are described in English."""
    told = json.loads(MULTILINGUAL.read_text())
    ranker = filled(make, {each["name"]: each["description"] for each in told["topics"]}, {})
    by: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for each in told["queries"]:
        by[each["language"]].append((each["query"], each["topic"]))
    for language, scored in by.items():
        print(f"| {name}, {language} | {' | '.join(f'{each:.3f}' for each in recalls(ranker, scored))} | |")


def far_off(ranker: Ranker) -> list[float]:
    """The best scores of sentences that want nothing of any topic."""
    found = (ranker.rank(text, 1, lambda _: True) for text in json.loads(MULTILINGUAL.read_text())["nothing"])
    return [each[0].score if each else 0.0 for each in found]


def use(name: str, make: Callable[[], Ranker], data: Labelled) -> None:
    """Print what is learned from use without examples: recall before and after `REPLAYED` intents were replayed.

    Whoever asks is offered five topics: if the right one is among them it is taken, and goes well; else the first
    is, and fails. A hundred sources ask in turn.
    """
    scored, _ = folds_of(data.rows)[0]
    held = {query for query, _ in scored}
    rows = [row for row in sorted(data.rows) if row[0] not in held]
    random.Random(11).shuffle(rows)
    ranker, learned = filled(make, data.about, {}), Learned()
    before = recalls(ranker, scored)
    for at, (query, right) in enumerate(rows[:REPLAYED]):
        offered = [one.key.name for one in ranker.rank(query, 5, lambda _: True)]
        if offered:
            taken = right if right in offered else offered[0]
            learned.note(query, taken, f"caller{at % 100}", 0.0, good=taken == right)
            ranker.put(TopicKey(taken, "agent"), topic_of(taken, data.about[taken], learned.examples(taken, 0.0)))
    after = recalls(ranker, scored)
    for label, told in (("before", before), ("after", after)):
        figures = " | ".join(f"{each:.3f}" for each in told)
        print(f"| {name}, no examples, {label} {REPLAYED:,} intents of use | {figures} | |")


def many(data: Labelled, count: int) -> list[AgentCard]:
    """Cards of agents that serve one topic each, made of what the data's topics and queries say."""
    dice, about = random.Random(3), sorted(data.about.items())
    cards = []
    for at in range(count):
        name, text = about[at % len(about)]
        examples = [query for query, _ in dice.sample(data.rows, 3)]
        topic = topic_of(f"{name}_{at}", f"{text} {dice.choice(about)[1]}", examples)
        cards.append(AgentCard(agent=f"agent{at}", topics=(topic,)))
    return cards


async def speed(data: Labelled, count: int) -> None:
    """Print what `count` topics cost a client: to join, to search first and later, to hear of a changed card."""
    bus, clock, subjects = MemoryBus(), SystemClock(), Subjects("bench")
    journal = MemoryJournal(bus, clock.time)
    alive = Presence(expires_at=clock.time() + 3600).model_dump_json().encode()
    cards = many(data, count)
    for card in cards:
        await journal.append(subjects.card(card.agent), card.model_dump_json().encode())
        await journal.append(subjects.presence(card.agent, "bridge"), alive)
    registry = Registry(journal, bus, subjects, clock, heartbeat_s=60.0)
    began = time.perf_counter()
    await registry.start()
    joined = time.perf_counter() - began
    began = time.perf_counter()
    registry.discover("anything at all")
    first = time.perf_counter() - began
    queries = [query for query, _ in random.Random(5).sample(data.rows, min(1000, len(data.rows)))]
    took = [_timed(lambda query=query: registry.discover(query)) for query in queries]  # type: ignore[misc]
    changed = []
    for card in cards[:100]:
        await registry.advertise(card.model_copy(update={"description": "changed"}))
        changed.append(_timed(lambda: registry.discover("x")))
    named = [_timed(lambda card=card: registry.find(card.topics[0].name)) for card in cards]  # type: ignore[misc]
    family = [_timed(lambda: registry.find("nobody.serves_this"))]
    await registry.aclose()
    p50, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
    print(
        f"| {count:,} | {joined:.2f} s | {first:.2f} s | {1000 * p50:.1f} ms | {1000 * p99:.1f} ms "
        f"| {1000 * statistics.median(changed):.2f} ms | {1e6 * statistics.median(named):.1f} us "
        f"| {1e6 * family[0]:.1f} us | {memory(cards):.0f} MB |"
    )


def meant(data: Labelled, count: int) -> None:
    """Print how long the bridge works on a search by meaning among `count` topics. Their vectors are made up: no
    figure depends on what they say. Those of the intents are the encoder's, which takes its time."""
    dice, words, meaning = np.random.default_rng(3), LexicalRanker(), MeaningRanker()
    for card in many(data, count):
        key = TopicKey(card.topics[0].name, card.agent)
        words.put(key, card.topics[0])
        meaning.put(key, *(dice.normal(size=size).astype(np.float32) for size in (512, (3, 512))))
    encoder = LocalEmbedder()

    def search(query: str) -> None:
        said, near = words.scores(query), meaning.scores(encoder.vectors([query])[0])
        near.best(24, lambda _: True, {key: WORDS * each for key, each in said.items()})

    search("the first one loads the encoder")
    queries = [query for query, _ in random.Random(5).sample(data.rows, min(500, len(data.rows)))]
    took = [_timed(lambda query=query: search(query)) for query in queries]  # type: ignore[misc]
    p50, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
    print(f"By words and meaning among {count:,} topics: p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms.")


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def memory(cards: Sequence[AgentCard]) -> float:
    """Megabytes of an index over the words of these cards, beside the cards."""
    tracemalloc.start()
    ranker = LexicalRanker()
    for card in cards:
        for topic in card.topics:
            ranker.put(TopicKey(topic.name, card.agent), topic)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=os.environ.get("SQUADRON_TOPIC_SEARCH", ""))
    data = load(parser.parse_args().data)
    print("| ranker | R@1 | R@5 | R@10 | false offers |\n|--|--|--|--|--|")
    for name, told in REFERENCE.items():
        print(f"| (reference) {name} | {' | '.join(f'{each:.3f}' for each in told)} | |")
    for name, make in RANKERS.items():
        quality(name, make, data)
        use(name, make, data)
        languages(name, make)
    print(
        f"\nFalse offers, at a threshold that loses {LOST:.0%} of what is right: where the right topic is not "
        "served, and where nothing was wanted."
    )
    print("\n| topics | join | first search | p50 | p99 | search after a change | find | find nothing | index |")
    print("|--|--|--|--|--|--|--|--|--|")
    for count in (200, 10_000):
        asyncio.run(speed(data, count))
    for count in (200, 10_000) if len(RANKERS) > 1 else ():
        meant(data, count)
    asyncio.run(heartbeats.measure(many(data, 10_000)))


if __name__ == "__main__":
    main()
