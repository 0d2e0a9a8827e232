"""What a notebook shows while things go on: a run as a tree, an agent's tasks and replicas as curves."""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from squadron.cli.tally import Tally
from squadron.runtime.background import spawn
from squadron.runtime.errors import ConfigError, SquadronError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from squadron.client.deploying import Fleet

#: The least time between two drawings, in seconds: a browser keeps up, and a run of thousands of events does not
#: flood the notebook, which keeps one picture whatever was drawn before.
DRAW_EVERY_S, PLOT_EVERY_S = 0.2, 1.0
#: How often an agent is looked at, in seconds: its bridge counts as often.
LOOK_EVERY_S = 0.25
#: Size of a drawn tree, in characters and lines, and of a figure, in inches.
WIDTH, HEIGHT, FIGURE = 110, 40, (9.0, 4.0)
#: Samples of one history: some 40 minutes, after which every other one goes.
MOST_SAMPLES = 10_000


class _CellOutput:
    """One place in the output of a cell, which is drawn anew; nothing outside of a notebook."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._drawn_at, self._handle = every_s, 0.0, None

    def draw(self, shown: Any, *, last: bool = False) -> None:
        """Show it, unless something was shown a moment ago; what comes last is always shown."""
        now = time.monotonic()
        if not last and now - self._drawn_at < self._every_s:
            return
        self._drawn_at = now
        if self._handle is None:
            self._handle = _display()(shown, display_id=True)
        else:
            self._handle.update(shown)


def _display() -> Any:
    try:
        from IPython.display import display
    except ImportError:
        raise _missing("IPython") from None
    return display


def _missing(name: str) -> ConfigError:
    return ConfigError(f"this needs {name}", hint="pip install 'squadron-ray[notebooks]'")


class LiveRun:
    """A run as a tree that grows in the cell's output while it goes on.

        with LiveRun() as live:
            outcome = await squad.run(goal, on_event=live)

    Drawn at most five times a second, whatever happens in between, and once more at the end.
    """

    def __init__(self) -> None:
        self._tally, self._output = Tally(), _CellOutput(DRAW_EVERY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._output.draw(self, last=True)

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event of the run."""
        self._tally.event(event)
        self._output.draw(self)

    def __repr__(self) -> str:
        return str(self._drawn().export_text())

    def _repr_html_(self) -> str:
        style = "font-family:monospace;line-height:1.3;overflow-x:auto"
        code_format = f'<pre style="{style}"><code>{{code}}</code></pre>'
        return str(self._drawn().export_html(inline_styles=True, code_format=code_format))

    def _drawn(self) -> Any:
        from rich.console import Console

        from squadron.cli.tree import run_tree

        console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False)
        console.print(run_tree(self._tally, height=HEIGHT))
        return console


@dataclass(frozen=True, slots=True)
class Sample:
    """An agent at one moment: seconds since the history began, its tasks, and its replicas.

    Attributes:
        waiting, taken: tasks in its mailbox that nobody runs, and that a replica runs.
        replicas, wanted: those that run, as Ray Serve has them, and those that there are to be.
    """

    at_s: float
    waiting: int
    taken: int
    replicas: int
    wanted: int


class AgentHistory:
    """An agent's tasks and replicas over time, sampled while the block runs.

        async with AgentHistory(squad, "analyst", live=True) as history:
            history.mark("flood")
            await asyncio.gather(*(squad.ask("analysis.sentiment", text) for text in texts))
        history.to_dicts()

    In a notebook it is a picture; with `live` that grows while the block runs.
    """

    def __init__(self, squad: Fleet, agent: str, *, live: bool = False) -> None:
        self._squad, self._agent = squad, agent
        self._output = _CellOutput(PLOT_EVERY_S) if live else None
        self._began = time.monotonic()
        self._looking: asyncio.Task[None] | None = None
        self.samples: list[Sample] = []
        self.marks: list[tuple[float, str]] = []

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        await self._look()
        self._looking = spawn(self._keep_looking(), "agent history")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._look()
        if self._output is not None:
            self._output.draw(self, last=True)

    def mark(self, label: str) -> None:
        """Remember what happens now; it is a line in the picture."""
        self.marks.append((time.monotonic() - self._began, label))

    def to_dicts(self) -> list[dict[str, Any]]:
        """The samples as plain JSON, for whoever plots them otherwise."""
        return [asdict(each) for each in self.samples]

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()
            if self._output is not None:
                self._output.draw(self)

    async def _look(self) -> None:
        """Look once; while nobody can tell, nothing is known, and so nothing is written."""
        try:
            status = await self._squad.status()
        except SquadronError:
            return
        at_s = time.monotonic() - self._began
        for each in status["agents"]:
            if each["agent"] == self._agent and each["waiting"] is not None:
                figures = (each["waiting"], each["taken"], each["running"], each["target"])
                self.samples.append(Sample(round(at_s, 3), *figures))
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[1::2]

    def figure(self) -> Figure:
        """The picture as a figure of matplotlib, to change or save.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise _missing("matplotlib") from None

        figure = Figure(figsize=FIGURE, layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        at = [each.at_s for each in self.samples]
        tasks = [[each.taken for each in self.samples], [each.waiting for each in self.samples]]
        above.stackplot(at, tasks, labels=["running", "waiting"], colors=["#2a9d8f", "#e9c46a"], step="post")
        above.set_ylabel("tasks")
        below.step(
            at, [each.wanted for each in self.samples], where="post", color="#999999", ls="--", label="wanted"
        )
        below.step(at, [each.replicas for each in self.samples], where="post", color="#264653", label="replicas")
        below.set_ylabel("replicas")
        below.set_xlabel("seconds")
        below.set_ylim(bottom=0)
        below.yaxis.get_major_locator().set_params(integer=True)
        for at_s, label in self.marks:
            for axes in (above, below):
                axes.axvline(at_s, color="#e76f51", lw=1)
            above.annotate(
                label,
                (at_s, 1),
                xycoords=("data", "axes fraction"),
                color="#e76f51",
                fontsize=8,
                rotation=90,
                va="top",
                ha="right",
            )
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
        above.set_title(self._agent, loc="left")
        return figure

    def __repr__(self) -> str:
        most = max((each.replicas for each in self.samples), default=0)
        return f"<history of {self._agent}: {len(self.samples)} samples, at most {most} replicas>"

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.figure().savefig(drawn, format="png", dpi=110)
        return drawn.getvalue()
