"""The offline planner: a fixed plan carried out by the real supervisor, with no LLM anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import INTRODUCTION, OfflinePlanner
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.thinking.model import ChatMessage, ModelRequest, ToolDefinition
from squadron.runtime.errors import InvalidInputError, Terminal
from squadron.runtime.wire.outcome import Outcome, Rejected, Result
from squadron.testing import MemorySquad

GOAL = "audit the licences of all packages"


class Inventory(Agent):
    """Knows what is there."""

    @topic("packages.list", tags=["inventory"])
    async def list(self, prefix: str = "") -> list[dict[str, str]]:
        """List the installed packages."""
        return [{"name": name} for name in ("alpha", "beta", "broken") if name.startswith(prefix)]


class Licences(Agent):
    """Reads small print."""

    @topic("licence.classify")
    async def classify(self, name: str) -> str:
        """Classify the licence of one package."""
        if name == "broken":
            raise Terminal("no licence file")
        return f"MIT ({name})"


class Report(Agent):
    """Writes things down."""

    @topic("text.render")
    async def render(self, rows: list[Any]) -> str:
        """Render a table of rows as markdown."""
        return "\n".join(f"| {row} |" for row in rows if isinstance(row, str))

    @topic("oracle.answer")
    async def answer(self, question: str) -> str:
        """Answer any question about packages and their licences, in a word."""
        return f"42, as for: {question}"


class Squad(MemorySquad):
    """One that pursues goals by a plan."""

    async def pursue(self, goal: str = GOAL, **fields: Any) -> Outcome:
        return await self.ask("goal.pursue", {"goal": goal, **fields}, within_s=20, model="offline")

    async def report(self, goal: str = GOAL, **fields: Any) -> dict[str, Any]:
        outcome = await self.pursue(goal, **fields)
        assert isinstance(outcome, Result), outcome
        return dict(outcome.data)


@pytest.fixture
async def squad() -> AsyncIterator[Squad]:
    async with Squad() as made:
        await made.deploy(Supervisor)
        yield made


LIST = {"id": "all", "intent": "list the installed packages"}
CLASSIFY = {
    "id": "each",
    "intent": "classify the licence of one package",
    "for_each": {"$from": "all"},
    "arguments": {"name": {"$item": "/name"}},
}
RENDER = {"id": "table", "intent": "render a table of rows", "arguments": {"rows": {"$from": "each"}}}
FINISH = {
    "finish": "All licences are known.",
    "deliverables": {"table": {"$from": "table"}, "raw": {"$from": "each"}},
}


async def test_a_plan_is_carried_out_round_by_round(squad: Squad) -> None:
    await squad.deploy(Inventory(), Licences(), Report())

    report = await squad.report(plan=[[LIST], [CLASSIFY], [RENDER], [FINISH]])

    assert report["model"] == "offline:planner"
    assert report["answer"] == "All licences are known."
    assert report["deliverables"]["table"] == "| MIT (alpha) |\n| MIT (beta) |"
    assert report["deliverables"]["raw"][2]["reason"] == "no licence file"
    assert report["tasks"] == {"dispatched": 5, "outcomes": {"result": 4, "failed": 1}}
    assert [call["topic"] for call in report["calls"]] == ["packages.list", "licence.classify", "text.render"]
    assert report["tokens"] == 0
    thoughts = [event["text"] for event in report["timeline"] if event["event"] == "thought"]
    assert thoughts[0].startswith(INTRODUCTION)
    assert "not an LLM" in thoughts[0]


async def test_the_answer_may_be_a_result(squad: Squad) -> None:
    await squad.deploy(Inventory())

    report = await squad.report(plan=[[LIST], [{"finish": {"$from": "all#/1/name"}}]])

    assert report["answer"] == "beta"


async def test_a_topic_that_was_not_offered_is_searched_for_first(squad: Squad) -> None:
    await squad.deploy(Inventory(), Licences(), Report())

    report = await squad.report(
        "say hello", plan=[[LIST], [{"finish": "ok", "deliverables": {"all": {"$from": "all"}}}]]
    )

    assert len(report["deliverables"]["all"]) == 3
    assert report["rounds"] == 3


async def test_a_step_that_nobody_serves_ends_in_an_honest_answer(squad: Squad) -> None:
    await squad.deploy(Inventory())

    strange = CLASSIFY | {"intent": "translate into Frisian"}

    report = await squad.report(plan=[[LIST], [strange], [RENDER], [FINISH]])

    assert report["answer"].startswith("The plan could not be carried out to its end. Nobody serves step 'each'")
    assert "Not delivered: table, raw" in report["answer"]
    assert report["deliverables"] == {}
    assert report["stopped"] == "gave_up"


async def test_a_step_whose_dependency_failed_entirely_is_not_tried(squad: Squad) -> None:
    await squad.deploy(Inventory(), Licences(), Report())
    only_broken = LIST | {"arguments": {"prefix": "broken"}}

    report = await squad.report(plan=[[only_broken], [CLASSIFY], [RENDER], [FINISH]])

    assert "Step 'table' needs the result of step 'each'" in report["answer"]
    assert "0 of 1 items" in report["answer"]
    assert [call["topic"] for call in report["calls"]] == ["packages.list", "licence.classify"]
    assert report["stopped"] == "gave_up"


async def test_a_failed_side_step_is_named_in_the_answer(squad: Squad) -> None:
    await squad.deploy(Inventory(), Licences())
    side = {"id": "side", "intent": "classify the licence", "arguments": {"name": "broken"}}

    report = await squad.report(
        plan=[[LIST, side], [{"finish": "done", "deliverables": {"s": {"$from": "side"}}}]]
    )

    assert report["answer"].startswith(
        "done\nNot everything worked:\n- Call side ended as failed: no licence file"
    )
    assert "Not delivered: s." in report["answer"]


async def test_a_plan_without_an_end_is_answered_with_a_digest(squad: Squad) -> None:
    await squad.deploy(Inventory())

    report = await squad.report(plan=[[LIST]])

    assert "no LLM has read it" in report["answer"]
    assert "alpha" in report["answer"]
    assert "untrusted" not in report["answer"]


async def test_without_a_plan_topics_that_take_a_text_are_asked(squad: Squad) -> None:
    await squad.deploy(Inventory(), Licences(), Report())

    report = await squad.report()

    # Listing needs no text, and a name is not something to put a goal into.
    assert [call["topic"] for call in report["calls"]] == ["oracle.answer"]
    assert f"42, as for: {GOAL}" in report["answer"]
    assert "no LLM has read it" in report["answer"]


async def test_without_a_plan_and_without_a_fitting_topic_it_says_so(squad: Squad) -> None:
    await squad.deploy(Licences())

    report = await squad.report()

    assert report["answer"].startswith(INTRODUCTION)
    assert "I can't pursue it. Configure an LLM" in report["answer"]
    assert report["tasks"]["dispatched"] == 0
    assert report["stopped"] == "gave_up"


@pytest.mark.parametrize(
    ("plan", "field", "reason"),
    [
        ("x", "plan", ""),
        ([], "plan", "less than 1 item"),
        ([[]], "plan.0", "less than 1 item"),
        ([[LIST], [{"id": "x"}]], "plan.1.0.intent", "is required"),
        ([[LIST | {"intnt": "x"}]], "plan.0.0", "'intnt' was unexpected"),
        ([[LIST | {"id": "a b"}]], "plan.0.0.id", "does not match"),
        ([[LIST | {"for_each": "all"}]], "plan.0.0.for_each", ""),
        ([[{"finish": "x", "intent": "y"}]], "plan.0.0", "'intent' was unexpected"),
        ([[LIST, LIST]], "plan", "round 0, step 1: the id 'all' is used twice"),
        ([[LIST, CLASSIFY]], "plan", "round 0, step 1: no earlier round has a step 'all'"),
        ([[LIST], [RENDER]], "plan", "round 1, step 0: no earlier round has a step 'each'"),
        ([[FINISH]], "plan", "round 0, step 0: no earlier round has a step 'each'"),
        ([[{"finish": "x"}], [LIST]], "plan", "finish must be the last step of the last round"),
    ],
)
async def test_a_bad_plan_is_rejected_with_field_and_reason(
    squad: Squad, plan: Any, field: str, reason: str
) -> None:
    outcome = await squad.pursue(plan=plan)

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == field
    assert reason in outcome.reason


def test_pydantic_names_the_field_too_for_foreign_clients() -> None:
    spec = AgentSpec.of(Supervisor).topics[0]
    with pytest.raises(InvalidInputError) as caught:
        spec.arguments({"goal": "g", "plan": [[{"id": "x"}]]})
    assert caught.value.field == "plan.0.0.step.intent"


async def test_the_planner_keeps_nothing_so_two_with_the_same_words_do_the_same() -> None:
    tool = ToolDefinition("packages__list", "List the installed packages.", {"type": "object"})
    messages = [ChatMessage("user", GOAL)]
    said: list[str] = []
    plan = (
        AgentSpec.of(Supervisor)
        .topics[0]
        .arguments({"goal": "g", "plan": [[LIST], [FINISH | {"deliverables": {}}]]})
    )

    one = await OfflinePlanner(plan["plan"]).think(ModelRequest(tuple(messages), (tool,)), said.append)
    other = await OfflinePlanner(plan["plan"]).think(ModelRequest(tuple(messages), (tool,)))

    assert one == other
    assert said == [one.text]
    assert [(call.id, call.name) for call in one.tool_calls] == [("all", "packages__list")]
