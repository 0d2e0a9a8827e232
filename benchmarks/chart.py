"""Bars in SVG, written by hand: a panel for each figure, a group of bars for each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 240, 220, 16, 44, 36
COLORS = ("#2563eb", "#94a3b8", "#f59e0b")


@dataclass(frozen=True)
class Panel:
    """One figure: values per series, in the order of the sizes, and perhaps a limit, drawn as a line."""

    title: str
    series: Mapping[str, Sequence[float]]
    limit: float | None = None


def draw(sizes: Sequence[str], panels: Sequence[Panel]) -> str:
    """All panels side by side."""
    body = "".join(_panel(sizes, panel, WIDTH * number) for number, panel in enumerate(panels))
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11" fill="#334155"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{body}</svg>\n'


def _panel(sizes: Sequence[str], panel: Panel, x: float) -> str:
    parts = [_text(x + LEFT, 18, panel.title, 'font-weight="bold"')]
    top = max([panel.limit or 0.0, *(value for values in panel.series.values() for value in values)]) or 1.0
    floor, scale = HEIGHT - BOTTOM, (HEIGHT - TOP - BOTTOM - 12) / top
    group = (WIDTH - 2 * LEFT) / len(sizes)
    bar = group * 0.8 / len(panel.series)
    for which, (name, values) in enumerate(panel.series.items()):
        parts.append(_text(x + LEFT + 100 * which, 34, name, f'style="fill:{COLORS[which]}"'))
        for number, value in enumerate(values):
            at, high = x + LEFT + group * number + bar * which, value * scale
            box = f'x="{at:.1f}" y="{floor - high:.1f}" width="{bar - 2:.1f}" height="{high:.1f}"'
            parts.append(f'<rect {box} fill="{COLORS[which]}"/>')
            parts.append(
                _text(at + bar / 2, floor - high - 3, _short(value), 'text-anchor="middle" font-size="9"')
            )
    for number, size in enumerate(sizes):
        parts.append(_text(x + LEFT + group * (number + 0.4), floor + 16, size, 'text-anchor="middle"'))
    if panel.limit is not None:
        y = floor - panel.limit * scale
        line = f'x1="{x + LEFT}" x2="{x + WIDTH - LEFT}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line {line} stroke="#dc2626" stroke-dasharray="4"/>')
        parts.append(_text(x + LEFT, floor + 30, f"target {_short(panel.limit)}", 'style="fill:#dc2626"'))
    return "".join(parts)


def _short(value: float) -> str:
    return f"{value / 1000:.0f}k" if value >= 10_000 else f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
