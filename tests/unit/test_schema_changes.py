"""What changed in a topic is told to who still asks it as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.schema_changes import MOST_KEPT, breaks, with_changes
from squadron.runtime.wire.topics import AgentCard, SemanticTopic


def takes(
    fields: dict[str, Any], required: list[str] | None = None, version: str = "1", **more: Any
) -> SemanticTopic:
    schema = {"type": "object", "properties": fields, "required": required or [], "additionalProperties": False}
    return SemanticTopic(name="text.translate", input_schema=schema, version=version, **more)


TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
MAYBE = {"anyOf": [TEXT, {"type": "null"}]}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (takes({"a": TEXT}), takes({"a": TEXT, "b": TEXT}), []),
        (takes({"a": TEXT}), takes({"a": TEXT, "b": TEXT}, ["b"]), ["input b is required"]),
        (takes({"a": TEXT, "b": TEXT}), takes({"a": TEXT}), ["input b is gone"]),
        (takes({"a": TEXT}), takes({"a": WHOLE}), ["input a is integer, not string"]),
        (takes({"a": WHOLE}), takes({"a": NUMBER}), []),
        (takes({"a": NUMBER}), takes({"a": WHOLE}), ["input a is integer, not number"]),
        (takes({"a": TEXT}), takes({"a": MAYBE}), []),
        (takes({"a": MAYBE}), takes({"a": TEXT}), ["input a is string, not null or string"]),
        (takes({"a": TEXT}), takes({"a": TEXT | {"enum": ["x", "y"]}}), ["input a is one of x, y"]),
        (takes({"a": WHOLE}), takes({"a": WHOLE | {"maximum": 9}}), ["input a is at most 9"]),
        (takes({"a": WHOLE | {"maximum": 9}}), takes({"a": WHOLE | {"maximum": 10}}), []),
        (
            takes({"a": {"type": "object", "properties": {"b": TEXT}}}),
            takes({"a": {"type": "object", "properties": {"b": TEXT}, "required": ["b"]}}),
            ["input a.b is required"],
        ),
        (
            takes({}, output_schema={"type": "object", "properties": {"a": TEXT}}),
            takes({}, output_schema={"type": "object", "properties": {}}),
            ["output a is gone"],
        ),
        (takes({"a": TEXT | {"enum": ["x", "y"]}}), takes({"a": TEXT | {"const": "x"}}), ["input a is one of x"]),
        (takes({"a": TEXT}), takes({"a": TEXT | {"pattern": "^x"}}), ["input a has the pattern ^x"]),
        (
            takes({"a": {"type": "array", "items": WHOLE}}),
            takes({"a": {"type": "array", "items": TEXT, "minItems": 2}}),
            ["input a is at least so many: 2"],
        ),
        (
            takes({"a": {"type": "array", "items": WHOLE}}),
            takes({"a": {"type": "array", "items": TEXT}}),
            ["input a[] is string, not integer"],
        ),
        (takes({}, output_schema=TEXT), takes({}, output_schema=WHOLE), ["the output is integer, not string"]),
    ],
)
def test_what_older_callers_do_not_know_of_is_told(
    old: SemanticTopic, new: SemanticTopic, told: list[str]
) -> None:
    assert breaks(old, new) == told


def _orders(order: dict[str, Any], ware: dict[str, Any]) -> dict[str, Any]:
    """A schema that refers to what it defines, one of which holds itself, as those of models do."""
    part = {"properties": {"parts": {"type": "array", "items": {"$ref": "#/$defs/Order"}}}, "type": "object"}
    defined = {"Order": part | order | {"properties": part["properties"] | order["properties"]}, "Ware": ware}
    wanted = {"$ref": "#/$defs/Order"}
    fields = {
        "order": wanted,
        "more": {"type": "array", "items": wanted},
        "maybe": {"anyOf": [wanted, {"type": "null"}]},
        "named": {"type": "object", "additionalProperties": wanted},
    }
    return {"$defs": defined, "type": "object", "properties": fields}


@pytest.mark.parametrize("where", ["order", "more[]", "maybe", "named.*"])
def test_what_a_schema_refers_to_is_compared_wherever_it_stands(where: str) -> None:
    ware = {"$ref": "#/$defs/Ware"}
    old = _orders({"properties": {"ware": ware, "note": TEXT}}, TEXT)
    new = _orders({"properties": {"ware": ware}, "required": ["ware"]}, TEXT | {"enum": ["tea"]})
    name = "text.order"
    taken = [SemanticTopic(name=name, input_schema=each) for each in (old, new)]
    given = [SemanticTopic(name=name, output_schema=each) for each in (old, new)]

    assert breaks(taken[0], taken[0]) == []
    told = [each for each in breaks(*taken) if each.startswith(f"input {where}.")]
    assert told == [f"input {where}.ware is required", f"input {where}.ware is one of tea"]
    assert f"output {where}.note is gone" in breaks(*given)
    renamed = json.loads(json.dumps(old).replace("Order", "Ordered"))
    assert breaks(taken[0], SemanticTopic(name=name, input_schema=renamed)) == []


def test_a_schema_that_spells_out_endless_ones_is_compared_in_time() -> None:
    many = {f"f{number}": {"$ref": f"#/$defs/T{number}"} for number in range(40)}
    endless = {"$defs": {f"T{number}": {"type": "object", "properties": many} for number in range(40)}}
    topic = SemanticTopic(name="text.order", input_schema=endless | {"type": "object", "properties": many})

    assert breaks(topic, topic) == []


def test_a_caller_of_an_older_version_is_told_at_the_door_what_changed() -> None:
    old = AgentCard(agent="ann", topics=(takes({"text": TEXT}),))
    new = AgentCard(agent="ann", topics=(takes({"text": TEXT, "into": TEXT}, ["into"], "2"),))
    served = with_changes(old, new, "2026-11-29").topics[0]

    with pytest.raises(InvalidInputError) as refused:
        served.check({"text": "hello"})
    assert refused.value.hint == (
        "takes text: string, into: string; since 2026-11-29 (version 2) input into is required"
    )


def test_changes_are_kept_over_later_ones_and_no_more_than_a_few() -> None:
    card = AgentCard(agent="ann", topics=(takes({"a0": TEXT}),))
    for number in range(1, 20):
        card = with_changes(card, AgentCard(agent="ann", topics=(takes({f"a{number}": TEXT}),)), "2026-11-29")

    assert len(card.topics[0].changed) == MOST_KEPT
    assert card.topics[0].changed[-1].endswith("input a18 is gone")
    assert with_changes(None, card, "2026-11-29") == card
