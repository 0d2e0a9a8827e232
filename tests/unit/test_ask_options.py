"""One set of options for every way of asking, which nobody can take for input."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from squadron.client.blocking import SyncSquad
from squadron.client.squad import Squad
from squadron.runtime.asking.options import MAX_WITHIN_S, AskKeywords, AskOptions
from squadron.runtime.errors import InvalidInputError
from squadron.runtime.running.context import Context, SyncContext
from squadron.runtime.wire.envelope import MAX_NAME
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.route import Route
from squadron.testing import MemorySquad

WAYS = [
    *(getattr(one, name) for one in (Squad, SyncSquad, MemorySquad) for name in ("ask", "submit", "stream")),
    *(getattr(one, name) for one in (Context, SyncContext) for name in ("ask", "submit")),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__qualname__)
def test_every_way_of_asking_takes_a_topic_an_input_and_the_same_options(way: Any) -> None:
    _, topic, content, options = inspect.signature(way).parameters.values()

    assert (topic.kind, content.kind) == (topic.POSITIONAL_ONLY, content.POSITIONAL_ONLY)
    assert content.default is None
    assert options.annotation == "Unpack[AskKeywords]"


def test_the_options_are_declared_alike_for_people_and_for_type_checkers() -> None:
    assert get_type_hints(AskKeywords) == {
        field.name: get_type_hints(AskOptions)[field.name] for field in fields(AskOptions)
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timeout", "within_s"),
        ("with_in_s", "within_s"),
        ("start_within", "start_within_s"),
        ("prio", "priority"),
        ("taskid", "task_id"),
        ("conversation", "conversation_id"),
        ("parameter", "parameters"),
        ("budgets", "budget"),
        ("exclude", "route"),
        ("max_tokens", "budget"),
        ("temperature", "parameters"),
    ],
)
@pytest.mark.parametrize("content", [None, {"text": "x"}])
async def test_a_misspelt_option_is_an_error_that_names_the_nearest(name: str, nearest: str, content: Any) -> None:
    wrong: Any = {name: 5}
    async with MemorySquad() as squad:
        script = await squad.script("any.thing", "never given")
        for way in (squad.ask, squad.submit):
            with pytest.raises(InvalidInputError, match=f"did you mean {nearest}") as caught:
                await way("any.thing", content, **wrong)
            assert caught.value.field == name
        with pytest.raises(InvalidInputError, match=f"did you mean {nearest}"):
            squad.stream("any.thing", content, **wrong)
        assert not script.asked


async def test_a_field_is_no_option_and_the_error_says_where_it_goes() -> None:
    wrong: Any = {"text": "I love it"}
    async with MemorySquad() as squad:
        with pytest.raises(InvalidInputError, match=r'ask\("some\.topic", {"text": …}\)'):
            await squad.ask("analysis.sentiment", **wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("within_s", "5"),
        ("within_s", float("inf")),
        ("start_within_s", True),
        ("priority", "high"),
        ("priority", 1.5),
        ("route", "analyst"),
        ("budget", 1000),
        ("task_id", 17),
        ("model", 4),
        ("parameters", [("temperature", 1)]),
        ("parameters", {"a": object()}),
        ("within_s", None),
        ("within_s", float("nan")),
        ("within_s", 1e306),
        ("within_s", -1e306),
        ("within_s", 10**400),
        pytest.param("within_s", 10**5000, id="within_s-longest"),
        ("within_s", 1e14),
        ("start_within_s", 1e14),
        ("priority", 10),
        ("priority", -1),
        ("priority", True),
        ("task_id", "x" * 1001),
        ("task_id", None),
        ("conversation_id", "x" * 1001),
        ("nested", "no"),
        ("nested", None),
        ("route", None),
        ("budget", None),
    ],
)
def test_an_option_with_a_value_that_it_can_not_have_is_named_with_the_fix(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        AskOptions.of({name: value})

    assert caught.value.field == name
    assert caught.value.hint
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Route, "target", None),
        (Route, "capabilities", "gpu"),
        (Route, "capabilities", [1]),
        (Route, "exclusions", None),
        (Budget, "tokens", "9"),
        (Budget, "tokens", 1.5),
        (Budget, "tokens", True),
        (Budget, "tokens", -1),
        (Budget, "hops", 0.5),
    ],
)
def test_a_route_or_a_budget_that_can_not_be_is_named_with_the_fix(kind: Any, field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        kind(**{field: value})

    assert caught.value.field == field
    assert caught.value.hint


@pytest.mark.parametrize("wished", [["gpu"], {"gpu"}, frozenset({"gpu"})])
def test_any_collection_does_for_a_route(wished: Any) -> None:
    assert Route(capabilities=wished) == Route(capabilities=("gpu",))


@pytest.mark.parametrize(
    "extreme",
    [
        {"within_s": MAX_WITHIN_S, "start_within_s": MAX_WITHIN_S},
        {"task_id": "t" * MAX_NAME, "within_s": MAX_WITHIN_S},
        {"conversation_id": "c" * MAX_NAME, "priority": 9},
    ],
    ids=str,
)
async def test_what_is_let_through_arrives(extreme: Any) -> None:
    async with MemorySquad() as squad:
        await squad.script("any.thing", "said")
        assert (await squad.ask("any.thing", **extreme)).unwrap() == "said"


def test_a_budget_within_another_is_the_tighter_one() -> None:
    assert Budget(tokens=5).within(Budget(tokens=9, hops=1)) == Budget(tokens=5, hops=1)
    assert Budget().within(Budget()) == Budget()
