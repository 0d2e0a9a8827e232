"""When what happened in a run: bars, read off its log entry by entry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from squadron.actors.runs.entries import (
    Answered,
    Asking,
    CallEnd,
    CallsEnded,
    Dispatch,
    Entry,
    Epoch,
    Finished,
    Query,
    Sending,
    Summarized,
    Thought,
    TryFailed,
    Withdrawn,
)
from squadron.runtime.wire.spent import NOTHING, Spent

#: What time went to: the model thought; a try of it was in vain; a pause before the next one; an attempt at the
#: run died over it; a task waited for a replica, or for its next attempt; a handler worked; nobody knows yet which
#: of the two; a person was waited for.
BarKind = Literal["think", "vain", "pause", "lost", "wait", "again", "work", "open", "person"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time, in seconds since the epoch; `ended` is None while it lasts."""

    kind: BarKind
    began: float
    ended: float | None


@dataclass(slots=True)
class _CallTimes:
    sent: dict[int, float] = field(default_factory=dict)
    ends: dict[int, tuple[float, CallEnd]] = field(default_factory=dict)
    asked: list[Bar] = field(default_factory=list)


@dataclass(slots=True)
class ModelCost:
    """What one model cost in a run: `calls` that gave a turn or a summary, and those in vain."""

    model: str
    calls: int = 0
    vain: int = 0
    tokens: int = 0
    usd: float = 0.0

    def add(self, spent: Spent) -> None:
        """It was spent, too."""
        self.tokens += spent.tokens
        self.usd += spent.usd


class Moments:
    """Takes in the entries of one run, oldest first.

    Attributes:
        ended: when it ended; None while it goes on.
        models: what each model cost, in the order in which they were asked.
    """

    def __init__(self) -> None:
        self.ended: float | None = None
        self.models: dict[str, ModelCost] = {}
        self._rounds: dict[int, list[Bar]] = defaultdict(list)
        self._calls: dict[str, _CallTimes] = defaultdict(_CallTimes)
        self._asking: Asking | None = None
        #: When the last try was in vain, and in which round.
        self._vain: tuple[int, float] | None = None

    def apply(self, entry: Entry) -> None:
        """Take in the next entry."""
        match entry:
            case Epoch():
                self.ended = None
                self._stop_asking("lost", entry.at)
            case Asking():
                if self._vain is not None and self._vain[0] == entry.round:
                    self._rounds[entry.round].append(Bar("pause", self._vain[1], entry.at))
                self._asking, self._vain = entry, None
            case TryFailed():
                cost = self._cost(entry.model)
                cost.vain += 1
                cost.add(self._spent(entry.spent))
                self._stop_asking("vain", entry.at)
                self._vain = entry.round, entry.at
            case Thought():
                # A model may be told by a longer name than it was asked by.
                cost = self._cost(self._asking.model if self._asking else entry.turn.model)
                cost.calls += 1
                cost.add(self._spent(entry.spent))
                self._rounds[entry.round].append(Bar("think", entry.at - entry.seconds, entry.at))
                self._asking = self._vain = None
            case Summarized() if entry.model:
                cost = self._cost(self._asking.model if self._asking else entry.model)
                cost.calls += 1
                cost.add(self._spent(entry.spent))
                self._stop_asking("think", entry.at)
            case Finished():
                self.ended = entry.at
            case _:
                self._apply_call(entry)

    def _apply_call(self, entry: Entry) -> None:
        match entry:
            case Sending():
                for dispatch in entry.calls:
                    self._send(dispatch, entry.at)
            case CallsEnded():
                for end in entry.ends:
                    self._calls[end.call].ends[end.index] = entry.at, end
            case Query():
                self._calls[entry.call].asked.append(Bar("person", entry.at, None))
            case Answered():
                self._close_question(entry.call, entry.at)
            case Withdrawn():
                for call in entry.calls:
                    self._calls.pop(call, None)

    def _send(self, dispatch: Dispatch, at: float) -> None:
        self._close_question(dispatch.call, at)
        for index in range(dispatch.first, dispatch.first + dispatch.tasks):
            self._calls[dispatch.call].sent[index] = at

    def _close_question(self, call: str, at: float) -> None:
        asked = self._calls[call].asked
        if asked and asked[-1].ended is None:
            asked[-1] = Bar("person", asked[-1].began, at)

    def _stop_asking(self, how: Literal["think", "vain", "lost"], at: float) -> None:
        if self._asking is not None:
            self._rounds[self._asking.round].append(Bar(how, self._asking.at, at))
            if how == "lost":
                self._cost(self._asking.model).add(self._spent(None))
        self._asking = None

    def _cost(self, model: str) -> ModelCost:
        return self.models.setdefault(model, ModelCost(model))

    def _spent(self, told: object) -> Spent:
        """As the run itself reckons: where nobody tells, what was set aside."""
        if told is None:
            return Spent(self._asking.tokens, self._asking.usd_micros) if self._asking else NOTHING
        return Spent.of_wire(told)

    def of_round(self, number: int) -> tuple[Bar, ...]:
        """What a round took before its calls went out."""
        bars = self._rounds.get(number, [])
        if self._asking is not None and self._asking.round == number:
            bars = [*bars, Bar("think", self._asking.at, self.ended)]
        return tuple(bars)

    @property
    def coming(self) -> int:
        """The round that the model is asked in now; 0 if it is not."""
        return self._asking.round if self._asking is not None else 0

    def of_call(self, call: str) -> tuple[Bar, ...]:
        """What a call took, all its tasks together: waiting until the first was begun, then work until the end."""
        times = self._calls.get(call)
        if times is None:
            return ()
        last = max((at for at, _ in times.ends.values()), default=self.ended)
        asked = [bar if bar.ended is not None else Bar(bar.kind, bar.began, last) for bar in times.asked]
        return (*asked, *_merged(times, self.ended))


def _of_task(times: _CallTimes, index: int, over: float | None) -> tuple[Bar, ...]:
    sent = times.sent[index]
    if index not in times.ends:
        return (Bar("open", sent, over),)
    at, end = times.ends[index]
    # The handler's time is told, that of earlier attempts and of waiting is not.
    began = max(sent, at - end.latency_ms / 1000)
    before: Sequence[Bar] = [Bar("again" if end.attempt > 1 else "wait", sent, began)] if began > sent else []
    return (*before, Bar("work", began, max(at, began)))


def _merged(times: _CallTimes, over: float | None) -> list[Bar]:
    tasks = [_of_task(times, index, over) for index in times.sent]
    if len(tasks) == 1:
        return list(tasks[0])
    bars = [bar for task in tasks for bar in task]
    if not bars:
        return []
    sent = min(bar.began for bar in bars)
    begun = min((bar.began for bar in bars if bar.kind == "work"), default=None)
    ended = None if any(bar.ended is None for bar in bars) else max(bar.ended or 0.0 for bar in bars)
    if begun is None:
        return [Bar("open", sent, ended)]
    again = any(bar.kind == "again" for bar in bars)
    before = [Bar("again" if again else "wait", sent, begun)] if begun > sent else []
    return [*before, Bar("work", begun, ended)]
