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
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import Query
from squadron.actors.runs.loop import PARK_AFTER_S
from squadron.actors.runs.queries import Queries
from squadron.actors.runs.shelf import Runs
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall
from squadron.runtime.asking.answering import OpenQuestion
from squadron.runtime.running.context import Context
from squadron.testing import FunctionModel, MemorySquad, now_s
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


async def test_a_call_that_the_model_wants_no_more_does_not_go_out_whatever_a_person_says_then(
    squad: MemorySquad,
) -> None:
    supervisor, post, running = await pursue(
        squad,
        turn(send("a", "hello"), ToolCall("q", "ask_person", {"question": "Who?"})),
        turn(ToolCall("c", "cancel_calls", {"calls": ["a"]})),
        FINISH,
        gather={"after": 1},
    )
    questions = {}
    while len(questions) < 2:
        await asyncio.sleep(0.1)
        questions = {each.question.kind: each for each in await squad.questions()}
    await squad.answer(questions["question"].query_id, "me", by="ana")

    assert (await running).unwrap()["stopped"] == "finished"
    assert post.sent == []
    assert await squad.questions() == []
    told = [message.content for message in supervisor.model.seen[-1].messages]
    assert any("ended as cancelled" in each for each in told)


async def test_a_run_that_is_parked_goes_on_when_its_own_time_has_come(squad: MemorySquad) -> None:
    both = turn(send("a", "hello"), ToolCall("q", "ask_person", {"question": "Who?"}))
    supervisor, _, running = await pursue(
        squad, both, FINISH, trust=["post.*"], gather={"after": "all", "within_s": 60}
    )
    await asked(squad)
    started = now_s()

    assert (await running).unwrap()["stopped"] == "finished"
    # One end is enough after a minute; the person has most of an hour.
    assert 50 < now_s() - started < 120
    assert "waits for a person" in supervisor.model.seen[-1].messages[-1].content


async def test_nobody_is_asked_for_what_could_not_go_out(squad: MemorySquad) -> None:
    wrong = ToolCall("a", "post__send", {"no": "such field"})
    nothing = ToolCall("b", "for_each", {"topic": "post.send", "items": []})
    supervisor, post, running = await pursue(squad, turn(wrong, nothing), FINISH)

    assert (await running).unwrap()["stopped"] == "finished"
    assert post.sent == []
    first, second = supervisor.model.seen[-1].messages[-2:]
    assert (first.is_error, second.is_error) == (True, False)


BLANK = turn(ToolCall("q", "ask_person", {"question": " \n"}))


async def test_a_question_without_words_is_told_to_the_model_and_nobody_is_asked(squad: MemorySquad) -> None:
    supervisor, _, running = await pursue(squad, BLANK, FINISH)

    report = (await running).unwrap()
    assert report["stopped"] == "finished"
    assert "asked" not in {event["event"] for event in report["timeline"]}
    told = supervisor.model.seen[-1].messages[-1]
    assert told.is_error
    assert "a question has words" in told.content


async def test_a_stored_question_that_can_not_be_asked_does_not_end_its_run(
    squad: MemorySquad, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(self: Queries, call: Call, *, approval: bool = False, deadline_ms: int) -> Query:
        return Query(at=now_s(), call=call.id, query=f"of-{call.id}", approval=approval, deadline_ms=deadline_ms)

    monkeypatch.setattr(Queries, "entry", unchecked)
    supervisor, _, running = await pursue(squad, BLANK, FINISH)

    assert (await running).unwrap()["stopped"] == "finished"
    assert "a question has words" in supervisor.model.seen[-1].messages[-1].content


async def test_of_many_items_those_that_can_not_be_made_are_not_put_to_a_person(squad: MemorySquad) -> None:
    items = [{"text": "one"}, {"to": "nobody"}]
    each = ToolCall(
        "e", "for_each", {"topic": "post.send", "items": items, "arguments": {"text": {"$item": "/text"}}}
    )
    _, post, running = await pursue(squad, turn(each), FINISH)

    question = await asked(squad)
    assert question.question.proposal is not None
    assert question.question.proposal.arguments == [{"text": "one"}]
    await squad.answer(question.query_id, by="ana")

    assert (await running).ok
    assert post.sent == ["one"]


async def test_a_run_that_goes_on_is_held_to_what_it_was_told(squad: MemorySquad) -> None:
    _, post, running = await pursue(
        squad, turn(), turn(send("a", "hello")), FINISH, approve=["*.*"], topics=["post.*"], max_rounds=1
    )
    first = (await running).unwrap()
    going_on = asyncio.create_task(squad.resume_run(first["run"]))

    question = await asked(squad)
    assert post.sent == []
    await squad.answer(question.query_id, by="ana")

    assert (await going_on).unwrap()["stopped"] == "finished"
    assert post.sent == ["hello"]


async def test_a_turn_that_thinks_twice_at_once_is_not_parked_under_the_other_thought(squad: MemorySquad) -> None:
    class Twin(LLMAgent):
        """You think twice at once."""

        asks = ("post.send",)

        def __init__(self) -> None:
            self.worked = 0

        def make_model(self, spec: str) -> Model:
            return FunctionModel(self.decide)

        def decide(self, request: ModelRequest) -> ModelTurn:
            if request.messages[-1].role == "tool":
                return ModelTurn("done")
            return turn(
                send("s", "hello") if request.messages[-1].content == "send" else ToolCall("w", "work", {})
            )

        @topic("twin.think")
        async def both(self, ctx: Context) -> list[str]:
            """Think two thoughts."""
            return list(await asyncio.gather(self.think(ctx, "send"), self.think(ctx, "work")))

        @tool
        async def work(self) -> str:
            """Work for most of a minute."""
            self.worked += 1
            await asyncio.sleep(50)
            return "worked"

    twin, post = Twin(), Post()
    await squad.deploy(post)
    await squad.deploy(twin)
    running = asyncio.create_task(squad.ask("twin.think", within_s=900))
    question = await asked(squad)
    await asyncio.sleep(30)
    await squad.answer(question.query_id, by="ana")

    assert (await running).unwrap() == ["done", "done"]
    # Nobody took its slot away while it worked.
    assert (twin.worked, post.sent) == (1, ["hello"])
