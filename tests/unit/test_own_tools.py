"""Tools of an agent's own: what ends them, what they return, and what becomes of them when their replica dies."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, cast

import pytest
from pydantic import AfterValidator

from squadron.actors.decorators import topic
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool, tools_of
from squadron.actors.thinking.model import Attachment, ChatMessage, Model, ModelTurn, ToolCall
from squadron.runtime.calling import Threads
from squadron.runtime.errors import InvalidAgentError, Retry, Terminal
from squadron.runtime.running.context import Context, TurnContext
from squadron.runtime.wire.outcome import Failed
from squadron.testing import MemorySquad
from squadron.testing.scripted_model import ScriptedModel, ScriptedTurn

CHART = Attachment("image/png", data="aGVsbG8=", name="chart.png")
PAGE = Attachment("application/pdf", url="https://example.org/page.pdf")


class Handy(LLMAgent):
    """You use tools."""

    def __init__(self, *turns: ScriptedTurn) -> None:
        self.model = ScriptedModel(turns)
        self.ran: Counter[str] = Counter()
        self.busy = False
        self.began = asyncio.Event()

    def make_model(self, spec: str) -> Model:
        return self.model

    @topic("handy.do")
    async def do(self, text: str, ctx: Context) -> str:
        """Do something."""
        return await self.think(ctx, text)

    @tool
    async def later(self) -> str:
        """Works the second time."""
        self.ran["later"] += 1
        if self.ran["later"] == 1:
            raise Retry("not yet")
        return "now"

    @tool
    async def charge(self, amount: int) -> str:
        """Must not act twice."""
        self.ran["charge"] += 1
        self.began.set()
        if self.busy:
            await asyncio.Event().wait()
        return "charged"

    @tool(may_repeat=True)
    async def read(self) -> str:
        """May be run again."""
        self.ran["read"] += 1
        self.began.set()
        if self.busy:
            await asyncio.Event().wait()
        return "read"

    @tool(within_s=5)
    async def hang(self) -> None:
        """Never comes to an end."""
        await asyncio.Event().wait()

    @tool
    def leave(self) -> None:
        """Exit."""
        sys.exit(3)

    @tool
    async def abandoned(self) -> None:
        """Wait for what is cancelled."""
        waiting = asyncio.ensure_future(asyncio.Event().wait())
        waiting.cancel()
        await waiting

    @tool
    def draw(self) -> Attachment:
        """Draw a chart."""
        return CHART

    @tool
    def scan(self) -> list[Attachment]:
        """Scan all pages."""
        return [CHART, PAGE]

    @tool
    async def give_up(self) -> None:
        """End it all."""
        await self.began.wait()
        raise Terminal("enough of this")


def turn(*names: str, text: str = "", **arguments: Any) -> ModelTurn:
    return ModelTurn(text, tuple(ToolCall(f"{name}-{n}", name, arguments) for n, name in enumerate(names)))


def told(messages: Sequence[ChatMessage]) -> dict[str, ChatMessage]:
    return {message.tool_call_id.partition("-")[0]: message for message in messages if message.role == "tool"}


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        yield made


async def test_a_tool_that_asks_for_a_retry_is_run_again_by_the_next_attempt(squad: MemorySquad) -> None:
    agent = Handy(turn("later"), turn(text="ok"))
    await squad.deploy(agent)

    outcome = await squad.ask("handy.do", {"text": "x"})

    assert outcome.unwrap() == "ok"
    assert agent.ran["later"] == 2
    # The turn that made the call was paid for once, and the model never heard of the failure.
    assert len(agent.model.seen) == 2
    assert "now" in told(agent.model.seen[1].messages)["later"].content


async def test_what_ran_beside_a_retry_is_not_run_again_unless_it_may_be(squad: MemorySquad) -> None:
    class Busy(Handy):
        @tool
        async def again(self) -> str:
            """Asks for a retry once the others run."""
            self.ran["again"] += 1
            if self.ran["again"] == 1:
                await self.began.wait()
                self.busy = False
                raise Retry("not yet")
            return "ok"

    calls = (
        ToolCall("charge-0", "charge", {"amount": 1}),
        ToolCall("read-1", "read"),
        ToolCall("again-2", "again"),
    )
    busy = Busy(ModelTurn("", calls), turn(text="ok"))
    busy.busy = True
    await squad.deploy(busy)

    assert (await squad.ask("handy.do", {"text": "x"})).unwrap() == "ok"

    assert busy.ran == {"charge": 1, "read": 2, "again": 2}
    answers = told(busy.model.seen[1].messages)
    assert answers["charge"].is_error
    assert "it may have acted, so it is not run again" in answers["charge"].content
    assert not answers["read"].is_error
    assert not answers["again"].is_error


@pytest.mark.parametrize(("name", "arguments", "times"), [("charge", {"amount": 1}, 1), ("read", {}, 2)])
async def test_a_tool_whose_replica_died_is_run_again_only_if_it_may_be(
    squad: MemorySquad, name: str, arguments: dict[str, Any], times: int
) -> None:
    first = Handy(turn(name, **arguments))
    first.busy = True
    await squad.deploy(first)
    handle = await squad.submit("handy.do", {"text": "x"})
    await asyncio.wait_for(first.began.wait(), 20)

    await squad.kill(first)
    second = Handy(turn(text="ok"))
    await squad.deploy(second)

    assert (await handle.outcome()).unwrap() == "ok"
    assert first.ran[name] + second.ran[name] == times
    answer = told(second.model.seen[0].messages)[name]
    assert answer.is_error == (times == 1)


async def test_a_tool_that_takes_too_long_is_stopped_and_the_model_told(squad: MemorySquad) -> None:
    agent = Handy(turn("hang"), turn(text="ok"))
    await squad.deploy(agent)

    assert (await squad.ask("handy.do", {"text": "x"})).unwrap() == "ok"

    answer = told(agent.model.seen[1].messages)["hang"]
    assert answer.is_error
    assert "ended as timed_out" in answer.content
    assert "ran longer than its 5 s" in answer.content


@pytest.mark.parametrize(("name", "why"), [("leave", "SystemExit: 3"), ("abandoned", "was cancelled")])
async def test_a_tool_that_exits_or_waits_for_what_is_cancelled_has_failed(
    squad: MemorySquad, name: str, why: str
) -> None:
    agent = Handy(turn(name), turn(text="ok"))
    await squad.deploy(agent)

    assert (await squad.ask("handy.do", {"text": "x"})).unwrap() == "ok"

    answer = told(agent.model.seen[1].messages)[name]
    assert answer.is_error
    assert why in answer.content


async def test_what_a_tool_attaches_reaches_the_model(squad: MemorySquad) -> None:
    agent = Handy(turn("draw", "scan"), turn(text="ok"))
    await squad.deploy(agent)

    assert (await squad.ask("handy.do", {"text": "x"})).unwrap() == "ok"

    answers = told(agent.model.seen[1].messages)
    assert answers["draw"].attachments == (CHART,)
    assert answers["scan"].attachments == (CHART, PAGE)
    assert '["chart.png"]' in answers["draw"].content
    assert CHART.data not in answers["draw"].content


async def test_a_terminal_error_of_a_tool_ends_the_task_with_its_siblings(squad: MemorySquad) -> None:
    calls = (ToolCall("charge-0", "charge", {"amount": 1}), ToolCall("give_up-1", "give_up"))
    agent = Handy(ModelTurn("", calls))
    agent.busy = True
    await squad.deploy(agent)

    outcome = await squad.ask("handy.do", {"text": "x"})

    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempt) == ("enough of this", 1)
    assert len(agent.model.seen) == 1


async def test_the_same_call_with_the_same_end_is_refused_the_third_time(squad: MemorySquad) -> None:
    same = [ModelTurn("", (ToolCall(f"charge-{n}", "charge", {"amount": 1}),)) for n in range(3)]
    agent = Handy(*same, turn(text="ok"))
    await squad.deploy(agent)

    assert (await squad.ask("handy.do", {"text": "x"})).unwrap() == "ok"

    assert agent.ran["charge"] == 2
    refused = agent.model.seen[3].messages[-1]
    assert refused.is_error
    assert "charge was called with exactly these arguments 2 times" in refused.content


@pytest.mark.parametrize("within_s", [0, -1, "5"])
def test_the_time_of_a_tool_is_a_number_above_zero(within_s: Any) -> None:
    with pytest.raises(InvalidAgentError, match="within_s of a tool can't be"):
        tool(within_s=within_s)


async def test_tools_that_ask_for_a_retry_at_once_are_all_run_again(squad: MemorySquad) -> None:
    both = asyncio.Barrier(2)

    class Twins(Handy):
        @tool
        async def one(self) -> str:
            """Works the second time."""
            return await self.work("one")

        @tool
        async def two(self) -> str:
            """Works the second time."""
            return await self.work("two")

        async def work(self, name: str) -> str:
            self.ran[name] += 1
            if self.ran[name] == 1:
                await both.wait()
                raise Retry("not yet")
            return name

    agent = Twins(turn("one", "two"), turn(text="ok"))
    await squad.deploy(agent)

    assert (await squad.ask("handy.do", {"text": "x"})).unwrap() == "ok"

    assert agent.ran == {"one": 2, "two": 2}
    assert not any(answer.is_error for answer in told(agent.model.seen[1].messages).values())


@pytest.mark.parametrize("error", [Retry("not yet"), Terminal("never")])
async def test_what_a_tool_came_to_is_kept_when_another_one_ends_the_attempt_in_that_moment(
    squad: MemorySquad, error: Exception
) -> None:
    class Pair(Handy):
        @tool
        async def second(self) -> str:
            """Ends the first attempt, when the other tool is over."""
            await self.began.wait()
            self.ran["second"] += 1
            if self.ran["second"] == 1:
                raise error
            return "now"

    agent = Pair(ModelTurn("", (ToolCall("c", "charge", {"amount": 1}), ToolCall("s", "second"))), turn(text="ok"))
    await squad.deploy(agent)

    outcome = await squad.ask("handy.do", {"text": "x"})

    assert outcome.ok is isinstance(error, Retry)
    (info,) = await squad.runs.list()
    (first, *_) = (await squad.runs.show(info.run)).rounds
    assert [call.outcomes for call in first.calls if call.name == "charge"] == [{"result": 1}]
    assert agent.ran["charge"] == 1


#: Tool → whether its arguments were read in the thread of the loop.
IN_LOOP: dict[str, bool] = {}


def _note(name: str) -> str:
    IN_LOOP[name] = threading.current_thread() is threading.main_thread()
    return name


class Telling(LLMAgent):
    """You tell."""

    @topic("tell.it")
    async def tell(self, ctx: Context, text: str) -> str:
        """Tell it."""
        return text

    @tool
    async def in_loop(self, name: Annotated[str, AfterValidator(_note)]) -> str:
        """Tell."""
        return name

    @tool
    def beside(self, name: Annotated[str, AfterValidator(_note)]) -> str:
        """Tell."""
        return name


async def test_a_coroutine_is_made_in_the_loop_and_a_plain_function_called_beside_it() -> None:
    ctx = cast("TurnContext", SimpleNamespace(threads=Threads()))
    for spec in tools_of(Telling()):
        name = spec.definition.name
        assert await spec.bound(ctx).run({"name": name}) == name
    assert IN_LOOP == {"in_loop": True, "beside": False}
