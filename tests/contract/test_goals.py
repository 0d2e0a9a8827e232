"""A goal over both worlds: given up and put back, and told by models that say what no wire carries."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from squadron.actors.agent import Agent
from squadron.actors.marks import topic
from squadron.actors.model import ChatMessage, Model, ModelTurn, ToolCall
from squadron.actors.planner import Plan
from squadron.actors.scripted import ScriptedModel
from squadron.actors.supervisor import Supervisor
from squadron.runtime.caller import Ask
from squadron.runtime.letters import DeadLetters
from squadron.runtime.outcome import DeadLettered
from tests.contract.conftest import SOON_S, Peer, Serve, World, until


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

    def _think(self, messages: Sequence[ChatMessage], _: Any) -> ModelTurn:
        if messages[-1].role == "user":
            return ModelTurn("I count.", (ToolCall("c", "words__count", {"text": "one two three"}),))
        if self.broken:
            raise RuntimeError("this model is out of its mind")
        end = {"answer": "three", "deliverables": {"n": {"$from": "c"}}}
        return ModelTurn("", (ToolCall("f", "finish", end),))


async def _redrive(world: World, peer: Peer, id: str) -> None:
    """As a person does it; in memory there is no server that another process could come to."""
    if world.settings is None:
        await DeadLetters(peer.dead, peer.queue, peer.claims, peer.subjects, peer.clock).redrive(id)
        return
    command = (str(Path(sys.executable).with_name("squadron")), "dlq", "redrive", id, "--json")
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | world.settings.environ(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert json.loads(out) == {"redriven": [id], "left": {}}


async def test_a_goal_that_was_given_up_and_put_back_runs_anew_and_gives_its_answer(
    world: World, peer: Peer, serve: Serve
) -> None:
    # Given a run that breaks in its second turn, in each attempt
    words, supervisor = Words(), Thinker()
    await serve(words, name="words")
    await serve(supervisor)
    asked = Ask(task_id="goal-1", within_s=120.0)
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
    assert not any(event.get("replayed") for event in report["timeline"])
    assert words.asked == ["one two three"] * 2
    assert await DeadLetters(peer.dead, peer.queue, peer.claims, peer.subjects, peer.clock).list() == ()
