"""What models cost: list prices with cache and tiers, prices of one's own, and what can be paid of a call."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.actors.thinking.catalog import (
    LEAST_ANSWER,
    SAFETY,
    USUAL_ANSWER,
    cost_of,
    load_prices,
    reserve_for,
    spent_by_failure,
    spent_of,
    window_of,
)
from squadron.actors.thinking.model import Usage
from squadron.config import Settings
from squadron.runtime.errors import BudgetError, ConfigError, ModelError
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.spent import NOT_TOLD, Spent

CLAUDE, GPT, OURS = "anthropic:claude-sonnet-4-5", "openai:gpt-4o", "openai:ours"
PRICES = {OURS: {"input": 1.0, "output": 4.0, "cache_read": 0.1, "window": 32_000}, GPT: {"input": 7, "output": 9}}


@pytest.fixture
def own_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUADRON_PRICES", json.dumps(PRICES))


@pytest.mark.parametrize(
    ("model", "usage", "micros"),
    [
        # $2.50 and $10 per million; half of the price for what was read from the cache.
        (GPT, Usage(input=1000, output=100), 3500),
        (GPT, Usage(input=1000, output=100, cache_read=800), 2500),
        # What it thought is a part of what it said.
        (GPT, Usage(input=1000, output=100, reasoning=90), 3500),
        # $3 and $15; reads cost a tenth, writes a quarter more.
        (CLAUDE, Usage(input=1000, output=100, cache_read=700, cache_write=200), 300 + 210 + 750 + 1500),
        # A server that counts the cache beside its input.
        (CLAUDE, Usage(input=100, output=0, cache_read=700), 210),
        # Never less than it was.
        (GPT, Usage(input=1), 3),
        (GPT, Usage(), 0),
    ],
)
def test_a_call_costs_what_the_list_says(model: str, usage: Usage, micros: int) -> None:
    assert cost_of(model, usage) == micros


def test_a_long_input_has_the_price_of_its_tier() -> None:
    below, above = (cost_of("anthropic:claude-sonnet-4-5", Usage(input=each)) for each in (199_000, 201_000))

    assert below is not None
    assert above is not None
    assert below == 199_000 * 3
    assert above > 1.9 * below


@pytest.mark.usefixtures("own_prices")
def test_prices_of_ones_own_win_and_fill_in_what_is_not_said() -> None:
    assert cost_of(OURS, Usage(input=1000, output=10, cache_read=500, cache_write=100)) == 400 + 50 + 100 + 40
    assert cost_of(GPT, Usage(input=10, output=10)) == 160
    assert (window_of(OURS), window_of(GPT)) == (32_000, 128_000)


def test_of_an_unknown_model_nothing_is_known() -> None:
    assert cost_of("openai:no-such-model", Usage(input=5)) is None
    assert cost_of("nobody:gpt-4o", Usage(input=5)) is None
    assert window_of("openai:no-such-model") is None
    assert spent_of("openai:no-such-model", Usage(input=5, output=2)) == Spent(tokens=7, rounds=1)


def test_a_plan_and_a_script_cost_nothing_and_so_fit_into_any_dollars() -> None:
    assert cost_of("offline:planner", Usage(input=5, output=5)) == cost_of("scripted:test", Usage(input=5)) == 0
    assert reserve_for("offline:planner", Budget(usd=0.01), known=10, new=0).max_tokens == USUAL_ANSWER


def test_a_server_that_sends_no_usage_is_not_free() -> None:
    # Fault 13.
    ledger = Ledger(Budget(tokens=5000))
    estimate = reserve_for(GPT, ledger.left, known=0, new=100, max_tokens=500)
    ledger.reserve("r1", estimate.amount)
    ledger.settle("r1", spent_of(GPT, Usage(estimated=True)))

    assert ledger.spent == estimate.amount
    # What somebody estimated counts as told.
    assert spent_of(GPT, Usage(input=100, output=10, estimated=True)) == Spent(110, 350, 1)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", "it"),
        ("[1]", "it"),
        ('{"a": {"input": -1, "output": 1}}', "a.input"),
        ('{"a": {"in": 1}}', "a.input"),
    ],
)
def test_prices_that_can_not_be_read_are_named_with_the_place(
    monkeypatch: pytest.MonkeyPatch, text: str, where: str
) -> None:
    monkeypatch.setenv("SQUADRON_PRICES", text)

    with pytest.raises(ConfigError, match=rf"SQUADRON_PRICES: {where}: ") as caught:
        cost_of(GPT, Usage())

    assert "openai:my-model" in caught.value.hint


def test_the_setting_is_looked_at_before_anything_starts() -> None:
    assert Settings.load({"SQUADRON_PRICES": json.dumps(PRICES)}).prices == json.dumps(PRICES)
    with pytest.raises(ConfigError, match="prices"):
        Settings.load({"SQUADRON_PRICES": "input=1"})


# --- what to set aside -----------------------------------------------------------------------------------


def test_without_a_limit_the_estimate_is_safe_and_the_answer_free() -> None:
    estimate = reserve_for(GPT, Budget(), known=1000, new=100)

    assert estimate.max_tokens is None
    # A token that is new costs at most what it costs to write it into the cache.
    assert estimate.amount == Spent(1130 + USUAL_ANSWER, 1130 * 2.5 + USUAL_ANSWER * 10, rounds=1)
    assert reserve_for(GPT, Budget(), known=0, new=0, max_tokens=50).max_tokens == 50


@pytest.mark.parametrize("budget", [Budget(tokens=2000), Budget(usd=0.01), Budget(tokens=2000, usd=0.01)])
def test_an_answer_is_as_long_as_can_be_paid(budget: Budget) -> None:
    estimate = reserve_for(GPT, budget, known=1000, new=100)

    # 2,000 - 1,000 - 1.3 * 100, or ($0.01 - 1,130 at $2.50) at $10 per million.
    assert estimate.max_tokens == (717 if budget.usd else 870)
    tokens, usd_micros, *_ = budget.coins
    assert tokens is None or estimate.amount.tokens <= tokens
    assert usd_micros is None or estimate.amount.usd_micros <= usd_micros


@pytest.mark.parametrize(
    ("budget", "field"),
    [(Budget(tokens=1300), "tokens"), (Budget(usd=0.004), "usd"), (Budget(rounds=0), "rounds")],
)
def test_who_can_not_pay_an_answer_that_is_worth_it_is_told_of_what(budget: Budget, field: str) -> None:
    with pytest.raises(BudgetError) as caught:
        reserve_for(GPT, budget, known=1000, new=100)

    assert caught.value.field == field
    assert f"Budget({field}=" in caught.value.hint


def test_an_answer_that_is_to_be_short_may_be() -> None:
    assert reserve_for(GPT, Budget(tokens=1200), known=1000, new=100, max_tokens=60).max_tokens == 60
    with pytest.raises(BudgetError):
        reserve_for(GPT, Budget(tokens=1180), known=1000, new=100, max_tokens=60)


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        # Fault 13: a refusal was billed, and nobody saw it.
        (ModelError("no", kind="refusal", tokens=52_000, began=True), Spent(52_000, 52_000 * 2.5, rounds=1)),
        (ModelError("cut", kind="passing", tokens=60_100), Spent(60_100, 60_000 * 2.5 + 100 * 10, rounds=1)),
        (ModelError("broken off", kind="passing", began=True), None),
        (ModelError("too many requests", kind="limit"), Spent()),
    ],
)
def test_a_call_that_failed_is_charged_as_far_as_it_was_made(error: ModelError, spent: Spent | None) -> None:
    estimate = reserve_for(GPT, Budget(), known=60_000, new=0)

    assert spent_by_failure(GPT, error, estimate) == (estimate.amount if spent is None else spent)


def test_dollars_without_a_price_are_refused_and_the_setting_named() -> None:
    with pytest.raises(BudgetError, match="no price of openai:no-such-model") as caught:
        reserve_for("openai:no-such-model", Budget(usd=5.0), known=0, new=10)

    assert caught.value.field == "usd"
    assert "SQUADRON_PRICES=" in caught.value.hint
    assert reserve_for("openai:no-such-model", Budget(tokens=5000), known=0, new=10).max_tokens == 4987


@given(
    known=st.integers(0, 300_000),
    new=st.integers(0, 50_000),
    usd=st.floats(0, 5),
    tokens=st.none() | st.integers(0, 400_000),
    wanted=st.none() | st.integers(1, 64_000),
    model=st.sampled_from([GPT, CLAUDE]),
)
def test_a_call_within_its_estimate_never_costs_more_than_was_left(
    known: int, new: int, usd: float, tokens: int | None, wanted: int | None, model: str
) -> None:
    left = Budget(tokens=tokens, usd=round(usd, 6))
    try:
        estimate = reserve_for(model, left, known=known, new=new, max_tokens=wanted)
    except BudgetError:
        return
    assert estimate.max_tokens is not None
    assert estimate.max_tokens >= min(LEAST_ANSWER, wanted or LEAST_ANSWER)
    real = Usage(input=known + int(new * SAFETY), cache_write=int(new * SAFETY), output=estimate.max_tokens)
    for usage in (real, replace(real, cache_write=0), replace(real, cache_write=0, cache_read=known)):
        spent = spent_of(model, usage)
        for used, set_aside, limit in zip(spent.coins, estimate.amount.coins, left.coins, strict=True):
            assert used <= set_aside
            assert limit is None or set_aside <= limit


async def test_the_list_is_loaded_when_it_is_needed_and_not_before() -> None:
    await load_prices()
    code = "import sys, squadron.actors.thinking.catalog; print('genai_prices' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@given(
    left=st.builds(
        lambda tokens, usd: Budget(tokens=tokens, usd=usd),
        st.none() | st.integers(0, 60_000),
        st.none() | st.integers(0, 500_000).map(lambda micros: micros / 1_000_000),
    ),
    calls=st.lists(
        st.tuples(st.integers(0, 5_000), st.floats(0.5, 2.5), st.floats(0, 1), st.booleans()), max_size=12
    ),
)
def test_a_loop_of_calls_overspends_by_the_error_of_one_estimate_at_most(left: Budget, calls: list[Any]) -> None:
    ledger, known, errors = Ledger(left), 0, [Spent()]
    for number, (new, truth, said, tells) in enumerate(calls):
        try:
            estimate = reserve_for(CLAUDE, ledger.left, known=known, new=new, max_tokens=2_000)
        except BudgetError:
            break
        ledger.reserve(f"r{number}", estimate.amount)
        # Texts have up to 2.5 times as many tokens as was estimated.
        whole, output = known + int(truth * new), int(said * (estimate.max_tokens or 0))
        spent = spent_of(CLAUDE, Usage(whole, output, cache_read=known, cache_write=whole - known))
        ledger.settle(f"r{number}", spent if tells else NOT_TOLD)
        errors.append(spent - estimate.amount if tells else Spent())
        known = whole + output

    for spent_coin, limit, *by_call in zip(
        ledger.spent.coins, left.coins, *(each.coins for each in errors), strict=True
    ):
        assert limit is None or spent_coin <= limit + max(0, *by_call)
