"""The screen of `top`: which agents in which order, which one is open, drawn as wide as the terminal is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from squadron.runtime.texts import one_line, printable
from squadron.views.beats import AgentFigures

#: Orders, each with its key: what is largest comes first, but for names.
SORTS: dict[str, Callable[[AgentFigures], Any]] = {
    "name": lambda each: each.agent,
    "busy": lambda each: (-each.in_flight / max(1, each.slots), each.agent),
    "waiting": lambda each: (-(each.waiting or 0), each.agent),
    "rate": lambda each: (-(each.rates[1] or 0.0), each.agent),
    "failed": lambda each: (-each.failing, -each.failed, each.agent),
    "age": lambda each: (-(each.age_s or 0.0), each.agent),
}
LETTERS = {name[0]: name for name in SORTS}
#: From so many columns on there is room for topics.
WIDE = 110
#: Longest name of an agent, of a topic beside it, and of a topic or a replica below it, in characters.
NAME_CHARS, TOPIC_CHARS, NAMED_CHARS = 18, 40, 32
#: Name and least width of each: figures that grow must not move the others.
COLUMNS = {
    "AGENT": 10,
    "REPLICAS": 8,
    "BUSY": 7,
    "WAITING": 7,
    "/s 5s": 6,
    "30s": 6,
    "5min": 6,
    "FAILED": 9,
    "AGE": 6,
}


class Screen:
    """What is shown, and what keys do to it.

    Attributes:
        over: whether somebody wants to leave.
        trouble: why there are no new figures; empty if there are.
    """

    def __init__(self, environment: str, *, sort: str = "name") -> None:
        self._environment, self._sort = environment, sort
        self._figures: Sequence[AgentFigures] = ()
        self._chosen, self._open = "", False
        self.over, self.trouble = False, ""

    def update(self, figures: Sequence[AgentFigures]) -> None:
        """New figures."""
        self._figures = figures

    @property
    def agents(self) -> list[AgentFigures]:
        """In the order in which they are shown."""
        return sorted(self._figures, key=SORTS[self._sort])

    def press(self, key: str) -> None:
        """What a key does; one that means nothing does nothing."""
        names = [each.agent for each in self.agents]
        place = names.index(self._chosen) if self._chosen in names else -1
        match key:
            case "q":
                self.over = True
            case "down" | "j" if names:
                self._chosen = names[min(place + 1, len(names) - 1)]
            case "up" | "k" if names:
                self._chosen = names[max(place - 1, 0)]
            case "open" if names:
                self._chosen, self._open = names[max(place, 0)], not self._open
            case "close":
                self._open = False
            case _ if key in LETTERS:
                self._sort = LETTERS[key]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """A row for each agent, as texts."""
        for each in self.agents:
            yield _row(each)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figures = self._figures
        done = [each.rates[1] for each in figures if each.rates[1] is not None]
        facts = [f"{len(figures)} agents", f"{sum(each.running for each in figures)} replicas"]
        facts += [f"{sum(each.waiting or 0 for each in figures):,} waiting"]
        facts += [f"{sum(done):.1f} tasks/s"] if done else []
        head = Text.assemble((f"squadron {self._environment}", "bold"), (f"  {' · '.join(facts)}", "dim"))
        parts: list[RenderableType] = [_cut(head)]
        if self.trouble:
            parts.append(_cut(Text(f"! {one_line(self.trouble, 300)}", "yellow")))
        # The header, the keys and what is opened need their lines.
        opened = next((each for each in figures if self._open and each.agent == self._chosen), None)
        detail = list(_detail(opened, options.max_width)) if opened is not None else []
        height = options.height or console.height
        room = max(3, height - len(parts) - 3 - len(detail))
        parts += [self.table(options.max_width, room), *detail[: max(0, height - len(parts) - 4)]]
        parts.append(_cut(Text(f"sort by {self._keys()}   ↑↓ choose  ⏎ open  q quit", "dim")))
        yield Group(*parts)

    def _keys(self) -> str:
        return " ".join(f"[{name}]" if name == self._sort else f"{name[0]}·{name[1:]}" for name in SORTS)

    def table(self, width: int, most: int = 1_000) -> Table:
        """All agents, or as many as there is room for, the chosen one among them."""
        agents = self.agents
        place = next((place for place, each in enumerate(agents) if each.agent == self._chosen), 0)
        first = max(0, min(place - most + 2, len(agents) - most))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for name, least in COLUMNS.items():
            table.add_column(name, justify="left" if name == "AGENT" else "right", no_wrap=True, min_width=least)
        if width >= WIDE:
            table.add_column("SLOWEST TOPIC, OR ALL", no_wrap=True, overflow="ellipsis", ratio=1)
        for each in agents[first : first + most]:
            row = [_styled(name, cell, each) for name, cell in zip(COLUMNS, _row(each), strict=True)]
            row += [Text(_slowest(each), "dim")] if width >= WIDE else []
            table.add_row(*row, style="reverse" if each.agent == self._chosen else "")
        return table


def _cut(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _row(each: AgentFigures) -> tuple[str, ...]:
    waiting = "?" if each.waiting is None else f"{each.waiting:,}"
    failed = f"{each.failed:,}" + (f" +{each.failing:,}" if each.failing else "")
    replicas, busy = f"{each.running}/{each.target}", f"{each.in_flight}/{each.slots}"
    rates = (rate_text(rate) for rate in each.rates)
    return (one_line(each.agent, NAME_CHARS), replicas, busy, waiting, *rates, failed, _age(each))


def _age(each: AgentFigures) -> str:
    if each.age_s is None:
        return "-"
    return f"{'~' if each.age_guessed else ''}{short_seconds(each.age_s)}"


def rate_text(rate: float | None) -> str:
    """A rate with as many digits as matter; `-` if it is not known."""
    if rate is None:
        return "-"
    return f"{rate:.2f}" if rate < 9.995 else f"{rate:.1f}" if rate < 99.95 else f"{rate:,.0f}"


def short_seconds(seconds: float) -> str:
    """`12ms`, `3.4s`, `5m10s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _styled(column: str, cell: str, each: AgentFigures) -> Text:
    style = ""
    if column == "AGENT":
        style = "bold" if each.status == "RUNNING" else "yellow"
    elif column == "REPLICAS" and each.running < each.target:
        style = "yellow"
    elif column == "FAILED" and each.failing:
        style = "red"
    elif column == "WAITING" and (each.waiting or 0) > max(1, each.slots):
        style = "yellow"
    return Text(cell, style)


def _slowest(each: AgentFigures) -> str:
    slow = [topic for topic in each.topics if topic.run_s is not None]
    if not slow:
        return " ".join(printable(topic, "") for topic in each.serves)
    return ", ".join(
        f"{one_line(topic.topic, TOPIC_CHARS)} {short_seconds(topic.run_s or 0.0)}" for topic in slow[:3]
    )


def _detail(each: AgentFigures, width: int) -> Iterator[RenderableType]:
    """What one agent is made of: its topics and its replicas."""
    yield _cut(Text.assemble(("▾ ", "cyan"), (one_line(each.agent, 64), "bold"), (f"  {each.status}", "dim")))
    if each.message and each.status != "RUNNING":
        last = each.message.strip().rpartition("\n")[2]
        yield _cut(Text(f"  {one_line(last, 300)}", "yellow"))
    told = {topic.topic: topic for topic in each.topics}
    names = tuple(dict.fromkeys((*told, *each.serves)))
    # As wide as the longest: what is said of it needs the room.
    wide = max(
        len(one_line(name, NAMED_CHARS)) for name in ("", *names, *(replica.id for replica in each.replicas))
    )
    for name in names:
        facts = []
        if (topic := told.get(name)) is not None:
            facts = [f"{rate_text(topic.rate)}/s"]
            facts += [f"waits {short_seconds(topic.wait_s)}"] if topic.wait_s is not None else []
            facts += [f"runs {short_seconds(topic.run_s)}"] if topic.run_s is not None else []
            facts += [f"{topic.failed} failed"] if topic.failed else []
        yield _cut(Text.assemble(f"  {one_line(name, NAMED_CHARS):<{wide}}", (f"  {' · '.join(facts)}", "dim")))
    for replica in each.replicas:
        facts = [f"{replica.in_flight}/{replica.slots} busy", f"{rate_text(replica.rate)}/s"]
        facts += [f"{replica.done:,} done", f"{replica.failed:,} failed", f"heard {replica.silent_s:.0f} s ago"]
        yield _cut(
            Text.assemble(f"  {one_line(replica.id, NAMED_CHARS):<{wide}}", (f"  {' · '.join(facts)}", "dim"))
        )
