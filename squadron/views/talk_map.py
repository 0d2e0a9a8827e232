"""Who talks to whom: senders, topics and agents, with how often, from messages heard over a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

from squadron.runtime.registry.registry import Registry
from squadron.runtime.store.port_set import Ports
from squadron.runtime.texts import one_line
from squadron.views.listener import Listener, Missed
from squadron.views.passing import Passing

#: How many ways are drawn, the busiest first; `to_dicts` has all.
MOST_DRAWN = 40
#: Width of the picture, height of a row, and how wide a column of names is, in pixels.
WIDTH, ROW, COLUMN = 900, 26, 230
#: Characters of a name in the picture.
NAME_CHARS = 25


@dataclass(slots=True)
class Way:
    """One way that messages took.

    Attributes:
        sender: an agent, or "client".
        agent: who serves the topic; empty if nobody does, or it is of an event, which whoever likes may hear.
        outcomes: how the tasks ended whose results passed meanwhile: kind → number.
    """

    kind: str
    sender: str
    topic: str
    agent: str
    count: int = 0
    bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Tasks that ended otherwise than in a result."""
        return self.outcomes.total() - self.outcomes["result"]


class TalkMap:
    """The ways that messages took in `seconds` seconds, the busiest first.

    In a notebook it is a picture, elsewhere a table; `to_dicts` is for whoever plots.

    Attributes:
        missed: messages that passed too fast to be counted.
    """

    def __init__(self, ways: Iterable[Way], seconds: float, missed: int = 0) -> None:
        self.ways = sorted(ways, key=lambda way: (-way.count, way.sender, way.topic))
        self.seconds, self.missed = seconds, missed

    def to_dicts(self) -> list[dict[str, Any]]:
        """Each way as plain JSON; `rate` is in messages per second."""
        return [
            {
                "kind": way.kind,
                "sender": way.sender,
                "topic": way.topic,
                "agent": way.agent,
                "count": way.count,
                "rate": self._rate(way),
                "bytes": way.bytes,
                "outcomes": dict(way.outcomes),
            }
            for way in self.ways
        ]

    def _rate(self, way: Way) -> float:
        return round(way.count / max(0.001, self.seconds), 3)

    def __repr__(self) -> str:
        if not self.ways:
            return f"Nobody said anything in {self.seconds:g} s.{self._missed()}"
        names = [(one_line(way.sender, 24), one_line(way.topic, 40), self._to(way)) for way in self.ways]
        wide = [max(len(row[column]) for row in names) for column in range(3)]
        lines = [f"Who talked to whom in {self.seconds:g} s:{self._missed()}"]
        for (sender, topic, agent), way in zip(names, self.ways, strict=True):
            failed = f"  {way.failed} failed" if way.failed else ""
            said = f"{sender:<{wide[0]}} → {topic:<{wide[1]}} → {agent:<{wide[2]}}"
            lines.append(f"{said}  {_rate_text(self._rate(way)):>8}/s  {way.count:>6,}{failed}")
        return "\n".join(lines)

    def _missed(self) -> str:
        return f" {self.missed:,} messages more passed too fast to be counted." if self.missed else ""

    @staticmethod
    def _to(way: Way) -> str:
        return one_line(way.agent, 24) or ("who listens" if way.kind == "event" else "nobody")

    def _repr_html_(self) -> str:
        if not self.ways:
            return f"<p>{escape(repr(self))}</p>"
        drawn = self.ways[:MOST_DRAWN]
        rest = len(self.ways) - len(drawn)
        more = f"<p>{rest} ways more are not drawn.</p>" if rest else ""
        missed = f"<p>{escape(self._missed())}</p>" if self.missed else ""
        return f"{_picture(drawn, self)}{more}{missed}"


def _picture(ways: list[Way], of: TalkMap) -> str:
    """Three columns of names, and lines between them as wide as they are busy."""
    columns = [
        _rows(way.sender for way in ways),
        _rows(way.topic for way in ways),
        _rows(TalkMap._to(way) for way in ways),
    ]
    height = ROW * (1 + max(map(len, columns)))
    gap = (WIDTH - 3 * COLUMN) / 2
    lefts = [0.0, COLUMN + gap, 2 * (COLUMN + gap)]
    most = max(way.count for way in ways)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="100%" '
        f'style="max-width:{WIDTH}px;font:12px sans-serif" role="img">'
    ]
    for way in ways:
        y = [columns[0][way.sender], columns[1][way.topic], columns[2][TalkMap._to(way)]]
        told = f"{way.sender} → {way.topic} → {TalkMap._to(way)}: {of._rate(way):g}/s, {way.count:,} messages"
        color = "#c0392b" if way.failed else "#7f8c8d" if way.kind == "event" else "#2e86c1"
        wide = 1 + 7 * way.count / most
        for column in (0, 1):
            start, end = lefts[column] + COLUMN, lefts[column + 1]
            middle = (start + end) / 2
            curve = f"M{start:.0f},{y[column]} C{middle:.0f},{y[column]} {middle:.0f},{y[column + 1]} {end:.0f},"
            parts.append(
                f'<path d="{curve}{y[column + 1]}" fill="none" stroke="{color}" stroke-width="{wide:.1f}" '
                f'stroke-opacity="0.55"><title>{_safe(told, 200)}</title></path>'
            )
    for left, names in zip(lefts, columns, strict=True):
        for name, middle_y in names.items():
            parts.append(
                f'<rect x="{left:.0f}" y="{middle_y - 10}" width="{COLUMN}" height="20" rx="4" fill="#ecf0f1"/>'
                f'<text x="{left + 8:.0f}" y="{middle_y + 4}" fill="#2c3e50">{_safe(name, NAME_CHARS)}</text>'
            )
    right = lefts[1] + COLUMN - 8
    for topic, middle_y in columns[1].items():
        rate = _rate_text(sum(of._rate(way) for way in ways if way.topic == topic))
        parts.append(f'<text x="{right:.0f}" y="{middle_y + 4}" fill="#7f8c8d" text-anchor="end">{rate}/s</text>')
    return "".join([*parts, "</svg>"])


def _rate_text(rate: float) -> str:
    return f"{rate:.2f}" if rate < 9.995 else f"{rate:,.1f}"


def _rows(names: Iterable[str]) -> dict[str, int]:
    """Where each name stands, in the order in which they come."""
    return {name: ROW * (place + 1) - ROW // 3 for place, name in enumerate(dict.fromkeys(names))}


def _safe(text: str, characters: int) -> str:
    return escape(one_line(text, characters))


class Ways:
    """Counts the ways that messages take."""

    def __init__(self) -> None:
        self.ways: dict[tuple[str, str, str, str], Way] = {}
        self._of_task: dict[str, Way] = {}

    def count(self, it: Passing) -> None:
        """Take in one message; only tasks, events and results are ways."""
        if it.kind == "result":
            if (way := self._of_task.pop(it.id, None)) is not None:
                way.outcomes[it.outcome or "unknown"] += 1
            return
        if it.kind not in ("task", "event") or not it.sender_type:
            return
        agent = it.agent if it.kind == "task" else ""
        key = (it.kind, it.sender_type, it.topic, agent)
        way = self.ways.setdefault(key, Way(*key))
        way.count += 1
        way.bytes += it.bytes
        if it.kind == "task":
            self._of_task[it.id] = way


async def draw_map(ports: Ports, registry: Registry, seconds: float) -> TalkMap:
    """Listen for so many seconds, and tell who talked to whom.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    ways, missed = Ways(), 0
    began = ports.clock.time()
    async with await Listener.open(ports, registry) as listener:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for item in listener:
                    if isinstance(item, Missed):
                        missed += item.count
                    else:
                        ways.count(item)
    return TalkMap(ways.ways.values(), round(ports.clock.time() - began, 3), missed)
