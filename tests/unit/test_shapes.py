"""What providers refuse in a tool's schema is offered in another form, and turned back."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from squadron.actors.runs.prepare import prepare
from squadron.actors.runs.references import Results
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.model import ToolCall
from squadron.actors.thinking.shapes import InputShape
from squadron.runtime.wire.topics import SemanticTopic
from tests.llm_schemas import check_schema

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
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"a.b": True, "": {}}},
        {"type": "array"},
        {"$defs": {"A": {"type": ["array", "null"]}}, "properties": {"a": {"items": True, "type": "array"}}},
        {"properties": {"a": {"prefixItems": [{"type": "array"}], "type": "array"}}},
        {"patternProperties": {"^(.*)$": {}}, "additionalProperties": False, "if": {}, "then": {}, "else": {}},
        {"properties": {"a": {"anyOf": [{"type": "array"}, {"propertyNames": {}}], "not": {"type": "array"}}}},
    ],
)
def test_what_is_offered_is_what_both_providers_take(schema: dict[str, Any]) -> None:
    shape = InputShape(schema)

    check_schema(shape.schema, "it")
    assert bool(shape.changes) == (shape.schema != schema)
    # Not in their place: what is offered is offered again as it is.
    assert InputShape(shape.schema).schema == shape.schema


def test_what_is_no_schema_in_a_schema_is_left_as_it_is() -> None:
    data = {"if": 1, "type": "array", "patternProperties": {}}
    schema = {
        "type": "object",
        "properties": {"if": {"default": data, "examples": [data], "enum": [data]}, "then": {"const": data}},
        "required": ["if"],
    }

    assert InputShape(schema).schema == schema
    assert InputShape(schema).changes == []


def test_what_is_looser_fits_all_that_fitted_before() -> None:
    schema = {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}

    assert jsonschema_rs.Draft202012Validator(InputShape(schema).schema).is_valid({"x-a": 1})


def test_what_a_model_gives_is_turned_back() -> None:
    shape = InputShape({"type": "object", "properties": {"größe": {}, "b": {}}})
    first, second = shape.schema["properties"]
    assert shape.restore({first: 1, second: 2}) == {"größe": 1, "b": 2}
    assert shape.restore({"größe": 1}) == {"größe": 1}
    assert InputShape(ANY_OF).restore({"value": "text"}) == "text"
    assert InputShape(ANY_OF).restore({"a": 1}) == {"a": 1}


def test_a_card_that_cannot_be_offered_is_left_out_and_noted() -> None:
    toolbox, results = Toolbox(("for_each",)), Results("run-1")
    bad = SemanticTopic(name="bad.card", input_schema={"type": "nonsense"})
    lost = SemanticTopic(name="lost.card", input_schema={"$ref": "#/$defs/Nowhere"})
    good = SemanticTopic(name="good.card", input_schema=ANY_OF)

    more = [bad, good, SemanticTopic(name="more.card"), SemanticTopic(name="long.card", description="x" * 2000)]

    assert toolbox.fitting([bad, lost, good]) == [good]
    assert toolbox.left_out.keys() == {"bad.card", "lost.card"}
    toolbox.offer([good])
    toolbox.offer(toolbox.fitting(more))
    assert toolbox.topics == ["good.card", "more.card", "long.card"]
    assert toolbox.changed.keys() == {"good.card", "more.card", "long.card"}
    assert all(len(tool.description) <= 1024 for tool in toolbox.definitions())
    assert "good__card" in {tool.name for tool in toolbox.definitions()}
    one = prepare(ToolCall("1", "good__card", {"value": "x"}), toolbox, results)
    many = {"topic": "good__card", "items": ["a", "b"], "arguments": {"value": {"$item": ""}}}
    assert one.contents == ["x"]
    assert prepare(ToolCall("2", "for_each", many), toolbox, results).contents == ["a", "b"]


def test_what_would_forbid_more_when_it_is_looser_goes_whole() -> None:
    inner = {"patternProperties": {"^x-": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"a": {"not": inner}, "b": {"oneOf": [inner, {"type": "object"}]}}}

    shape = InputShape(schema)

    assert jsonschema_rs.Draft202012Validator(schema).is_valid({"a": {"x-1": "no number"}})
    assert shape.schema["properties"] == {"a": {}, "b": {}}
    assert shape.changes == ["without 'not'", "without 'oneOf'", "without 'patternProperties'"]
