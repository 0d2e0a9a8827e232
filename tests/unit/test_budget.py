"""Time, tokens and hops: what is left never grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.runtime.wire.limits import Budget, Deadline


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
def test_tokens_never_fall_below_zero(tokens: int, spent: list[int]) -> None:
    budget = Budget(tokens=tokens)
    for each in spent:
        budget = budget.spend(tokens=each)

    assert budget.tokens == max(0, tokens - sum(spent))
    assert (budget.exhausted == "tokens") == (budget.tokens == 0)


@pytest.mark.parametrize(("hops", "exhausted"), [(2, ""), (1, ""), (0, "hops")])
def test_a_child_has_one_hop_less(hops: int, exhausted: str) -> None:
    assert Budget(hops=hops).child().exhausted == exhausted


def test_no_limit_stays_no_limit() -> None:
    assert Budget().spend(tokens=10**9).child() == Budget()
    assert Budget().exhausted == ""
