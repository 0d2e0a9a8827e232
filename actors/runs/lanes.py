"""What a run shows of itself: its time as lanes of bars, and its cost by model, round and call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from squadron.actors.runs.moments import ModelCost
from squadron.actors.runs.timeline import Lane, Timeline, spanning
from squadron.runtime.texts import one_line

if TYPE_CHECKING:
    from squadron.actors.runs.shelf import CallView, RunView

#: What is shown of a name in a table, in characters.
NAME_CHARS = 48


def timeline_of(view: RunView) -> Timeline:
    """The timeline of a run: its rounds, their calls, and the runs that these are themselves."""
    info = view.info
    title = " · ".join(part for part in (info.run, info.state, info.title) if part)
    ended = None if view.ended is None else view.ended
    if ended is None and info.ended:
        # Nobody wrote its end.
        ended = info.updated
    return spanning(title, list(_of_run(view, 0)), began=info.started, ended=ended)


def _of_run(view: RunView, depth: int) -> Iterator[Lane]:
    for each in view.rounds:
        note = f"{len(each.failed)} in vain" if each.failed else each.model
        name = f"round {each.round}"
        yield Lane("round", name, depth, each.bars, note=note, tokens=each.tokens, usd=each.usd)
        for call in each.calls:
            yield from _of_call(call, depth + 1)
    if view.thinking:
        yield Lane("round", f"round {len(view.rounds) + 1}", depth, view.thinking, note="the model is asked")


def _of_call(call: CallView, depth: int) -> Iterator[Lane]:
    failed = {kind: count for kind, count in call.outcomes.items() if kind != "result"}
    ended = sum(call.outcomes.values()) >= max(1, call.tasks)
    notes = [f"{count} {kind.replace('_', ' ')}" for kind, count in failed.items()] if call.tasks > 1 else []
    notes += [f"{call.again} tried again"] if call.again else []
    notes += [f"by {call.answered_by}"] if call.answered_by else []
    notes += [one_line(call.reason, 80)] if call.reason else []
    outcome = next(iter(failed), "result") if ended else ""
    name = f"{call.name} x {call.tasks}" if call.tasks > 1 else call.name
    bars = call.bars if not call.runs else tuple(bar for bar in call.bars if bar.kind != "open") or call.bars
    yield Lane("call", name, depth, bars, outcome, ", ".join(notes), *_spent_on(call), call.id)
    for run in call.runs:
        yield from _of_run(run, depth + 1)


@dataclass(frozen=True, slots=True)
class CostRow:
    """What one thing cost: `calls` of a model, or tasks."""

    name: str
    calls: int
    tokens: int
    usd: float
    note: str = ""


@dataclass(frozen=True, repr=False)
class Costs:
    """What a run cost, three times over: each of the lists adds up to the whole.

    Attributes:
        models: by model, those of the runs that it called included; what other agents spent that did not keep a
            run stands under its topic.
        rounds: by round: the model's turn, the tries in vain, and what its calls cost.
        calls: by call, the dearest first, and the model's own turns as one.
    """

    tokens: int
    usd: float
    models: tuple[CostRow, ...]
    rounds: tuple[CostRow, ...]
    calls: tuple[CostRow, ...]

    def to_dicts(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        lines = [f"{self.tokens:,} tokens, ${self.usd:.4f}"]
        for title, rows in self._tables():
            lines.append(f"{title}:")
            wide = max((len(one_line(row.name, NAME_CHARS)) for row in rows), default=0)
            for row in rows:
                figures = f"{row.calls:>5} x {row.tokens:>10,} tokens  ${row.usd:.4f}  {one_line(row.note, 60)}"
                lines.append(f"  {one_line(row.name, NAME_CHARS):<{wide}} {figures}".rstrip())
        return "\n".join(lines)

    def _tables(self) -> tuple[tuple[str, Sequence[CostRow]], ...]:
        return ("by model", self.models), ("by round", self.rounds), ("by call", self.calls)

    def _repr_html_(self) -> str:
        parts = [f"<b>{self.tokens:,} tokens, ${self.usd:.4f}</b>"]
        for title, rows in self._tables():
            parts.append(f"<table><tr><th>{title}</th><th></th><th>tokens</th><th>USD</th><th></th></tr>")
            for row in rows:
                name, note = escape(one_line(row.name, NAME_CHARS)), escape(one_line(row.note, 60))
                figures = f"<td>{row.calls}</td><td>{row.tokens:,}</td><td>{row.usd:.4f}</td>"
                parts.append(f"<tr><td>{name}</td>{figures}<td>{note}</td></tr>")
            parts.append("</table>")
        return "".join(parts)


def costs_of(view: RunView) -> Costs:
    """What a run cost, by model, by round and by call."""
    calls = [call for each in view.rounds for call in each.calls]
    own = _sum((cost.tokens, cost.usd) for cost in view.models)
    asked = sum(cost.calls + cost.vain for cost in view.models)
    rows = [CostRow("the model", asked, *own)]
    rows += [CostRow(call.name, call.tasks, *_spent_on(call), call.id) for call in calls]
    return Costs(
        *_spent_by(view),
        tuple(
            CostRow(cost.model, cost.calls + cost.vain, cost.tokens, cost.usd, _vain(cost))
            for cost in _models(view)
        ),
        tuple(_by_round(view)),
        tuple(sorted(rows, key=lambda row: (-row.usd, -row.tokens))),
    )


def _sum(costs: Iterable[tuple[int, float]]) -> tuple[int, float]:
    tokens, usd = 0, 0.0
    for more in costs:
        tokens, usd = tokens + more[0], usd + more[1]
    return tokens, usd


def _spent_by(view: RunView) -> tuple[int, float]:
    """What a run has spent up to now, with all that it called."""
    calls = (_spent_on(call) for each in view.rounds for call in each.calls)
    return _sum([*((cost.tokens, cost.usd) for cost in view.models), *calls])


def _spent_on(call: CallView) -> tuple[int, float]:
    """What a call cost; while it goes on nobody tells, and it is what its runs have spent up to now."""
    tokens, usd = _sum(_spent_by(run) for run in call.runs)
    return max(call.tokens, tokens), max(call.usd, usd)


def _vain(cost: ModelCost) -> str:
    return f"{cost.vain} in vain" if cost.vain else ""


def _by_round(view: RunView) -> Iterator[CostRow]:
    thought = [0, 0.0]
    for each in view.rounds:
        tokens, usd = _sum([(each.tokens, each.usd), *map(_spent_on, each.calls)])
        thought = [thought[0] + each.tokens, thought[1] + each.usd]
        yield CostRow(f"round {each.round}", 1 + len(each.calls), tokens, usd, each.model)
    # Tries in vain are charged, too, and a turn that never came.
    tokens = sum(cost.tokens for cost in view.models) - int(thought[0])
    usd = sum(cost.usd for cost in view.models) - thought[1]
    if tokens > 0 or usd > 1e-9:
        yield CostRow("in vain", sum(cost.vain for cost in view.models), tokens, max(0.0, usd))


def _models(view: RunView) -> list[ModelCost]:
    found: dict[str, ModelCost] = {}

    def add(name: str, calls: int, vain: int, tokens: int, usd: float) -> None:
        into = found.setdefault(name, ModelCost(name))
        into.calls, into.vain = into.calls + calls, into.vain + vain
        into.tokens, into.usd = into.tokens + tokens, into.usd + usd

    for cost in view.models:
        add(cost.model, cost.calls, cost.vain, cost.tokens, cost.usd)
    for call in (call for each in view.rounds for call in each.calls):
        inner = [cost for run in call.runs for cost in _models(run)]
        for cost in inner:
            add(cost.model, cost.calls, cost.vain, cost.tokens, cost.usd)
        spent, its_runs = _spent_on(call), _sum((cost.tokens, cost.usd) for cost in inner)
        tokens, usd = spent[0] - its_runs[0], spent[1] - its_runs[1]
        if tokens or abs(usd) > 1e-9:
            add(f"{call.name}, by itself", call.tasks, 0, tokens, usd)
    return sorted(found.values(), key=lambda cost: (-cost.usd, -cost.tokens))
