"""Doubles of models for tests: by a script, by a function, and one that tries everything."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from squadron import Agent, Budget, Context, InvalidInputError, LLMAgent, Reply, Supervisor, tool, topic
from squadron.actors.thinking.model import (
    ChatMessage,
    Model,
    ModelRequest,
    ModelTurn,
    ToolCall,
    ToolDefinition,
    Usage,
)
from squadron.runtime.errors import InvalidAgentError, ModelError
from squadron.testing import AnyModel, FunctionModel, MemorySquad, ScriptedModel, ScriptError
from squadron.testing.made_data import made_data
from squadron.testing.made_text import matching

ASKED = ModelRequest((ChatMessage("user", "how many are there?"),))
LOOK = ToolDefinition(
    "look",
    "Look it up.",
    {"type": "object", "properties": {"word": {"type": "string", "minLength": 3}}, "required": ["word"]},
)


class Person(BaseModel):
    """Somebody."""

    name: str = Field(pattern=r"^[A-Z][a-z]{2,}$")
    age: int = Field(ge=18)


class Clerk(LLMAgent):
    """You are a clerk."""

    def __init__(self) -> None:
        self.used: list[str] = []

    @topic("desk.ask")
    async def ask(self, text: str, ctx: Context) -> str:
        """Ask the clerk."""
        return await self.think(ctx, text)

    @topic("desk.person")
    async def person(self, ctx: Context) -> Person:
        """Invent somebody."""
        return await self.think_as(ctx, "somebody", Person)

    @tool
    async def price(self, item: str, count: int = 1) -> int:
        """The price of an item."""
        self.used.append(f"price {item}")
        return 12 * count

    @tool
    def greet(self, person: Person) -> str:
        """Greet somebody."""
        self.used.append(f"greet {person.age >= 18}")
        return f"hello {person.name}"


class Plain(Agent):
    """Counts, and thinks of nothing."""

    @topic("words.count")
    async def count(self, text: str) -> int:
        """Count the words of a text."""
        return len(text.split())


# --- the script


async def test_a_script_with_steps_left_fails_in_the_end_and_names_the_number() -> None:
    model = ScriptedModel(["a", "b"])
    assert (await model.think(ASKED)).text == "a"
    assert model.left == 1
    with pytest.raises(ScriptError, match="2 turns, and the model was asked 1 times"), model:
        pass


async def test_a_script_that_was_asked_too_often_fails_in_the_end_even_if_that_was_swallowed() -> None:
    model = ScriptedModel(["a"])
    await model.think(ASKED)
    with pytest.raises(ModelError, match="the script is over"):
        await model.think(ASKED)
    with pytest.raises(ScriptError, match="1 turns, and the model was asked 2 times"):
        model.finish()


async def test_what_fails_in_the_block_is_told_and_not_that_the_script_is_not_over() -> None:
    with pytest.raises(ZeroDivisionError), ScriptedModel(["a"]):
        _ = 1 / 0


async def test_a_script_raises_what_it_holds_and_goes_on() -> None:
    with ScriptedModel(
        [ModelError("busy", kind="passing"), lambda request: request.messages[-1].content]
    ) as model:
        with pytest.raises(ModelError, match="busy"):
            await model.think(ASKED)
        assert (await model.think(ASKED)).text == "how many are there?"


# --- what all of them do

DOUBLES: dict[str, Model] = {
    "script": ScriptedModel([ModelTurn("one two three four five six seven eight nine ten")] * 9),
    "function": FunctionModel(lambda _: "one two three four five six seven eight nine ten"),
    "any": AnyModel(),
}


@pytest.mark.parametrize("double", DOUBLES)
async def test_a_double_streams_its_text_in_pieces_and_tells_what_it_used(double: str) -> None:
    heard: list[str] = []
    turn = await DOUBLES[double].think(ASKED, heard.append)
    assert "".join(heard) == turn.text
    assert len(heard) > 3
    assert turn.usage.input > 5
    assert turn.usage.output >= len(heard)
    assert turn.stop == "end"


@pytest.mark.parametrize("double", DOUBLES)
async def test_a_double_breaks_off_where_its_tokens_end(double: str) -> None:
    whole = await DOUBLES[double].think(ASKED)
    cut = await DOUBLES[double].think(ModelRequest(ASKED.messages, max_tokens=whole.usage.output // 2))
    assert cut.stop == "length"
    assert whole.text.startswith(cut.text)
    assert 0 < cut.usage.output <= whole.usage.output // 2


async def test_calls_that_are_longer_than_what_is_left_are_not_made() -> None:
    turn = ModelTurn(
        "I look.", (ToolCall("a", "look", {"word": "one " * 50}), ToolCall("b", "look", {"word": "x"}))
    )
    cut = await ScriptedModel([turn]).think(ModelRequest(ASKED.messages, (LOOK,), max_tokens=30))
    assert (cut.stop, cut.text, cut.tool_calls) == ("length", "I look.", ())


async def test_usage_that_a_turn_has_is_told_as_it_is() -> None:
    turn = await ScriptedModel([ModelTurn("a", usage=Usage(10, 5, cache_read=8))]).think(ASKED)
    assert turn.usage == Usage(10, 5, cache_read=8)


async def test_a_function_may_wait_and_what_it_raises_is_raised() -> None:
    async def decide(request: ModelRequest) -> ModelTurn:
        if not request.tools:
            raise ModelError("no tools")
        return ModelTurn(tool_calls=(ToolCall("1", "look", {"word": "abc"}),))

    model = FunctionModel(decide)
    assert (await model.think(ModelRequest(ASKED.messages, (LOOK,)))).stop == "tools"
    with pytest.raises(ModelError, match="no tools"):
        await model.think(ASKED)


# --- given to agents


async def test_an_agent_thinks_with_the_model_that_a_test_gives_it() -> None:
    async with MemorySquad() as squad:
        with ScriptedModel(
            [ModelTurn(tool_calls=(ToolCall("1", "price", {"item": "kite"}),)), "It is 12."]
        ) as model:
            await squad.deploy(Clerk, model=model)
            outcome = await squad.ask("desk.ask", {"text": "a kite?"}, model="openai:gpt-5")
        assert outcome.unwrap() == "It is 12."
        assert ">\n12\n<" in model.seen[1].messages[-1].content
        assert outcome.spent.tokens > 0


async def test_the_supervisor_thinks_with_the_model_that_a_test_gives_it() -> None:
    def decide(request: ModelRequest) -> ModelTurn:
        results = [message for message in request.messages if message.role == "tool"]
        if not results:
            return ModelTurn(tool_calls=(ToolCall("n", "words__count", {"text": "one two"}),))
        assert "2" in results[0].content
        return ModelTurn(
            tool_calls=(ToolCall("f", "finish", {"answer": "two", "deliverables": {"n": {"$from": "n"}}}),)
        )

    async with MemorySquad() as squad:
        await squad.deploy(Plain)
        await squad.deploy(Supervisor, model=FunctionModel(decide))
        first = (await squad.run("count the words")).unwrap()
        second = (await squad.run("count the words")).unwrap()
    assert (first["answer"], first["deliverables"]) == ("two", {"n": 2})
    assert second["deliverables"] == {"n": 2}


async def test_a_budget_in_dollars_holds_for_a_double_under_a_known_name() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Clerk, model=FunctionModel(lambda _: "It is 12.", name="openai:gpt-4o"))
        paid = await squad.ask("desk.ask", {"text": "a kite?"}, budget=Budget(usd=0.5))
        refused = await squad.ask("desk.ask", {"text": "a kite?"}, budget=Budget(usd=0.000_01))
    assert paid.ok
    assert 0 < paid.spent.usd < 0.5
    assert not refused.ok


async def test_a_model_for_an_agent_that_does_not_think_is_refused() -> None:
    async with MemorySquad() as squad:
        with pytest.raises(InvalidAgentError, match="plain does not think"):
            await squad.deploy(Plain, model=AnyModel())


# --- people


class Shop(Agent):
    """Asks before it sells."""

    @topic("shop.sell")
    async def sell(self, ctx: Context) -> list[Any]:
        """Sell a shirt."""
        size = await ctx.ask_person("Which size?", within_s=60)
        sure = await ctx.ask_person("Are you sure?", within_s=60)
        last = await ctx.ask_person("Anything else?", within_s=60, default="no")
        return [size.value, sure.action, sure.reason, last.value]


async def test_people_answer_by_a_script_and_then_nobody_does() -> None:
    async with MemorySquad() as squad:
        people = squad.people("M", lambda asked: Reply("decline", {"reason": asked.question.message}))
        await squad.deploy(Shop)
        sold = (await squad.ask("shop.sell", within_s=600)).unwrap()
        assert sold == ["M", "decline", "Are you sure?", "no"]
        asked = [each.question.message for each in people.asked]
        assert asked == ["Which size?", "Are you sure?", "Anything else?"]
        assert people.left == 0


async def test_people_approve_what_a_supervisor_wants_to_do() -> None:
    ends = ModelTurn(tool_calls=(ToolCall("f", "finish", {"answer": "two"}),))
    calls = ModelTurn(tool_calls=(ToolCall("n", "words__count", {"text": "one two"}),))
    async with MemorySquad() as squad:
        people = squad.people(None)
        await squad.deploy(Plain)
        with ScriptedModel([calls, ends]) as model:
            await squad.deploy(Supervisor, model=model)
            report = (await squad.run("count the words", approve=["words.*"])).unwrap()
        assert report["tasks"]["outcomes"] == {"result": 1}
        assert people.asked[0].question.proposal.topic == "words.count"  # type: ignore[union-attr]


async def test_an_answer_of_people_that_does_not_fit_fails_the_test() -> None:
    async with MemorySquad() as squad:
        squad.people({"no": "such field"})
        await squad.deploy(Shop)
        await squad.ask("shop.sell", within_s=600)
        with pytest.raises(InvalidInputError):
            await squad.aclose()


# --- one that tries everything


async def test_any_model_calls_each_tool_once_and_answers() -> None:
    async with MemorySquad() as squad:
        clerk = Clerk()
        await squad.deploy(clerk, model=AnyModel())
        outcome = await squad.ask("desk.ask", {"text": "go"})
    assert outcome.ok, outcome.reason
    assert sorted(clerk.used) == ["greet True", "price a"]


async def test_any_model_answers_with_data_that_fits() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Clerk, model=AnyModel(only=()))
        somebody = (await squad.ask("desk.person")).unwrap()
    assert re.fullmatch(r"[A-Z][a-z]{2,}", somebody["name"])
    assert somebody["age"] >= 18


async def test_any_model_asks_all_that_a_supervisor_finds() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Plain)
        await squad.deploy(Supervisor, model=AnyModel(values={"words__count": {"text": "one two"}}))
        report = (await squad.run("count the words of a text")).unwrap()
    assert report["tasks"]["outcomes"] == {"result": 1}


# --- data made from a schema

PERSON = Person.model_json_schema()
TREE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "leaf": {"type": "integer"},
        "left": {"$ref": "#/$defs/tree"},
        "all": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
    },
    "required": ["leaf"],
}
SCHEMAS: dict[str, Any] = {
    "anything": {},
    "true": True,
    "type list": {"type": ["null", "integer"], "not": {"type": "null"}},
    "const": {"const": {"a": 1}},
    "enum": {"enum": [3, 4], "minimum": 4},
    "default that does not fit": {"type": "string", "default": 1},
    "examples": {"type": "string", "pattern": "^(?=.*z)(?=.*q).{7}$", "examples": ["zqzqzqz"]},
    "string lengths": {"type": "string", "minLength": 5, "maxLength": 6},
    "empty string": {"type": "string", "maxLength": 0},
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d{3,5}(/[a-z]+)?$"},
    "pattern and length": {"type": "string", "pattern": "^[a-f0-9]+$", "minLength": 12, "maxLength": 12},
    "branches": {"type": "string", "pattern": "^(cat|dog)s?$", "minLength": 4},
    "topic": {"type": "string", "pattern": r"^([A-Za-z0-9_-]{1,64}|\*)\.([A-Za-z0-9_-]{1,64}|\*)$"},
    "minimum": {"type": "integer", "minimum": 7},
    "exclusive": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "maximum": {"type": "integer", "maximum": -3},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 10},
    "fraction": {"type": "number", "multipleOf": 0.5, "exclusiveMinimum": 2},
    "optional": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "null"}}},
    "required elsewhere": {"type": "object", "required": ["a"]},
    "min properties": {"type": "object", "minProperties": 3, "additionalProperties": {"type": "integer"}},
    "max properties": {"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2, "required": ["c"]},
    "property names": {"type": "object", "minProperties": 2, "propertyNames": {"pattern": "^x[0-9]$"}},
    "pattern properties": {
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 2,
    },
    "dependent": {"properties": {"a": {"type": "integer"}}, "dependentRequired": {"a": ["b"]}},
    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
    "unique": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "uniqueItems": True},
    "unique choices": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "uniqueItems": True},
    "prefix": {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "items": False,
        "minItems": 2,
    },
    "contains": {"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "minContains": 2},
    "no items": {"type": "array", "maxItems": 0},
    "any of": {"anyOf": [{"type": "string", "maxLength": 0, "minLength": 1}, {"type": "integer"}]},
    "one of": {"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "string"}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"minimum": 5}, {"maximum": 9}]},
    "all of objects": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 4}, "b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "if": {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}},
        "required": ["kind"],
        "if": {"properties": {"kind": {"const": "a"}}},
        "then": {"required": ["x"], "properties": {"x": {"type": "integer"}}},
        "else": {"required": ["y"]},
    },
    "reference": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/c"}}}, "c": {"const": 2}},
    },
    "refers to itself": {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
    "pydantic": PERSON,
}
FORMATS = ["date-time", "date", "time", "duration", "email", "uri", "uuid", "ipv4", "ipv6", "hostname", "regex"]
SCHEMAS |= {f"format {name}": {"type": "string", "format": name} for name in FORMATS}


@pytest.mark.parametrize("name", SCHEMAS)
def test_data_is_made_that_fits_and_is_always_the_same(name: str) -> None:
    schema = SCHEMAS[name]
    made = made_data(schema)
    jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(made)
    assert made == made_data(schema)


def test_data_that_can_not_be_made_is_told_with_whose_it_was_to_be() -> None:
    with pytest.raises(ScriptError, match="for the tool look") as caught:
        made_data({"type": "string", "pattern": "^(?=.*z)(?=.*q).{7}$"}, of="the tool look")
    assert "examples" in str(caught.value.hint)
    with pytest.raises(ScriptError):
        made_data({"type": "integer", "minimum": 3, "maximum": 2})
    with pytest.raises(ScriptError):
        made_data(False)


def test_the_tools_of_every_run_can_be_made_data_for() -> None:
    from squadron.actors.runs.built_in import BUILT_IN

    for each in BUILT_IN.values():
        made = made_data(each.input_schema, of=each.name)
        assert json.loads(json.dumps(made)) == made


_NUMBERS = st.builds(
    lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
    st.integers(-99, 99),
    st.integers(0, 9),
)
_TEXTS = st.builds(
    lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
    st.integers(0, 9),
    st.integers(0, 5),
)
_NAMES = st.text("abc", min_size=1, max_size=2)
_KINDS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _NUMBERS | _TEXTS | st.just({"type": "boolean"}),
    lambda part: st.one_of(
        st.builds(lambda one, count: {"type": "array", "items": one, "minItems": count}, part, st.integers(0, 3)),
        st.builds(
            lambda parts: {"type": "object", "properties": parts, "required": [*parts]},
            st.dictionaries(_NAMES, part, max_size=3),
        ),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(part, min_size=1, max_size=2)),
    ),
)


@settings(max_examples=60, deadline=None)
@given(_KINDS)
def test_data_is_made_for_any_schema_of_these_parts(schema: dict[str, Any]) -> None:
    jsonschema_rs.Draft202012Validator(schema).validate(made_data(schema))


PATTERNS = [r"a{3}", r"^\w+@\w+\.(com|org)$", r"[^a-z]", r"^\S+$", r"(ab)+c?", r"^.{5}$", r"\bword\b", "^(a|b)*$"]


@pytest.mark.parametrize("pattern", [*PATTERNS, "^[äöü]+$"])
def test_texts_are_made_that_match(pattern: str) -> None:
    made = list(matching(pattern))
    assert made
    assert all(re.search(pattern, text) for text in made)
