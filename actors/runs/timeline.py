"""Where the time of a run went, as lanes of bars: in a terminal, in a notebook, or as plain data."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from squadron.actors.runs.moments import Bar, BarKind
from squadron.runtime.texts import one_line

#: How each kind of bar is drawn: without colour, and in the picture.
GLYPHS: dict[BarKind, str] = {
    "think": "▓",
    "vain": "!",
    "pause": "┄",
    "lost": "†",
    "wait": "░",
    "again": "▒",
    "work": "█",
    "open": "▬",
    "person": "?",
}
COLORS: dict[BarKind, str] = {
    "think": "#8e44ad",
    "vain": "#c0392b",
    "pause": "#bdc3c7",
    "lost": "#c0392b",
    "wait": "#bdc3c7",
    "again": "#e67e22",
    "work": "#27ae60",
    "open": "#2e86c1",
    "person": "#f1c40f",
}
MEANINGS: dict[BarKind, str] = {
    "think": "the model thinks",
    "vain": "a try in vain",
    "pause": "a pause",
    "lost": "lost with its replica",
    "wait": "waits",
    "again": "waits, and earlier attempts",
    "work": "works",
    "open": "goes on",
    "person": "waits for a person",
}
#: Where several bars are too short for a cell of their own, the later one in this list is seen.
PRECEDENCE: tuple[BarKind, ...] = ("pause", "wait", "open", "think", "work", "again", "person", "vain", "lost")
#: Narrowest terminal that is drawn for, and how long a line is where nobody says, in cells.
LEAST_WIDTH, WIDTH = 40, 100
#: Terminals on which words and bars have to share what there is, in cells.
NARROW = range(60, 120)
#: Lanes in a notebook: a browser chokes on thousands.
MOST_DRAWN = 300
#: Of the picture: width, height of a lane, where the bars begin and end, in pixels.
PICTURE, ROW, LEFT, RIGHT = 960, 20, 300, 700
NAME_CHARS, NOTE_CHARS = 40, 36


@dataclass(frozen=True, slots=True)
class Lane:
    """One thing that took time, or several.

    Attributes:
        kind: "run", "round", "call" or "task".
        depth: how deep it stands: calls are in rounds, runs in calls.
        outcome: how it ended; empty while it goes on.
        note: what else there is to say.
    """

    kind: str
    name: str
    depth: int = 0
    bars: tuple[Bar, ...] = ()
    outcome: str = ""
    note: str = ""
    tokens: int = 0
    usd: float = 0.0
    id: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.outcome not in ("", "result", "finished", "running")

    def seconds(self, now: float) -> float:
        """From its first bar to its last."""
        if not self.bars:
            return 0.0
        ended = [now if bar.ended is None else bar.ended for bar in self.bars]
        return max(0.0, max(ended) - min(bar.began for bar in self.bars))

    @property
    def facts(self) -> str:
        """What it cost, and its note; of what did not end well first how it ended, and why."""
        cost = [f"{self.tokens:,} tokens"] if self.tokens else []
        cost += [f"${self.usd:.4f}"] if self.usd else []
        note = [self.note] if self.note else []
        return " · ".join([self.outcome.replace("_", " "), *note, *cost] if self.failed else [*cost, *note])


@dataclass(frozen=True, repr=False)
class Timeline:
    """Lanes of bars on one scale of time, in seconds since the epoch.

    In a notebook it is a picture, elsewhere text; `to_dicts` is for whoever plots.
    """

    title: str
    began: float
    ended: float
    lanes: tuple[Lane, ...]

    @property
    def seconds(self) -> float:
        """How long all of it took, or has taken."""
        return max(0.001, self.ended - self.began)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Each lane as plain JSON; times in seconds since the run began, None while it lasts."""
        return [
            {
                "kind": lane.kind,
                "name": lane.name,
                "id": lane.id,
                "depth": lane.depth,
                "outcome": lane.outcome,
                "seconds": round(lane.seconds(self.ended), 3),
                "tokens": lane.tokens,
                "usd": lane.usd,
                "note": lane.note,
                "bars": [
                    {"kind": bar.kind, "began_s": self._since(bar.began), "ended_s": self._since(bar.ended)}
                    for bar in lane.bars
                ],
            }
            for lane in self.lanes
        ]

    def _since(self, at: float | None) -> float | None:
        return None if at is None else round(at - self.began, 3)

    def cells(self, lane: Lane, width: int) -> list[BarKind | None]:
        """What each of `width` cells shows of a lane; a bar has one at least, what went wrong before all else."""
        cells: list[BarKind | None] = [None] * width
        for bar in sorted(lane.bars, key=lambda bar: PRECEDENCE.index(bar.kind)):
            first, last = (
                self._cell(bar.began, width),
                self._cell(self.ended if bar.ended is None else bar.ended, width),
            )
            first = min(first, width - 1)
            for place in range(first, max(first + 1, last)):
                cells[place] = bar.kind
        return cells

    def _cell(self, at: float, width: int) -> int:
        return max(0, min(width, round(width * (at - self.began) / self.seconds)))

    def used(self) -> list[BarKind]:
        """The kinds of bars that occur, for a legend."""
        found = {bar.kind for lane in self.lanes for bar in lane.bars}
        return [kind for kind in GLYPHS if kind in found]

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """As plain text in lines of at most so many characters."""
        layout = Layout.of(self, width)
        lines = [one_line(f"{self.title}  {seconds_text(self.seconds)}", layout.width)]
        for lane in self.lanes:
            bars = "".join(GLYPHS[kind] if kind else "·" for kind in self.cells(lane, layout.bars))
            lines.append(f"{layout.name(lane)} {bars} {layout.time(self, lane)}  {layout.facts(lane)}".rstrip())
        legend = "  ".join(f"{GLYPHS[kind]} {MEANINGS[kind]}" for kind in self.used())
        return "\n".join([*lines, *textwrap.wrap(legend, layout.width)])

    def _repr_html_(self) -> str:
        drawn = self.lanes[:MOST_DRAWN]
        height = ROW * (len(drawn) + 1)
        parts = [
            f"<b>{_safe(self.title, 200)}</b> {seconds_text(self.seconds)}"
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PICTURE} {height}" width="100%" '
            f'style="max-width:{PICTURE}px;font:12px sans-serif" role="img">'
        ]
        parts += [self._row(lane, ROW * place) for place, lane in enumerate(drawn)]
        parts.append("</svg><p>")
        parts += [f'<span style="color:{COLORS[kind]}">■</span> {MEANINGS[kind]} ' for kind in self.used()]
        rest = len(self.lanes) - len(drawn)
        return "".join([*parts, f"</p><p>{rest} lanes more are not drawn.</p>" if rest else "</p>"])

    def _row(self, lane: Lane, top: int) -> str:
        ink = "#c0392b" if lane.failed else "#7f8c8d"
        name = _safe(lane.name, NAME_CHARS)
        parts = [f'<text x="{14 * lane.depth}" y="{top + 14}" fill="currentColor">{name}</text>']
        scale = (RIGHT - LEFT) / self.seconds
        for bar in lane.bars:
            ended = self.ended if bar.ended is None else bar.ended
            left, wide = LEFT + scale * (bar.began - self.began), max(1.5, scale * (ended - bar.began))
            told = f"{lane.name}: {MEANINGS[bar.kind]}, {seconds_text(ended - bar.began)}"
            parts.append(
                f'<rect x="{left:.1f}" y="{top + 4}" width="{wide:.1f}" height="12" rx="2" '
                f'fill="{COLORS[bar.kind]}"><title>{_safe(told, 200)}</title></rect>'
            )
        note = " · ".join(part for part in (seconds_text(lane.seconds(self.ended)), lane.facts) if part)
        parts.append(f'<text x="{RIGHT + 8}" y="{top + 14}" fill="{ink}">{_safe(note, NOTE_CHARS)}</text>')
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Layout:
    """How wide the columns are in a terminal, in cells."""

    width: int
    names: int
    bars: int

    @classmethod
    def of(cls, timeline: Timeline, width: int) -> Layout:
        """The columns that fit into `width`: names as long as they are, up to a third of it."""
        width = max(LEAST_WIDTH, width)
        longest = max((2 * lane.depth + len(lane.name) for lane in timeline.lanes), default=8)
        names = max(8, min(longest, width * 3 // 10))
        # Where there is little room words need more of it, and where there is hardly any, bars.
        share = 9 if width in NARROW else 11
        return cls(width, names, max(8, (width - names) * share // 20))

    def name(self, lane: Lane) -> str:
        """What a lane is, as wide as the column is."""
        indent = "  " * min(lane.depth, self.names // 4)
        return f"{indent}{one_line(lane.name, self.names - len(indent))}".ljust(self.names)

    @staticmethod
    def time(timeline: Timeline, lane: Lane) -> str:
        """How long it took."""
        return f"{seconds_text(lane.seconds(timeline.ended)):>7}"

    def facts(self, lane: Lane) -> str:
        """What there is room for of the rest."""
        return one_line(lane.facts, max(1, self.width - self.names - self.bars - 11))


def seconds_text(seconds: float) -> str:
    """`12 ms`, `3.4 s`, `5 m 10 s`, `2 h 3 m`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"


def _safe(text: str, characters: int) -> str:
    return escape(one_line(text, characters))


def spanning(title: str, lanes: Sequence[Lane], *, began: float = 0.0, ended: float | None = None) -> Timeline:
    """The timeline of these lanes: from `began`, or the first bar, to the last one; to now while one lasts."""
    bars = [bar for lane in lanes for bar in lane.bars]
    first = min([bar.began for bar in bars] + ([began] if began else []), default=began)
    ends = [bar.ended for bar in bars if bar.ended is not None] + ([ended] if ended is not None else [])
    if ended is None and any(bar.ended is None for bar in bars):
        ends.append(time.time())
    return Timeline(title, first, max([first, *ends]), tuple(lanes))
