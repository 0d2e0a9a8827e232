"""The books of one task: what was handed out and spent never exceeds what was granted."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from squadron.runtime.errors import BudgetError
from squadron.runtime.running.ledger import MOST_CARRIED, ONCE, Ledger
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.outcome import Rejected, Result, TimedOut
from squadron.runtime.wire.spent import NOT_TOLD, Spent


def test_a_call_is_reserved_charged_and_the_change_comes_back() -> None:
    ledger = Ledger(Budget(tokens=1000, usd=0.5, rounds=2))
    ledger.reserve("r1", Spent(tokens=800, usd_micros=300_000, rounds=1))
    assert ledger.left == Budget(tokens=200, usd=0.2, rounds=1)

    ledger.settle("r1", Spent(tokens=300, usd_micros=90_000, rounds=1))

    assert ledger.left == Budget(tokens=700, usd=0.41, rounds=1)
    assert ledger.spent == Spent(300, 90_000, 1)


@pytest.mark.parametrize(
    ("amount", "field"),
    [
        (Spent(tokens=101), "tokens"),
        (Spent(usd_micros=500_001), "usd"),
        (Spent(rounds=2), "rounds"),
        (Spent(tasks=1), "tasks"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_limit_and_changes_nothing(amount: Spent, field: str) -> None:
    ledger = Ledger(Budget(tokens=100, usd=0.5, rounds=1, tasks=0))

    with pytest.raises(BudgetError) as caught:
        ledger.reserve("a", amount)

    assert caught.value.field == field
    assert caught.value.hint
    assert ledger.spent == Spent()


def test_a_task_gets_what_it_asks_for_as_far_as_it_is_there_and_else_a_half() -> None:
    ledger = Ledger(Budget(tokens=1000, usd=1.0, tasks=5, hops=3))

    assert ledger.grant_to("a", Budget()) == Budget(tokens=500, usd=0.5, tasks=2, hops=2)
    assert ledger.grant_to("b", Budget(tokens=2000, usd=0.1)) == Budget(tokens=500, usd=0.1, tasks=1, hops=2)
    assert ledger.left == Budget(tokens=0, usd=0.4, tasks=0, hops=3)
    assert ledger.grant_to("c", Budget()).exhausted == "tokens"
    assert Ledger(Budget(tasks=0)).grant_to("a", Budget()).exhausted == "tasks"
    assert Ledger(Budget(hops=0)).grant_to("a", Budget()).exhausted == "hops"


def test_a_task_that_ended_gives_back_what_it_did_not_spend_and_counts_itself() -> None:
    ledger = Ledger(Budget(tokens=1000, tasks=5))
    ledger.grant_to("a", Budget())

    ledger.settle_task("a", Result(source="somebody", spent=Spent(tokens=70, tasks=1)))

    assert ledger.spent == Spent(tokens=70, tasks=2)
    ledger.grant_to("b", Budget())
    ledger.settle_task("b", Rejected(reason="refused before it was sent"))
    assert ledger.spent == Spent(tokens=70, tasks=2)


def test_of_what_nobody_told_the_grant_stays_charged_until_a_late_truth_corrects_it() -> None:
    ledger = Ledger(Budget(tokens=1000))
    ledger.grant_to("a", Budget(tokens=400))

    ledger.settle_task("a", TimedOut(spent=NOT_TOLD))
    assert ledger.left.tokens == 600

    ledger.settle_task("a", Result(source="somebody", tokens=30))
    assert ledger.left.tokens == 970


def test_more_than_was_reserved_is_charged_as_it_was() -> None:
    ledger = Ledger(Budget(tokens=100))
    ledger.reserve("a", Spent(tokens=100))
    ledger.settle("a", Spent(tokens=130))

    assert ledger.spent.tokens == 130
    assert ledger.left.tokens == 0


def test_the_next_attempt_takes_over_what_was_spent_but_not_what_is_logged_elsewhere() -> None:
    first = Ledger(Budget(tokens=1000))
    first.charge(Spent(tokens=10))
    first.grant_to("named", Budget(tokens=200))
    first.settle("round 1", Spent(tokens=300), logged=True)
    second = Ledger(Budget(tokens=1000))
    second.take_over(first.carried())
    assert second.spent.tokens == 210

    # The same task again is not paid twice.
    second.grant_to("named", Budget(tokens=200))
    second.settle("named", Spent(tokens=50))

    assert second.spent.tokens == 60


def test_more_than_the_next_attempt_can_take_over_one_by_one_goes_over_as_a_sum() -> None:
    first, second = Ledger(Budget()), Ledger(Budget())
    for number in range(3 * MOST_CARRIED):
        first.settle(f"{ONCE}1.{number}" if number % 3 else f"named {number}", Spent(tokens=1))
        first.settle(f"other {number}", Spent(tokens=1))
    carried = first.carried()
    second.take_over(json.loads(json.dumps(carried)))

    assert len(carried["keys"]) == MOST_CARRIED
    assert not any(key.startswith(ONCE) for key in carried["keys"])
    assert second.spent == first.spent == Spent(tokens=6 * MOST_CARRIED)


def test_a_log_is_replayed_without_a_refusal_and_without_being_carried() -> None:
    first = Ledger(Budget(tokens=1000, tasks=4))
    first.charge(Spent(tokens=100))
    first.settle("r1", Spent(tokens=700, rounds=1), logged=True)
    first.settle("r1", Spent(tokens=300, rounds=1), logged=True)
    given = first.grant_to("c1", Budget(tokens=200))
    first.restore("c1", given)
    second = Ledger(Budget(tokens=1000, tasks=4))
    second.take_over(first.carried())
    assert second.spent == Spent(tokens=100)

    second.settle("r1", Spent(tokens=300, rounds=1), logged=True)
    second.restore("c1", given)

    assert second.spent == first.spent == Spent(tokens=600, rounds=1, tasks=3)
    assert second.carried() == first.carried()


@pytest.mark.parametrize("rubbish", [None, [], {"charged": 7, "keys": [1]}, {"keys": {"a": "b"}}])
def test_what_nobody_can_read_is_nothing_that_was_spent(rubbish: object) -> None:
    ledger = Ledger(Budget(tokens=10))
    ledger.take_over(rubbish)

    assert ledger.left.tokens == 10
    assert Ledger(Budget()).carried() == {}


def test_threads_that_charge_while_the_loop_settles_lose_nothing() -> None:
    ledger, times = Ledger(Budget(tokens=10**9)), 4_000
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [ledger.charge(Spent(tokens=1)) for _ in range(times)])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for number in range(times):
            ledger.grant_to(str(number), Budget(tokens=10))
            ledger.settle(str(number), Spent(tokens=2))
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert ledger.spent.tokens == 5 * times
