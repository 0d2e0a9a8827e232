"""What a run asks people: approvals by rule, questions of the model, and a slot that is free meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.runs.loop import PARK_AFTER_S
from squadron.actors.runs.shelf import Runs
from squadron.actors.thinking.model import Model, ModelTurn, ToolCall
from squadron.runtime.asking.answering import OpenQuestion
from squadron.testing import MemorySquad
from squadron.testing.scripted_model import ScriptedModel, ScriptedTurn


class Post(Agent):
    """Sends letters."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    @topic("post.send", approval="it can't be taken back", tags=["letter"])
    async def send(self, text: str) -> str:
        """Send a letter."""
        self.sent.append(text)
        return f"sent {text}"


class Scripted(Supervisor):
    """The supervisor, with a script for a mind."""

    name = "supervisor"
    slots = 1

    def __init__(self, *turns: ScriptedTurn) -> None:
        self.model = ScriptedModel(turns)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model


def turn(*calls: ToolCall) -> ModelTurn:
    return ModelTurn("", calls)


def send(id: str, text: str) -> ToolCall:
    return ToolCall(id, "post__send", {"text": text})


FINISH = turn(ToolCall("f", "finish", {"answer": "done"}))


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        yield made


async def asked(squad: MemorySquad) -> OpenQuestion:
    """The question that is open."""
    while not (found := await squad.questions()):
        await asyncio.sleep(0.1)
    return found[0]


async def pursue(
    squad: MemorySquad, *turns: ScriptedTurn, **fields: Any
) -> tuple[Scripted, Post, asyncio.Task[Any]]:
    post, supervisor = Post(), Scripted(*turns)
    await squad.deploy(post)
    await squad.deploy(supervisor)
    asking = squad.ask("goal.pursue", {"goal": "send a letter", "within_s": 3600, **fields}, within_s=3700)
    return supervisor, post, asyncio.create_task(asking)


async def test_a_call_whose_card_says_so_goes_out_when_a_person_approved_it(squad: MemorySquad) -> None:
    _, post, running = await pursue(squad, turn(send("a", "hello")), FINISH)

    question = await asked(squad)
    assert question.question.message == "May post.send be called? it can't be taken back"
    assert question.question.proposal is not None
    assert question.question.proposal.arguments == {"text": "hello"}
    assert post.sent == []
    await squad.answer(question.query_id, by="ana")

    assert (await running).unwrap()["stopped"] == "finished"
    assert post.sent == ["hello"]
    events = {event["event"]: event for event in (await running).unwrap()["timeline"]}
    assert events["asked"]["query"] == question.query_id
    assert events["answered"]["by"] == "ana"


async def test_arguments_that_a_person_changed_are_those_that_go_out(squad: MemorySquad) -> None:
    _, post, running = await pursue(squad, turn(send("a", "hello")), FINISH)

    question = await asked(squad)
    await squad.answer(question.query_id, {"arguments": {"text": "dear all"}}, by="ana")

    assert (await running).ok
    assert post.sent == ["dear all"]


async def test_a_no_is_told_to_the_model_with_its_reason(squad: MemorySquad) -> None:
    supervisor, post, running = await pursue(squad, turn(send("a", "hello")), FINISH)

    question = await asked(squad)
    await squad.answer(question.query_id, "too early", action="decline", by="ana")

    assert (await running).ok
    assert post.sent == []
    told = supervisor.model.seen[-1].messages[-1]
    assert told.is_error
    assert "a person said no: too early" in told.content


async def test_always_holds_for_this_run_and_topic(squad: MemorySquad) -> None:
    _, post, running = await pursue(squad, turn(send("a", "one")), turn(send("b", "two")), FINISH)

    question = await asked(squad)
    await squad.answer(question.query_id, {"always": True}, by="ana")

    assert (await running).ok
    assert post.sent == ["one", "two"]


async def test_a_run_may_trust_what_a_card_wants_approved_or_want_more(squad: MemorySquad) -> None:
    _, post, running = await pursue(squad, turn(send("a", "one")), FINISH, trust=["post.*"])

    assert (await running).ok
    assert post.sent == ["one"]


async def test_the_model_asks_a_person_and_goes_on_with_the_answer(squad: MemorySquad) -> None:
    question = ToolCall("q", "ask_person", {"question": "To whom?", "choices": ["Ana", "Ben"]})
    supervisor, _, running = await pursue(squad, turn(question), FINISH)

    found = await asked(squad)
    assert found.question.message == "To whom?"
    await squad.answer(found.query_id, "Ben", by="carl")

    assert (await running).ok
    assert "\nBen\n" in supervisor.model.seen[-1].messages[-1].content


async def test_who_only_waits_for_a_person_frees_the_slot_and_pays_nothing_again(squad: MemorySquad) -> None:
    supervisor, post, running = await pursue(squad, turn(send("a", "hello")), FINISH, FINISH)
    question = await asked(squad)
    await asyncio.sleep(PARK_AFTER_S + 5)

    # There is one slot, and somebody else gets it meanwhile.
    other = await squad.ask("goal.pursue", {"goal": "something else"}, within_s=30)
    assert other.unwrap()["stopped"] == "finished"
    await asyncio.sleep(600)
    await squad.answer(question.query_id, by="ana")

    outcome = await running
    assert outcome.unwrap()["stopped"] == "finished"
    assert (outcome.attempt, post.sent) == (1, ["hello"])
    assert len(supervisor.model.seen) == 3


async def test_nobody_answers_and_the_model_is_told_in_time_to_go_on(squad: MemorySquad) -> None:
    supervisor, post, running = await pursue(squad, turn(send("a", "hello")), FINISH)

    outcome = await running

    assert outcome.unwrap()["stopped"] == "finished"
    assert post.sent == []
    assert "nobody answered in time" in supervisor.model.seen[-1].messages[-1].content
    assert await squad.questions() == []


async def test_a_run_that_ends_otherwise_withdraws_its_questions(squad: MemorySquad) -> None:
    _, _, running = await pursue(
        squad, turn(send("a", "hello"), ToolCall("q", "ask_person", {"question": "Who?"})), gather={"after": 1}
    )
    await asked(squad)
    run = (await Runs(squad._wiring.ports).list())[0]
    await Runs(squad._wiring.ports).cancel(run.run)

    assert (await running).kind == "cancelled"
    assert await squad.questions() == []
