"""Runs of a squad that is up, on a real server, replayed: as they were, and otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from squadron import Agent, Context, LLMAgent, ModelTurn, Squad, Supervisor, ToolCall, tool, topic
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ModelError
from squadron.testing import ScriptedModel, replay
from tests.contract import command
from tests.contract.conftest import ON_NATS, Serve, World


class Clerk(Agent):
    """Knows the names of things."""

    def __init__(self) -> None:
        self.asked = list[str]()

    @topic("names.list")
    async def all(self, kind: str) -> list[str]:
        """List all names of a kind."""
        self.asked.append(kind)
        return {"fish": ["ray", "skate"]}.get(kind, [])


class Wizard(LLMAgent):
    """You know everything."""

    name: ClassVar[str] = "wizard"
    looked: ClassVar[list[str]] = []

    @topic("wisdom.tell")
    async def tell(self, ctx: Context, question: str) -> str:
        """Answer a question."""
        return await self.think(ctx, question)

    @tool
    async def look_up(self, word: str) -> str:
        """Look a word up."""
        self.looked.append(word)
        return f"{word} is a word"

    def make_model(self, spec: str) -> Any:
        return ScriptedModel([call("b", "look_up", word="why"), "It is so."])


class Boss(Supervisor):
    """A supervisor with a script."""

    name: ClassVar[str] = "supervisor"

    def make_model(self, spec: str, plan: Any) -> Any:
        calls = (
            ToolCall("a", "names__list", {"kind": "fish"}),
            ToolCall("w", "wisdom__tell", {"question": "why?"}),
        )
        busy = ModelError("busy", kind="passing", retry_after_s=0.01)
        return ScriptedModel([busy, ModelTurn("", calls), "Ray, so."])


def call(id: str, name: str, **arguments: Any) -> ModelTurn:
    return ModelTurn("", (ToolCall(id, name, arguments),))


async def ran(wiring: Wiring) -> str:
    asked = {"goal": "which fish, and why?", "topics": ["names.*", "wisdom.*"]}
    outcome = await wiring.caller.ask("goal.pursue", asked, AskOptions(within_s=60.0))
    return str(outcome.unwrap()["run"])


@ON_NATS
async def test_a_run_of_a_squad_that_is_up_is_replayed_as_it_was_and_otherwise(
    world: World, serve: Serve, tmp_path: Path
) -> None:
    clerk = Clerk()
    wiring = (await serve(clerk)).peer.place
    assert isinstance(wiring, Wiring)
    await serve(Wizard())
    await serve(Boss())
    # Given a run, with that of an agent that it called
    Wizard.looked.clear()
    run = await ran(wiring)
    log = [entry async for entry in wiring.ports.runs.read(wiring.ports.subjects.run(run))]
    # When it is replayed as it was, by the command and in Python
    code, out, err = await command.run(wiring, "replay", run, "--json")
    assert (code, [each["equal"] for each in json.loads(out)]) == (0, [True, True]), (out, err)
    squad = await Squad.connect(wiring.settings)
    try:
        past = await squad.runs.get(run)
        assert (await past.replay()).equal
        # What if another model is asked from the second round on: the first stands, and its results are there
        model = ScriptedModel(["Skate, then."])
        other = await past.replay(models=[model], from_round=2)
        assert [message.role for message in model.seen[0].messages][:3] == ["system", "user", "assistant"]
        assert "skate" in model.seen[0].messages[3].content
        assert "+answer: Skate, then." in past.diff(other)
        assert other.diff(other) == ""
        # What if a call had come out otherwise
        failing = ScriptedModel(["Nobody knows."])
        other = await past.replay(models=[failing], outcomes={"r1c1": {"failed": "the clerk is ill"}})
        assert "the clerk is ill" in str(failing.seen[0].messages)
        assert "the clerk is ill" in past.diff(other)
        assert (await other.replay()).equal
        # All that asked nobody anew, and nobody touched the run
        assert (clerk.asked, Wizard.looked) == (["fish"], ["why"])
        # With leave it goes out to the agents that are up
        curious = ScriptedModel([call("c", "names__list", kind="birds"), "None."])
        await past.replay(models=[curious], from_round=2, live=True)
        assert clerk.asked == ["fish", "birds"]
        assert [entry async for entry in wiring.ports.runs.read(wiring.ports.subjects.run(run))] == log
    finally:
        await squad.aclose()
    # By the command, side by side; what it writes is a run as any other, and a test
    file, otherwise = tmp_path / "run.jsonl", tmp_path / "new.jsonl"
    assert (await command.run(wiring, "runs", "export", run, "-o", str(file)))[0] == 0
    replay(file)
    how = ("--model", "offline", "--outcome", 'r1c1=["trout"]', "--out", str(otherwise))
    code, out, err = await command.run(wiring, "replay", run, *how)
    assert code == 0, err
    assert "recorded: run-" in out
    assert "trout" in out
    replay(otherwise)
