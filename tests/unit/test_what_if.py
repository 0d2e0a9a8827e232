"""A recorded run that goes on otherwise: what is recorded comes from there, and nothing else happens unasked."""

from __future__ import annotations

from typing import Any

import pytest

from squadron import ModelTurn, Supervisor
from squadron.actors.runs.entries import Started
from squadron.replay.past_runs import PastRun
from squadron.runtime.errors import ConfigError
from squadron.testing import MemorySquad, ScriptedModel, replay
from tests.unit.test_replay import PLAN, call


class Names:
    """A squad in which names are listed, and a run there."""

    def __init__(self, squad: MemorySquad, asked: list[Any], run: PastRun) -> None:
        self.squad, self.asked, self.run = squad, asked, run


async def listed(squad: MemorySquad, *turns: Any, **how: Any) -> Names:
    """A run that the planner thinks, or a model by a script."""
    script = await squad.script("names.list", ["ray"], ["skate"], ["eel"], description="List all names.")
    if turns:
        await squad.deploy(Supervisor, model=ScriptedModel(turns))
        report = (await squad.run("list the names", **how)).unwrap()
    else:
        report = (await squad.run("list the names", plan=PLAN, **how)).unwrap()
    return Names(squad, script.asked, await squad.runs.get(report["run"]))


async def test_another_model_gets_the_recorded_outcomes_and_nobody_is_asked() -> None:
    async with MemorySquad() as squad:
        names = await listed(squad)
        model = ScriptedModel([call("x", "names__list"), "Two fish."])
        other = await names.run.replay(models=[model])
        assert model.seen[0].messages[-1].content == "list the names"
        assert "ray" in model.seen[1].messages[-1].content
        assert len(names.asked) == 1
        assert "+answer: Two fish." in names.run.diff(other)
        # What was changed stands with it, and it is a run as any other.
        header = other.recording.header
        assert header.replay["of"] == names.run.recording.header.run
        assert other.recording.main.started.terms["replay"] == header.replay
        assert (await other.replay()).equal


async def test_what_is_not_recorded_is_refused_or_goes_out_if_that_is_allowed() -> None:
    async with MemorySquad() as squad:
        names = await listed(squad)
        turns = [call("x", "names__list", more=True), "Done."]
        refused = ScriptedModel(turns)
        await names.run.replay(models=[refused])
        assert "may call nothing live" in refused.seen[1].messages[-1].content
        assert len(names.asked) == 1
        allowed = ScriptedModel(turns)
        await names.run.replay(models=[allowed], live=True)
        assert "skate" in allowed.seen[1].messages[-1].content
        assert names.asked[1] == {"more": True}
        with pytest.raises(ConfigError, match="no squad"):
            await PastRun(names.run.recording).replay(models=[ScriptedModel(turns)], live=True)


async def test_the_same_question_has_as_many_answers_as_it_was_asked() -> None:
    async with MemorySquad() as squad:
        twice = ModelTurn("", (*call("a", "names__list").tool_calls, *call("b", "names__list").tool_calls))
        names = await listed(squad, twice, "Two.")
        thrice = [call("x", "names__list"), call("y", "names__list"), call("z", "names__list"), "Three."]
        model = ScriptedModel(thrice)
        await names.run.replay(models=[model])
        told = [request.messages[-1].content for request in model.seen[1:]]
        assert ["ray" in told[0], "skate" in told[1], "may call nothing live" in told[2]] == [True] * 3


async def test_it_stands_up_to_a_round_and_goes_on_from_there() -> None:
    async with MemorySquad() as squad:
        names = await listed(squad, call("a", "names__list"), call("b", "names__list", n=2), "Two.")
        model = ScriptedModel(["One will do."])
        other = await names.run.replay(models=[model], from_round=2)
        assert [message.role for message in model.seen[0].messages] == ["system", "user", "assistant", "tool"]
        before, after = names.run.recording.main.entries, other.recording.main.entries
        # `Started` says what it is a replay of.
        kept = [entry for entry in before if entry in after]
        assert [entry.kind for entry in kept][:3] == ["epoch", "offered", "asking"]
        assert len(names.asked) == 2


async def test_an_outcome_may_be_another() -> None:
    async with MemorySquad() as squad:
        names = await listed(squad, call("a", "names__list"), "Ray.")
        model = ScriptedModel(["Trout."])
        other = await names.run.replay(models=[model], outcomes={"r1c1": ["trout"]})
        assert "trout" in model.seen[0].messages[-1].content
        failing = ScriptedModel(["None."])
        await names.run.replay(models=[failing], outcomes={"r1c1": {"failed": "out of fish"}})
        assert failing.seen[0].messages[-1].is_error
        assert "out of fish" in failing.seen[0].messages[-1].content
        assert (await other.replay()).equal


async def test_goal_prompt_and_gather_change_it_from_the_beginning() -> None:
    async with MemorySquad() as squad:
        names = await listed(squad)
        model = ScriptedModel(["Yes."])
        other = await names.run.replay(
            models=[model], goal="count the names", prompt="Be brief.", gather={"after": 1}, max_rounds=4
        )
        assert [message.content for message in model.seen[0].messages] == ["Be brief.", "count the names"]
        started = next(entry for entry in other.recording.main.entries if isinstance(entry, Started))
        assert (started.title, started.gather.after) == ("count the names", 1)
        assert started.terms["replay"]["changes"]["max_rounds"] == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"from_round": 9}, "has no round 9"),
        ({"outcomes": {"r7c1": 1}}, "no call 'r7c1'"),
        ({"outcomes": {"r1c1/5": 1}}, "no task that has ended"),
        ({"outcomes": {"r1c1": 1}, "from_round": 3}, "has no round 3"),
        ({"goal": "another", "from_round": 2}, "known in round 1"),
        ({"model": "nobody:knows"}, "names no model"),
    ],
)
async def test_a_change_that_does_not_fit_is_told_so(changes: Any, says: str) -> None:
    async with MemorySquad() as squad:
        names = await listed(squad)
        with pytest.raises(ConfigError, match=says) as raised:
            await names.run.replay(**changes)
        assert raised.value.hint


async def test_the_old_run_is_not_touched() -> None:
    async with MemorySquad() as squad:
        names = await listed(squad)
        info = await squad.runs.find(names.run.recording.header.run)
        await names.run.replay(models=[ScriptedModel(["No."])], live=True)
        await names.run.replay()
        assert await squad.runs.find(info.run) == info
        assert len(await squad.runs.list()) == 1
        replay(names.run.recording)
