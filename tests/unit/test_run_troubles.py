"""What goes wrong around runs: parked turns, foreign entries, models that raise, time that is up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from squadron import Agent, Budget, Context, topic
from squadron.testing import MemorySquad


class Asker(Agent):
    """Spends, and asks a person then."""

    def __init__(self) -> None:
        self.left: list[int | None] = []

    @topic("asker.go", run_timeout_s=1000)
    async def go(self, ctx: Context) -> str:
        """Spend, and ask."""
        self.left.append(ctx.budget.tokens)
        if len(self.left) == 1:
            ctx.charge(900)
        return str((await ctx.ask_person("Go on?", park=True)).value)


async def test_what_was_spent_before_a_task_was_parked_is_spent_when_it_goes_on() -> None:
    async with MemorySquad() as squad:
        asker = Asker()
        await squad.deploy(asker)
        asking = asyncio.create_task(squad.ask("asker.go", within_s=900, budget=Budget(tokens=1000)))
        async for news in squad.follow_questions():
            await asyncio.sleep(30)  # it is parked by then
            await squad.answer(news.asked.query_id, "yes", by="ann")
            break
        outcome = await asking

    assert outcome.unwrap() == "yes"
    assert asker.left == [1000, 100]
    assert outcome.spent.tokens == 900


@pytest.mark.parametrize("about", [{"deadline": "soon"}, {"task": 7}, {"usd": float("inf")}, {"rounds": None}])
async def test_a_foreign_message_among_the_runs_hides_no_other(about: dict[str, Any]) -> None:
    async with MemorySquad() as squad:
        ports = squad._wiring.ports
        for run, said in (("run-bad", about), ("run-good", {"state": "finished", "more": 1, "deadline": 5})):
            data = ports.pack("event", {"content": []}, id=run, metadata={"about": said})
            await ports.runs.append(ports.subjects.run(run), data, ttl_s=100, expect_seq=0)

        assert [info.run for info in await squad.runs.list()] == ["run-good"]
        assert (await squad.runs.show("good")).info.deadline == 5
