"""The eight ends of a task, on the wire and back."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from squadron.runtime.errors import OutcomeError
from squadron.runtime.wire.outcome import KINDS, Answer, Failed, Outcome, Result, TimedOut, from_content
from squadron.runtime.wire.spent import NOT_TOLD, Spent

COMMON: dict[str, Any] = {"attempt": 2, "latency_ms": 12.5, "tokens": 7}
WHERE: dict[str, Any] = {"task_id": "t", "topic": "a.b", "source": "r"}


def _example(kind: type[Outcome]) -> Outcome:
    if kind is Result:
        return Result(data={"n": [1, None]}, confidence=0.5, reasoning="so", **COMMON, **WHERE)
    return kind(reason="because", details={"field": "x"}, **COMMON, **WHERE)


def test_there_are_eight() -> None:
    assert set(KINDS) == {
        "result",
        "failed",
        "timed_out",
        "expired",
        "undeliverable",
        "rejected",
        "cancelled",
        "dead_lettered",
    }


@pytest.mark.parametrize("kind", KINDS.values())
def test_each_comes_back_from_the_wire_as_it_was(kind: type[Outcome]) -> None:
    outcome = _example(kind)

    assert from_content(json.loads(json.dumps(outcome.to_content())), **WHERE) == outcome


@pytest.mark.parametrize("kind", KINDS.values())
def test_each_survives_pickle(kind: type[Outcome]) -> None:
    assert pickle.loads(pickle.dumps(_example(kind))) == _example(kind)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind is not Result])
def test_unwrapping_anything_but_a_result_raises_with_the_outcome(kind: type[Outcome]) -> None:
    outcome = _example(kind)

    assert not outcome.ok
    with pytest.raises(OutcomeError, match=r"a\.b .*: because") as caught:
        outcome.unwrap()
    assert caught.value.outcome == outcome
    assert pickle.loads(pickle.dumps(caught.value)).outcome == outcome


def test_a_result_unwraps_to_its_data() -> None:
    assert Result(data=0).unwrap() == 0
    assert Result().ok
    assert Result().unwrap() is None


def test_what_may_go_better_next_time_says_so() -> None:
    assert {kind for kind, cls in KINDS.items() if cls.retryable} == {"timed_out", "expired", "undeliverable"}


def test_the_content_of_a_result_has_the_fields_of_the_protocol() -> None:
    assert _example(Result).to_content() == {
        "success": True,
        "outcome": "result",
        "tokens": 7,
        "latency": 12.5,
        "attempt": 2,
        "data": {"n": [1, None]},
        "confidence": 0.5,
        "reasoning": "so",
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"success": True, "data": 1}, Result(data=1)),
        ({"success": True}, Result(data=None)),
        ({"success": False, "error": "no"}, Failed(reason="no")),
        ({"success": False}, Failed()),
        ({"success": False, "error": None}, Failed()),
        ({"success": False, "error": {"message": "no", "details": "x"}}, Failed(reason="no")),
        ({"success": True, "data": 1, "outcome": "invented"}, Result(data=1)),
        ({"success": False, "outcome": "invented"}, Failed()),
        ({"success": True, "tokens": "many", "latency": None, "attempt": True}, Result()),
        ({"answer": 42}, Result(data={"answer": 42})),
        ("bare", Result(data="bare")),
        (None, Result(data=None)),
        ([1], Result(data=[1])),
    ],
)
def test_a_foreign_answer_is_understood(content: Any, expected: Outcome) -> None:
    assert from_content(content) == expected


def test_outcomes_and_answers_can_not_be_changed() -> None:
    for thing, name in ((Result(), "data"), (Answer(1), "data")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 2)


def test_what_was_spent_travels_and_tokens_are_a_part_of_it() -> None:
    spent = Spent(tokens=7, usd_micros=250_000, rounds=2, tasks=1)
    outcome = Result(data=1, spent=spent)

    assert outcome.tokens == 7
    assert outcome.to_content()["spent"] == {"tokens": 7, "cost": 0.25, "rounds": 2, "tasks": 1}
    assert from_content(outcome.to_content()).spent == spent
    assert Result(tokens=7).spent == from_content({"success": True, "tokens": 7}).spent == Spent(tokens=7)
    # What is tokens alone is said once.
    assert "spent" not in Result(tokens=7).to_content()


def test_what_nobody_told_is_told_apart_from_nothing() -> None:
    lost = TimedOut(spent=NOT_TOLD)

    assert lost.to_content()["spent"] is None
    assert from_content(lost.to_content()).spent == NOT_TOLD
    assert from_content({"success": True}).spent == Spent()
