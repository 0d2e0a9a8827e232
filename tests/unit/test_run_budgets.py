"""A run asks no more tasks than its budget has, and nobody who is too far down: whatever its model calls."""

from __future__ import annotations

from typing import Any

import pytest

from squadron import Agent, Bid, Budget, Context, topic
from squadron.runtime.asking.options import AskOptions
from tests.unit.test_bidding_calls import Sailor, Scout, bids, fail
from tests.unit.test_supervisor import Scripted, Squad, call, finish, last_answers, report_of, squad, turn

__all__ = ["squad"]


class Counter(Agent):
    """Counts how often it is asked, and may ask further."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @topic("count.one", tags=["count"])
    async def one(self, text: str, ctx: Context) -> str:
        """Count one."""
        self.asked.append(text)
        return text

    @topic("count.further", tags=["count"])
    async def further(self, text: str, ctx: Context) -> str:
        """Have somebody else count."""
        return (await ctx.ask("count.one", {"text": text})).kind


def _ones(*ids: str) -> Any:
    return turn(*(call(id, "count__one", text=id) for id in ids))


def _within(**limits: Any) -> AskOptions:
    return AskOptions(within_s=60, budget=Budget(**limits))


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, None])
@pytest.mark.parametrize("rounds", [("abc",), ("a", "b", "c"), ("ab", "c")])
async def test_no_more_tasks_go_out_than_the_budget_has(
    squad: Squad, most: int | None, rounds: tuple[str, ...]
) -> None:
    counter, supervisor = Counter(), Scripted(*(_ones(*ids) for ids in rounds), finish())
    await squad.deploy(counter)
    await squad.deploy(supervisor)

    outcome = await squad.pursue("count", _within(tasks=most))

    sent = 3 if most is None else min(3, most)
    # Those that were called first go first.
    assert counter.asked == ["a", "b", "c"][:sent]
    assert outcome.spent.tasks == sent
    assert report_of(outcome)["tasks"]["dispatched"] == sent
    answered = last_answers(supervisor)
    refused = [id for id in "abc" if "budget of tasks leaves 0, and 1 are needed" in answered[id].content]
    assert refused == ["a", "b", "c"][sent:]
    assert all(answered[id].is_error for id in refused)


async def test_of_many_at_once_all_go_out_or_none(squad: Squad) -> None:
    counter = Counter()
    many = call("m", "for_each", topic="count__one", items=["x", "y", "z"], arguments={"text": {"$item": ""}})
    supervisor = Scripted(turn(many, call("o", "count__one", text="o")), finish())
    await squad.deploy(counter)
    await squad.deploy(supervisor)

    outcome = await squad.pursue("count", _within(tasks=2))

    assert counter.asked == ["o"]
    assert "budget of tasks leaves 2, and 3 are needed" in last_answers(supervisor)["m"].content
    assert outcome.spent.tasks == 1


@pytest.mark.parametrize(
    ("hops", "asked", "kind"),
    [(0, [], ""), (1, [], "rejected"), (2, ["far"], "result"), (None, ["far"], "result")],
)
async def test_each_step_down_is_a_hop_less(squad: Squad, hops: int | None, asked: list[str], kind: str) -> None:
    counter, supervisor = Counter(), Scripted(turn(call("f", "count__further", text="far")), finish())
    await squad.deploy(counter)
    await squad.deploy(supervisor)

    outcome = await squad.pursue("count", _within(hops=hops))

    assert counter.asked == asked
    told = last_answers(supervisor)["f"].content
    assert (kind or "the budget of hops is used up") in told
    assert outcome.spent.tasks == (hops != 0) + len(asked)


@pytest.mark.parametrize(("most", "tried"), [(0, (0, 0)), (1, (1, 0)), (2, (1, 1))])
async def test_each_bid_that_is_tried_is_a_task(squad: Squad, most: int, tried: tuple[int, int]) -> None:
    sailor, scout = Sailor(Bid(confidence=0.9), fail), Scout(Bid(confidence=0.4))
    supervisor = Scripted(bids(), finish())
    for each in (sailor, scout, supervisor):
        await squad.deploy(each)

    outcome = await squad.pursue("tie a knot", _within(tasks=most))

    assert (len(sailor.tied), len(scout.tied)) == tried
    assert outcome.spent.tasks == most
    assert ("budget of tasks" in last_answers(supervisor)["k"].content) == (most < 2)
