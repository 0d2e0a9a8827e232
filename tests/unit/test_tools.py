"""A semantic topic as a tool of a model, and as a guard of its own door."""

from __future__ import annotations

import re
from typing import Any

import pytest

from squadron import Agent, topic
from squadron.actors.agent import AgentSpec
from squadron.runtime.errors import InvalidInputError, InvalidSubjectError
from squadron.runtime.wire.topics import AgentCard, SemanticTopic


class Analyst(Agent):
    @topic("analysis.sentiment", examples=["is this review angry?", "how happy are they?"])
    async def sentiment(self, text: str, scale: int = 1) -> float:
        """Score how positive a text is."""
        return 0.0


@pytest.fixture
def sentiment() -> SemanticTopic:
    return AgentSpec.of(Analyst).topics[0].topic


def test_its_name_fits_both_providers_and_its_description_shows_examples(sentiment: SemanticTopic) -> None:
    assert sentiment.tool_name == "analysis__sentiment"
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", sentiment.tool_name)
    assert sentiment.tool_description == (
        "Score how positive a text is.\nUse it for: is this review angry?; how happy are they?"
    )


@pytest.mark.parametrize(
    ("content", "field"),
    [({}, "text"), ({"text": 1}, "text"), ({"text": "x", "scale": "big"}, "scale"), ({"text": "x", "y": 1}, "")],
)
def test_it_says_where_content_does_not_fit(sentiment: SemanticTopic, content: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        sentiment.check(content)

    assert caught.value.field == field
    assert caught.value.hint == "takes text: string, scale: integer = 1"


def test_it_takes_what_fits(sentiment: SemanticTopic) -> None:
    sentiment.check({"text": "x"})
    sentiment.check({"text": "x", "scale": 3})


def test_a_card_survives_the_registry(sentiment: SemanticTopic) -> None:
    card = AgentSpec.of(Analyst).card()

    assert AgentCard.model_validate_json(card.model_dump_json()) == card
    assert AgentCard.model_validate({"agent": "a", "fromTheFuture": 1}).agent == "a"
    with pytest.raises(InvalidSubjectError):
        SemanticTopic(name="not-a-topic")
