"""Recorded runs, replayed: as they were, or not; and the files that they are in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from squadron import Agent, Context, LLMAgent, ModelTurn, Supervisor, ToolCall, tool, topic
from squadron.actors.runs.entries import CallsEnded, Entry, Epoch, Sending, Sent
from squadron.cli.app import app
from squadron.replay.past_runs import PastRun
from squadron.replay.recording import Recording
from squadron.runtime.errors import ModelError, RecordingError
from squadron.testing import MemorySquad, ScriptedModel, replay

DEMO = Path(__file__).parents[1] / "data" / "runs" / "audit.jsonl"
#: It has the shape of a key.
KEY = "sk-planted0123456789"


class Clerk(Agent):
    """Knows the names of things."""

    @topic("names.list")
    async def all(self, kind: str = "") -> list[str]:
        """List all names."""
        return ["ray", "skate", kind]


class Wizard(LLMAgent):
    """You know everything."""

    name: ClassVar[str] = "wizard"

    @topic("wisdom.tell")
    async def tell(self, ctx: Context, question: str) -> str:
        """Answer a question."""
        return await self.think(ctx, question)

    @tool
    async def look_up(self, word: str) -> str:
        """Look a word up."""
        return f"{word}: {KEY}"


class NewWizard(Wizard):
    """You know everything."""

    @tool
    async def look_up(self, word: str, language: str = "en") -> str:
        """Look a word up, in a language."""
        return word


def call(id: str, name: str, **arguments: Any) -> ModelTurn:
    return ModelTurn("", (ToolCall(id, name, arguments),))


PLAN = [
    [{"id": "all", "intent": "list all names"}],
    [{"finish": "Done.", "deliverables": {"all": {"$from": "all"}}}],
]


async def planned() -> Recording:
    """A run of the offline planner."""
    async with MemorySquad() as squad:
        await squad.deploy(Clerk)
        report = (await squad.run("list the names", plan=PLAN)).unwrap()
        return await squad.runs.export(report["run"])


async def nested() -> Recording:
    """A run that calls an agent that thinks, which uses a tool; its first call of the model fails."""
    boss = ScriptedModel(
        [ModelError("busy", kind="passing"), call("a", "wisdom__tell", question=f"why? {KEY}"), "Because."]
    )
    wise = ScriptedModel([call("b", "look_up", word="why"), "It is so."])
    async with MemorySquad() as squad:
        await squad.deploy(Wizard, model=wise)
        await squad.deploy(Supervisor, model=boss)
        report = (await squad.run("ask the wizard", topics=["wisdom.*"])).unwrap()
        return await squad.runs.export(report["run"])


def changed(recording: Recording, change: Any) -> Recording:
    """The recording with each entry of its main run changed."""
    main = recording.main
    messages = tuple(tuple(change(entry) for entry in message) for message in main.messages)
    return replace(recording, runs=(replace(main, messages=messages), *recording.runs[1:]))


# --- as it was -----------------------------------------------------------------------------------------


def test_the_demo_run_that_is_kept_here_is_replayed_without_a_key() -> None:
    (done,) = replay(DEMO)
    assert done.equal
    assert done.entries == done.of == 33
    assert done.state.counts() == {"result": 26}


async def test_a_run_of_the_planner_is_replayed_by_the_planner() -> None:
    (done,) = replay(await planned())
    assert done.state.finished is not None
    assert done.state.finished.value["deliverables"] == {"all": ["ray", "skate", ""]}


async def test_runs_that_were_called_are_replayed_too_and_hold_no_secret(tmp_path: Path) -> None:
    recording = await nested()
    recording.save(tmp_path / "run.jsonl")
    assert KEY not in (tmp_path / "run.jsonl").read_text()
    boss, wizard = replay(tmp_path / "run.jsonl")
    assert (boss.state.started.agent, wizard.state.started.agent) == ("supervisor", "wizard")  # type: ignore[union-attr]
    # What was asked is known to the letter, though secrets were struck out of it.
    asked = [run.requests for run in recording.runs]
    assert asked == [boss.requests, wizard.requests]
    assert [len(each) for each in asked] == [3, 2]


async def test_a_what_if_holds_no_secret_that_it_was_told_or_that_a_model_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2secretvalue")
    past, file = PastRun(await planned()), tmp_path / "new.jsonl"
    told: list[tuple[Any, ModelTurn]] = [
        ({"goal": "list all of hunter2secretvalue"}, ModelTurn("It is done.")),
        ({"outcomes": {"r1c1": ["hunter2secretvalue", KEY]}}, ModelTurn("It is hunter2secretvalue.")),
        ({"outcomes": {"r1c1": {"failed": f"no {KEY}"}}}, call("a", "names__list", kind="hunter2secretvalue")),
    ]
    for change, turn in told:
        model = ScriptedModel([turn, "Done."])
        (await past.replay(models=[model], **change)).save(file)
        # The model itself was told all of it.
        assert KEY in str(model.seen) or "hunter2secretvalue" in str(model.seen)
        assert "[secret]" in file.read_text()
        assert KEY not in file.read_text()
        assert "hunter2secretvalue" not in file.read_text()
        # It is a run as any other, with what was asked.
        replay(file)
        assert Recording.load(file).main.requests


async def test_a_run_that_is_under_way_is_replayed_as_far_as_it_came() -> None:
    whole = await planned()
    main = whole.main
    for count in range(2, len(main.messages)):
        (done,) = replay(replace(whole, runs=(replace(main, messages=main.messages[:count]),)))
        assert done.entries == done.of


# --- otherwise -----------------------------------------------------------------------------------------


async def test_what_the_model_is_asked_otherwise_is_shown_with_both_sides() -> None:
    def change(entry: Entry) -> Entry:
        if isinstance(entry, CallsEnded):
            ends = tuple(end.model_copy(update={"data": ["trout"]}) for end in entry.ends)
            return entry.model_copy(update={"ends": ends})
        return entry

    with pytest.raises(AssertionError) as raised:
        replay(changed(await planned(), change))
    said = str(raised.value)
    assert "round 2, call 2 of the model: the model is asked something else than it was" in said
    assert any(line.startswith("-") and "skate" in line for line in said.splitlines())
    assert any(line.startswith("+") and "trout" in line for line in said.splitlines())


async def test_a_call_that_is_not_recorded_is_shown_and_one_that_is_not_made() -> None:
    def other_topic(entry: Entry) -> Entry:
        if isinstance(entry, Sending):
            calls = tuple(each.model_copy(update={"topic": "names.find"}) for each in entry.calls)
            return entry.model_copy(update={"calls": calls})
        return entry

    recording = await planned()
    with pytest.raises(AssertionError, match=r"(?s)another \'sending\'.*-.*names.find.*\+.*names.list"):
        replay(changed(recording, other_topic))
    main = recording.main
    more = (*main.messages, main.messages[-2])
    with pytest.raises(AssertionError, match="the recording goes on with 'thought', and the code does nothing"):
        replay(replace(recording, runs=(replace(main, messages=more),)))
    called = {Sending, Sent, CallsEnded}
    less = tuple(each for each in main.messages if not called & {type(entry) for entry in each})
    with pytest.raises(AssertionError, match="the code goes on with"):
        replay(replace(recording, runs=(replace(main, messages=less),)))


async def test_tools_of_an_agent_count_as_they_are_now_if_its_class_is_given() -> None:
    recording = await nested()
    replay(recording, Wizard)
    with pytest.raises(AssertionError, match=r"(?s)other tools than it had.*\+.*in a language"):
        replay(recording, NewWizard)


async def test_an_older_log_that_tells_less_is_replayed_as_far_as_that_goes() -> None:
    def older(entry: Entry) -> Entry:
        if isinstance(entry, Epoch):
            return entry.model_copy(update={"grant": {}, "sampling": {}, "tools": ()})
        if isinstance(entry, Sending):
            calls = tuple(each.model_copy(update={"digest": ""}) for each in entry.calls)
            return entry.model_copy(update={"calls": calls})
        return entry

    (done,) = replay(changed(await planned(), older))
    assert done.equal


# --- files ---------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


async def test_a_recording_is_the_same_after_a_file(tmp_path: Path) -> None:
    recording = await nested()
    recording.save(tmp_path / "run.jsonl")
    assert Recording.load(tmp_path / "run.jsonl") == recording


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: lines[:-1], "line 61: .*cut"),
        (lambda lines: [*lines[:5], lines[5].replace("sent", "Sent"), *lines[6:]], "was changed"),
        (lambda lines: ["{}", *lines[1:]], "line 1: no header"),
        (lambda lines: [lines[0].replace('"version":1', '"version":2'), *lines[1:]], "line 1: .*version 2"),
        (lambda lines: [*lines[:-1], "nonsense"], "line 62: no JSON"),
    ],
)
def test_a_file_that_is_no_whole_recording_is_told_so(spoil: Any, says: str, tmp_path: Path) -> None:
    lines = lines_of(DEMO)
    (tmp_path / "bad.jsonl").write_text("\n".join(spoil(lines)))
    with pytest.raises(RecordingError, match=says) as raised:
        Recording.load(tmp_path / "bad.jsonl")
    assert raised.value.hint


def test_an_entry_that_nobody_knows_is_told_with_its_line() -> None:
    import hashlib

    lines = lines_of(DEMO)[:-1]
    entry = json.loads(lines[3])
    entry["entries"][0]["kind"] = "dreamt"
    lines[3] = json.dumps(entry)
    body = "".join(f"{line}\n" for line in lines)
    checksum = json.dumps({"checksum": hashlib.sha256(body.encode()).hexdigest()})
    with pytest.raises(RecordingError, match=r"line 4: entries\.0"):
        Recording.from_jsonl(body + checksum)


def test_a_file_that_is_not_there_is_told_so() -> None:
    with pytest.raises(RecordingError, match="can't be read"):
        Recording.load("nowhere/run.jsonl")


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_ends_with_0_if_it_is_equal_and_with_1_if_not(tmp_path: Path) -> None:
    good = CliRunner().invoke(app, ["replay", str(DEMO)])
    assert (good.exit_code, "equal, 33 entries" in good.stdout) == (0, True)

    def change(entry: Entry) -> Entry:
        if isinstance(entry, Sending):
            calls = tuple(each.model_copy(update={"topic": "names.find"}) for each in entry.calls)
            return entry.model_copy(update={"calls": calls})
        return entry

    changed(Recording.load(DEMO), change).save(tmp_path / "other.jsonl")
    bad = CliRunner().invoke(app, ["replay", str(tmp_path / "other.jsonl"), "--json"])
    assert bad.exit_code == 1
    (told,) = json.loads(bad.stdout)
    assert told["equal"] is False
    assert "names.find" in told["diff"]
    assert CliRunner().invoke(app, ["replay", str(tmp_path / "no.jsonl")]).exit_code == 2


def test_the_command_shows_what_would_be_beside_what_was(tmp_path: Path) -> None:
    out = tmp_path / "new.jsonl"
    how = ["--max-rounds", "2", "--from-round", "2", "--out", str(out)]
    done = CliRunner().invoke(app, ["replay", str(DEMO), *how])
    assert done.exit_code == 0, done.output
    assert "ended: rounds" in done.stdout
    assert "ended: finished" in done.stdout
    header = Recording.load(out).header
    assert header.replay["of"] == Recording.load(DEMO).header.run != header.run
    assert header.replay["mode"] == "what-if"
    # It is a run as any other.
    replay(out)
    assert CliRunner().invoke(app, ["replay", str(DEMO), "--outcome", "r1c1"]).exit_code == 2
    assert CliRunner().invoke(app, ["replay", str(DEMO), "--outcome", "r9c1=1"]).exit_code == 2


async def test_a_past_run_shows_itself() -> None:
    run = PastRun(Recording.load(DEMO))
    assert str(run).splitlines()[0].startswith("round 1  offline:planner")
    assert run.diff(run) == ""
    assert "license.classify" in run.topics
