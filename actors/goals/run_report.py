"""What is told of a run at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, Field

#: How a run ended: as the model said, be it with the goal achieved or given up, or at a limit.
Stopped = Literal["finished", "gave_up", "rounds", "time", "budget"]


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

    A run that hit a limit has no deliverables of its own making: then they are all results, by call id.
    """

    answer: str
    deliverables: dict[str, Any]
    model: str
    rounds: int
    stopped: Stopped
    tasks: TaskCounts
    calls: list[CallReport]
    tokens: int
    seconds: float
    timeline: list[dict[str, Any]]


def count_tasks(calls: Iterable[CallReport]) -> TaskCounts:
    """The sum over all calls."""
    calls = list(calls)
    outcomes = sum((Counter(call.outcomes) for call in calls), Counter[str]())
    return TaskCounts(dispatched=sum(call.tasks for call in calls), outcomes=dict(outcomes))
