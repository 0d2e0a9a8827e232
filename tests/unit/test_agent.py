"""What an author writes, and what becomes of it: schemas from hints, checked input and output, clear refusals."""

from __future__ import annotations

import asyncio
import enum
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from squadron import Agent, Answer, Context, on, on_durable, topic
from squadron.actors.agent import AgentSpec
from squadron.actors.handlers import BoundHandler, TopicSpec
from squadron.runtime.calling import Threads
from squadron.runtime.errors import InvalidAgentError, InvalidInputError, InvalidSubjectError
from squadron.runtime.running.handler import OutputError
from squadron.runtime.wire.topics import describe_input

if TYPE_CHECKING:
    from decimal import Decimal


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Person(BaseModel):
    name: str
    age: int = 30


class Later(BaseModel):
    """Defined before its use, named as text by the future import."""

    friend: Later | None = None


class Emitted:
    """A context that only takes chunks."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.threads = Threads()

    async def emit(self, chunk: Any) -> None:
        self.chunks.append(chunk)


class Kitchen(Agent):
    """Cooks everything.

    Even the second paragraph.
    """

    @topic("kitchen.cook", examples=["make dinner"], tags=["food"])
    async def cook(
        self,
        dish: str,
        context: Context,
        spice: Annotated[int, Field(ge=0, le=5, description="how hot")] = 2,
        mood: Mood = Mood.GOOD,
        guests: list[Person] | None = None,
        note: Optional[str] = None,  # noqa: UP045 - the old spelling has to work too
        style: Literal["soup", "cake"] = "soup",
        on_day: date = date(2026, 1, 1),
    ) -> dict[str, Any]:
        """Cook a dish.

        And serve it.
        """
        return {
            "dish": dish,
            "spice": spice,
            "mood": mood,
            "guests": guests,
            "note": note,
            "style": style,
            "day": on_day,
            "has_context": context is not None,
        }

    @topic("kitchen.person")
    async def person(self, person: Person) -> Person:
        assert isinstance(person, Person)
        return person

    @topic("kitchen.later")
    async def later(self, it: Later) -> bool:
        return it.friend is not None

    @topic("kitchen.thread", description="Not the docstring.")
    def thread(self) -> bool:
        """Where it runs."""
        return threading.current_thread() is not threading.main_thread()

    @topic("kitchen.words")
    async def words(self, count: int) -> AsyncIterator[str]:
        for i in range(count):
            yield str(i)

    @topic("kitchen.numbers")
    async def numbers(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            yield i

    @topic("kitchen.open")
    async def open(self, first: int, **rest: Any) -> dict[str, Any]:
        return {"first": first} | rest

    @topic("kitchen.nothing")
    async def nothing(self) -> None:
        return None

    @topic("kitchen.wrong")
    async def wrong(self) -> int:
        return "no"  # type: ignore[return-value]

    @topic("kitchen.object")
    async def object(self):
        return Any

    @topic("kitchen.answer")
    async def answer(self) -> Answer:
        return Answer(Person(name="Zoë"), 0.5, "looked")

    @topic("kitchen.odd")
    async def odd(self, schema: str, copy: int, json: bool) -> list[Any]:
        """Names that pydantic uses itself."""
        return [schema, copy, json]


@pytest.fixture
def spec() -> AgentSpec:
    return AgentSpec.of(Kitchen)


def _spec(name: str) -> TopicSpec:
    return next(each for each in AgentSpec.of(Kitchen).topics if each.topic.name == f"kitchen.{name}")


async def _run(name: str, content: Any, context: Any = None) -> Any:
    return await BoundHandler(_spec(name), Kitchen()).run(content, context or Emitted())


def test_the_schema_is_read_from_the_hints() -> None:
    schema = _spec("cook").topic.input_schema
    fields = schema["properties"]

    assert set(fields) == {"dish", "spice", "mood", "guests", "note", "style", "on_day"}  # and no context
    assert schema["required"] == ["dish"]
    assert schema["additionalProperties"] is False
    assert fields["dish"]["type"] == "string"
    assert (fields["spice"]["minimum"], fields["spice"]["maximum"]) == (0, 5)
    assert (fields["spice"]["default"], fields["spice"]["description"]) == (2, "how hot")
    assert fields["style"]["enum"] == ["soup", "cake"]
    assert fields["note"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert fields["on_day"]["format"] == "date"
    assert schema["$defs"]["Mood"]["enum"] == ["good", "bad"]
    assert schema["$defs"]["Person"]["properties"]["age"]["default"] == 30
    assert _spec("person").topic.output_schema["properties"]["name"]["type"] == "string"


def test_description_examples_and_tags_come_from_the_author(spec: AgentSpec) -> None:
    cook = _spec("cook").topic

    assert cook.description == "Cook a dish.\n\nAnd serve it."
    assert (cook.examples, cook.tags) == (("make dinner",), ("food",))
    assert _spec("thread").topic.description == "Not the docstring."
    assert spec.description == "Cooks everything.\n\nEven the second paragraph."
    assert spec.card().agent == "kitchen"
    assert {each.name for each in spec.card().topics} == {each.topic.name for each in spec.topics}


def test_an_input_is_told_in_one_line() -> None:
    assert describe_input(_spec("words").topic.input_schema) == "count: integer"
    assert describe_input(_spec("nothing").topic.input_schema) == "no fields"
    assert "note: string | null = null" in describe_input(_spec("cook").topic.input_schema)
    assert describe_input({"type": "object"}) == "any fields"


async def test_defaults_fill_what_was_not_said() -> None:
    assert await _run("cook", {"dish": "pie"}, Emitted()) == {
        "dish": "pie",
        "spice": 2,
        "mood": "good",
        "guests": None,
        "note": None,
        "style": "soup",
        "day": "2026-01-01",
        "has_context": True,
    }


async def test_values_arrive_in_the_types_of_the_hints() -> None:
    content = {"dish": "pie", "mood": "bad", "guests": [{"name": "A"}], "on_day": "2026-02-03", "spice": 5}
    arguments = _spec("cook").arguments(content)

    assert arguments["mood"] is Mood.BAD
    assert arguments["guests"] == [Person(name="A")]
    assert arguments["on_day"] == date(2026, 2, 3)
    assert await _run("person", {"person": {"name": "A", "age": 3}}) == {"name": "A", "age": 3}
    assert await _run("later", {"it": {"friend": {"friend": None}}}) is True


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "dish"),
        (None, "dish"),
        ({"dish": 1}, "dish"),
        ({"dish": "x", "spice": 6}, "spice"),
        ({"dish": "x", "mood": "so-so"}, "mood"),
        ({"dish": "x", "guests": [{"name": "A"}, {}]}, "guests.1.name"),
        ({"dish": "x", "tip": 1}, "tip"),
        ({"dish": "x", "context": {}}, "context"),
        ([], ""),
        ("pie", ""),
    ],
)
def test_input_that_does_not_fit_names_the_field(content: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        _spec("cook").arguments(content)

    assert caught.value.field == field
    assert "kitchen.cook" in str(caught.value)
    assert "takes dish: string" in caught.value.hint


async def test_a_bare_value_goes_to_the_only_parameter() -> None:
    assert _spec("words").arguments(3) == {"count": 3}
    assert _spec("nothing").arguments(None) == {}


async def test_open_ended_handlers_take_any_field() -> None:
    assert await _run("open", {"first": 1, "b": [2], "self_": None}) == {"first": 1, "b": [2], "self_": None}
    assert _spec("open").topic.input_schema["additionalProperties"] is True


async def test_names_that_pydantic_uses_itself_are_fine(recwarn: pytest.WarningsRecorder) -> None:
    assert await _run("odd", {"schema": "s", "copy": 1, "json": True}) == ["s", 1, True]
    assert not recwarn.list


async def test_sync_handlers_run_in_a_thread() -> None:
    assert await _run("thread", {}) is True


async def test_an_async_generator_emits_each_chunk_and_returns_all() -> None:
    words, numbers = Emitted(), Emitted()

    assert await _run("words", {"count": 3}, words) == "012"
    assert await _run("numbers", {"count": 3}, numbers) == [0, 1, 2]
    assert (words.chunks, numbers.chunks) == (["0", "1", "2"], [0, 1, 2])
    assert _spec("numbers").topic.output_schema == {"type": "array", "items": {"type": "integer"}}


async def test_output_is_made_json_and_held_to_its_promise() -> None:
    assert await _run("nothing", {}) is None
    assert await _run("answer", {}) == Answer({"name": "Zoë", "age": 30}, 0.5, "looked")
    with pytest.raises(OutputError, match=r"kitchen\.wrong"):
        await _run("wrong", {})
    with pytest.raises(OutputError, match=r"kitchen\.object"):
        await _run("object", {})


def test_the_name_is_kebab_case_of_the_class_or_as_given() -> None:
    def name_of(class_name: str, **attributes: Any) -> str:
        async def handle(self: Agent) -> None: ...

        made = type(class_name, (Agent,), {"handle": topic("a.b")(handle), **attributes})
        return AgentSpec.of(made).name

    assert name_of("Analyst") == "analyst"
    assert name_of("LicenseClerk") == "license-clerk"
    assert name_of("HTTPReader2Go") == "http-reader2-go"
    assert name_of("Analyst", name="other") == "other"


def test_events_are_handlers_too() -> None:
    class Listener(Agent):
        @on("status.*", everyone=True)
        async def hear(self, message: Any) -> None: ...

    ((method, mark),) = AgentSpec.of(Listener).events
    assert (method, mark.pattern, mark.everyone) == ("hear", "status.*", True)
    with pytest.raises(InvalidSubjectError):
        on("status")


def test_durable_events_are_handlers_too() -> None:
    class Clerk(Agent):
        @on_durable("orders.*", start="first", max_attempts=2)
        async def book(self, message: Any) -> None: ...

    spec = AgentSpec.of(Clerk)
    ((method, mark),) = spec.durable_events
    assert (method, mark.pattern, mark.start, mark.retries.max_attempts) == ("book", "orders.*", "first", 2)
    assert spec.events == ()
    with pytest.raises(InvalidSubjectError):
        on_durable("orders")
    with pytest.raises(InvalidInputError, match="can't start at 'last'"):
        on_durable("orders.*", start="last")  # type: ignore[arg-type]
    with pytest.raises(InvalidAgentError, match="max_attempts"):
        on_durable("orders.*", max_attempts=0)


def test_handlers_are_inherited() -> None:
    class Bistro(Kitchen):
        """Smaller."""

    assert len(AgentSpec.of(Bistro).topics) == len(AgentSpec.of(Kitchen).topics)


def test_a_topic_inside_a_family_of_the_same_agent_is_fine() -> None:
    class Family(Agent):
        @topic("family.*")
        async def all(self) -> None: ...

        @topic("family.one")
        async def one(self) -> None: ...

    assert [each.topic.name for each in AgentSpec.of(Family).topics] == ["family.*", "family.one"]


async def _untyped(self, x):  # type: ignore[no-untyped-def]
    ...


async def _positional(self: Agent, x: int, /) -> None: ...


async def _starred(self: Agent, *x: int) -> None: ...


async def _no_schema(self: Agent, x: asyncio.Lock) -> None: ...


async def _no_json_schema(self: Agent, x: type) -> None: ...


async def _only_for_checkers(self: Agent, x: Decimal) -> None: ...


async def _private(self: Agent, _x: int) -> None: ...


async def _config(self: Agent, model_config: int) -> None: ...


async def _member(self: Agent, model_dump: int) -> None: ...


async def _bad_syntax(self: Agent, x: int) -> None: ...


_bad_syntax.__annotations__["x"] = "int |"


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (_untyped, "parameter 'x' has no type"),
        (_positional, "parameter 'x' must be passable by name"),
        (_starred, "parameter 'x' must be passable by name"),
        (_no_schema, "Unable to generate pydantic-core schema"),
        (_only_for_checkers, "'Decimal' is not defined"),
        (_private, "parameter '_x' can't be a field"),
        (_config, "parameter 'model_config' can't be a field"),
        (_member, "model_dump"),
        (_bad_syntax, "Forward reference"),
    ],
)
def test_a_handler_that_can_not_be_described_is_refused_with_its_place(handler: Any, said: str) -> None:
    class Bad(Agent):
        do = topic("bad.do")(handler)

    with pytest.raises(InvalidAgentError) as caught:
        AgentSpec.of(Bad)

    assert "Bad.do" in str(caught.value)
    assert said in str(caught.value)


class _Good(Agent):
    @topic("good.one")
    async def one(self) -> None: ...


class _Twice(_Good):
    @topic("good.one")
    async def again(self) -> None: ...


class _Crossed(Agent):
    @topic("good.*")
    async def one(self) -> None: ...

    @topic("*.one")
    async def other(self) -> None: ...


class _BadName(_Good):
    name = "two words"


class _NoSlots(_Good):
    slots = 0


class _Upside(_Good):
    min_replicas, max_replicas = 3, 2


class _Sorted(_Good):
    ordered_by = "name"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (_Sorted, "ordered_by='name'"),
        (_Twice, "'good.one' and 'good.one'"),
        (_Crossed, "both get the same task"),
        (_BadName, "'two words'"),
        (_NoSlots, "slots=0"),
        (_Upside, "min_replicas <= max_replicas"),
        (Agent, "serves nothing"),
        (Person, "is not an agent"),
        (_Good(), "is not an agent"),
        ("kitchen", "is not an agent"),
    ],
)
def test_a_class_that_can_not_be_served_is_refused_with_the_reason(thing: Any, said: str) -> None:
    with pytest.raises(InvalidAgentError) as caught:
        AgentSpec.of(thing)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grace_s", -1),
        ("grace_s", float("nan")),
        ("grace_s", "20"),
        ("when_full", "drop"),
        ("slots", 2.5),
        ("slots", True),
        ("min_replicas", -1),
        ("max_replicas", 0),
        ("num_cpus", -0.5),
        ("num_gpus", None),
        ("ordered_by", "name"),
        ("mailbox_limit", -1),
        ("capabilities", "gpu"),
        ("capabilities", (1, 2)),
    ],
)
def test_an_attribute_with_a_value_that_it_can_not_have_is_named_with_the_fix(field: str, value: Any) -> None:
    with pytest.raises(InvalidAgentError) as caught:
        AgentSpec.of(type("Odd", (_Good,), {field: value}))

    assert caught.value.field == field
    assert f"odd: {field}=" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("attribute", "near"),
    [
        ("max_replica", "max_replicas"),
        ("slot", "slots"),
        ("replicas", "max_replicas"),
        ("mailbox_limits", "mailbox_limit"),
    ],
)
def test_a_misspelt_attribute_is_refused_with_the_nearest(attribute: str, near: str) -> None:
    with pytest.raises(InvalidAgentError, match=f"did you mean {near}") as caught:
        AgentSpec.of(type("Odd", (_Good,), {attribute: 3}))

    assert caught.value.field == attribute


def test_attributes_of_ones_own_are_fine() -> None:
    AgentSpec.of(
        type("Own", (_Good,), {"names": ["a"], "greeting": "hello", "limit": 3, "_slot": 1, "full": True})
    )


def test_attributes_may_be_whole_numbers_properties_and_any_collection() -> None:
    fine: dict[str, Any] = {"grace_s": 3, "num_cpus": 1, "capabilities": ["gpu"], "when_full": "reject"}
    spec = AgentSpec.of(type("Fine", (_Good,), fine))
    late = AgentSpec.of(type("Late", (_Good,), {"capabilities": property(lambda self: {"gpu"})}))

    assert {name: getattr(spec.agent_class, name) for name in fine} == fine
    assert (spec.name, [each.topic.name for each in spec.topics]) == ("fine", ["good.one"])
    assert late.agent_class().capabilities == {"gpu"}


def test_the_decorator_refuses_what_can_never_be() -> None:
    for name in ("good", "good.one.more", "good.one two", "good.>"):
        with pytest.raises(InvalidSubjectError):
            topic(name)
    for bad in ({"run_timeout_s": 0}, {"max_attempts": 0}):
        with pytest.raises(InvalidAgentError, match=r"good\.one"):
            topic("good.one", **bad)  # type: ignore[arg-type]


def _wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class _Decorated(Agent):
    @topic("decorated.one")
    @_wrapped
    async def one(self, n: int) -> int:
        return n

    @topic("decorated.many")
    @_wrapped
    async def many(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @topic("decorated.plain")
    @_wrapped
    def plain(self, n: int) -> Iterator[int]:
        for _ in range(n):
            yield threading.get_ident()

    @topic("decorated.static")
    @staticmethod
    def static(n: int) -> int:
        return n

    @classmethod
    @topic("decorated.of_class")
    def of_class(cls, n: int, context: Context | None = None) -> str:
        return f"{cls.__name__}{n}{context is not None}"


class _Overrides(_Decorated):
    async def one(self, n: int) -> int:
        return n + 1

    many = None  # type: ignore[assignment]


async def _ask(agent: Agent, name: str, n: int) -> tuple[Any, list[Any]]:
    handlers = {each.topic.name.partition(".")[2]: each for each in AgentSpec.of(type(agent)).handlers(agent)}
    context: Any = Emitted()
    return await handlers[name].run({"n": n}, context), context.chunks


async def test_handlers_under_any_decorator_run() -> None:
    assert await _ask(_Decorated(), "one", 2) == (2, [])
    assert await _ask(_Decorated(), "many", 2) == ([0, 1], [0, 1])
    assert await _ask(_Decorated(), "static", 2) == (2, [])
    assert await _ask(_Decorated(), "of_class", 2) == ("_Decorated2True", [])


async def test_a_plain_generator_is_streamed_from_a_thread() -> None:
    result, chunks = await _ask(_Decorated(), "plain", 3)

    assert result == chunks
    assert len(chunks) == 3
    assert threading.get_ident() not in chunks


async def test_an_override_without_the_mark_is_served_and_none_is_left_out() -> None:
    assert await _ask(_Overrides(), "one", 2) == (3, [])
    assert "decorated.many" not in {each.topic.name for each in AgentSpec.of(_Overrides).topics}
