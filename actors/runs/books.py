"""What a run has set aside and spent, entry by entry, on the ledger of its task."""

from __future__ import annotations

from squadron.actors.runs.entries import (
    Accepted,
    Asking,
    CallsEnded,
    Dispatch,
    Entry,
    Epoch,
    Sending,
    Summarized,
    Thought,
    TryFailed,
)
from squadron.actors.runs.references import task_id
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.envelope import Constraints
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.spent import Spent


class RunBooks:
    """Replays a log on a fresh ledger, so that an attempt knows what the ones before it spent.

    All that the log says is reserved as `logged`: the ledger need not carry it over. What another task spent that
    had the run before was charged to that one; an answer that is being made when it changes hands pays who takes
    it up.
    """

    def __init__(self, run: str, task: str, ledger: Ledger) -> None:
        self._run, self._owner, self.ledger = run, task, ledger
        self._asking: Asking | None = None
        self._accepted = False
        self._ours = False
        self._granted = set[str]()

    def apply(self, entry: Entry) -> None:
        """Take in the next entry."""
        if isinstance(entry, Epoch):
            if self._asking is not None and not self._accepted:
                # Its attempt died meanwhile: it may have cost all of it.
                self._settle(reserve_of(self._asking))
            self._ours = entry.task == self._owner
            # What is open still goes on at its provider.
            self._set_aside()
        else:
            self._count(entry)

    def _count(self, entry: Entry) -> None:
        match entry:
            case Asking():
                self._asking, self._accepted = entry, False
                self._set_aside()
            case Accepted():
                # Whoever takes it up will know what it cost.
                self._accepted = True
            case TryFailed():
                self._settle(Spent.of_wire(entry.spent))
            case Summarized(model=model) if not model:
                pass
            case Thought() | Summarized():
                self._settle(Spent.of_wire(entry.spent))
            case Sending() if self._ours:
                for dispatch in entry.calls:
                    if dispatch.kind == "topic":
                        share = self.share_of(dispatch)
                        for index in range(dispatch.first, dispatch.first + dispatch.tasks):
                            self._granted.add(self._task(dispatch.call, index))
                            self.ledger.restore(self._task(dispatch.call, index), share)
            case CallsEnded() if self._ours:
                for end in entry.ends:
                    if self._task(end.call, end.index) not in self._granted:
                        continue
                    # Only what was refused on the spot has no source, and was no task.
                    spent = Spent.of_wire(end.spent) + Spent(tasks=bool(end.source))
                    self.ledger.settle(self._task(end.call, end.index), spent, logged=True)
            case _:
                pass

    def _key(self, entry: Asking) -> str:
        # A handler that thinks twice has two runs on one ledger.
        return f"{self._run} r{entry.round}t{entry.number}"

    def _task(self, call: str, index: int) -> str:
        return task_id(self._run, call, index)

    def _set_aside(self) -> None:
        if self._asking is not None and self._ours:
            # Charged at once, and corrected by what it came to: so a replay is never refused.
            self.ledger.settle(self._key(self._asking), reserve_of(self._asking), logged=True)

    def _settle(self, spent: Spent) -> None:
        if self._asking is not None and self._ours:
            self.ledger.settle(self._key(self._asking), spent, logged=True)
        self._asking = None

    def share_of(self, dispatch: Dispatch) -> Budget:
        """What each task of a dispatch may spend."""
        return Constraints.model_validate(dispatch.share).budget

    def share(self, tasks: int) -> Budget:
        """What each of so many tasks may spend; see `Ledger.slice`."""
        return self.ledger.slice(tasks)

    def refusal(self, tasks: int, before: int = 0) -> str:
        """Why so many tasks can't go out beside those before them; the empty string if they can."""
        left = self.ledger.left
        if left.tasks is not None and before + tasks > left.tasks:
            return f"the budget of tasks leaves {max(0, left.tasks - before)}, and {tasks} are needed"
        if left.hops is not None and left.hops < 1:
            return "the budget of hops is used up: nobody may be asked from here"
        return ""


def reserve_of(entry: Asking) -> Spent:
    """What was set aside for a call of the model."""
    return Spent(entry.tokens, entry.usd_micros, rounds=1)
