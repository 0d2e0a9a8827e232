"""What goes wrong around runs: parked turns, foreign entries, models that raise, time that is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from squadron import Agent, Budget, Context, Retry, topic
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.runs.loop import SAID_NOTHING
from squadron.actors.thinking.catalog import USUAL_ANSWER
from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn, ToolCall
from squadron.actors.thinking.openai_chat import ChatWire
from squadron.runtime.errors import ConfigError
from squadron.testing import FunctionModel, MemorySquad, now_s
from squadron.testing.scripted_model import ScriptedModel


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


class Muser:
    """A model that thinks without a word."""

    name = "muser:model"

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        await asyncio.sleep(1000)
        return ModelTurn("late")

    async def aclose(self) -> None: ...


async def test_a_call_that_the_deadline_cut_stays_charged_with_what_was_set_aside() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Stuck, model=Muser())
        outcome = await squad.ask("stuck.fails", within_s=60, budget=Budget(tokens=50_000))
        (info,) = await squad.runs.list()

    assert outcome.kind != "result"
    # The longest answer that may have been made, and the question.
    assert USUAL_ANSWER < outcome.spent.tokens <= 50_000
    assert info.tokens == outcome.spent.tokens


class Stuck(LLMAgent):
    """Thinks with a tool that comes to nothing."""

    @tool
    async def work(self) -> str:
        """Work."""
        raise Retry("not yet", after_s=0.0)

    @tool
    async def sleep(self) -> str:
        """Sleep."""
        await asyncio.sleep(100)
        return "slept"

    @topic("stuck.fails")
    async def fails(self, ctx: Context) -> str:
        """Be given up."""
        return await self.think(ctx, "work")

    @topic("stuck.moves_on")
    async def moves_on(self, ctx: Context) -> str:
        """Do without an answer."""
        try:
            return await asyncio.wait_for(self.think(ctx, "sleep"), 5)
        except TimeoutError:
            return "never mind"


@pytest.mark.parametrize(("name", "kind"), [("stuck.fails", "dead_lettered"), ("stuck.moves_on", "result")])
async def test_a_run_whose_task_is_over_does_not_run(name: str, kind: str) -> None:
    def decide(request: ModelRequest) -> ModelTurn:
        return ModelTurn("", (ToolCall("a", request.messages[-1].content, {}),))

    async with MemorySquad() as squad:
        await squad.deploy(Stuck, model=FunctionModel(decide))
        outcome = await squad.ask(name, within_s=900)
        assert outcome.kind == kind

        (info,) = await squad.runs.list()
        assert info.state == (await squad.runs.show(info.run)).info.state == "stale"
        with pytest.raises(ConfigError, match=f"has ended: stale.*squadron dlq redrive {info.task}"):
            await squad.runs.cancel(info.run)
        with pytest.raises(ConfigError, match=f"squadron dlq redrive {info.task}"):
            await squad.resume_run(info.run)


class Thinking(LLMAgent):
    """Thinks."""

    @topic("thinking.do")
    async def do(self, ctx: Context) -> str:
        """Think."""
        return await self.think(ctx, "Well?")


@pytest.mark.parametrize("error", [TimeoutError("socket"), KeyError("choices"), ExceptionGroup("", [OSError()])])
async def test_a_model_that_raises_is_told_as_a_failed_try_and_ends_the_run(error: Exception) -> None:
    asked = list[ModelRequest]()

    def decide(request: ModelRequest) -> ModelTurn:
        asked.append(request)
        raise error

    async with MemorySquad() as squad:
        await squad.deploy(Supervisor, model=FunctionModel(decide, name="openai:gpt-4o"))
        outcome = await squad.run("x", budget=Budget(usd=1.0))
        view = await squad.runs.show((await squad.runs.list())[0].run)

    assert (outcome.kind, view.info.state, view.failures, len(asked)) == ("failed", "failed", 1, 1)
    assert f"gave no answer: openai:gpt-4o raised {type(error).__name__}" in outcome.reason
    # It may have cost something, and both say the same about it.
    assert view.info.usd == pytest.approx(outcome.spent.usd)


async def test_what_a_model_raises_ends_the_task_of_its_handler_without_another_attempt() -> None:
    def decide(request: ModelRequest) -> ModelTurn:
        raise KeyError("choices")

    async with MemorySquad() as squad:
        await squad.deploy(Thinking, model=FunctionModel(decide))
        outcome = await squad.ask("thinking.do")

    assert (outcome.kind, outcome.attempt) == ("failed", 1)
    assert "KeyError: 'choices'" in outcome.reason
    assert "time is up" not in outcome.reason


class Slow(FunctionModel):
    """A model that takes half an hour for an answer."""

    async def think(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelTurn:
        await asyncio.sleep(1800)
        return await super().think(request, on_text)


@pytest.mark.parametrize(("within_s", "in_s"), [(900, 114), (100, 95)])
async def test_an_agent_tells_in_time_that_its_model_gave_no_answer(within_s: float, in_s: float) -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Thinking, model=Slow(lambda _: "hm", name="mine"))
        began = now_s()
        outcome = await squad.ask("thinking.do", within_s=within_s)

        assert outcome.kind == "failed"
        assert "its time is up" in outcome.reason
        assert outcome.spent.rounds == 1
        # Its handler may run for 120 s.
        assert now_s() - began == pytest.approx(in_s, abs=1)
        assert (await squad.runs.list())[0].state == "failed"


class Patient(Agent):
    """Works for long, or has it done and waits for that."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.took_s = 0.0

    @topic("patient.work", run_timeout_s=1000)
    async def work(self) -> None:
        """Work."""
        began = now_s()
        try:
            await asyncio.sleep(500)
        finally:
            self.took_s = now_s() - began
            self.ended.set()

    @topic("patient.wait", run_timeout_s=5)
    async def wait(self, ctx: Context) -> None:
        """Wait for work."""
        await ctx.ask("patient.work")


async def test_what_a_turn_asked_for_stops_when_the_turn_is_stopped_for_its_time() -> None:
    async with MemorySquad() as squad:
        patient = Patient()
        await squad.deploy(patient)
        assert (await squad.ask("patient.wait", within_s=900)).kind == "timed_out"
        await patient.ended.wait()
        assert patient.took_s == pytest.approx(5, abs=2)


class Counted(FunctionModel):
    """A model that is closed once, and not while it is asked."""

    asked, closed = 0, 0

    async def think(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelTurn:
        self.asked += 1
        await asyncio.sleep(1 if request.messages[-1].content == "Well?" else 60)
        assert not self.closed
        return await super().think(request, on_text)

    async def aclose(self) -> None:
        self.closed += 1


class Many(Thinking):
    """Thinks with whatever model it is told."""

    def __init__(self) -> None:
        self.made = dict[str, Counted]()

    def make_model(self, spec: str) -> Counted:
        assert spec not in self.made or self.made[spec].closed
        self.made[spec] = Counted(lambda _: "hm", name=spec)
        return self.made[spec]

    @topic("many.slowly")
    async def slowly(self, ctx: Context) -> str:
        """Think for a minute."""
        return await self.think(ctx, "Slowly.")


async def test_of_the_models_that_tasks_name_those_used_last_stay_open() -> None:
    async with MemorySquad() as squad:
        many = Many()
        await squad.deploy(many)
        slow = asyncio.create_task(squad.ask("many.slowly", model="mine:slow", within_s=300))
        while not (many.made and many.made["mine:slow"].asked):
            await asyncio.sleep(0.1)
        for number in [*range(10), 4, *range(10, 13)]:
            assert (await squad.ask("thinking.do", model=f"mine:{number}")).unwrap() == "hm"
        still = [name for name, model in many.made.items() if not model.closed]
        assert still == ["mine:slow", *(f"mine:{number}" for number in (4, 7, 8, 9, 10, 11, 12))]
        assert (await slow).unwrap() == "hm"

    assert {model.closed for model in many.made.values()} == {1}
    assert many.made["mine:4"].asked == 2


class Lingering(Agent):
    """Does something at once, and something else later."""

    @topic("lingering.now")
    async def now(self) -> str:
        """At once."""
        return "now"

    @topic("lingering.later")
    async def later(self) -> str:
        """In a while."""
        await asyncio.sleep(3)
        return "later"


class Looking(LLMAgent):
    """Looks."""

    @tool
    async def look(self, page: int) -> str:
        """Look at a page."""
        return f"page {page}"

    @topic("looking.do")
    async def do(self, ctx: Context) -> str:
        """Look."""
        return await self.think(ctx, "Well?")


@pytest.mark.parametrize("blocks", [(), ({"type": "reasoning_content", "text": "hm"},)])
async def test_calls_that_a_server_numbers_anew_in_each_turn_are_told_apart(
    blocks: tuple[dict[str, Any], ...],
) -> None:
    def looks(*pages: int) -> ModelTurn:
        calls = tuple(ToolCall("functions.look:0", "look", {"page": page}) for page in pages)
        return ModelTurn("", calls, blocks=blocks, model="scripted:test")

    with ScriptedModel([looks(1, 2), looks(3), "done"]) as model:
        async with MemorySquad() as squad:
            await squad.deploy(Looking, model=model)
            assert (await squad.ask("looking.do")).ok

    messages = model.seen[-1].messages
    calls = {call.id: call.arguments["page"] for message in messages for call in message.tool_calls}
    told = {message.tool_call_id: message.content for message in messages if message.role == "tool"}
    assert list(calls.values()) == [1, 2, 3]
    assert all(f"page {page}" in told[id] for id, page in calls.items())
    ids = [each["id"] for said in chat_body(messages) for each in said.get("tool_calls", ())]
    assert len(set(ids)) == 3


def chat_body(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    body = ChatWire(is_official=False).body("m", "scripted:test", ModelRequest(tuple(messages)), None)
    said: list[dict[str, Any]] = body["messages"]
    return said


NOTHING_SAID = ModelTurn(" \n")


@pytest.mark.parametrize("said", ["done", NOTHING_SAID])
async def test_a_turn_that_says_nothing_is_no_answer_and_is_told_so_once(said: str | ModelTurn) -> None:
    look = ModelTurn("", (ToolCall("a", "looking__do", {}),))
    model, page = ScriptedModel([look, NOTHING_SAID, said]), FunctionModel(lambda _: ModelTurn("page 1"))
    async with MemorySquad() as squad:
        await squad.deploy(Looking, model=page)
        await squad.deploy(Supervisor, model=model)
        report = (await squad.ask("goal.pursue", {"goal": "look", "topics": ["looking.*"]}, within_s=900)).unwrap()

    model.finish()
    assert model.seen[-1].messages[-1].content == SAID_NOTHING
    if said == "done":
        assert (report["stopped"], report["answer"]) == ("finished", "done")
    else:
        assert report["stopped"] == "model"
        assert "the model gave no answer: it said nothing. 1 results gathered" in report["answer"]
        assert list(report["deliverables"].values()) == ["page 1"]


async def test_a_turn_that_said_nothing_while_calls_ran_was_not_told_so() -> None:
    both = ModelTurn("", (ToolCall("a", "lingering__now", {}), ToolCall("b", "lingering__later", {})))
    model = ScriptedModel([both, NOTHING_SAID, NOTHING_SAID, "done"])
    async with MemorySquad() as squad:
        await squad.deploy(Lingering)
        await squad.deploy(Supervisor, model=model)
        goal = {"goal": "look", "topics": ["lingering.*"], "gather": {"after": 1}}
        report = (await squad.ask("goal.pursue", goal, within_s=900)).unwrap()

    model.finish()
    assert [SAID_NOTHING in request.messages[-1].content for request in model.seen] == [False, False, False, True]
    assert (report["stopped"], report["answer"]) == ("finished", "done")


async def test_an_answer_that_was_cut_before_its_first_word_hands_over_what_was_gathered() -> None:
    look = ModelTurn("", (ToolCall("a", "looking__do", {}),))
    model = ScriptedModel([look, ModelTurn("", stop="length")])
    async with MemorySquad() as squad:
        await squad.deploy(Looking, model=FunctionModel(lambda _: ModelTurn("page 1")))
        await squad.deploy(Supervisor, model=model)
        report = (await squad.ask("goal.pursue", {"goal": "look", "topics": ["looking.*"]}, within_s=900)).unwrap()

    assert report["stopped"] == "length"
    assert list(report["deliverables"].values()) == ["page 1"]


async def test_an_agent_whose_model_says_nothing_twice_has_no_answer() -> None:
    model = ScriptedModel([NOTHING_SAID, "yes", NOTHING_SAID, NOTHING_SAID])
    async with MemorySquad() as squad:
        await squad.deploy(Thinking, model=model)
        first, second = await squad.ask("thinking.do"), await squad.ask("thinking.do")

    model.finish()
    assert first.unwrap() == "yes"
    assert (second.kind, "gave no answer: it said nothing" in second.reason) == ("failed", True)
