"""A call of the model, and how far it has come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from squadron.actors.runs.entries import Answered, Awarded, CallEnd, Dispatch, Query
from squadron.actors.runs.prepare import Ready
from squadron.actors.thinking.model import ToolCall

#: Ends of a task after which no other bid is tried.
LAST = frozenset({"result", "cancelled"})


@dataclass
class Call:
    """One call of the model. Without a `dispatch` it never went out: it was answered here.

    Where agents have bid for it (`award`), its tasks go out one after the other; `dispatch` is the newest.
    """

    id: str
    round: int
    said: ToolCall
    ready: Ready | None = None
    award: Awarded | None = None
    dispatch: Dispatch | None = None
    sent: bool = False
    sent_at: float = 0.0
    ended_at: float = 0.0
    ends: dict[int, CallEnd] = field(default_factory=dict)
    query: Query | None = None
    answer: Answered | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was decided about it; what a person approved is free to go out."""
        return self.dispatch is not None or bool(self.ends) or self.asks

    @property
    def asks(self) -> bool:
        """Whether it waits for a person."""
        return self.query is not None and self.answer is None and not self.ends

    @property
    def running(self) -> bool:
        """Whether it went out and has not ended."""
        return bool(self.open) or self.next_try is not None

    @property
    def next_try(self) -> int | None:
        """Index of the task that is to be tried next, as all before it have failed; None if there is none."""
        if self.award is None or self.open or any(end.outcome in LAST for end in self.ends.values()):
            return None
        return len(self.ends) if len(self.ends) < self.award.most_tasks else None

    @property
    def outcomes(self) -> dict[str, int]:
        """How its tasks have ended: kind of outcome → number."""
        return dict(Counter(end.outcome for end in self.ends.values()))

    @property
    def out(self) -> tuple[Dispatch, Ready]:
        """How it went out."""
        assert self.dispatch is not None
        assert self.ready is not None
        return self.dispatch, self.ready

    @property
    def tasks(self) -> int:
        """How many tasks it has had up to now."""
        gone_out = self.dispatch.first + self.dispatch.tasks if self.dispatch is not None else 0
        return max(gone_out, len(self.ends)) if self.award is not None else gone_out

    @property
    def open(self) -> list[int]:
        """Indices of its tasks that went out and have not ended."""
        if self.dispatch is None:
            return []
        first = self.dispatch.first
        return [index for index in range(first, first + self.dispatch.tasks) if index not in self.ends]
