"""Answers that fit a schema: by the provider's format where it can, else through a tool; JSON in the end."""

from __future__ import annotations

import json
from typing import Any, Literal

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from squadron.actors.thinking.answers import AnswerForm
from squadron.actors.thinking.model import ChatMessage, ModelTurn, ToolCall
from squadron.runtime.errors import ModelError
from tests.llm_playing import ANTHROPIC, CHAT, ON_ANTHROPIC, TIME, TOOLS, TURN, USER, Provider, said
from tests.llm_requests import check_request
from tests.llm_schemas import check_strict


class City(BaseModel):
    name: str = Field(min_length=1, description="As its people call it.")
    people: int | None = None
    kind: Literal["town", "village"] = "town"


class Trip(BaseModel):
    stops: list[City]
    best: City | None
    notes: str = ""


class Tree(BaseModel):
    label: str
    below: list[Tree] = []


def schema_of(kind: Any) -> dict[str, Any]:
    return TypeAdapter(kind).json_schema()


BERN = {"name": "Bern", "people": 134_000, "kind": "town"}
ANSWER = ToolCall("call_a", "give_answer", BERN)


def tools_of(body: dict[str, Any]) -> list[str]:
    return [tool.get("name") or tool["function"]["name"] for tool in body.get("tools", ())]


async def test_an_answer_comes_in_the_providers_own_format(play: Any, provider: Provider) -> None:
    played = play([ModelTurn(json.dumps(BERN))])
    turn = await played.think(output_schema=schema_of(City))
    assert City.model_validate_json(turn.text).people == 134_000
    assert json.loads("".join(played.text)) == BERN  # as it came
    assert "give_answer" not in tools_of(played.body)
    assert {"response_format", "output_config", "text"} & played.body.keys()
    check_request({CHAT: "chat", ANTHROPIC: "messages"}.get(provider, "responses"), played.body)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(list[int], [1, 2]), (int, 7), (City | Trip, BERN), (Literal["a", "b"], "b")],
)
async def test_what_is_no_object_is_wrapped_on_the_way(play: Any, kind: Any, value: Any) -> None:
    played = play([ModelTurn(json.dumps({"value": value}))])
    turn = await played.think(output_schema=schema_of(kind))
    assert json.loads(turn.text) == value
    assert played.text == [turn.text]


@pytest.mark.parametrize("kind", [Tree, dict[str, int], tuple[int, str], Any], ids=str)
async def test_what_no_format_holds_is_given_through_a_tool(play: Any, kind: Any) -> None:
    form = AnswerForm(schema_of(kind))
    value = {Tree: {"label": "a", "below": []}, Any: 7}.get(kind, {"a": 1} if kind == dict[str, int] else [1, "b"])
    arguments = value if form.tool.input_schema.get("required") != ["value"] else {"value": value}
    played = play([ModelTurn("So:", (ToolCall("call_a", "give_answer", arguments),))])
    turn = await played.think(output_schema=schema_of(kind))
    assert form.format is None
    assert tools_of(played.body) == ["give_answer"]
    assert (json.loads(turn.text), turn.tool_calls, turn.stop) == (value, (), "end")
    assert played.text == [turn.text]  # what was said beside it is no part of the answer


async def test_an_answer_that_did_not_fit_can_be_given_again(play: Any) -> None:
    schema = schema_of(dict[str, int])
    bad, good = ToolCall("call_a", "give_answer", {"a": "one"}), ToolCall("call_b", "give_answer", {"a": 1})
    played = play([ModelTurn("", (bad,)), ModelTurn("", (good,))])
    turn = await played.think(output_schema=schema)
    chat = [*USER, turn.as_message(), ChatMessage("user", "'one' is no number")]
    assert json.loads((await played.think(chat, output_schema=schema)).text) == {"a": 1}


async def test_an_answer_beside_other_calls_came_too_early(play: Any) -> None:
    schema = schema_of(dict[str, int])
    both = (TIME, ToolCall("call_a", "give_answer", {"a": 1}))
    played = play([ModelTurn("", both), ModelTurn("", (ToolCall("call_b", "give_answer", {"a": 2}),))])
    turn = await played.think(USER, TOOLS, output_schema=schema)
    assert (turn.tool_calls, turn.stop) == ((TIME,), "tools")
    chat = [*USER, turn.as_message(), ChatMessage("tool", "noon", tool_call_id="call_t")]
    assert json.loads((await played.think(chat, TOOLS, output_schema=schema)).text) == {"a": 2}


async def test_an_answer_that_is_no_json_is_told_as_it_was_written(play: Any) -> None:
    played = play([ModelTurn("", (ToolCall("call_a", "give_answer", problem='{"a": '),))])
    turn = await played.think(output_schema=schema_of(dict[str, int]))
    assert (turn.text, turn.tool_calls) == ('{"a": ', ())


@pytest.mark.parametrize("text", ['```json\n{"a": 1}\n```', '```\n{"a": 1}```', ' {"a": 1}\n'])
async def test_json_in_markdown_is_taken_out(play: Any, text: str) -> None:
    turn = await play([ModelTurn(text)]).think(output_schema=schema_of(dict[str, int]))
    assert json.loads(turn.text) == {"a": 1}


async def test_compatible_servers_are_not_held_to_a_format_while_there_are_tools(
    play: Any, provider: Provider
) -> None:
    played = play([ModelTurn("", (ANSWER,)) if provider is CHAT else ModelTurn(json.dumps(BERN))])
    turn = await played.think(USER, TOOLS, output_schema=schema_of(City))
    assert json.loads(turn.text) == BERN
    assert ("give_answer" in tools_of(played.body)) is (provider is CHAT)


@ON_ANTHROPIC
@pytest.mark.parametrize(
    "model", ["claude-3-5-haiku-latest", "claude-sonnet-4-20250514", "claude-opus-4-0", "glm-5"]
)
async def test_models_without_formats_are_given_the_tool(play: Any, model: str) -> None:
    played = play([ModelTurn("", (ANSWER,))], model=model)
    assert json.loads((await played.think(output_schema=schema_of(City))).text) == BERN
    assert "output_config" not in played.body


async def test_a_schema_that_is_none_is_refused_before_it_is_sent(play: Any) -> None:
    played = play([TURN])
    error = await played.error(output_schema={"type": "nonsense"})
    assert "output_schema" in str(error)
    assert error.hint
    assert played.server.requests == []
    assert said(await played.think()) == TURN


@st.composite
def _schemas(draw: Any, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "boolean", "enum"] + (["object", "array", "any", "ref"] if depth < 3 else [])
    match draw(st.sampled_from(kinds)):
        case "object":
            names = draw(st.lists(st.sampled_from(["a", "b", "c", "ü"]), min_size=1, unique=True))
            properties = {name: draw(_schemas(depth + 1)) for name in names}
            required = [name for name in names if draw(st.booleans())]
            return {"type": "object", "properties": properties, "required": required}
        case "array":
            return {"type": "array", "items": draw(_schemas(depth + 1)), "minItems": draw(st.integers(0, 2))}
        case "any":
            return {"anyOf": [draw(_schemas(depth + 1)), {"type": "null"}], "default": None}
        case "ref":
            return {"$ref": "#/$defs/Inner"}
        case "enum":
            return {"enum": ["x", "y"]}
        case kind:
            return {"type": kind} | ({"maxLength": 4} if kind == "string" else {})


def _instance(schema: dict[str, Any]) -> Any:
    """The smallest value of a strict schema, but with an element in each list."""
    if "anyOf" in schema:
        return _instance(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    simple = {"string": "s", "integer": 1, "boolean": True, "null": None}
    if schema["type"] == "array":
        return [_instance(schema["items"])] * 2
    if schema["type"] == "object":
        return {name: _instance(part) for name, part in schema["properties"].items()}
    return simple[schema["type"]]


@given(_schemas(), _schemas(2))
@settings(deadline=None, max_examples=200)
def test_a_format_is_strict_and_what_fits_it_fits_the_schema(
    schema: dict[str, Any], inner: dict[str, Any]
) -> None:
    if inner == {"$ref": "#/$defs/Inner"}:
        inner = {"type": "string"}
    whole = schema | {"$defs": {"Inner": inner}}
    form = AnswerForm(whole)
    if form.format is None:  # only what refers to itself
        assert "$ref" in json.dumps(inner)
        return
    check_strict(form.format, "format")
    written = _instance(form.format)
    answer = json.loads(form.of(ModelTurn(json.dumps(written))).text)
    assert jsonschema_rs.Draft202012Validator(whole).is_valid(answer)


def test_a_schema_that_refers_elsewhere_is_an_error_of_the_request() -> None:
    with pytest.raises(ModelError):
        AnswerForm({"$ref": "https://example.com/other.json"})
