"""Every way of asking takes a budget, and every way of asking from a task gives a share of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import typer

from squadron import Agent, Budget, Context, InvalidInputError, Retry, Spent, topic
from squadron.cli import spending
from squadron.runtime.wire.outcome import Outcome
from squadron.testing import MemorySquad

WHOLE = Budget(tokens=1000, usd=0.5, rounds=10, tasks=8, hops=3, seconds=30)
HALF = {"tokens": 500, "usd": 0.25, "rounds": 5, "tasks": 4, "hops": 2}


def _shown(budget: Budget) -> dict[str, Any]:
    return {name: getattr(budget, name) for name in ("tokens", "usd", "rounds", "tasks", "hops")}


class Purse(Agent):
    """Shows what it may spend, or what those may whom it asks."""

    @topic("purse.show")
    async def show(self, context: Context) -> dict[str, Any]:
        """Show what may be spent."""
        return _shown(context.budget) | {"within_s": context.deadline.remaining_s()}

    @topic("purse.ask")
    async def pass_on(self, how: str, context: Context) -> Any:
        if how == "ask":
            return (await context.ask("purse.show")).unwrap()
        handle = await context.submit("purse.show")
        return (await handle.outcome()).unwrap()

    @topic("purse.plain")
    def plain(self, how: str, context: Context) -> Any:
        if how == "ask":
            return context.sync.ask("purse.show").unwrap()
        return context.sync.submit("purse.show").outcome().unwrap()

    @topic("purse.charge")
    async def charge(self, amounts: dict[str, Any], context: Context) -> dict[str, Any]:
        context.charge(**amounts)
        return _shown(context.budget)


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        await made.deploy(Purse)
        yield made


async def _ask(squad: MemorySquad) -> Outcome:
    return await squad.ask("purse.show", budget=WHOLE)


async def _submit(squad: MemorySquad) -> Outcome:
    return await (await squad.submit("purse.show", budget=WHOLE)).outcome()


async def _stream(squad: MemorySquad) -> Outcome:
    return await squad.stream("purse.show", budget=WHOLE).outcome()


@pytest.mark.parametrize("way", [_ask, _submit, _stream])
async def test_a_budget_comes_with_the_task(squad: MemorySquad, way: Any) -> None:
    seen = (await way(squad)).unwrap()

    # Its time of work ends it before its caller does.
    assert seen.pop("within_s") < 31
    assert seen == _shown(WHOLE)


async def test_a_run_has_a_budget_and_what_it_asks_a_share(squad: MemorySquad) -> None:
    plan = [[{"id": "look", "intent": "show what may be spent"}]]
    outcome = await squad.run("show the purse", model="offline", plan=plan, topics=["purse.show"], budget=WHOLE)

    assert '"tokens": 500, "usd": 0.25,' in outcome.unwrap()["answer"]
    assert outcome.spent.tasks == 1


@pytest.mark.parametrize("topic", ["purse.ask", "purse.plain"])
@pytest.mark.parametrize("how", ["ask", "submit"])
async def test_who_is_asked_from_a_task_gets_a_half_of_what_is_left(
    squad: MemorySquad, topic: str, how: str
) -> None:
    outcome = await squad.ask(topic, how, budget=WHOLE)

    seen = outcome.unwrap()
    assert seen.pop("within_s") < 31
    assert seen == HALF
    assert outcome.spent == Spent(tasks=1)


async def test_a_charge_counts_tokens_dollars_and_calls(squad: MemorySquad) -> None:
    charged = {"tokens": 100, "usd": 0.125, "rounds": 2}
    outcome = await squad.ask("purse.charge", {"amounts": charged}, budget=WHOLE)

    assert outcome.unwrap() == _shown(WHOLE) | {"tokens": 900, "usd": 0.375, "rounds": 8}
    assert outcome.spent == Spent(100, 125_000, 2)


@pytest.mark.parametrize("field", ["tokens", "usd", "rounds"])
async def test_a_charge_below_zero_is_refused(squad: MemorySquad, field: str) -> None:
    outcome = await squad.ask("purse.charge", {"amounts": {field: -1}})

    assert outcome.details["field"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("usd", -0.1),
        ("usd", float("nan")),
        ("usd", "1"),
        ("usd", True),
        ("rounds", 1.5),
        ("tasks", -2),
        ("hops", 2**60),
        ("seconds", float("inf")),
        ("tokens", 10**5000),
    ],
    ids=lambda each: repr(each)[:20] if not isinstance(each, int) or each < 10**30 else "long",
)
def test_a_limit_that_can_not_be_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Budget(**{field: value})

    assert (caught.value.field, bool(caught.value.hint)) == (field, True)
    assert len(str(caught.value)) < 200


def test_the_options_of_the_command_line_are_a_budget() -> None:
    assert spending.budget_of(5, 0.5, 3, 2, 1) == Budget(tokens=5, usd=0.5, rounds=3, tasks=2, hops=1)
    with pytest.raises(typer.BadParameter, match="usd of a budget can't be inf"):
        spending.budget_of(None, float("inf"), None, None, None)


# --- replicas that die -----------------------------------------------------------------------------------


class Mortal(Agent):
    """Spends, and works on until its replica dies."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()

    @topic("mortal.work")
    async def work(self, context: Context) -> int | None:
        """Gives its first attempt up, dies in the second, and tells in the third what is left."""
        if context.attempt == 3:
            return context.budget.tokens
        context.charge(300)
        if context.attempt == 1:
            raise Retry("not yet", after_s=0.01)
        await self._die()

    @topic("mortal.once", max_attempts=1)
    async def once(self, context: Context) -> None:
        """Dies in its only attempt."""
        context.charge(300)
        await self._die()

    async def _die(self) -> None:
        self.entered.set()
        await asyncio.Event().wait()


class Parent(Agent):
    """Asks one who dies."""

    @topic("parent.ask")
    async def pass_on(self, context: Context) -> str:
        return (await context.ask("mortal.once", budget=Budget(tokens=400))).kind


async def _kill_who_works(squad: MemorySquad, mortals: list[Mortal]) -> None:
    waiting = [asyncio.create_task(each.entered.wait()) for each in mortals]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()
    await squad.kill(next(each for each in mortals if each.entered.is_set()))


async def test_what_an_attempt_told_outlives_the_next_one_that_dies_without_a_word(squad: MemorySquad) -> None:
    mortals = [Mortal(), Mortal()]
    await squad.deploy(*mortals)
    asked = await squad.submit("mortal.work", budget=Budget(tokens=1000), within_s=3600)
    await _kill_who_works(squad, mortals)

    outcome = await asked.outcome()

    # The 300 of the attempt that died are lost: see "What it does not do" in the documentation.
    assert (outcome.unwrap(), outcome.attempt, outcome.tokens) == (700, 3, 300)


async def test_of_a_task_whose_replicas_died_nobody_knows_so_its_share_stays_charged(squad: MemorySquad) -> None:
    mortals = [Mortal(), Mortal()]
    await squad.deploy(*mortals, Parent)
    asked = await squad.submit("parent.ask", budget=Budget(tokens=1000), within_s=3600)
    await _kill_who_works(squad, mortals)

    outcome = await asked.outcome()

    assert (outcome.unwrap(), outcome.spent) == ("dead_lettered", Spent(tokens=400, tasks=1))
