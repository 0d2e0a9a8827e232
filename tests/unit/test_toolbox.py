"""What a run offers: in an order that grows, with room for what is used, and honest about the rest."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.runs.toolbox import MAX_OFFERED, Toolbox
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall
from squadron.runtime.wire.topics import SemanticTopic
from squadron.testing import MemorySquad
from squadron.testing.scripted_model import ScriptedModel


def cards(prefix: str, count: int) -> list[SemanticTopic]:
    return [SemanticTopic(name=f"{prefix}.t{number}", input_schema={}) for number in range(count)]


def test_what_was_never_called_makes_room_the_oldest_first_and_what_was_called_stays() -> None:
    toolbox = Toolbox()
    toolbox.offer(cards("old", MAX_OFFERED))
    toolbox.use("old__t0")
    # By its own name, as a for_each may call it.
    toolbox.use("old.t2")

    toolbox.offer(cards("new", 2))

    assert "old.t1" not in toolbox.topics
    assert "old.t3" not in toolbox.topics
    assert toolbox.topics[:2] == ["old.t0", "old.t2"]
    assert toolbox.topics[-2:] == ["new.t0", "new.t1"]
    assert len(toolbox.topics) == MAX_OFFERED


def test_of_what_is_found_at_once_the_best_have_the_room_that_there_is() -> None:
    toolbox = Toolbox()
    toolbox.offer(cards("old", MAX_OFFERED))
    for number in range(MAX_OFFERED - 2):
        toolbox.use(f"old__t{number}")

    toolbox.offer(cards("new", 5))

    assert toolbox.topics[-2:] == ["new.t0", "new.t1"]
    assert len(toolbox.topics) == MAX_OFFERED


class Many(Agent):
    """Serves any number of topics."""

    @topic("many.*")
    async def any(self, n: int = 0) -> int:
        """Count one of many."""
        return n


class Rare(Agent):
    """Found late."""

    @topic("rare.bird", tags=["ornithology"])
    async def bird(self) -> str:
        """Watch a bird."""
        return "a bird"


class Scripted(Supervisor):
    """The supervisor, with a script for a mind."""

    name = "supervisor"

    def __init__(self, *turns: Any) -> None:
        self.model = ScriptedModel(turns)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        yield made


async def test_discover_says_what_there_is_no_room_for(squad: MemorySquad) -> None:
    await squad.deploy(Many, Rare)
    names = [f"many.t{number}" for number in range(MAX_OFFERED)]

    def call_all(request: ModelRequest) -> ModelTurn:
        offered = [tool.name for tool in request.tools if tool.name.startswith("many__")]
        assert len(offered) == MAX_OFFERED
        calls = [ToolCall(f"c{n}", name, {"n": n}) for n, name in enumerate(offered)]
        return ModelTurn("", tuple(calls))

    discover = ModelTurn("", (ToolCall("d", "discover_topics", {"intent": "watch a bird"}),))
    supervisor = Scripted(call_all, discover, ModelTurn("done"))
    await squad.deploy(supervisor)

    outcome = await squad.ask("goal.pursue", {"goal": "count", "topics": [*names, "rare.bird"]}, within_s=60)

    assert outcome.ok, outcome
    told = supervisor.model.seen[2].messages[-1].content
    (entry,) = [each for each in json.loads(told.split("\n")[2]) if "not_offered" in each]
    assert entry["not_offered"] == ["rare.bird"]
    assert "all 64 places are taken by tools that you called" in entry["why"]
