"""runs: what supervisors and LLM agents think, and thought."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame, replaying, spending
from squadron.cli.environment import Json

if TYPE_CHECKING:
    from rich.tree import Tree

    from squadron.actors.runs.shelf import CallView, RunInfo, RunView

Id = Annotated[str, typer.Argument(metavar="RUN", help="As `squadron runs list` has it, or its beginning.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(no_args_is_help=True)
    # Named here: a function called `list` would hide the type.
    named: dict[str, Callable[..., None]] = {
        "list": list_runs,
        "show": show,
        "resume": resume,
        "cancel": cancel,
        "export": replaying.export,
    }
    for name, command in named.items():
        group.command(name)(command)
    app.add_typer(group, name="runs", help="Runs that think: list, show, resume, cancel, export.")


def list_runs(
    ctx: typer.Context,
    agent: Annotated[str, typer.Option("--agent", "-a", help="Only those of this agent.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", help="Longest list.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List runs, the latest change first."""
    frame.execute(_list(ctx, agent, limit, as_json), as_json=as_json)


async def _list(ctx: typer.Context, agent: str, limit: int, as_json: bool) -> int:
    from dataclasses import asdict

    async with frame.connected(frame.settings_of(ctx)) as squad:
        found = await squad.runs.list(agent=agent, most=limit + 1)
    runs = found[:limit]
    if as_json:
        frame.print_json([asdict(info) for info in runs])
    elif not runs:
        frame.tell("No runs.")
    elif sys.stdout.isatty():
        _show_table(runs)
    else:
        for info in runs:
            frame.write_row(info.run, *_row(info))
    if found.left_out:
        frame.tell(
            f"{found.left_out} more are left out: no agent signed them as its own, or another began their log."
        )
    if len(found) > limit:
        frame.tell(f"These are the newest {limit}; --limit shows more.")
    return frame.OK


def _row(info: RunInfo) -> tuple[str, ...]:
    cost = f"{info.usd:.4f}" if info.usd else "-"
    counts = (str(info.rounds), str(info.running), f"{info.tokens:,}", cost)
    return (info.state, info.agent, *counts, frame.when(info.started), " ".join(info.title.split()))


#: Below so many columns of the terminal a table of runs has less.
NARROW = 120


def _show_table(runs: Sequence[RunInfo]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    console, characters = frame.out(), frame.telling_apart([info.run for info in runs])
    # On a narrow terminal some go, because each run is known by its goal.
    narrow = console.width < NARROW
    names = ("RUN", "STATE", "AGENT", "ROUNDS", "RUNNING", "TOKENS", "USD", "STARTED (UTC)", "GOAL")
    kept = [at for at, name in enumerate(names) if not (narrow and name in ("RUNNING", "TOKENS", "STARTED (UTC)"))]
    for name in (names[at] for at in kept):
        table.add_column(name, justify="right" if name in ("ROUNDS", "RUNNING", "TOKENS", "USD") else "left")
    for info in runs:
        cells = (info.run[:characters], *_row(info))
        table.add_row(*(Text(cells[at], no_wrap=True, overflow="ellipsis") for at in kept))
    console.print(table)


def show(ctx: typer.Context, id: Id, as_json: Json = False) -> None:
    """Show one run as a tree: its rounds, their calls and what they cost, and the runs that they began."""
    frame.execute(_show(ctx, id, as_json), as_json=as_json)


async def _show(ctx: typer.Context, id: str, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        view = await squad.runs.show(id)
    if as_json:
        frame.print_json(view.to_dict())
    else:
        from rich.tree import Tree

        tree = Tree(_headline(view))
        _grow(tree, view)
        frame.out().print(tree)
    return frame.OK


def _headline(view: RunView) -> Any:
    from rich.text import Text

    from squadron.cli.tree import cost, short

    info = view.info
    facts = [info.state, f"{info.agent} {info.topic}", *cost(info.tokens, info.usd)]
    facts += [f"{view.attempts} attempts"] if view.attempts > 1 else []
    facts += [f"{view.failures} of {view.tries} calls of the model failed"] if view.failures else []
    facts += [f"{view.passed_over} messages passed over"] if view.passed_over else []
    return Text.assemble((info.run, "bold"), "  ", short(info.title), "\n", (" · ".join(facts), "dim"))


def _grow(tree: Tree, view: RunView) -> None:
    from rich.text import Text

    from squadron.cli.tree import cost, line, short, summarized

    for each in view.rounds:
        facts = [each.model, f"{each.seconds:.1f} s", *cost(each.tokens, each.usd)]
        branch = tree.add(line("", "", f"round {each.round}", facts, short(each.text)))
        for failed in each.failed:
            branch.add(Text(f"! {short(failed, 300)}", "yellow", overflow="fold"))
        for one in each.summarized:
            branch.add(summarized(one))
        for call in each.calls:
            _grow_call(branch, call, is_live=view.info.state == "running")
    if view.error:
        tree.add(Text.assemble(("failed: ", "red"), short(view.error, 400)))
    elif isinstance(view.answer, dict) and "answer" in view.answer:
        tree.add(Text.assemble(("answer: ", "bold green"), short(str(view.answer["answer"]), 400)))
    elif view.answer is not None:
        tree.add(Text.assemble(("answer: ", "bold green"), short(str(view.answer), 400)))


def _grow_call(branch: Tree, call: CallView, *, is_live: bool) -> None:
    from squadron.cli.tree import cost, line, short

    outcomes = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in call.outcomes.items())
    good, over = set(call.outcomes) <= {"result"}, call.outcomes and call.seconds is not None
    mark, style = ("✓", "green") if good and over else ("✗", "red") if over or not is_live else ("●", "cyan")
    facts = [
        outcomes or ("running" if is_live else "no outcome"),
        *([f"{call.seconds:.1f} s"] if call.seconds is not None else []),
    ]
    facts += cost(call.tokens, call.usd)
    if call.query and call.answered_by is None and not call.outcomes and is_live:
        mark, style, facts = "?", "bold yellow", [f"waits for a person: squadron answer {call.query[:8]}"]
    elif call.answered_by is not None:
        facts.append(f"answered by {call.answered_by or 'somebody'}")
    tasks = f" x {call.tasks}" if call.tasks > 1 else ""
    node = branch.add(line(mark, style, f"{call.name}{tasks}", facts, "" if good else short(call.reason)))
    for run in call.runs:
        _grow(node.add(_headline(run)), run)


def cancel(ctx: typer.Context, id: Id, as_json: Json = False) -> None:
    """Stop a run, and what it asked of others."""
    frame.execute(_cancel(ctx, id, as_json), as_json=as_json)


async def _cancel(ctx: typer.Context, id: str, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        info = await squad.runs.cancel(id)
    if as_json:
        frame.print_json({"cancelled": info.run})
    else:
        frame.tell(f"{info.run} is asked to stop.")
    return frame.OK


def resume(
    ctx: typer.Context,
    id: Id,
    within: Annotated[float, typer.Option("--within", help="Longest run from now on, in seconds.", min=1)] = 600.0,
    max_rounds: Annotated[
        int, typer.Option("--max-rounds", help="Most further turns of the model.", min=1, max=100)
    ] = 12,
    tokens: spending.Tokens = None,
    usd: spending.Usd = None,
    rounds: spending.Rounds = None,
    tasks: spending.Tasks = None,
    hops: spending.Hops = None,
    as_json: Json = False,
) -> None:
    """Have a run that has ended go on from where it was, with new limits; nothing it did is done again."""
    how = {"within_s": within, "max_rounds": max_rounds}
    budget = spending.budget_of(tokens, usd, rounds, tasks, hops)
    frame.execute(_resume(ctx, id, how | {"budget": budget}, as_json), as_json=as_json)


async def _resume(ctx: typer.Context, id: str, how: dict[str, Any], as_json: bool) -> int:
    from squadron.cli.progress import watching
    from squadron.cli.run import cancelled_with_us, show_run

    with watching(f"Resuming {id}") as watch:
        async with frame.connected(frame.settings_of(ctx)) as squad, cancelled_with_us(squad, watch):
            watch.phase("run")
            outcome = await squad.resume_run(id, on_event=watch.event, **how)
    return show_run(outcome, watch, as_json)
