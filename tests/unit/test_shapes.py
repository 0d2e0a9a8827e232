"""What providers refuse in a tool's schema is offered in another form, and turned back."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from squadron.actors.goals.goal import Notebook, Toolbox, prepare
from squadron.actors.thinking.model import ToolCall
from squadron.actors.thinking.shapes import InputShape
from squadron.runtime.wire.topics import SemanticTopic

ANY_OF = {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "string"}], "$defs": {"A": {"type": "object"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": ["object", "null"]},
        {"properties": {"a": {"type": "string"}}},
        {"type": "string"},
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {}}}},
        {"type": "object", "properties": {"größe": {"type": "string"}, "x" * 65: {}}, "required": ["größe"]},
        ANY_OF,
    ],
)
def test_what_is_offered_is_what_both_providers_take(schema: dict[str, Any]) -> None:
    offered = InputShape(schema).schema

    assert offered["type"] == "object"
    assert not {"anyOf", "oneOf", "allOf", "not", "enum", "$ref"} & offered.keys()
    assert all(name.isascii() and len(name) <= 64 for name in offered["properties"])
    assert set(offered.get("required", ())) <= offered["properties"].keys()
    jsonschema_rs.Draft202012Validator(offered)


def test_what_a_model_gives_is_turned_back() -> None:
    shape = InputShape({"type": "object", "properties": {"größe": {}, "b": {}}})
    first, second = shape.schema["properties"]
    assert shape.restore({first: 1, second: 2}) == {"größe": 1, "b": 2}
    assert shape.restore({"größe": 1}) == {"größe": 1}
    assert InputShape(ANY_OF).restore({"value": "text"}) == "text"
    assert InputShape(ANY_OF).restore({"a": 1}) == {"a": 1}


def test_a_card_that_cannot_be_offered_is_left_out_and_noted() -> None:
    toolbox, notebook = Toolbox(), Notebook()
    bad = SemanticTopic(name="bad.card", input_schema={"type": "nonsense"})
    lost = SemanticTopic(name="lost.card", input_schema={"$ref": "#/$defs/Nowhere"})
    good = SemanticTopic(name="good.card", input_schema=ANY_OF)

    assert toolbox.offer([bad, lost, good]) == ["good__card"]
    assert toolbox.left_out.keys() == {"bad.card", "lost.card"}
    assert "good__card" in {tool.name for tool in toolbox.definitions()}
    one = prepare(ToolCall("1", "good__card", {"value": "x"}), toolbox, notebook)
    many = {"topic": "good__card", "items": ["a", "b"], "arguments": {"value": {"$item": ""}}}
    assert one.contents == ["x"]
    assert prepare(ToolCall("2", "for_each", many), toolbox, notebook).contents == ["a", "b"]
