"""trace: where the time of a run or a task went."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from squadron.cli import frame
from squadron.cli.environment import Json

if TYPE_CHECKING:
    from rich.text import Text

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
        frame.write(f"{timeline.text(PIPE_WIDTH)}\n")
        return
    console = frame.out()
    for line in drawn_lines(timeline, console.width):
        console.print(line, soft_wrap=True)


def drawn_lines(timeline: Timeline, width: int) -> Iterator[Text]:
    """A timeline in colours, in lines of at most so many cells; a legend that is longer goes on below."""
    from rich.text import Text

    from squadron.actors.runs.timeline import GLYPHS, MEANINGS, Layout, seconds_text
    from squadron.runtime.texts import one_line

    layout = Layout.of(timeline, width)
    yield Text(one_line(f"{timeline.title}  {seconds_text(timeline.seconds)}", layout.width), "bold")
    for lane in timeline.lanes:
        line = Text(layout.name(lane), "red" if lane.failed else "" if lane.kind == "call" else "bold")
        line.append(" ")
        for kind, cells in groupby(timeline.cells(lane, layout.bars)):
            count = len(list(cells))
            line.append((GLYPHS[kind] if kind else "·") * count, STYLES[kind] if kind else "grey30")
        line.append(f" {layout.time(timeline, lane)}  ")
        line.append(layout.facts(lane), "red" if lane.failed else "dim")
        yield line
    legend, used = Text(), 0
    for kind in timeline.used():
        entry = Text.assemble((GLYPHS[kind], STYLES[kind]), (f" {MEANINGS[kind]}  ", "dim"))
        if used and used + entry.cell_len - 2 > width:
            yield legend
            legend, used = Text(), 0
        legend, used = legend.append_text(entry), used + entry.cell_len
    yield legend
