"""What a person sees while a job runs, on stderr: a live pane on a terminal, short lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from squadron.cli import frame
from squadron.cli.tally import CallTally, Round, Span, Tally, describe
from squadron.cli.tree import cost, run_tree, short, summarized
from squadron.runtime.background import spawn
from squadron.runtime.errors import SquadronError

if TYPE_CHECKING:
    from squadron.client.squad import Squad
    from squadron.runtime.wire.limits import Budget

#: How often replicas are looked at while a job runs, in seconds.
STATUS_EVERY_S = 1.0
#: Width of the timeline, in cells.
TIMELINE = 32
#: What is shown of a run's id, in characters: enough for `squadron runs show` to find it by.
RUN_CHARS = 12
#: Lines that the tree has on the smallest terminal.
LEAST_LINES = 6
#: Frames per second of the live pane: smooth enough for counters, and next to no CPU.
FRAMES_PER_S = 8

#: Set by Jupyter's kernels for what they start.
IN_A_CELL = "JPY_PARENT_PID"

_DOING = {
    "connect": "connecting to NATS",
    "start NATS": "starting NATS",
    "start Ray": "starting Ray",
    "join Ray": "joining Ray",
    "start bridge": "starting the bridge",
    "deploy": "starting agents",
    "run": "working",
    "undeploy": "taking the agents away",
    "stop": "stopping",
}


class Watch:
    """Follows a job and says nothing; the base of the two that do. Its `tally` knows what happened.

    Attributes:
        budget: what the run may spend, if anybody has said.
    """

    budget: Budget | None = None

    def __init__(self, title: str) -> None:
        self.title, self.tally = title, Tally()
        self._told = set[tuple[Any, ...]]()

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
        kind, call = event.get("event"), self.tally.event(event)
        what = (kind, event.get("round"), event.get("number"), event.get("query"), call and (call.id, call.ended))
        if what in self._told:
            # Another attempt tells again what the one before it has told.
            return
        self._told.add(what)
        if kind == "thought":
            self.show_thought(event)
        elif kind in ("try_failed", "fallback"):
            self.show_trouble(self.tally.rounds[event["round"]])
        elif kind == "summarized":
            self.show_summary(self.tally.rounds[event["round"]])
        elif call is not None and (call.ended or kind == "asked"):
            self.show_call(call)

    def show_phase(self, name: str) -> None:
        """A phase began."""

    def show_agent(self, agent: str) -> None:
        """An agent began to serve."""

    def show_thought(self, event: dict[str, Any]) -> None:
        """The model decided on something."""

    def show_trouble(self, each: Round) -> None:
        """A call of the model failed, or another model is asked."""

    def show_summary(self, each: Round) -> None:
        """A part of the conversation was summarized."""

    def show_call(self, call: CallTally) -> None:
        """All tasks of a call ended, or it waits for a person."""

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
        spent = "".join(f", {fact}" for fact in cost(event.get("tokens", 0), event.get("usd", 0.0)))
        self._say(f"round {event['round']}{spent}: {short(event['text']) or 'calls'}")

    def show_trouble(self, each: Round) -> None:
        self._say(f"round {each.number}: {short(each.trouble[-1], 300)}")

    def show_summary(self, each: Round) -> None:
        self._say(f"round {each.number}: {summarized(each.summarized[-1])}")

    def show_call(self, call: CallTally) -> None:
        if call.query:
            what = "approval" if call.approval else "an answer"
            self._say(f"{call.topic} waits for {what}: squadron answer {call.query[:8]}")
            return
        facts = [describe(call), f"{call.span.seconds(self.tally.elapsed_s):.1f} s", *cost(call.tokens, call.usd)]
        reason = f": {short(next(iter(call.reasons)))}" if call.reasons else ""
        self._say(f"{call.topic}: {', '.join(fact for fact in facts if fact)}{reason}")


class _Pane(Watch):
    """On a terminal: one pane that is drawn anew some times a second."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tally = self.tally
        about = f"  {tally.elapsed_s:.0f} s  {tally.run[:RUN_CHARS]}"
        yield Text.assemble((self.title, "bold"), (about, "dim"), no_wrap=True, overflow="ellipsis")
        for span in tally.phases:
            yield self._phase(span)
        if tally.rounds:
            yield run_tree(tally, height=max(LEAST_LINES, console.height - 2 - len(tally.phases)))

    def _phase(self, span: Span) -> RenderableType:
        name = _DOING.get(span.name, span.name)
        if span.ended_s is not None:
            return Text.assemble(("✓ ", "green"), f"{name:<20}", (f"{span.seconds(0):6.1f} s", "dim"))
        detail = ""
        if span.name == "deploy" and self.tally.agents:
            running = [each["agent"] for each in self.tally.agents if each["status"] == "RUNNING"]
            detail = f"  {len(running)} of {len(self.tally.agents)} run  {' '.join(running)}"
        elif span.name == "run":
            detail = f"  {' · '.join(self._facts())}"
        words = Text.assemble(name, (detail, "dim"), no_wrap=True, overflow="ellipsis")
        return Spinner("dots", words, style="cyan")

    def _facts(self) -> list[str]:
        tally = self.tally
        facts = [f"round {max(tally.rounds, default=1)}", *cost(tally.tokens, tally.usd)]
        facts += [f"attempt {tally.attempt}"] if tally.attempt > 1 else []
        return facts + left_of(self.budget, tally)


def left_of(budget: Budget | None, tally: Tally) -> list[str]:
    """What is left of a budget, as far as it was told what was spent."""
    if budget is None:
        return []
    left = [] if budget.tokens is None else [f"{max(0, budget.tokens - tally.tokens):,} tokens"]
    left += [] if budget.usd is None else [f"${max(0.0, budget.usd - tally.usd):.4f}"]
    return [f"left: {', '.join(left)}"] if left else []


@contextlib.contextmanager
def watching(title: str) -> Iterator[Watch]:
    """Show a job on stderr while it runs; the pane is gone when it ended, its `tally` stays."""
    console = frame.err()
    # What a notebook's cell runs is told that it has a terminal, and everything drawn on that is kept.
    if not console.is_terminal or IN_A_CELL in os.environ:
        lines = _PlainLines(title)
        try:
            yield lines
        finally:
            lines.tally.end()
        return
    pane = _Pane(title)
    live = Live(pane, console=console, refresh_per_second=FRAMES_PER_S, transient=True, redirect_stdout=False)
    with frame.shown_on(console), live:
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
            Text(f"{span.seconds(total):.1f} s", justify="right"),
            Text(note, "dim"),
        )
    console.print(f"\nWhere the time went, {total:.1f} s in all:", highlight=False)
    console.print(table)


def _timeline_bar(span: Span, total_s: float, style: str) -> Text:
    left = min(TIMELINE - 1, round(TIMELINE * span.began_s / total_s))
    width = max(1, min(TIMELINE - left, round(TIMELINE * span.seconds(total_s) / total_s)))
    return Text.assemble(("·" * left, "grey30"), ("█" * width, style), ("·" * (TIMELINE - left - width), "grey30"))


def show_counts(tasks: dict[str, Any], console: Console) -> None:
    """How the tasks of a run ended, in one line."""
    kinds = tasks["outcomes"].items()
    counts = [f"[{'green' if kind == 'result' else 'red'}]{count} {escape(kind)}[/]" for kind, count in kinds]
    ended = f", {', '.join(counts) or 'none ended'}" if tasks["dispatched"] else ""
    console.print(f"\nTasks: {tasks['dispatched'] or 'none'} dispatched{ended}.")
