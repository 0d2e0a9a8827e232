"""replay: a run that is over is run anew, as it was or otherwise; and `runs export`, which makes a file of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json

if TYPE_CHECKING:
    from squadron.replay.player import RunReplay
    from squadron.replay.recording import Recording

#: Standard output in the place of a file.
STDOUT = Path("-")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("replay")(replay)


def export(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="RUN", help="As `squadron runs list` has it, or its beginning.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file (default: RUN.jsonl); - for standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run, and the runs that it called, into a file without secrets, for `squadron replay`."""
    frame.execute(_export(ctx, id, out, as_json), as_json=as_json)


async def _export(ctx: typer.Context, id: str, out: Path | None, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        recording = await squad.runs.export(id)
    if out == STDOUT:
        sys.stdout.write(recording.to_jsonl())
        return frame.OK
    path = out or Path(f"{recording.header.run}.jsonl")
    recording.save(path)
    told = {"run": recording.header.run, "runs": len(recording.runs), "file": str(path)}
    if as_json:
        frame.print_json(told)
    else:
        frame.tell(f"{told['run']} is in {path}, {told['runs']} runs in all. Replay it: squadron replay {path}")
    return frame.OK


def replay(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="RUN|FILE", help="A run, or a file that `runs export` wrote.")],
    agent: Annotated[
        str, typer.Option("--agent", help="The class whose tools count, as module:Class; else those recorded.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Run a run anew with the code of today, and all else as recorded; exit code 1 if it does otherwise."""
    frame.execute(_replay(ctx, source, agent, as_json), as_json=as_json)


async def _replay(ctx: typer.Context, source: str, agent: str, as_json: bool) -> int:
    import asyncio

    from squadron.replay.exact import play_all

    recording = await _recording(ctx, source)
    replays = await asyncio.to_thread(play_all, recording, agent)
    if as_json:
        frame.print_json([_told(each) for each in replays])
    else:
        for each in replays:
            _show(recording, each)
    return frame.OK if all(each.equal for each in replays) else frame.ENDED_OTHERWISE


async def _recording(ctx: typer.Context, source: str) -> Recording:
    from squadron.replay.recording import Recording

    if not source.removeprefix("run-").isalnum():
        return Recording.load(source)
    async with frame.connected(frame.settings_of(ctx)) as squad:
        return await squad.runs.export(source)


def _told(each: RunReplay) -> dict[str, Any]:
    told: dict[str, Any] = {"run": each.run, "equal": each.equal, "entries": each.entries, "of": each.of}
    if each.difference is not None:
        told |= {"difference": each.difference.what, "diff": each.difference.diff}
    return told


def _show(recording: Recording, each: RunReplay) -> None:
    state = each.state
    if each.difference is None:
        stopped = state.finished.stopped if state.finished is not None else "still under way"
        facts = f"{state.round} rounds, {len(state.calls)} calls, {stopped}"
        sys.stdout.write(f"{each.run}: equal, {each.entries} entries ({facts})\n")
        return
    sys.stdout.write(f"{each.run}: differs after {each.entries} of {each.of} entries\n")
    sys.stdout.write(frame.printable(str(each.difference)) + "\n")
