"""Topics are found by what they are for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from squadron.runtime.registry.search import Index, document, terms
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


def _best(intent: str) -> str:
    scores = Index(document(topic) for topic in TOPICS).scores(intent)
    return TOPICS[scores.index(max(scores))].name


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


def test_who_shares_no_word_has_no_score() -> None:
    index = Index(document(topic) for topic in TOPICS)

    assert index.scores("quantum chromodynamics") == [0.0] * 4
    assert index.scores("") == [0.0] * 4
    assert index.scores("what is the of and") == [0.0] * 4
    assert Index([]).scores("anything") == []
    assert Index([[], []]).scores("anything") == [0.0, 0.0]


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
    index = Index(document(topic) for topic in topics)
    ranks = []
    for each in sample["queries"]:
        scores = index.scores(each["query"])
        order = sorted(range(len(names)), key=lambda i: (-scores[i], names[i]))
        ranks.append(order.index(names.index(each["topic"])))

    assert sum(rank < 5 for rank in ranks) / len(ranks) >= 0.78
    assert sum(rank < 10 for rank in ranks) / len(ranks) >= 0.83
