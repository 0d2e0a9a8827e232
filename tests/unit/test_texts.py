"""Half a surrogate pair breaks nothing that is written: it is U+FFFD, or with its other half the character."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from squadron.runtime.retries import summary_of, traceback_of
from squadron.runtime.texts import encoded, json_text, plain, whole
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Payload, pack
from squadron.runtime.wire.topics import AgentCard, SemanticTopic

HIGH, LOW = "\ud83d", "\ude42"


@dataclass
class Said:
    text: str


class Model(BaseModel):
    text: str


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("größe 🙂", "größe 🙂"),
        (f"a{HIGH}", "a\ufffd"),
        (f"{HIGH}{LOW}", "🙂"),
        (f"{LOW}{HIGH}", "\ufffd\ufffd"),
        ({f"k{HIGH}": [(f"{LOW}", 1)], "n": None}, {"k\ufffd": [["\ufffd", 1]], "n": None}),
        (
            [Said(HIGH), Model(text=LOW), {HIGH: Said(HIGH)}],
            [{"text": "\ufffd"}] * 2 + [{"\ufffd": {"text": "\ufffd"}}],
        ),
        ([HIGH, float("nan")], ["\ufffd", None]),
    ],
)
def test_what_is_written_is_json_whatever_the_texts_in_it_hold(value: Any, written: Any) -> None:
    me = AgentIdentity(id="me")
    message = AgentMessage.new("event", me, value)

    assert json.loads(encoded(value).decode()) == written
    assert AgentMessage.decode(message.encode()).payload.content == written
    assert json.loads(Payload(content=value).encode())["content"] == written
    assert AgentMessage.decode(pack("event", me, {"content": value})).payload.content == written
    assert whole(written) == written


def test_what_is_no_json_is_none_with_half_a_pair_beside_it() -> None:
    with pytest.raises(PydanticSerializationError):
        encoded([HIGH, object()])


def test_errors_and_cards_tell_it_so() -> None:
    error = ValueError(f"a{HIGH}")
    card = AgentCard(
        agent="desk",
        description=HIGH,
        topics=(
            SemanticTopic(
                name="desk.one",
                description=f"a{HIGH}",
                examples=(LOW,),
                input_schema={"properties": {HIGH: {"default": LOW}}},
            ),
        ),
    )

    assert summary_of(error) == "ValueError: a\ufffd"
    assert "a\ufffd" in traceback_of(error)
    assert AgentCard.model_validate_json(card.model_dump_json()) == card
    assert card.topics[0].description == "a\ufffd"


def test_json_for_others_has_no_number_that_json_has_not() -> None:
    odd = {"a": [math.nan, math.inf, -math.inf, 1.5], math.nan: 1, "b": {1j}, "é": "é"}
    told = json_text(odd)
    assert json.loads(told, parse_constant=pytest.fail) == plain(odd)
    assert plain(odd) == {"a": [None, None, None, 1.5], "NaN": 1, "b": "{1j}", "é": "é"}
    assert "é" in told
    assert json_text({"a": 1}, 2) == '{\n  "a": 1\n}'
