"""Recordings that nobody recorded, and JSON that nobody reads: they are told so, without a traceback."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from squadron import ModelTurn
from squadron.actors.runs.entries import CallsEnded, Entry
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.cli.app import app
from squadron.cli.talk import read_stdin
from squadron.replay.load import tasks_in
from squadron.replay.past_runs import PastRun
from squadron.replay.recording import RecordedRun, Recording
from squadron.replay.what_if import _Aim
from squadron.runtime.errors import ConfigError, InvalidInputError, RecordingError
from squadron.testing import ScriptedModel
from tests.unit.test_replay import planned

DEMO = Path(__file__).parents[1] / "data" / "runs" / "audit.jsonl"
Log = Sequence[tuple[Entry, ...]]
#: Deeper than Python reads; and deeper than what is sent may be.
NESTED, DEEP = "[" * 100_000 + "]" * 100_000, json.loads("[" * 250 + "]" * 250)
ANY: list[dict[str, Any]] = [{"goal": "x"}, {"from_round": 3}, {"max_rounds": 3}]


def forged(order: Callable[[Log], Log], recorded: Recording | None = None) -> PastRun:
    """A run, by default the demo's, with its messages in another order."""
    recorded = recorded or Recording.load(DEMO)
    run = RecordedRun(run=recorded.main.run, messages=tuple(order(recorded.main.messages)))
    return PastRun(Recording(header=recorded.header, runs=(run,)))


async def is_equal(past: PastRun) -> bool:
    try:
        return (await past.replay()).equal
    except RecordingError:
        return False


@pytest.mark.parametrize(
    ("order", "changes"),
    [
        (lambda log: [log[1], log[0], *log[2:]], ANY),
        (lambda log: log[1:], ANY),
        (lambda log: [log[0][:1], *log[1:]], ANY),
        (lambda log: [log[0][1:], *log[1:]], ANY),
        (lambda log: [*log[:3], log[0], *log[3:]], [{"from_round": 3}]),
    ],
)
async def test_a_run_that_does_not_say_how_it_began_is_told_so(
    order: Callable[[Log], Log], changes: Sequence[dict[str, Any]]
) -> None:
    past = forged(order)
    for change in changes:
        model = ScriptedModel(["Done."])
        with pytest.raises(RecordingError, match=r"began|beginning"):
            await past.replay(models=[model], **change)
        assert model.seen == []
    # Nor is it the same as what the code does.
    assert not await is_equal(past)


async def test_the_end_of_a_call_before_it_was_sent_is_a_difference() -> None:
    def order(log: Log) -> Log:
        ended = next(message for message in log if isinstance(message[0], CallsEnded))
        return [log[0], ended, *log[1:]]

    assert not await is_equal(forged(order, await planned()))


def test_json_that_is_nested_deeper_than_python_reads_is_no_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep.jsonl"
    file.write_text(NESTED)
    with pytest.raises(RecordingError, match="line 1: "):
        Recording.load(file)
    with pytest.raises(RecordingError, match="line 1: "):
        tasks_in(file)
    for told in (("replay", str(DEMO), "--outcome", f"r1c1={NESTED}"), ("lite", "publish", "a/b", NESTED)):
        assert CliRunner().invoke(app, told).exit_code == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(NESTED))
    with pytest.raises(InvalidInputError, match="is not JSON"):
        read_stdin(wait=False)


def test_an_answer_that_is_nested_too_deep_is_no_json() -> None:
    aim: Any = SimpleNamespace(inner=None, typed=True)
    assert "no JSON" in str(_Aim.judge(aim, RunState("run-1", Toolbox()), ModelTurn(NESTED)))


async def test_what_can_not_be_written_is_told_before_a_model_is_asked() -> None:
    model = ScriptedModel(["Done."])
    with pytest.raises(ConfigError, match="can't be written"):
        await PastRun(Recording.load(DEMO)).replay(models=[model], outcomes={"r1c1": DEEP})
    assert model.seen == []
