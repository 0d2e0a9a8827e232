"""A goal over both worlds: given up and put back, and told by models that say what no wire carries."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import Retry
from squadron.runtime.running.context import Context
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.wire.outcome import DeadLettered
from squadron.testing import ScriptedModel
from tests.contract.conftest import SIGNED, SOON_S, Peer, Serve, World, until


class Words(Agent):
    """Counts words."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @topic("words.count")
    async def count(self, text: str) -> int:
        """Count the words of a text."""
        self.asked.append(text)
        return len(text.split())


class Thinker(Supervisor):
    """The supervisor, with a mind that counts first and answers then, unless it is broken."""

    name = "supervisor"

    def __init__(self) -> None:
        self.broken = True

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return ScriptedModel([self._think] * 3)

    def _think(self, request: ModelRequest) -> ModelTurn:
        if request.messages[-1].role == "user":
            return ModelTurn("I count.", (ToolCall("c", "words__count", {"text": "one two three"}),))
        if self.broken:
            raise Retry("this model is out of its mind")
        end = {"answer": "three", "deliverables": {"n": {"$from": "c"}}}
        return ModelTurn("", (ToolCall("f", "finish", end),))


async def _redrive(world: World, peer: Peer, id: str) -> None:
    """As a person does it; in memory there is no server that another process could come to."""
    if world.settings is None:
        operator = await world.join("operator") if SIGNED else peer
        await DeadLetters(operator.ports).redrive(id)
        return
    command = (str(Path(sys.executable).with_name("squadron")), "dlq", "redrive", id, "--json")
    environ = dict(os.environ)

    def keep(name: str, secret: str) -> str:
        environ[f"OF_{name}"] = secret
        return f"env:OF_{name}"

    settings = world.settings if world.settings_of is None else world.settings_of("operator")
    environ |= settings.by_reference(keep).environ()
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert json.loads(out) == {"redriven": [id], "left": {}}


async def test_a_goal_that_was_given_up_and_put_back_goes_on_and_gives_its_answer(
    world: World, peer: Peer, serve: Serve
) -> None:
    # Given a run that breaks in its second turn, in each attempt
    words, supervisor = Words(), Thinker()
    await serve(words, name="words")
    await serve(supervisor)
    asked = AskOptions(task_id="goal-1", within_s=120.0)
    handle = await peer.caller.submit("goal.pursue", {"goal": "count the words"}, asked)
    given_up = await peer.caller.outcome(handle)
    assert isinstance(given_up, DeadLettered)
    assert "out of its mind" in given_up.reason
    assert words.asked == ["one two three"]  # later attempts took over what the first had done

    # When it is put back, and the error is gone
    supervisor.broken = False
    await _redrive(world, peer, "goal-1")

    async def answered() -> bool:
        return (await peer.caller.resume(handle.ticket).outcome()).ok

    await until(answered, 4 * SOON_S)
    report = (await peer.caller.resume(handle.ticket).outcome()).unwrap()
    assert (report["answer"], report["deliverables"], report["stopped"]) == ("three", {"n": 3}, "finished")
    assert report["rounds"] == 2
    assert report["timeline"][-1]["event"] == "finished"
    assert report["attempts"] == 5  # one in which it came further, three in vain, and the last
    # What was done is not done again.
    assert words.asked == ["one two three"]
    assert await DeadLetters(peer.ports).list() == ()


#: Half a surrogate pair, and the other half of it.
HIGH, LOW = "\ud83d", "\ude42"


class Halves:
    """A model that somebody wrote: all that it says has half a surrogate pair in it."""

    name = f"mine:{HIGH}"

    def __init__(self, *turns: ModelTurn) -> None:
        self._turns = list(turns)
        self.seen: list[Sequence[ChatMessage]] = []

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        self.seen.append(request.messages)
        turn = self._turns.pop(0)
        for piece in turn.text:
            assert on_text is not None
            on_text(piece)
        return turn

    async def aclose(self) -> None:
        pass


class Strange(Supervisor):
    """The supervisor with such a model."""

    name = "supervisor"

    def __init__(self, *turns: ModelTurn) -> None:
        self.model = Halves(*turns)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model


class Echo(Agent):
    """Gives back what it gets."""

    @topic("echo.back", tags=["count"])
    async def back(self, it: Any) -> Any:
        """Count on it: what comes goes back."""
        return it


async def test_a_model_of_ones_own_that_says_half_a_surrogate_pair_pursues_its_goal(
    peer: Peer, serve: Serve
) -> None:
    odd = {"it": {f"k{HIGH}": [f"a{HIGH}", f"{HIGH}{LOW}", LOW]}}
    calls = (
        ToolCall(f"c{HIGH}", "echo__back", odd),
        ToolCall("d", f"no{LOW}", {}),
        ToolCall("e", "echo__back", {"it": math.nan}),
    )
    end = {"answer": f"done {HIGH}", "deliverables": {f"n{HIGH}": {"$from": "c\ufffd"}}}
    finish = ToolCall("f", "finish", end)
    strange = Strange(ModelTurn(f"I {HIGH}{LOW} {HIGH}", calls), ModelTurn("", (finish,)))
    await serve(Echo(), name="echo")
    await serve(strange)
    handle = await peer.caller.submit("goal.pursue", {"goal": "count"}, AskOptions(within_s=60.0))

    events = [event async for event in handle.chunks()]

    report = (await peer.caller.outcome(handle)).unwrap()
    assert report["answer"] == "done \ufffd"
    assert report["deliverables"] == {"n\ufffd": {"k\ufffd": ["a\ufffd", "🙂", "\ufffd"]}}
    assert "".join(event["delta"] for event in events if event["event"] == "text") == "I 🙂 \ufffd"
    thought = next(event for event in events if event["event"] == "thought")
    assert thought["text"] == "I 🙂 \ufffd"
    told = {message.tool_call_id: message.content for message in strange.model.seen[1] if message.role == "tool"}
    assert "there is no tool 'no\ufffd'" in told["d"]
    assert "not finite" in told["e"]


class Poet(LLMAgent):
    """Writes with such a model, and has tools of the same kind."""

    def __init__(self, *turns: ModelTurn) -> None:
        self.model = Halves(*turns)

    def make_model(self, spec: str) -> Model:
        return self.model

    @tool
    def rhyme(self, word: str) -> str:
        """Find a rhyme."""
        return f"{word}{HIGH}"

    @tool
    async def look_up(self, word: str) -> dict[str, Any]:
        """Look a word up."""
        return {f"k{LOW}": word}

    @tool
    def fail(self, word: str) -> str:
        """Fail."""
        raise ValueError(f"no {word}{HIGH}")

    @topic("poem.write")
    async def write(self, about: str, ctx: Context) -> dict[str, Any]:
        """Write a poem."""
        text = await self.think(ctx, f"{about}{HIGH}")
        return {"text": text, "again": await self.think_as(ctx, "again", list[str])}


async def test_an_agent_that_thinks_with_such_a_model_answers_remembers_and_uses_its_tools(
    peer: Peer, serve: Serve
) -> None:
    names = ("rhyme", "look_up", "fail")
    calls = tuple(ToolCall(f"{name}{HIGH}", name, {"word": f"w{HIGH}"}) for name in names)
    poet = Poet(ModelTurn("", calls), ModelTurn(f"roses{HIGH}"), ModelTurn(f'["x{HIGH}"]'))
    await serve(poet)
    asked = AskOptions(within_s=60.0, conversation_id="one", model="mine:one")
    handle = await peer.caller.submit("poem.write", {"about": "roses"}, asked)

    chunks = [chunk async for chunk in handle.chunks()]

    assert (await peer.caller.outcome(handle)).unwrap() == {"text": "roses\ufffd", "again": ["x\ufffd"]}
    assert "".join(chunks) == "roses\ufffd"
    told = [message.content for message in poet.model.seen[1] if message.role == "tool"]
    expected = ["w\ufffd\ufffd", '{"k\ufffd": "w\ufffd"}', "ValueError: no w\ufffd\ufffd"]
    assert all(f"\n{words}\n</untrusted-" in content for words, content in zip(expected, told, strict=True))
    # What was said is remembered, and comes before what is said next.
    remembered = [message.content for message in poet.model.seen[2]]
    assert remembered[-3:] == ["roses\ufffd", "roses\ufffd", "again"]
