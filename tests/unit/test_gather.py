"""When the model is asked again while calls run: it hears what there is, and decides by it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall
from squadron.runtime.wire.outcome import Rejected, Result
from squadron.testing import MemorySquad
from squadron.testing.scripted_model import ScriptedModel, ScriptedTurn


class Slow(Agent):
    """Answers when it is let."""

    slots = 8

    def __init__(self) -> None:
        self.free: dict[str, asyncio.Event] = {}
        self.stopped = list[str]()
        self.ended = list[str]()

    def let(self, name: str) -> None:
        self.free.setdefault(name, asyncio.Event()).set()

    @topic("slow.answer", tags=["count"])
    async def answer(self, name: str) -> str:
        """Count slowly."""
        try:
            await self.free.setdefault(name, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.stopped.append(name)
            raise
        self.ended.append(name)
        return f"{name} is counted"


class Scripted(Supervisor):
    """The supervisor, with a script for a mind."""

    name = "supervisor"

    def __init__(self, *turns: ScriptedTurn) -> None:
        self.model = ScriptedModel(turns)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model


class Squad(MemorySquad):
    """One with a slow agent and a scripted supervisor."""

    slow: Slow

    async def pursue(self, *turns: ScriptedTurn, **fields: Any) -> tuple[dict[str, Any], Scripted]:
        supervisor = Scripted(*turns)
        await self.deploy(supervisor)
        outcome = await self.ask("goal.pursue", {"goal": "count", "within_s": 60, **fields}, within_s=120)
        assert isinstance(outcome, Result), outcome
        return dict(outcome.data), supervisor


@pytest.fixture
async def squad() -> AsyncIterator[Squad]:
    async with Squad() as made:
        made.slow = Slow()
        await made.deploy(made.slow)
        yield made


def ask(*names: str) -> ModelTurn:
    return ModelTurn("", tuple(ToolCall(name, "slow__answer", {"name": name}) for name in names))


def use(id: str, name: str, **arguments: Any) -> ModelTurn:
    return ModelTurn("", (ToolCall(id, name, arguments),))


def finish(answer: str = "done", **deliverables: Any) -> ModelTurn:
    return use("end", "finish", answer=answer, deliverables=deliverables)


def answers(messages: Sequence[ChatMessage]) -> dict[str, str]:
    return {message.tool_call_id: message.content for message in messages if message.role == "tool"}


def then(let: Callable[[str], None], name: str, turn: ModelTurn) -> ScriptedTurn:
    """The turn, and the one who is waited for is let go with it."""

    def play(request: ModelRequest) -> ModelTurn:
        let(name)
        return turn

    return play


async def test_the_first_of_three_answers_changes_the_course_and_the_rest_is_stopped(squad: Squad) -> None:
    squad.slow.let("b")
    report, supervisor = await squad.pursue(
        ask("a", "b", "c"), finish("b was enough", b={"$from": "b"}), gather={"after": 1}
    )

    assert (report["answer"], report["deliverables"]) == ("b was enough", {"b": "b is counted"})
    shown = answers(supervisor.model.seen[1].messages)
    assert "b is counted" in shown["b"]
    for name in ("a", "c"):
        assert re.fullmatch(
            r"Call r1c[13]-[0-9a-f]{6} is still running\. You will be told what comes of it\.", shown[name]
        )
    # Real tasks were stopped, and none of them came to its end.
    assert sorted(squad.slow.stopped) == ["a", "c"]
    assert squad.slow.ended == ["b"]


async def test_what_ends_later_is_told_as_a_message_of_the_users(squad: Squad) -> None:
    squad.slow.let("a")
    report, supervisor = await squad.pursue(
        ask("a", "b"),
        then(squad.slow.let, "b", use("w", "wait_for", calls=["b"])),
        finish(b={"$from": "b"}),
        gather={"after": 1},
    )

    assert report["deliverables"] == {"b": "b is counted"}
    last = supervisor.model.seen[2].messages
    # Each call was answered behind its turn, and the message stands after all of them.
    assert [message.role for message in last[2:]] == ["assistant", "tool", "tool", "assistant", "tool", "user"]
    assert "is still running" in answers(last)["b"]
    assert "b is counted" in last[-1].content
    assert "<untrusted-" in last[-1].content
    # What was shown before is shown as it was.
    assert last[: len(supervisor.model.seen[1].messages)] == supervisor.model.seen[1].messages


@pytest.mark.parametrize(("after", "heard"), [("quorum", 2), (2, 2), (1, 1), (9, 3), ("all", 3)])
async def test_the_model_is_asked_when_as_many_have_ended_as_it_was_said(
    squad: Squad, after: Any, heard: int
) -> None:
    names = ("a", "b", "c")

    def let_one(request: ModelRequest) -> ModelTurn:
        for number, name in enumerate(names):
            asyncio.get_running_loop().call_later(1.0 + number, squad.slow.let, name)
        return ask(*names)

    _, supervisor = await squad.pursue(let_one, finish(), gather={"after": after})

    shown = answers(supervisor.model.seen[1].messages)
    assert sum("is counted" in text for text in shown.values()) == heard


async def test_after_within_s_one_end_is_enough_and_without_one_it_is_waited_for(squad: Squad) -> None:
    def later(request: ModelRequest) -> ModelTurn:
        # The first one ends long after the time, the second never.
        asyncio.get_running_loop().call_later(10.0, squad.slow.let, "a")
        return ask("a", "b")

    report, supervisor = await squad.pursue(later, finish(), gather={"after": "all", "within_s": 2})

    shown = answers(supervisor.model.seen[1].messages)
    assert "a is counted" in shown["a"]
    assert "is still running" in shown["b"]
    assert 10 <= report["seconds"] < 40
    assert squad.slow.stopped == ["b"]


async def test_a_wait_ends_with_its_time_though_calls_run_on(squad: Squad) -> None:
    squad.slow.let("a")
    report, supervisor = await squad.pursue(
        ask("a", "b", "c"),
        use("w", "wait_for", calls=["b", "c"], most_s=7),
        finish("without them"),
        gather={"after": 1},
    )

    assert report["answer"] == "without them"
    assert report["seconds"] >= 7
    # Nothing new was heard, so nothing is told but that it waited.
    assert supervisor.model.seen[2].messages[-1].role == "tool"


async def test_a_wait_is_over_when_all_that_were_named_have_ended(squad: Squad) -> None:
    squad.slow.let("a")

    def wait(request: ModelRequest) -> ModelTurn:
        # By the ids of the run, too.
        found = {name: re.search(r"r1c\d-[0-9a-f]{6}", text) for name, text in answers(request.messages).items()}
        asyncio.get_running_loop().call_later(1.0, squad.slow.let, "b")
        asyncio.get_running_loop().call_later(3.0, squad.slow.let, "c")
        return use("w", "wait_for", calls=[found["b"][0], "c"])  # type: ignore[index]

    _, supervisor = await squad.pursue(ask("a", "b", "c", "d"), wait, finish(), gather={"after": 1})

    told = supervisor.model.seen[2].messages[-1].content
    assert "b is counted" in told
    assert "c is counted" in told
    assert squad.slow.stopped == ["d"]


async def test_a_call_that_is_not_needed_is_stopped_and_the_others_run_on(squad: Squad) -> None:
    squad.slow.let("a")
    report, supervisor = await squad.pursue(
        ask("a", "b", "c"),
        use("x", "cancel_calls", calls=["b"]),
        then(squad.slow.let, "c", use("w", "wait_for", calls=["c"])),
        finish(c={"$from": "c"}),
        gather={"after": 1},
    )

    assert squad.slow.stopped == ["b"]
    assert report["deliverables"] == {"c": "c is counted"}
    assert report["tasks"]["outcomes"] == {"result": 2, "cancelled": 1}
    heard = "\n".join(message.content for message in supervisor.model.seen[3].messages)
    assert "ended as cancelled" in heard


@pytest.mark.parametrize("tool", ["wait_for", "cancel_calls"])
@pytest.mark.parametrize(("calls", "why"), [(["nobody"], "there is no call 'nobody'"), ([], "field 'calls'")])
async def test_a_call_that_there_is_not_can_be_neither_waited_for_nor_stopped(
    squad: Squad, tool: str, calls: list[str], why: str
) -> None:
    _, supervisor = await squad.pursue(use("x", tool, calls=calls), finish())

    answer = supervisor.model.seen[1].messages[-1]
    assert answer.is_error
    assert why in answer.content


async def test_an_answer_in_words_waits_for_what_runs_and_may_be_changed_by_it(squad: Squad) -> None:
    squad.slow.let("a")
    report, _ = await squad.pursue(
        ask("a", "b"),
        then(squad.slow.let, "b", ModelTurn("so far only a")),
        ModelTurn("a and b"),
        gather={"after": 1},
    )

    assert (report["answer"], report["rounds"]) == ("a and b", 3)


async def test_a_paused_turn_goes_back_as_it_is_and_is_no_answer(squad: Squad) -> None:
    blocks = ({"type": "thinking", "signature": "s"}, {"type": "server_tool_use", "id": "x"})
    paused = ModelTurn("searching", stop="pause", blocks=blocks, model="scripted:test")

    report, supervisor = await squad.pursue(paused, finish("found"))

    assert (report["answer"], report["rounds"]) == ("found", 2)
    assert supervisor.model.seen[1].messages[-1] == ChatMessage(
        "assistant", "searching", blocks=blocks, model="scripted:test"
    )


async def test_the_blocks_of_a_turn_go_back_verbatim(squad: Squad) -> None:
    squad.slow.let("a")
    blocks = ({"type": "thinking", "thinking": "…", "signature": "abc"}, {"type": "tool_use", "id": "a"})
    said = ModelTurn("", ask("a").tool_calls, blocks=blocks, model="scripted:test")

    _, supervisor = await squad.pursue(said, finish())

    assert supervisor.model.seen[1].messages[2].blocks == blocks


@pytest.mark.parametrize("gather", [{"after": 0}, {"after": "some"}, {"within_s": 0}, {"when": 1}])
async def test_a_gather_that_can_not_be_is_rejected(squad: Squad, gather: dict[str, Any]) -> None:
    await squad.deploy(Scripted())

    outcome = await squad.ask("goal.pursue", {"goal": "count", "gather": gather})

    assert isinstance(outcome, Rejected)
    assert "gather" in str(outcome.details["field"])
