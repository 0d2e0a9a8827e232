"""Topics are found by what they are for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from squadron.runtime.registry.lexical import LexicalRanker, words_of_schema
from squadron.runtime.registry.meaning import MeaningRanker
from squadron.runtime.registry.ranker import TopicKey
from squadron.runtime.registry.search import Index, terms
from squadron.runtime.wire.topics import SemanticTopic

SAMPLE = Path(__file__).parents[1] / "data" / "topic_search" / "sample.json"

TOPICS = [
    SemanticTopic(name="analysis.sentiment", description="Score how positive or angry a text is."),
    SemanticTopic(name="text.translate", description="Translate a text into another language.", tags=("french",)),
    SemanticTopic(name="license.classify", description="Find the licence of a package.", examples=("is it GPL?",)),
    SemanticTopic(
        name="weather.forecast", input_schema={"type": "object", "properties": {"cityName": {"type": "string"}}}
    ),
]


def _ranker(*topics: SemanticTopic) -> LexicalRanker:
    ranker = LexicalRanker()
    for topic in topics:
        ranker.put(TopicKey(topic.name, "agent"), topic)
    return ranker


def _found(ranker: LexicalRanker, intent: str, most: int = 8) -> list[str]:
    return [one.key.name for one in ranker.rank(intent, most, lambda _: True)]


def _best(intent: str) -> str:
    return _found(_ranker(*TOPICS), intent)[0]


@pytest.mark.parametrize(
    ("intent", "found"),
    [
        ("How angry is this review?", "analysis.sentiment"),
        ("translating texts", "text.translate"),  # by their stems
        ("into FRENCH please", "text.translate"),  # by a tag
        ("classified licences", "license.classify"),  # by its name
        ("is numpy under the GPL", "license.classify"),  # by an example
        ("which city is it", "weather.forecast"),  # by a field in camelCase
        ("forecasts", "weather.forecast"),
    ],
)
def test_the_right_topic_comes_first(intent: str, found: str) -> None:
    assert _best(intent) == found


@pytest.mark.parametrize("intent", ["quantum chromodynamics", "", "what is the of and"])
def test_who_shares_no_word_is_not_found(intent: str) -> None:
    assert _found(_ranker(*TOPICS), intent) == []
    assert _found(_ranker(), intent) == []


def test_few_documents_are_scored_at_once() -> None:
    index = Index(terms(topic.description) for topic in TOPICS)

    assert index.scores("quantum chromodynamics") == [0.0] * 4
    assert Index([]).scores("anything") == []
    assert Index([[], []]).scores("anything") == [0.0, 0.0]


def test_an_index_that_changed_is_as_one_that_was_made_so() -> None:
    changed, made = _ranker(*TOPICS), _ranker(*TOPICS[1:])
    changed.drop(TopicKey(TOPICS[0].name, "agent"))
    changed.drop(TopicKey("never.there", "agent"))
    changed.put(TopicKey(TOPICS[1].name, "agent"), SemanticTopic(name=TOPICS[1].name, description="cook a soup"))
    changed.put(TopicKey(TOPICS[1].name, "agent"), TOPICS[1])

    assert len(changed) == len(made) == 3
    for intent in ("angry texts", "translate a text", "a package of soup", "city"):
        assert changed.rank(intent, 8, lambda _: True) == made.rank(intent, 8, lambda _: True)


def test_scores_lie_between_0_and_1_and_only_what_is_kept_is_ranked() -> None:
    ranker = _ranker(*TOPICS)
    ranked = ranker.rank("the licence of a text about the weather", 8, lambda key: key.name != TOPICS[2].name)

    assert {one.key.name for one in ranked} == {"analysis.sentiment", "text.translate", "weather.forecast"}
    assert all(0 < one.score < 1 for one in ranked)
    assert _found(ranker, "text", most=1) == ["text.translate"]


def test_a_topic_is_found_by_what_its_fields_say_however_deep() -> None:
    leaf = {"type": "object", "properties": {"iban": {"type": "string", "description": "whom the money goes to"}}}
    schema = {"type": "object", "properties": {"orders": {"type": "array", "items": leaf}}}
    loop: dict[str, object] = {"type": "object", "description": "again"}
    loop["properties"] = {"self": loop}
    topics = [*TOPICS, SemanticTopic(name="bank.transfer", input_schema=schema)]

    assert _found(_ranker(*topics), "send money to an IBAN")[0] == "bank.transfer"
    assert list(words_of_schema(loop)).count("again") == 4
    assert list(words_of_schema({"properties": [], "enum": "no", "anyOf": {"a": 1}})) == []


def test_a_whole_book_is_an_intent_like_any_other() -> None:
    book = " ".join(f"word{i} chapter" for i in range(20_000))

    assert _found(_ranker(*TOPICS), f"{book} translate")[0] == "text.translate"


def test_the_nearest_topics_are_those_of_the_highest_sums_whatever_came_and_went() -> None:
    dice, ranker = np.random.default_rng(3), MeaningRanker()
    keys = [TopicKey(f"a.t{number}", "agent") for number in range(700)]
    for key in [*keys, *keys[::3]]:
        ranker.put(key, dice.normal(size=16).astype(np.float32), dice.normal(size=(3, 16)).astype(np.float32))
    for key in keys[::5]:
        ranker.drop(key)
    near = ranker.scores(dice.normal(size=16).astype(np.float32))
    besides = {key: float(dice.random()) for key in keys[::7]} | {TopicKey("no.where", "agent"): 9.0}
    sums = {key: near[key] + besides.get(key, 0.0) for key in keys if key in near}
    expected = sorted((key for key in sums if key.name != "a.t1"), key=lambda key: -sums[key])

    assert len(near) == len(sums) == 560
    found = near.best(20, lambda key: key.name != "a.t1", besides)
    assert [key for _, key in found] == expected[:20]
    assert [score for score, _ in found] == pytest.approx([sums[key] for key in expected[:20]], abs=1e-5)
    assert MeaningRanker().scores([1.0, 2.0]).best(3, lambda _: True, besides) == []


def test_names_fall_into_their_words() -> None:
    assert terms("cityName HTTPServer snake_case kebab-case v2") == [
        *terms("city name HTTP Server snake case kebab case v 2")
    ]
    assert terms("running runs") == ["run", "run"]
    assert terms("Größe naïve 翻訳") == ["größe", "naïv", "翻訳"]


def test_a_rare_word_weighs_more_than_a_common_one() -> None:
    index = Index([terms(text) for text in ("red apple", "red pear", "red plum", "blue plum")])
    scores = index.scores("red pear")

    assert scores[1] == max(scores)
    assert scores[0] == scores[2] > scores[3] == 0


def test_public_queries_find_their_topic() -> None:
    """200 queries of MetaTool over 199 topics, each with up to ten other queries as examples.

    Reached with this sample: R@1 0.60, R@5 0.80, R@10 0.875 (other samples: R@5 0.77 to 0.83). The floors stand a
    little below.
    """
    sample = json.loads(SAMPLE.read_text())
    names = [each["name"] for each in sample["topics"]]
    topics = [
        SemanticTopic(
            name=f"tool.{re.sub('[^A-Za-z0-9_-]', '_', each['name'])[:60]}",
            description=each["description"],
            examples=tuple(each["examples"]),
        )
        for each in sample["topics"]
    ]
    assert not {each["query"] for each in sample["queries"]} & {one for it in topics for one in it.examples}
    ranker = _ranker(*topics)
    ranks = []
    for each in sample["queries"]:
        found = _found(ranker, each["query"], most=10)
        right = topics[names.index(each["topic"])].name
        ranks.append(found.index(right) if right in found else len(names))

    assert sum(rank < 5 for rank in ranks) / len(ranks) >= 0.80
    assert sum(rank < 10 for rank in ranks) / len(ranks) >= 0.84
