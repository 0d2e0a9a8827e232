"""`squadron topics`: what it lists, shows, explains and forgets, and what an ask after a search tells."""

from __future__ import annotations

import ast
import contextlib
import json
import shlex
from collections.abc import AsyncIterator
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from click.testing import Result
from jsonschema_rs import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter, create_model
from typer.testing import CliRunner

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.cli import frame
from squadron.cli.app import app
from squadron.cli.topic_views import command_line, open_api, python_line, sample_of
from squadron.runtime.errors import Terminal
from squadron.runtime.wire.spoken import read_field
from squadron.runtime.wire.topics import SemanticTopic
from squadron.testing import MemorySquad


class Letters(Agent):
    """Works with letters."""

    name = "letters"

    @topic("text.translate", examples=["say it in French"], tags=["language"])
    async def translate(self, text: str, into: str = "French", sure: bool = False) -> str:
        """Translate a text into another language."""
        return f"{text} ({into})"

    @topic("text.shred")
    async def shred(self, text: str) -> None:
        """Destroy a text."""
        raise Terminal("the shredder jams")

    @topic("math.*")
    async def calculate(self, number: int) -> int:
        """Calculate something."""
        return number


class Bridge:
    """What the bridge would answer; `taught` is what it was told."""

    def __init__(self) -> None:
        self.taught: list[tuple[str, str, bool]] = []
        self.known: dict[str, Any] = {
            "text.translate": [{"intent": "en français", "weight": 2.0, "by": {"ann": 1, "bob": -1}}]
        }

    async def prefer(self, intent: str, topic: str, *, good: bool = True) -> None:
        self.taught.append((intent, topic, good))

    async def lessons(self, topic: str = "", *, clear: bool = False) -> dict[str, Any]:
        found = {name: each for name, each in self.known.items() if topic in ("", name)}
        if clear:
            self.known = {name: each for name, each in self.known.items() if name not in found}
        return found

    async def track(self, topic: str) -> dict[str, Any]:
        return {"agents": {"letters": {"outcomes": {"result": 3, "timed_out": 1}, "usd": 0.01, "replicas": 2}}}

    async def status(self) -> dict[str, Any]:
        return {"agents": [{"agent": "letters", "version": "abc123"}]}


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bridge:
    made = Bridge()
    monkeypatch.setenv("SQUADRON_HOME", str(tmp_path))

    @contextlib.asynccontextmanager
    async def connected(_: object = None) -> AsyncIterator[MemorySquad]:
        async with MemorySquad(turned=False) as squad:
            await squad.deploy(Letters)
            for verb in ("prefer", "lessons", "track", "status"):
                setattr(squad, verb, getattr(made, verb))
            yield squad

    monkeypatch.setattr(frame, "connected", connected)
    return made


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_topics_are_listed_found_and_not_found(bridge: Bridge) -> None:
    listed = [line.split("\t")[0] for line in call("topics").stdout.splitlines()]
    assert sorted(listed) == ["math.*", "text.shred", "text.translate"]
    found = json.loads(call("topics", "--search", "translate it", "--json").stdout)
    assert [each["name"] for each in found] == ["text.translate"]
    nothing = call("topics", "--search", "my aunt emigrated to Canada")
    assert (nothing.exit_code, nothing.stdout) == (frame.OK, "")
    assert "Nothing fits." in nothing.stderr
    assert call("topics", "--search", "translate it", "--least", "1").stdout == ""


def test_a_topic_is_shown_with_what_it_takes_how_it_fares_and_lines_that_ask_it(bridge: Bridge) -> None:
    shown = call("topics", "show", "text.translate")

    assert shown.exit_code == frame.OK, shown.stderr
    for line in (
        "Translate a text into another language.",
        "served by  letters (code abc123)",
        "  text: string (required)",
        '  into: string = "French"',
        "  say it in French",
        "  letters: 3 result, 1 timed out, 0.0100 USD a task; 2 replicas",
        "  squadron ask text.translate text=...",
        "  await squad.ask(\"text.translate\", {'text': '...'})",
    ):
        assert line in shown.stdout
    told = json.loads(call("topics", "show", "text.translate", "--json").stdout)
    assert (told["name"], told["agents"], told["running"]) == (
        "text.translate",
        ["letters"],
        {"letters": "abc123"},
    )
    assert "squadron ask math.double number=1" in call("topics", "show", "math.double").stdout
    unknown = call("topics", "show", "no.where")
    assert unknown.exit_code == frame.BAD_USAGE
    assert "nobody serves 'no.where'" in unknown.stderr


def test_a_topic_is_printed_as_openapi(bridge: Bridge) -> None:
    document = json.loads(call("topics", "show", "text.translate", "--openapi").stdout)

    assert document["openapi"] == "3.1.0"
    post = document["paths"]["/text.translate"]["post"]
    taken = Draft202012Validator(post["requestBody"]["content"]["application/json"]["schema"])
    assert taken.is_valid({"text": "hello"})
    assert not taken.is_valid({"into": "French"})


class Item(BaseModel):
    sku: str
    pieces: Annotated[int, Field(ge=3)]


class Order(BaseModel):
    items: Annotated[list[Item], Field(min_length=1)]
    when: date
    parts: list[Order] = []


class Color(Enum):
    RED = "red"


@pytest.mark.parametrize(
    "kind",
    [
        str,
        bool,
        date,
        datetime,
        UUID,
        Color,
        Order,
        Order | None,
        list[Order],
        dict[str, Order],
        int | str,
        Literal["a", "b"],
        Annotated[int, Field(gt=10)],
        Annotated[int, Field(lt=-3)],
        Annotated[float, Field(ge=0.1, lt=0.9)],
        Annotated[str, Field(min_length=8)],
        Annotated[str, Field(max_length=2)],
        Annotated[list[str], Field(min_length=2)],
    ],
)
def test_the_lines_that_ask_a_topic_ask_what_it_takes(kind: Any) -> None:
    schema = create_model("Takes", value=(kind, ...)).model_json_schema()
    asked = SemanticTopic(name="shop.order", input_schema=schema)

    asked.check(sample_of(schema))
    (_, _, name, said) = shlex.split(command_line(asked))
    assert name == "shop.order"
    asked.check({"value": read_field(said.removeprefix("value="), schema, "value")})
    assert ast.literal_eval(python_line(asked).partition(", ")[2][:-1]) == sample_of(schema)


def test_a_schema_of_strangers_makes_no_endless_lines() -> None:
    strange = {"type": "string", "minLength": 10**12, "maxLength": "x"}
    many = {"type": "array", "minItems": 10**12, "items": {"type": ["integer"], "minimum": "x"}}
    schema = {"type": "object", "properties": {"a": strange, "b": many, "c": True}, "required": ["a", "b", "c"]}

    assert len(command_line(SemanticTopic(name="a.b", input_schema=schema))) < 1000


def test_references_in_a_document_of_openapi_lead_to_what_it_holds() -> None:
    takes = create_model("Takes", order=(Order, ...)).model_json_schema()
    gives = TypeAdapter(list[Item]).json_schema()
    gives["$defs"]["Item"] = {"type": "object", "title": "another one of this name"}
    document = open_api(SemanticTopic(name="shop.order", input_schema=takes, output_schema=gives))

    post = document["paths"]["/shop.order"]["post"]
    taken = post["requestBody"]["content"]["application/json"]["schema"]
    whole = Draft202012Validator({**document, **taken})
    assert whole.is_valid({"order": {"items": [{"sku": "a", "pieces": 3}], "when": "2026-11-29"}})
    assert not whole.is_valid({"order": {"items": [{"sku": "a", "pieces": 2}], "when": "2026-11-29"}})
    given = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert Draft202012Validator({**document, **given}).is_valid([{"any": "thing"}])
    assert "$defs" not in json.dumps(document)


def test_it_is_told_why_an_intent_finds_a_topic_and_what_was_learned_of_it(bridge: Bridge) -> None:
    told = call("topics", "why", "translate something").stdout
    assert told.startswith("text.translate\t0.")
    assert "text.translate\t+2.00\ten français\t+ann, -bob" in told
    learned = json.loads(call("topics", "why", "text.translate", "--json").stdout)
    assert learned == {"found": [], "learned": bridge.known}
    assert "Nothing was learned of it." in call("topics", "why", "text.shred").stderr

    assert "Forgotten: text.translate." in call("topics", "clear", "text.translate").stderr
    assert bridge.known == {}
    assert "nothing to forget" in call("topics", "clear").stderr


def test_an_ask_of_what_a_search_found_tells_how_well_it_fitted(bridge: Bridge) -> None:
    call("topics", "--search", "translate a letter")
    call("topics", "--search", "destroy a text")
    assert call("ask", "text.translate", "text=hello").exit_code == frame.OK
    assert call("ask", "text.shred", "text=hello").exit_code == frame.ENDED_OTHERWISE
    call("ask", "text.translate", "wrong=1")
    call("ask", "math.double", "number=1")

    assert ("destroy a text", "text.shred", False) in bridge.taught
    assert len(bridge.taught) == 2
    assert bridge.taught[0][1:] == ("text.translate", True)
    # A family is found as a whole, and asked by the name of one of its topics.
    call("topics", "--search", "calculate something")
    assert call("ask", "math.double", "number=1").exit_code == frame.OK
    assert bridge.taught[-1] == ("calculate something", "math.double", True)
