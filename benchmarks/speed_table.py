"""The table of `make bench`: printed, and put into the documentation as it was printed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What was measured.
FIGURES = Path(__file__).parent / "results" / "delivery.json"
#: Where the table stands, between two lines that say so.
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
_BEGIN, _END = "<!-- what make bench printed -->\n", "<!-- until here -->\n"


def table(results: Mapping[str, Any]) -> str:
    """What was measured, in Markdown; `results` are what `FIGURES` has."""
    ways, first = results["figures"]["ways"], results["first"]
    per_second = f"a second, {results['at_once']} under way"
    lines = [
        f"| 1 KB, 2 replicas | p50, ms | p99, ms | {per_second} | p50 of an ask / | asks a second / |",
        "|--|--|--|--|--|--|",
    ]
    for name, found in ways.items():
        cells = [
            name,
            f"{statistics.median(found['p50_ms']):.2f}",
            f"{statistics.median(found['p99_ms']):.2f}",
            f"{statistics.median(found['per_second']):,.0f}",
            f"{_ratio(ways[first]['p50_ms'], found['p50_ms']):.2f}",
            f"{_ratio(ways[first]['per_second'], found['per_second']):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| | median | rounds | target | |", "|--|--|--|--|--|"]
    for each in results["targets"]:
        limit = f"at {'most' if each['at_most'] else 'least'} {each['limit']:g}"
        rounds = f"{min(each['rounds']):.2f} to {max(each['rounds']):.2f}"
        held = "held" if each["held"] else "missed"
        lines.append(f"| {each['what']} | {each['value']:.2f} | {rounds} | {limit} | {held} |")
    machine = results["machine"]
    said = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = f"{results['busy_before']:.0f} % busy before"
    lines += ["", f"{machine['cores']} cores of {machine['cpu']}, {busy}; Python {machine['python']}, {said}."]
    return "\n".join(lines) + "\n"


def _ratio(ones: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def put_into(text: str, shown: str) -> str:
    """A page with another table.

    Raises:
        ValueError: it has no place for one.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no {_BEGIN.strip()} … {_END.strip()}")
    return before + _BEGIN + "\n" + shown + "\n" + _END + after
