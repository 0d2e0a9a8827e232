"""Draws the pictures of the live views, with the code that draws on terminals: `make pictures`."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType
from rich.terminal_theme import MONOKAI

from squadron.actors.runs.moments import Bar, BarKind
from squadron.actors.runs.timeline import Lane, spanning
from squadron.cli.run_trace import drawn_lines
from squadron.cli.tail import lines_of
from squadron.cli.top_screen import Screen
from squadron.views.beats import Beats
from squadron.views.passing import Passing

WIDTH = 100
#: Of no day in particular.
NOON = 1_795_867_200.0
#: A picture asks nobody for a font.
FRAME = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)

#: Agent, topic, replicas and how many are wanted, waiting; done and failed per second by replica, and how long a
#: task waits and runs, in seconds.
AGENTS: Sequence[tuple[str, str, int, int, int, Sequence[tuple[float, float]], float, float]] = (
    ("billing", "bill.write", 2, 3, 14, ((2.2, 0.0), (2.4, 0.0)), 0.38, 0.201),
    ("desk", "order.take", 1, 1, 0, ((4.6, 0.0),), 0.003, 0.611),
    ("report-writer", "report.write", 1, 1, 0, ((0.0, 0.0),), 0.0, 0.0),
    ("stock", "stock.check", 2, 2, 0, ((4.4, 0.2), (4.6, 0.2)), 0.004, 0.174),
    ("supervisor", "goal.pursue", 1, 1, 0, ((0.2, 0.0),), 0.002, 12.4),
)


def top() -> list[RenderableType]:
    """Five agents, of which one has been opened."""
    beats, screen, statuses = Beats(heartbeat_s=5.0), Screen("dev", sort="rate"), []
    for agent, topic, running, target, waiting, replicas, wait_s, run_s in AGENTS:
        statuses.append(
            {"agent": agent, "topics": [topic], "status": "RUNNING", "running": running, "target": target}
            | {"waiting": waiting}
        )
        for number, (rate, failing) in enumerate(replicas):
            for second in range(0, 301, 5):
                done, failed = round(rate * second), round(failing * second)
                counts: list[Any] = [["tasks", topic, "result", [done]], ["tasks", topic, "failed", [failed]]]
                counts += [["wait", topic, [wait_s * done, done]], ["turn", topic, [run_s * done, done]]]
                told = {"agent": agent, "replica": f"{agent}-{'af2c7e6f' if number else 'e3983f86'}", "slots": 4}
                told |= {"inFlight": min(4, round(rate * run_s) + (waiting > 0)), "metrics": {"cells": counts}}
                beats.hear(told | {"outcomes": {"result": done, "failed": failed}}, NOON + second)
    screen.update(beats.figures(statuses, NOON + 301))
    for key in ("down", "open"):
        screen.press(key)
    return [screen]


def tail() -> list[RenderableType]:
    """An order and what comes of it."""
    order, first, second, bill = "57a013bf41c2", "253c8a8e90d1", "a4ce4d7907be", "e0e6074b5c1f"

    def task(at: float, id: str, topic: str, sender: str, agent: str, size: int) -> Passing:
        parent = order if id != order else ""
        it = Passing("task", "", NOON + at, topic, id, parent=parent, sender_type=sender, agent=agent, bytes=size)
        return it

    def result(at: float, id: str, topic: str, agent: str, said: str, outcome: str = "result") -> Passing:
        it = Passing("result", "", NOON + at, topic, id, parent=order if id != order else "", outcome=outcome)
        return replace(it, said=said, agent=agent, sender_type=agent, bytes=468)

    again = replace(
        Passing("again", "", NOON + 0.4, "bill.write", bill, parent=order, sender_type="billing", bytes=391),
        said="attempt 1 failed: Retry: printer jammed",
    )
    passed = [
        task(0.0, order, "order.take", "client", "desk", 432),
        task(0.01, first, "stock.check", "desk", "stock", 533),
        task(0.01, second, "stock.check", "desk", "stock", 533),
        result(0.14, first, "stock.check", "stock", "128 ms"),
        result(0.21, second, "stock.check", "stock", "198 ms · no such item", "failed"),
        task(0.21, bill, "bill.write", "desk", "billing", 531),
        again,
        result(1.0, bill, "bill.write", "billing", "201 ms · attempt 2"),
        Passing("event", "", NOON + 1.0, "order.taken", "6fcabdd3a1e0", sender_type="desk", bytes=289),
        result(1.01, order, "order.take", "desk", "1.0 s"),
    ]
    return [line for it in passed for line in lines_of(it, WIDTH)]


def trace() -> list[RenderableType]:
    """A run with a try in vain, a person who is asked, and a call that is tried again."""

    def lane(kind: str, name: str, *bars: tuple[BarKind, float, float], depth: int = 0, **facts: Any) -> Lane:
        made = tuple(Bar(how, NOON + began, NOON + ended) for how, began, ended in bars)
        return Lane(kind, name, depth, made, **{"outcome": "result" if kind == "call" else ""} | facts)

    def model(tokens: int, usd: float) -> dict[str, Any]:
        return {"note": "anthropic:claude-sonnet-4-5", "tokens": tokens, "usd": usd}

    lanes = [
        lane("round", "round 1", ("vain", 0, 1.3), ("pause", 1.3, 2.4), ("think", 2.4, 5), **model(2_732, 0.0096)),
        lane("call", "text.draft", ("wait", 5, 5.4), ("work", 5.4, 14), depth=1, tokens=4_958, usd=0.0172),
        lane("round", "round 1", ("think", 5.5, 8.2), depth=2, **model(2_190, 0.0078)),
        lane("call", "look_up", ("work", 8.2, 10.6), depth=3),
        lane("round", "round 2", ("think", 10.6, 13.9), depth=2, **model(2_768, 0.0094)),
        lane("call", "stock.check x 12", ("wait", 5, 5.8), ("work", 5.8, 8.3), depth=1, note="1 tried again"),
        lane("round", "round 2", ("think", 14, 16.8), **model(3_958, 0.0134)),
        lane(
            *("call", "print.page", ("person", 16.8, 22), ("again", 22, 24.5), ("work", 24.5, 26)),
            depth=1,
            note="1 tried again, by ada",
        ),
        lane("round", "round 3", ("think", 26, 28.1), **model(4_105, 0.0139)),
    ]
    run = "run-615615404cd719c7080a2c9c · finished · Write a draft about rays and print it"
    return list(drawn_lines(spanning(run, lanes), WIDTH))


def attempts() -> list[RenderableType]:
    """A plain task whose first attempt failed, and whose second died with its replica."""
    tried = (
        (
            "attempt 1",
            (("wait", 0, 0.4), ("vain", 0.4, 1.2)),
            "tried_again",
            "Retry: paper jam, by printer-3bb8",
            100,
        ),
        ("attempt 2", (("pause", 1.2, 1.8), ("lost", 1.8, 4.6)), "lost", "its replica died or fell silent", 0),
        ("attempt 3", (("work", 4.6, 5.5),), "result", "by printer-330f", 50),
    )
    lanes = [
        Lane("task", name, 0, tuple(Bar(k, NOON + a, NOON + b) for k, a, b in bars), outcome, note, tokens)
        for name, bars, outcome, note, tokens in tried
    ]
    return list(drawn_lines(spanning("task page-7", lanes), WIDTH))


VIEWS = {"top": top, "tail": tail, "trace": trace, "attempts": attempts}
TITLES = {"attempts": "squadron trace page-7", "trace": "squadron trace run-6156"}


def drawn(name: str) -> str:
    """One picture as SVG."""
    height = 13 if name == "top" else 40
    console = Console(record=True, file=io.StringIO(), width=WIDTH, height=height, force_terminal=True)
    for each in VIEWS[name]():
        console.print(each, soft_wrap=name != "top")
    title = TITLES.get(name, f"squadron {name}")
    return console.export_svg(title=title, theme=MONOKAI, code_format=FRAME, unique_id=name)


def main() -> None:
    """Write all of them beside this file."""
    # Times of day are those of the reader; here they are nobody's.
    os.environ["TZ"] = "UTC"
    time.tzset()
    for name in VIEWS:
        Path(__file__).with_name(f"{name}.svg").write_text(drawn(name))


if __name__ == "__main__":
    main()
