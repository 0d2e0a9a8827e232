"""What is told of a run at its end."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from pydantic_core import to_json

from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import Finished
from squadron.actors.runs.loop import Stopped
from squadron.actors.runs.state import RunState


class TaskCounts(BaseModel):
    """How many tasks a run dispatched, and how they ended: kind of outcome → number."""

    dispatched: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict)


class CallReport(BaseModel):
    """One call of the model to a topic; a `for_each` is one call with many tasks. Times count from the start."""

    id: str
    round: int
    topic: str
    tasks: int
    outcomes: dict[str, int] = Field(default_factory=dict)
    started_s: float
    ended_s: float = 0.0


class RunReport(BaseModel):
    """What came of a goal. `stopped` says why it ended; `timeline` holds all events but the streamed text.

    A run that hit a limit has no deliverables of its own making: then they are all results, by call id. `tokens`
    and `usd` are what models and tasks spent, over all attempts; `attempts` says how many replicas worked on it.
    """

    run: str
    answer: str
    deliverables: dict[str, Any]
    model: str
    rounds: int
    stopped: Stopped
    tasks: TaskCounts
    calls: list[CallReport]
    tokens: int
    usd: float
    seconds: float
    attempts: int
    timeline: list[dict[str, Any]]


def report_of(state: RunState, finished: Finished, timeline: list[dict[str, Any]]) -> RunReport:
    """The report of a run that has finished."""
    sent = [call for call in state.calls.values() if call.dispatch is not None]
    end = finished.value
    return RunReport(
        run=state.run,
        answer=end["answer"] if isinstance(end["answer"], str) else to_json(end["answer"]).decode(),
        deliverables=end["deliverables"],
        model=state.last.turn.model if state.last is not None else "",
        rounds=state.round,
        stopped=finished.stopped,
        tasks=TaskCounts(dispatched=sum(call.tasks for call in sent), outcomes=dict(state.counts())),
        calls=[_report_of(state, call) for call in sent],
        tokens=state.spent.tokens,
        usd=state.spent.usd,
        seconds=state.at_s(finished.at),
        attempts=state.epoch.number if state.epoch else 1,
        timeline=timeline,
    )


def _report_of(state: RunState, call: Call) -> CallReport:
    dispatch = call.out[0]
    return CallReport(
        id=call.id,
        round=call.round,
        topic=dispatch.topic,
        tasks=call.tasks,
        outcomes=call.outcomes,
        started_s=state.at_s(call.sent_at),
        ended_s=state.at_s(call.ended_at) if call.ended_at else 0.0,
    )
