"""trace: where the time of a run or a task went."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from squadron.cli import frame
from squadron.cli.environment import Json

if TYPE_CHECKING:
    from squadron.actors.runs.moments import BarKind
    from squadron.actors.runs.timeline import Timeline

#: Colours of the bars in a terminal; the glyphs tell them apart without.
STYLES: dict[BarKind, str] = {
    "think": "magenta",
    "vain": "red",
    "pause": "grey50",
    "lost": "red",
    "wait": "grey50",
    "again": "yellow",
    "work": "green",
    "open": "blue",
    "person": "bold yellow",
}
#: Width of the bars and names where no terminal is, in cells.
PIPE_WIDTH = 120


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(trace)


def trace(
    ctx: typer.Context,
    id: Annotated[
        str, typer.Argument(metavar="RUN|TASK", help="Of a run also the beginning; of a task the whole id.")
    ],
    costs: Annotated[bool, typer.Option("--costs", help="Also what it cost, by model, round and call.")] = False,
    as_json: Json = False,
) -> None:
    """Show where the time of a run went: its rounds and calls as bars, with what they cost.

    A run is known for a week after its end; a task that is no run as long as its outcome, an hour.
    """
    frame.execute(_trace(ctx, id, costs, as_json), as_json=as_json)


async def _trace(ctx: typer.Context, id: str, costs: bool, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        timeline, spent = await squad.runs.trace(id)
    if as_json:
        told = {"title": timeline.title, "began": timeline.began, "seconds": round(timeline.seconds, 3)}
        told |= {"lanes": timeline.to_dicts()}
        frame.print_json(told | ({"costs": spent.to_dicts()} if spent is not None else {}))
        return frame.OK
    show_timeline(timeline)
    if costs and spent is not None:
        frame.out().print(f"\n{spent!r}", markup=False, soft_wrap=True)
    return frame.OK


def show_timeline(timeline: Timeline) -> None:
    """Print a timeline: in colours as wide as the terminal is, else as plain text."""
    if not sys.stdout.isatty():
        sys.stdout.write(f"{timeline.text(PIPE_WIDTH)}\n")
        return
    from rich.text import Text

    from squadron.actors.runs.timeline import GLYPHS, MEANINGS, Layout, seconds_text
    from squadron.runtime.texts import one_line

    console = frame.out()
    layout = Layout.of(timeline, console.width)
    title = one_line(f"{timeline.title}  {seconds_text(timeline.seconds)}", layout.width)
    console.print(Text(title, "bold"), soft_wrap=True)
    for lane in timeline.lanes:
        line = Text(layout.name(lane), "red" if lane.failed else "" if lane.kind == "call" else "bold")
        line.append(" ")
        for kind in timeline.cells(lane, layout.bars):
            line.append(GLYPHS[kind] if kind else "·", STYLES[kind] if kind else "grey30")
        line.append(f" {layout.time(timeline, lane)}  ")
        line.append(layout.facts(lane), "red" if lane.failed else "dim")
        console.print(line, soft_wrap=True)
    legend = Text()
    for kind in timeline.used():
        legend.append(GLYPHS[kind], STYLES[kind]).append(f" {MEANINGS[kind]}  ", "dim")
    console.print(legend)
