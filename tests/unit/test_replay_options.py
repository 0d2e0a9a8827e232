"""What a replay was told and can't do is refused: nothing of it is dropped, and no model is paid for nothing."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from squadron import Context, LLMAgent, topic
from squadron.cli import audit_views, frame
from squadron.cli.app import app
from squadron.replay.past_runs import PastRun
from squadron.replay.recording import Recording
from squadron.runtime.errors import ConfigError
from squadron.testing import ScriptedModel

DEMO = Path(__file__).parents[1] / "data" / "runs" / "audit.jsonl"


class Stranger(LLMAgent):
    """You have no run here."""

    @topic("nothing.told")
    async def tell(self, ctx: Context, question: str) -> str:
        """Answer a question."""
        return await self.think(ctx, question)


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ("--out x.jsonl", "--out"),
        ("--live", "--live"),
        ("--live --yes", "--live"),
        ("--goal x --agent nosuch:Thing", "--agent"),
        ("--since 1h", "--since"),
        ("--goal x --until 1h", "--until"),
        ("--to stage", "--to"),
        ("--speed 2", "--speed"),
        ("--same-env", "--same-env"),
        ("--load --goal x", "--goal"),
        ("--load --from-round 2", "--from-round"),
        ("--load --outcome r1c1=1", "--outcome"),
        ("--load --max-rounds 2", "--max-rounds"),
        ("--load --agent nosuch:Thing", "--agent"),
        ("--load --live", "--live"),
        ("--load --out x.jsonl", "--out"),
        ("--load --until 1h", "--until"),
        ("--gather 0", "--gather"),
    ],
)
def test_options_that_do_not_go_together_are_refused(told: str, names: str) -> None:
    done = CliRunner().invoke(app, ["replay", str(DEMO), *told.split()])
    assert done.exit_code == 2, done.output
    assert f"Invalid value for {names}:" in " ".join(done.output.split())


async def test_changes_of_no_form_and_arguments_that_do_not_go_together_are_refused() -> None:
    past = PastRun(Recording.load(DEMO))
    refused: list[tuple[str, dict[str, Any]]] = [
        (r"gather\.after", {"gather": {"after": 0}}),
        ("gather", {"gather": "quorum"}),
        ("outcomes", {"outcomes": {"r1c1": object()}}),
        ("goal", {"goal": 3}),
        ("max_rounds", {"max_rounds": 0}),
        ("nobody_knows", {"nobody_knows": 1}),
        ("round 2, which is past the last there may be, 1", {"max_rounds": 1, "from_round": 2}),
        ("round 2, which is past the last there may be, 1", {"max_rounds": 1, "outcomes": {"r1c1": 1}}),
        ("without a change calls nobody", {"live": True}),
        ("runs no tools", {"agent": Stranger, "goal": "another"}),
        ("no run here is of 'stranger'", {"agent": Stranger}),
    ]
    for says, how in refused:
        with pytest.raises(ConfigError, match=says) as raised:
            await past.replay(**how)
        assert raised.value.hint


@pytest.mark.parametrize("place", ["nosuch/x", "", "file/x"])
@pytest.mark.parametrize(
    "command", ["replay DEMO --goal x --out", "runs export run-1 --out", "audit export --output"]
)
def test_a_file_that_can_not_be_written_is_told_before_the_work(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was begun")

    monkeypatch.setattr(PastRun, "replay", nothing)
    monkeypatch.setattr("squadron.client.squad.Squad.connect", nothing)
    (tmp_path / "file").write_text("")
    path = tmp_path / place
    done = CliRunner().invoke(app, [*command.replace("DEMO", str(DEMO)).split(), str(path)])
    assert done.exit_code == 2, done.output
    assert f"{path} can't be written: " in done.output
    assert command.split()[-1] in done.output.rpartition("(")[2]


def test_a_disk_that_fills_up_is_no_bug(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    frame.check_file(full)
    done = CliRunner().invoke(app, ["replay", str(DEMO), "--from-round", "5", "--out", str(full)])
    assert (done.exit_code, "can't be written: No space left" in done.output) == (2, True), done.output


def test_a_pipe_to_which_a_trail_is_exported_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(pipe.read_bytes)
        with audit_views._whole(pipe) as file:
            file.write(b"a trail")
    assert read.result() == b"a trail"
    assert os.listdir(tmp_path) == ["pipe"]
    assert pipe.is_fifo()


async def test_what_is_told_together_is_done(tmp_path: Path) -> None:
    past = PastRun(Recording.load(DEMO))
    other = await past.replay(models=[ScriptedModel(["Done."])], max_rounds=2, from_round=2)
    assert "answer: Done." in str(other)
    frame.check_file(tmp_path / "new.jsonl")
