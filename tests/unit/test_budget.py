"""Limits that travel: what is left never grows, and what nobody can mean is cut or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from squadron.runtime.wire.envelope import Constraints
from squadron.runtime.wire.limits import MOST_SECONDS, Budget, Deadline
from squadron.runtime.wire.spent import NOT_TOLD, Spent


class HandClock:
    """A clock that is turned by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


def test_a_deadline_comes_nearer_and_stays_passed() -> None:
    clock = HandClock()
    deadline = Deadline.after(2.5, clock)

    assert deadline.at_ms == 1_002_500
    assert deadline.remaining_s() == 2.5
    clock.now += 2.4
    assert not deadline.passed
    clock.now += 5
    assert deadline.remaining_s() == 0.0
    assert deadline.passed


@given(own=st.floats(0, 1e6), asked=st.floats(0, 1e6))
def test_a_child_gets_no_more_time_than_its_parent(own: float, asked: float) -> None:
    deadline = Deadline.after(own, HandClock())

    assert deadline.earliest(asked) <= min(asked, own + 0.001)


@given(tokens=st.integers(0, 1000), spent=st.lists(st.integers(0, 500), max_size=5))
def test_what_is_left_never_falls_below_zero(tokens: int, spent: list[int]) -> None:
    budget = Budget(tokens=tokens, usd=1.0)
    for each in spent:
        budget = budget.minus(Spent(tokens=each, usd_micros=each))

    assert budget.tokens == max(0, tokens - sum(spent))
    assert budget.coins[1] == 1_000_000 - sum(spent)
    assert (budget.exhausted == "tokens") == (budget.tokens == 0)


@given(st.integers(0, 10**15))
def test_dollars_keep_each_millionth(micros: int) -> None:
    assert Budget().with_coins(None, micros, None, None).coins[1] == micros


@given(
    limits=st.tuples(*[st.none() | st.integers(0, 10_000)] * 4),
    shares=st.integers(1, 30),
)
def test_shares_and_one_more_fit_into_what_is_left(limits: tuple[int | None, ...], shares: int) -> None:
    whole = Budget().with_coins(*limits)
    share = whole.share(shares)

    for limit, part in zip(limits[:3], share.coins[:3], strict=True):
        assert (part is None) == (limit is None)
        assert part is None or part * (shares + 1) <= limit
    if limits[3] is not None and limits[3] >= shares:
        assert (share.tasks + 1) * shares <= limits[3]


@pytest.mark.parametrize(
    ("budget", "exhausted"),
    [
        (Budget(), ""),
        (Budget(tokens=0), "tokens"),
        (Budget(usd=0.0), "usd"),
        (Budget(seconds=0), "seconds"),
        (Budget(tasks=0, hops=0, rounds=0), ""),
        (Budget(tasks=-1), "tasks"),
        (Budget(hops=-1), "hops"),
    ],
)
def test_a_limit_that_leaves_nothing_is_named(budget: Budget, exhausted: str) -> None:
    assert budget.exhausted == exhausted


def test_a_budget_travels_as_constraints_and_comes_back() -> None:
    budget = Budget(tokens=100, usd=0.25, rounds=3, tasks=4, hops=2, seconds=1.5)
    wire = budget.to_wire()

    assert wire == {"tokens": 100, "cost": 0.25, "rounds": 3, "tasks": 4, "hops": 2, "time": 1500.0}
    assert Constraints.model_validate(wire).budget == budget
    assert Constraints().budget == Budget()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"tokens": -5, "cost": -0.5, "rounds": -1, "time": -3}, Budget(tokens=0, usd=0.0, rounds=0, seconds=0.0)),
        ({"tasks": -7, "hops": -7}, Budget(tasks=-1, hops=-1)),
        ({"tokens": 10**4000, "cost": 1e300, "time": 1e308}, Budget(tokens=2**53, usd=1e9, seconds=MOST_SECONDS)),
    ],
)
def test_what_a_stranger_says_beyond_all_measure_is_cut(said: dict[str, Any], meant: Budget) -> None:
    assert Constraints.model_validate(said).budget == meant


@pytest.mark.parametrize(
    ("field", "value"),
    [("cost", "much"), ("cost", float("nan")), ("time", float("inf")), ("rounds", 1.5), ("tasks", [])],
)
def test_what_is_no_limit_is_refused_with_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Constraints.model_validate({field: value})

    assert caught.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize(
    ("wire", "spent"),
    [
        ({"tokens": 5, "cost": 0.000001, "rounds": 1, "tasks": 2}, Spent(5, 1, 1, 2)),
        (None, NOT_TOLD),
        ({"tokens": "5", "cost": -1, "rounds": True, "tasks": float("nan")}, Spent()),
        ({"tokens": 10**400, "cost": float("inf")}, Spent(2**53, 2**53)),
        ([], Spent()),
    ],
)
def test_what_was_spent_is_read_whatever_a_stranger_wrote(wire: Any, spent: Spent) -> None:
    assert Spent.of_wire(wire) == spent
    assert Spent.of_wire(spent.to_wire()) == spent
