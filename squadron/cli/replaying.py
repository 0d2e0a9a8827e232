"""replay: a run that is over is run anew, as it was or otherwise; and `runs export`, which makes a file of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.errors import ConfigError

if TYPE_CHECKING:
    from squadron.replay.load import LoadReport, RecordedTask
    from squadron.replay.outline import Outline
    from squadron.replay.past_runs import PastRun, ReplayChanges
    from squadron.replay.player import RunReplay
    from squadron.runtime.asking.options import AskOptions
    from squadron.runtime.wire.outcome import Outcome

#: Standard output in the place of a file.
STDOUT = Path("-")
#: How often a load tells how far it is where there is no terminal, in seconds.
TELL_EVERY_S = 10.0


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
    if out is not None and out != STDOUT:
        frame.check_file(out)
    async with frame.connected(frame.settings_of(ctx)) as squad:
        recording = await squad.runs.export(id)
    if out == STDOUT:
        frame.write_whole(recording.to_jsonl())
        return frame.OK
    path = out or Path(f"{recording.header.run}.jsonl")
    with frame.writing(path):
        recording.save(path)
    told = {"run": recording.header.run, "runs": len(recording.runs), "file": str(path)}
    if as_json:
        frame.print_json(told)
    else:
        frame.tell(f"{told['run']} is in {path}, {told['runs']} runs in all. Replay it: squadron replay {path}")
    return frame.OK


def replay(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE", help="A run, or a file that `runs export` wrote.", show_default=False),
    ] = "",
    agent: Annotated[
        str, typer.Option("--agent", help="The class whose tools count, as module:Class; else those recorded.")
    ] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Have this one asked: PROVIDER:NAME.")] = "",
    goal: Annotated[str, typer.Option("--goal", help="Another goal, from the beginning.")] = "",
    prompt: Annotated[str, typer.Option("--prompt", help="Another system prompt, from the beginning.")] = "",
    from_round: Annotated[
        int, typer.Option("--from-round", help="First round that is asked anew.", min=0, show_default=False)
    ] = 0,
    outcome: Annotated[
        list[str] | None, typer.Option("--outcome", metavar="CALL=JSON", help="Another outcome of a call.")
    ] = None,
    gather: Annotated[
        str, typer.Option("--gather", help="When the model is asked again: all, quorum, or a number.")
    ] = "",
    max_rounds: Annotated[int | None, typer.Option("--max-rounds", help="Last round there may be.", min=1)] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Calls that are not recorded go out to agents; asks before.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before live calls.")] = False,
    load: Annotated[
        bool,
        typer.Option("--load", help="Put recorded tasks, of FILE or of the audit trail, to an environment."),
    ] = False,
    since: Annotated[
        str, typer.Option("--since", help="Of a load without FILE: 15m, 2h or 3d ago, or a time.", metavar="TIME")
    ] = "",
    until: Annotated[str, typer.Option("--until", help="The end of that window; else now.", metavar="TIME")] = "",
    to: Annotated[str, typer.Option("--to", metavar="ENV", help="Of a load: to which environment.")] = "",
    speed: Annotated[float, typer.Option("--speed", help="Of a load: how many times as fast.", min=0.001)] = 1.0,
    same_env: Annotated[
        bool, typer.Option("--same-env", help="Of a load: also to the environment that it was recorded in.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the new run into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Run a run anew; the old one is not touched.

    As it was: the code of today, with all else as recorded; exit code 1 if it does otherwise. With a change it
    goes on from where that takes effect, as a run of its own, beside the recorded one.
    """
    changes: ReplayChanges = {"model": model, "goal": goal, "prompt": prompt, "from_round": from_round}
    changes |= {"outcomes": _outcomes(outcome or ()), "gather": _gather(gather), "max_rounds": max_rounds}
    given: Any = {name: value for name, value in changes.items() if value}
    loading = {"since": since, "until": until, "to": to, "speed": speed != 1.0, "same_env": same_env}
    _check(load, source, given, {"agent": agent, "live": live, "out": out}, loading)
    if load:
        frame.execute(_load(ctx, source, (since, until), to, speed, same_env, as_json), as_json=as_json)
    if given:
        frame.execute(_what_if(ctx, source, given, live, yes, out, as_json), as_json=as_json)
    frame.execute(_exactly(ctx, source, agent, as_json), as_json=as_json)


def _check(
    load: bool, source: str, changes: dict[str, Any], running: dict[str, Any], loading: dict[str, Any]
) -> None:
    """Whether what was told goes together."""
    if load:
        _refuse("goes with no --load", {**changes, **running})
        if bool(source) == bool(loading["since"]):
            raise typer.BadParameter("a load is of a FILE, or of the trail --since a time", param_hint="--load")
        _refuse("is of a load without FILE", {"until": source and loading["until"]})
        return
    _refuse("is of a --load", loading)
    if not source:
        raise typer.BadParameter("say which run, or which file", param_hint="RUN|FILE")
    if changes:
        _refuse("is of a replay without a change", {"agent": running["agent"]})
    else:
        _refuse("is of a replay with a change", {"live": running["live"], "out": running["out"]})


def _refuse(why: str, given: dict[str, Any]) -> None:
    """Options that would be dropped: whoever gave them takes them for done."""
    for name, value in given.items():
        if value:
            option = name.replace("outcomes", "outcome").replace("_", "-")
            raise typer.BadParameter(f"this {why}", param_hint=f"--{option}")


def _outcomes(given: Sequence[str]) -> dict[str, Any]:
    outcomes = dict[str, Any]()
    for each in given:
        call, equals, value = each.partition("=")
        try:
            outcomes[call] = json.loads(value)
        except (ValueError, RecursionError):
            equals = ""
        if not equals:
            raise typer.BadParameter(f"{each!r} is not CALL=JSON, as r1c2=[1,2]", param_hint="--outcome")
    return outcomes


def _gather(given: str) -> dict[str, Any] | None:
    if given and given not in ("all", "quorum") and not (given.isdecimal() and int(given) > 0):
        raise typer.BadParameter(f"{given!r} is not all, quorum, or a number", param_hint="--gather")
    return {"after": int(given) if given.isdecimal() else given} if given else None


async def _exactly(ctx: typer.Context, source: str, agent: str, as_json: bool) -> int:
    async with _past(ctx, source, live=False) as run:
        done = await run.replay(agent=agent)
    if as_json:
        frame.print_json([_told(each) for each in done.replays])
    else:
        for each in done.replays:
            frame.write(_line(each) + "\n")
    return frame.OK if done.equal else frame.ENDED_OTHERWISE


@contextlib.asynccontextmanager
async def _past(ctx: typer.Context, source: str, *, live: bool) -> AsyncIterator[PastRun]:
    """The run; a file needs no squad, unless agents are to be called."""
    from squadron.replay.past_runs import PastRun
    from squadron.replay.recording import Recording

    is_id = source.removeprefix("run-").isalnum()
    settings = frame.settings_of(ctx)
    if not is_id and not live:
        yield PastRun(Recording.load(source))
        return
    async with frame.connected(settings) as squad:
        yield await squad.runs.get(source if is_id else Path(source))


def _told(each: RunReplay) -> dict[str, Any]:
    told: dict[str, Any] = {"run": each.run, "equal": each.equal, "entries": each.entries, "of": each.of}
    if each.difference is not None:
        told |= {"difference": each.difference.what, "diff": each.difference.diff}
    return told


def _line(each: RunReplay) -> str:
    state = each.state
    if each.difference is not None:
        return f"{each.run}: differs after {each.entries} of {each.of} entries\n{each.difference}"
    stopped = state.finished.stopped if state.finished is not None else "still under way"
    return f"{each.run}: equal, {each.entries} entries ({state.round} rounds, {len(state.calls)} calls, {stopped})"


async def _what_if(
    ctx: typer.Context, source: str, changes: Any, live: bool, yes: bool, out: Path | None, as_json: bool
) -> int:
    from squadron.replay.outline import outline

    if out is not None:
        # Now, and not after models were paid.
        frame.check_file(out)
    async with _past(ctx, source, live=live) as run:
        if live and not yes:
            await _consent(run)
        other = await run.replay(live=live, **changes)
    if out is not None:
        with frame.writing(out):
            other.save(out)
    before, after = outline(run.recording), outline(other.recording)
    if as_json:
        sides = {"recorded": before.lines, "now": after.lines}
        header = other.recording.header
        frame.print_json({"run": header.run, "replay": header.replay, **sides, "diff": run.diff(other)})
    else:
        _show(before, after)
    return frame.OK


async def _load(
    ctx: typer.Context,
    source: str,
    window: tuple[str, str],
    to: str,
    speed: float,
    same_env: bool,
    as_json: bool,
) -> int:
    from squadron.replay.load import put_load, tasks_in

    tasks = tasks_in(source) if source else await _tasks_of_trail(ctx, *window)
    if to:
        ctx.obj["env"] = to
    settings = frame.settings_of(ctx)
    async with frame.connected(settings) as squad:

        async def send(topic: str, content: Any, options: AskOptions) -> Outcome:
            how: Any = {each.name: getattr(options, each.name) for each in fields(options)}
            return await squad.ask(topic, content, **how)

        with frame.progress("tasks", many=True) as show:
            told_at = time.monotonic()

            def tell(sent: int, ended: int) -> None:
                nonlocal told_at
                show(ended, len(tasks))
                if not frame.err().is_terminal and time.monotonic() >= told_at + TELL_EVERY_S:
                    told_at = time.monotonic()
                    frame.tell(f"{sent:,} of {len(tasks):,} tasks sent, {ended:,} ended")

            report = await put_load(
                tasks, send, env=settings.env, speed=speed, same_env=same_env, on_progress=tell
            )
    if as_json:
        frame.print_json(report.to_dict())
    else:
        _show_load(report)
    return frame.OK


async def _tasks_of_trail(ctx: typer.Context, since: str, until: str) -> list[RecordedTask]:
    from squadron.bridge.audit.history import moment
    from squadron.replay.load import tasks_of

    began, ended = moment(since), moment(until) if until else time.time()
    async with frame.connected(frame.settings_of(ctx)) as squad:
        return await tasks_of(squad.audit, since=began, until=ended)


def _show_load(report: LoadReport) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("TOPIC", "WHEN", "TASKS", "P50 s", "P95 s", "P99 s", "OUTCOMES"):
        table.add_column(name)
    for topic in report.now:
        for when, side in (("recorded", report.recorded), ("now", report.now)):
            each = side[topic]
            figures = (f"{p:.3f}" if p is not None else "?" for p in (each.p50, each.p95, each.p99))
            ends = ", ".join(f"{count} {kind}" for kind, count in sorted(each.outcomes.items()))
            table.add_row(Text(topic or "all"), when, f"{each.tasks:,}", *figures, ends)
    frame.out().print(table)
    frame.tell(f"The latest was sent {report.late_s:.3f} s too late.")


async def _consent(run: PastRun) -> None:
    topics = ", ".join(run.topics) or "no topic"
    question = f"It may call live, with all effects of that: {topics}. Go on?"
    if not sys.stdin.isatty() or not await asyncio.to_thread(frame.confirm, question):
        raise ConfigError("nobody agreed to live calls", hint="--yes agrees; without --live there are none")


def _show(before: Outline, after: Outline) -> None:
    """Two runs side by side, round by round."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), expand=True)
    for side, what in ((before, "recorded"), (after, "now")):
        table.add_column(f"{what}: {side.run}", ratio=1, overflow="fold")
    rounds = max(len(before.rounds), len(after.rounds))
    for cells in zip(before.blocks(rounds), after.blocks(rounds), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    frame.out().print(table)
