"""The model has agents bid for a call: who gets it, who gets it next, and what is sent when nobody bids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from squadron import Agent, Bid, Budget, Context, Terminal, bid, topic
from squadron.actors.runs.entries import Awarded, Sending
from squadron.actors.runs.log import entries_of, read
from squadron.runtime.asking.options import AskOptions
from squadron.testing.scripted_model import ScriptedTurn
from tests.unit.test_supervisor import Scripted, Squad, call, finish, last_answers, report_of, turn

TOOLS = ["tie__sailor", "tie__scout"]


class Bidder(Agent):
    """Ties knots, and bids as it is told."""

    def __init__(self, offer: Bid | None = None, does: Callable[[], Any] = lambda: None) -> None:
        self._offer, self._does = offer, does
        self.tied: list[tuple[str, int | None, float | None]] = []

    async def tie(self, text: str, ctx: Context) -> str:
        self.tied.append((text, ctx.budget.tokens, ctx.budget.usd))
        if asyncio.iscoroutine(done := self._does()):
            await done
        return f"{self.__class__.__name__} tied {text}"

    @bid
    async def offer(self, topic: str, size: int) -> Bid | None:
        return self._offer


class Sailor(Bidder):
    """Ties well."""

    @topic("tie.sailor", tags=["knot"], max_attempts=1)
    async def work(self, text: str, ctx: Context) -> str:
        """Tie a knot."""
        return await self.tie(text, ctx)


class Scout(Bidder):
    """Ties as it can."""

    @topic("tie.scout", tags=["knot"], max_attempts=1)
    async def work(self, text: str, ctx: Context) -> str:
        """Tie a knot."""
        return await self.tie(text, ctx)


def fail() -> None:
    raise Terminal("the rope is too short")


def bids(**also: Any) -> ScriptedTurn:
    return turn(call("k", "call_for_bids", tools=TOOLS, arguments={"text": "a knot"}), **also)


@pytest.fixture
async def squad() -> AsyncIterator[Squad]:
    async with Squad() as made:
        yield made


async def log_of(squad: Squad, run: str) -> list[Any]:
    ports = squad.client.ports
    return [entry async for _, message in read(ports, ports.subjects.run(run)) for entry in entries_of(message)]


async def tied(squad: Squad, sailor: Sailor, scout: Scout, **ask: Any) -> tuple[Scripted, dict[str, Any]]:
    supervisor = Scripted(bids(), finish(knot={"$from": "k"}))
    for each in (sailor, scout, supervisor):
        await squad.deploy(each)
    outcome = await squad.pursue("tie a knot", AskOptions(within_s=60, **ask))
    return supervisor, report_of(outcome)


async def test_the_best_bid_gets_the_call_and_the_award_is_stored_before_its_task(squad: Squad) -> None:
    sailor, scout = Sailor(Bid(confidence=0.4)), Scout(Bid(confidence=0.9))
    supervisor, report = await tied(squad, sailor, scout)

    assert report["deliverables"] == {"knot": "Scout tied a knot"}
    assert (len(sailor.tied), len(scout.tied)) == (0, 1)
    assert "Result of tie.scout" in last_answers(supervisor)["k"].content
    entries = await log_of(squad, report["run"])
    (awarded,) = [each for each in entries if isinstance(each, Awarded)]
    assert [offer.topic for offer in awarded.offers] == ["tie.scout", "tie.sailor"]
    assert entries.index(awarded) < next(i for i, each in enumerate(entries) if isinstance(each, Sending))


async def test_after_a_failure_the_next_bid_gets_it_and_the_model_is_told_once(squad: Squad) -> None:
    sailor, scout = Sailor(Bid(confidence=0.9), fail), Scout(Bid(confidence=0.4))
    _, report = await tied(squad, sailor, scout)

    assert report["deliverables"] == {"knot": "Scout tied a knot"}
    assert (len(sailor.tied), len(scout.tied)) == (1, 1)
    assert report["rounds"] == 2
    assert (report["tasks"]["dispatched"], report["tasks"]["outcomes"]) == (2, {"failed": 1, "result": 1})


async def test_one_that_dies_of_the_task_loses_it_to_the_next_bid(squad: Squad) -> None:
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    scout, supervisor = Scout(Bid(confidence=0.4)), Scripted(bids(), finish(knot={"$from": "k"}))
    for each in (Sailor(Bid(confidence=0.9), hang), scout, supervisor):
        await squad.deploy(each)
    asking = asyncio.create_task(squad.pursue("tie a knot", AskOptions(within_s=3600)))
    await began.wait()
    await squad.kill("sailor")
    report = report_of(await asking)
    assert report["deliverables"] == {"knot": "Scout tied a knot"}
    assert report["tasks"]["outcomes"] == {"undeliverable": 1, "result": 1}


async def test_one_that_takes_too_long_loses_it_to_the_next_bid(squad: Squad) -> None:
    sailor = Sailor(Bid(confidence=0.9), lambda: asyncio.sleep(10_000))
    _, report = await tied(squad, sailor, Scout(Bid(confidence=0.4)))
    assert report["deliverables"] == {"knot": "Scout tied a knot"}
    assert report["tasks"]["outcomes"] == {"timed_out": 1, "result": 1}


async def test_when_all_have_failed_the_model_hears_why_of_each(squad: Squad) -> None:
    supervisor = Scripted(bids(), finish())
    for each in (Sailor(Bid(confidence=0.9), fail), Scout(Bid(confidence=0.4), fail), supervisor):
        await squad.deploy(each)
    report_of(await squad.pursue("tie a knot"))
    told = last_answers(supervisor)["k"]
    assert told.is_error
    assert told.content.count("the rope is too short") == 2
    assert "tie.sailor" in told.content
    assert "tie.scout" in told.content


async def test_when_nobody_bids_the_first_tool_is_asked_plainly(squad: Squad) -> None:
    sailor, scout = Sailor(None), Scout(None)
    _, report = await tied(squad, sailor, scout)
    assert report["deliverables"] == {"knot": "Sailor tied a knot"}
    assert len(scout.tied) == 0


async def test_the_price_of_a_bid_is_the_budget_of_its_task(squad: Squad) -> None:
    sailor = Sailor(Bid(confidence=0.9, price_tokens=120, price_usd=0.25))
    await tied(squad, sailor, Scout(None), budget=Budget(tokens=100_000, usd=10.0))
    assert sailor.tied == [("a knot", 120, 0.25)]


async def test_bids_that_cost_more_than_there_is_get_nothing_and_the_model_may_choose(squad: Squad) -> None:
    sailor = Sailor(Bid(confidence=0.9, price_tokens=10**9))
    supervisor = Scripted(bids(), finish())
    for each in (sailor, supervisor, Scout(None)):
        await squad.deploy(each)
    report_of(await squad.pursue("tie a knot", AskOptions(within_s=60, budget=Budget(tokens=100_000))))
    assert sailor.tied == []
    assert "cost more than there is" in last_answers(supervisor)["k"].content


async def test_a_call_for_bids_is_no_way_around_an_approval(squad: Squad) -> None:
    sailor, supervisor = Sailor(Bid(confidence=0.9)), Scripted(bids(), finish())
    for each in (sailor, supervisor, Scout(None)):
        await squad.deploy(each)
    report_of(await squad.pursue("tie a knot", approve=["tie.sailor"]))
    assert sailor.tied == []
    assert "a person has to approve" in last_answers(supervisor)["k"].content


async def test_a_call_that_was_cancelled_goes_to_no_other_bid(squad: Squad) -> None:
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    scout = Scout(Bid(confidence=0.4))
    quick = Quick()
    first = turn(bids().tool_calls[0], call("q", "quick__now"))  # type: ignore[union-attr]
    supervisor = Scripted(first, turn(call("c", "cancel_calls", calls=["k"])), finish())
    for each in (Sailor(Bid(confidence=0.9), hang), scout, quick, supervisor):
        await squad.deploy(each)
    quick.when = began
    report_of(await squad.pursue("tie a knot now", gather={"after": 1}))
    assert scout.tied == []


class Quick(Agent):
    """Is done when it is told."""

    when: asyncio.Event

    @topic("quick.now", tags=["knot"])
    async def now(self) -> str:
        """Do it now."""
        await self.when.wait()
        return "done"
