"""What a job did so far: phases, calls, counts. Pure data, fed with events; the screens read it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Span:
    """A stretch of time, in seconds since the start; `ended_s` is None while it lasts."""

    name: str
    began_s: float
    ended_s: float | None = None


@dataclass
class Call:
    """One call of the supervisor: its tasks and how they ended."""

    id: str
    round: int
    topic: str
    tasks: int
    span: Span
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    retries: int = 0

    @property
    def done(self) -> int:
        return self.outcomes.total()

    @property
    def failed(self) -> int:
        return self.done - self.outcomes["result"]


class Tally:
    """Adds up a job from its phases and the events of its supervisor (`RunReport.timeline` has the same)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self.phases: list[Span] = []
        self.thoughts: list[Span] = []
        self.calls: dict[str, Call] = {}
        self.agents: list[dict[str, Any]] = []
        self.round, self.text, self.model = 0, "", ""
        self._run_began_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    def phase(self, name: str) -> bool:
        """Another phase begins, the one before ends; whether it is another one."""
        if self.phases and self.phases[-1].name == name and self.phases[-1].ended_s is None:
            return False
        self.end()
        self.phases.append(Span(name, self.elapsed_s))
        return True

    def end(self) -> None:
        """The last phase ends."""
        if self.phases and self.phases[-1].ended_s is None:
            self.phases[-1].ended_s = self.elapsed_s

    def event(self, event: dict[str, Any]) -> Call | None:
        """Take in one event; returns the call it is about, if it is about one."""
        at_s = self._run_began_s + event.get("at_s", 0.0)
        match event.get("event"):
            case "started":
                self._run_began_s = self.elapsed_s - event.get("at_s", 0.0)
                self.model = event.get("model", "")
            case "text":
                self.text += event["delta"]
            case "thought":
                self.round, self.text = event["round"], event["text"]
                # Another one may have been taken in its place.
                self.model = event.get("model") or self.model
                self.thoughts.append(Span(f"think, round {self.round}", at_s - event["seconds"], at_s))
            case "dispatched":
                span = Span(event["topic"], at_s)
                call = Call(event["call"], event["round"], event["topic"], event["tasks"], span)
                self.calls[call.id] = call
                self.text = ""
                return call
            case "outcome" if event["call"] in self.calls:
                return self._count(self.calls[event["call"]], event, at_s)
        return None

    @staticmethod
    def _count(call: Call, event: dict[str, Any], at_s: float) -> Call:
        call.outcomes[event["kind"]] += 1
        call.retries += event.get("attempt", 1) > 1
        if event.get("reason"):
            call.reasons[event["reason"]] += 1
        if call.done >= call.tasks:
            call.span.ended_s = at_s
        return call

    def replicas(self, topic: str) -> int:
        """How many replicas serve a topic, as the last status said."""
        return sum(each["running"] for each in self.agents if topic in each["topics"])

    def tasks(self) -> dict[str, Any]:
        """Dispatched tasks, and how they ended, as a `RunReport` has it."""
        outcomes = sum((call.outcomes for call in self.calls.values()), Counter[str]())
        return {"dispatched": sum(call.tasks for call in self.calls.values()), "outcomes": dict(outcomes)}

    def phase_seconds(self) -> dict[str, float]:
        """How long each phase took."""
        seconds: Counter[str] = Counter()
        for span in self.phases:
            seconds[span.name] += (self.elapsed_s if span.ended_s is None else span.ended_s) - span.began_s  # type: ignore[assignment]
        return {name: round(value, 2) for name, value in seconds.items()}

    def spans(self) -> Sequence[tuple[Span, str]]:
        """Everything that took time, in order, each with a note: phases, and in the run thoughts and calls."""
        inside = [(span, "") for span in self.thoughts if (span.ended_s or 0.0) - span.began_s >= 0.05]
        inside += [(call.span, describe(call)) for call in self.calls.values()]
        inside.sort(key=lambda row: row[0].began_s)
        rows: list[tuple[Span, str]] = []
        for phase in self.phases:
            rows.append((phase, ""))
            if phase.name == "run":
                rows += inside
        return rows


def describe(call: Call) -> str:
    """`151 tasks, 2 timed out, 1 retried`."""
    parts = [f"{call.tasks} task{'s' if call.tasks != 1 else ''}"]
    parts += [f"{count} {kind.replace('_', ' ')}" for kind, count in call.outcomes.items() if kind != "result"]
    if call.retries:
        parts.append(f"{call.retries} retried")
    return ", ".join(parts)
