"""What a job did so far: phases, rounds, calls, costs. Pure data, fed with events; the screens read it."""

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

    def seconds(self, now_s: float) -> float:
        """How long it lasted, or has lasted by now."""
        return max(0.0, (now_s if self.ended_s is None else self.ended_s) - self.began_s)


@dataclass
class CallTally:
    """One call of the supervisor: its tasks and how they ended; one that never went out has no tasks.

    Attributes:
        query: the question to a person that it waits for; empty if there is none, or it is answered.
        approval: whether that question is if it may go out.
        answered_by: who answered.
    """

    id: str
    round: int
    topic: str
    tasks: int
    span: Span
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    tokens: int = 0
    usd: float = 0.0
    query: str = ""
    approval: bool = False
    answered_by: str = ""

    @property
    def done(self) -> int:
        return self.outcomes.total()

    @property
    def failed(self) -> int:
        return self.done - self.outcomes["result"]

    @property
    def ended(self) -> bool:
        return self.span.ended_s is not None


@dataclass(frozen=True)
class SummaryTally:
    """So many messages were summarized; `model` wrote the summary, empty for an extract."""

    messages: int
    model: str = ""
    seconds: float = 0.0
    tokens: int = 0
    usd: float = 0.0


@dataclass
class Round:
    """One turn of the model; `text` is what it has said by now, `trouble` what went wrong before it said it, and
    `summarized` what was summarized to make room for it.
    """

    number: int
    span: Span
    text: str = ""
    model: str = ""
    tokens: int = 0
    usd: float = 0.0
    trouble: list[str] = field(default_factory=list)
    summarized: list[SummaryTally] = field(default_factory=list)


class Tally:
    """Adds up a job from its phases and the events of its supervisor (`RunReport.timeline` has the same)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self.phases: list[Span] = []
        self.rounds: dict[int, Round] = {}
        self.calls: dict[str, CallTally] = {}
        self.agents: list[dict[str, Any]] = []
        self.run, self.ticket, self.model, self.attempt = "", "", "", 1
        self._run_began_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    @property
    def round(self) -> int:
        """The last round in which the model answered; 0 before the first."""
        return max((number for number, each in self.rounds.items() if each.span.ended_s is not None), default=0)

    @property
    def tokens(self) -> int:
        """What models and tasks have spent, as far as it was told."""
        return sum(each.tokens for each in self._spenders)

    @property
    def usd(self) -> float:
        """The same in US dollars."""
        return sum(each.usd for each in self._spenders)

    @property
    def _spenders(self) -> list[Round | CallTally | SummaryTally]:
        summaries = [one for each in self.rounds.values() for one in each.summarized]
        return [*self.rounds.values(), *self.calls.values(), *summaries]

    @property
    def waiting(self) -> list[CallTally]:
        """Calls that wait for people."""
        return [call for call in self.calls.values() if call.query]

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

    def event(self, event: dict[str, Any]) -> CallTally | None:
        """Take in one event; returns the call it is about, if it is about one."""
        at_s = self._run_began_s + event.get("at_s", 0.0)
        match event.get("event"):
            case "submitted":
                self.ticket = event["ticket"]
            case "started":
                # Another attempt tells all of the run anew.
                self.rounds, self.calls, self.attempt = {}, {}, 1
                self._run_began_s = self.elapsed_s - event.get("at_s", 0.0)
                self.run, self.model = event.get("run", ""), event.get("model", "")
            case "resumed":
                self.attempt = event["attempt"]
                # The turn that was streaming comes again, from its start.
                if coming := self.rounds.get(self.round + 1):
                    coming.text = ""
                # It goes on now, however long ago it began.
                self._shift(self.elapsed_s - at_s)
            case "text":
                self._coming(at_s).text += event["delta"]
            case "thought":
                self._thought(event, at_s)
            case "try_failed" | "fallback" | "retry":
                self._trouble(event, at_s)
            case "summarized":
                known = {name: event[name] for name in ("model", "seconds", "tokens", "usd") if name in event}
                self._coming(at_s, event["round"]).summarized.append(SummaryTally(event["messages"], **known))
            case "dispatched" | "asked":
                return self._begun(event, at_s)
            case "answered" if event["call"] in self.calls:
                call = self.calls[event["call"]]
                call.query, call.answered_by = "", event.get("by", "")
                return call
            case "outcome" if event["call"] in self.calls:
                return self._count(self.calls[event["call"]], event, at_s)
        return None

    def _shift(self, by_s: float) -> None:
        self._run_began_s += by_s
        thoughts, calls = (each.span for each in self.rounds.values()), (each.span for each in self.calls.values())
        for span in (*thoughts, *calls):
            span.began_s += by_s
            span.ended_s = None if span.ended_s is None else span.ended_s + by_s

    def _coming(self, at_s: float, number: int = 0) -> Round:
        """The round whose turn is still to come."""
        number = number or self.round + 1
        return self.rounds.setdefault(number, Round(number, Span(f"think, round {number}", at_s)))

    def _thought(self, event: dict[str, Any], at_s: float) -> None:
        # Another model may have been taken in its place.
        self.model = event.get("model") or self.model
        each = self._coming(at_s, event["round"])
        each.span.began_s, each.span.ended_s = at_s - event["seconds"], at_s
        each.text, each.model = event["text"], self.model
        each.tokens, each.usd = event.get("tokens", 0), event.get("usd", 0.0)

    def _trouble(self, event: dict[str, Any], at_s: float) -> None:
        each = self._coming(at_s, event.get("round", 0))
        match event["event"]:
            case "retry":
                # What was streamed up to now is void.
                each.text = ""
            case "fallback":
                each.trouble.append(f"{event['to']} is asked instead of {event['from']}")
            case _:
                each.trouble.append(f"{event['model']}, try {event['number']}: {event['reason']}")

    def _begun(self, event: dict[str, Any], at_s: float) -> CallTally:
        new = CallTally(event["call"], event["round"], event["topic"], 0, Span(event["topic"], at_s))
        call = self.calls.setdefault(event["call"], new)
        if event["event"] == "asked":
            call.query, call.approval = event["query"], event["approval"]
        else:
            call.topic, call.tasks, call.span = event["topic"], event["tasks"], Span(event["topic"], at_s)
        return call

    @staticmethod
    def _count(call: CallTally, event: dict[str, Any], at_s: float) -> CallTally:
        call.outcomes[event["kind"]] += 1
        call.retries += event.get("attempt", 1) > 1
        call.tokens += event.get("tokens", 0)
        call.usd += event.get("usd", 0.0)
        if event.get("reason"):
            call.reasons[event["reason"]] += 1
        if call.done >= call.tasks:
            call.span.ended_s, call.query = at_s, ""
        return call

    def replicas(self, topic: str) -> int:
        """How many replicas serve a topic, as the last status said."""
        return sum(each["running"] for each in self.agents if topic in each["topics"])

    def tasks(self) -> dict[str, Any]:
        """Dispatched tasks, and how they ended, as a `RunReport` has it."""
        sent = [call for call in self.calls.values() if call.tasks]
        outcomes = sum((call.outcomes for call in sent), Counter[str]())
        return {"dispatched": sum(call.tasks for call in sent), "outcomes": dict(outcomes)}

    def phase_seconds(self) -> dict[str, float]:
        """How long each phase took."""
        seconds = dict[str, float]()
        for span in self.phases:
            seconds[span.name] = seconds.get(span.name, 0.0) + span.seconds(self.elapsed_s)
        return {name: round(value, 2) for name, value in seconds.items()}

    def spans(self) -> Sequence[tuple[Span, str]]:
        """Everything that took time, in order, each with a note: phases, and in the run thoughts and calls."""
        thoughts = [each.span for each in self.rounds.values() if each.span.ended_s is not None]
        inside = [(span, "") for span in thoughts if span.seconds(self.elapsed_s) >= 0.05]
        inside += [(call.span, describe(call)) for call in self.calls.values()]
        # What earlier commands have seen of the run took none of this one's time.
        inside = [row for row in inside if row[0].ended_s is None or row[0].ended_s > 0]
        inside.sort(key=lambda row: row[0].began_s)
        rows: list[tuple[Span, str]] = []
        for phase in self.phases:
            rows.append((phase, ""))
            if phase.name == "run":
                rows += inside
        return rows


def describe(call: CallTally) -> str:
    """`151 tasks, 2 timed out, 1 retried`."""
    parts = [f"{call.tasks} task{'s' if call.tasks != 1 else ''}"] if call.tasks else []
    parts += [f"{count} {kind.replace('_', ' ')}" for kind, count in call.outcomes.items() if kind != "result"]
    if call.retries:
        parts.append(f"{call.retries} retried")
    if call.answered_by:
        parts.append(f"answered by {call.answered_by}")
    return ", ".join(parts)
