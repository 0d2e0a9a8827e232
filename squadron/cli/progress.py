"""What a person sees while a job runs, on stderr: a live pane on a terminal, short lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from squadron.cli import frame
from squadron.cli.tally import Call, Span, Tally, describe
from squadron.runtime.background import spawn
from squadron.runtime.errors import SquadronError

if TYPE_CHECKING:
    from squadron.client.squad import Squad

#: How often replicas are looked at while a job runs, in seconds.
STATUS_EVERY_S = 1.0
#: Width of the bars, in cells.
BAR, TIMELINE = 24, 32
#: Frames per second of the live pane: smooth enough for counters, and next to no CPU.
FRAMES_PER_S = 8
#: What is shown of the supervisor's latest words, in characters.
SAID_CHARS = 100

_DOING = {
    "connect": "connecting",
    "start NATS": "starting NATS",
    "start Ray": "starting Ray",
    "start bridge": "starting the bridge",
    "deploy": "starting agents",
    "run": "working",
    "undeploy": "taking the agents away",
    "stop": "stopping",
}


class Watch:
    """Follows a job and says nothing; the base of the two that do. Its `tally` knows what happened."""

    def __init__(self, title: str) -> None:
        self.title, self.tally = title, Tally()

    def phase(self, name: str) -> None:
        """Another phase begins."""
        if self.tally.phase(name):
            self.show_phase(name)

    def agents(self, agents: Sequence[dict[str, Any]]) -> None:
        """The status of the agents, as `Squad.deploy` and `Squad.status` give it."""
        before = {each["agent"]: each["status"] for each in self.tally.agents}
        self.tally.agents = list(agents)
        for each in agents:
            if each["status"] == "RUNNING" and before.get(each["agent"]) not in ("RUNNING", None):
                self.show_agent(each["agent"])

    def event(self, event: dict[str, Any]) -> None:
        """One event of the supervisor, or of the job around it (`{"event": "phase", "name": …}`)."""
        if event.get("event") == "phase":
            self.phase(event["name"])
            return
        call = self.tally.event(event)
        if event.get("event") == "thought":
            self.show_thought(event)
        elif call is not None and call.span.ended_s is not None:
            self.show_call(call)

    def show_phase(self, name: str) -> None:
        """A phase began."""

    def show_agent(self, agent: str) -> None:
        """An agent began to serve."""

    def show_thought(self, event: dict[str, Any]) -> None:
        """The model decided on something."""

    def show_call(self, call: Call) -> None:
        """All tasks of a call ended."""

    @contextlib.asynccontextmanager
    async def following(self, squad: Squad) -> AsyncIterator[None]:
        """Look at the replicas each second."""

        async def look() -> None:
            while True:
                await asyncio.sleep(STATUS_EVERY_S)
                with contextlib.suppress(SquadronError):
                    self.agents((await squad.status())["agents"])

        looking = spawn(look(), "status")
        try:
            yield
        finally:
            looking.cancel()


class _PlainLines(Watch):
    """Where no terminal is: a line for each thing that happens, none twice."""

    def _say(self, text: str) -> None:
        frame.tell(f"[{self.tally.elapsed_s:5.1f} s] {text}")

    def show_phase(self, name: str) -> None:
        self._say(_DOING.get(name, name))

    def show_agent(self, agent: str) -> None:
        self._say(f"agent {agent} runs")

    def show_thought(self, event: dict[str, Any]) -> None:
        self._say(f"round {event['round']}: {_one_line(event['text']) or 'calls'}")

    def show_call(self, call: Call) -> None:
        self._say(f"{call.topic}: {describe(call)}, {_seconds(call.span):.1f} s")


class _Pane(Watch):
    """On a terminal: one pane that is drawn anew some times a second."""

    def __rich__(self) -> RenderableType:
        tally = self.tally
        head = Text.assemble((self.title, "bold"), (f"  {tally.elapsed_s:.0f} s", "dim"))
        rows: list[RenderableType] = [head]
        rows += [self._phase(span) for span in tally.phases]
        if tally.calls:
            rows.append(self._calls())
        return Group(*rows)

    def _phase(self, span: Span) -> RenderableType:
        name = _DOING.get(span.name, span.name)
        if span.ended_s is not None:
            return Text.assemble(("✓ ", "green"), f"{span.name:<14}", (f"{_seconds(span):6.1f} s", "dim"))
        detail = ""
        if span.name == "deploy" and self.tally.agents:
            running = [each["agent"] for each in self.tally.agents if each["status"] == "RUNNING"]
            detail = f"  {len(running)} of {len(self.tally.agents)} run  {' '.join(running)}"
        elif span.name == "run":
            detail = f"  round {self.tally.round or 1}  {_one_line(self.tally.text)}"
        return Spinner("dots", Text.assemble(name, (detail, "dim")), style="cyan")

    def _calls(self) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        for call in self.tally.calls.values():
            table.add_row(
                Text(f"  {call.topic}", "cyan"),
                _bar(call),
                Text(f"{call.done}/{call.tasks} answered"),
                Text(f"{call.failed} failed" if call.failed else "", "red"),
                Text(_plural(self.tally.replicas(call.topic), "replica"), "dim"),
            )
        return table


def _bar(call: Call) -> Text:
    def width(count: int) -> int:
        return round(BAR * count / max(1, call.tasks))

    good, bad = width(call.outcomes["result"]), width(call.failed)
    return Text.assemble(("━" * good, "green"), ("━" * bad, "red"), ("━" * max(0, BAR - good - bad), "grey30"))


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}" if count else ""


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SAID_CHARS else f"{flat[:SAID_CHARS]}…"


def _seconds(span: Span) -> float:
    return max(0.0, (span.ended_s or span.began_s) - span.began_s)


@contextlib.contextmanager
def watching(title: str) -> Iterator[Watch]:
    """Show a job on stderr while it runs; the pane is gone when it ended, its `tally` stays."""
    console = frame.err()
    if not console.is_terminal:
        lines = _PlainLines(title)
        try:
            yield lines
        finally:
            lines.tally.end()
        return
    pane = _Pane(title)
    live = Live(pane, console=console, refresh_per_second=FRAMES_PER_S, transient=True, redirect_stdout=False)
    with live:
        try:
            yield pane
        finally:
            pane.tally.end()


def show_timeline(tally: Tally, console: Console) -> None:
    """Where the time went: each phase, thought and call as a bar."""
    total = max(tally.elapsed_s, 0.001)
    table = Table.grid(padding=(0, 2, 0, 0))
    for span, note in tally.spans():
        is_phase = span in tally.phases
        table.add_row(
            Text(span.name if is_phase else f"  {span.name}", "bold" if is_phase else "cyan"),
            _timeline_bar(span, total, "green" if is_phase else "cyan"),
            Text(f"{_seconds(span):.1f} s", justify="right"),
            Text(note, "dim"),
        )
    console.print(f"\nWhere the time went, {total:.1f} s in all:", highlight=False)
    console.print(table)


def _timeline_bar(span: Span, total_s: float, style: str) -> Text:
    left = min(TIMELINE - 1, round(TIMELINE * span.began_s / total_s))
    width = max(1, min(TIMELINE - left, round(TIMELINE * _seconds(span) / total_s)))
    return Text.assemble(("·" * left, "grey30"), ("█" * width, style), ("·" * (TIMELINE - left - width), "grey30"))


def show_counts(tasks: dict[str, Any], console: Console) -> None:
    """How the tasks of a run ended, in one line."""
    kinds = tasks["outcomes"].items()
    counts = [f"[{'green' if kind == 'result' else 'red'}]{count} {escape(kind)}[/]" for kind, count in kinds]
    console.print(f"\nTasks: {tasks['dispatched']} dispatched, {', '.join(counts) or 'none ended'}.")
