"""Where a replay is in its recording: what has come, what is next, and what of that came from outside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

from squadron.actors.runs.entries import (
    Accepted,
    Answered,
    Asking,
    CallEnd,
    CallsEnded,
    Dispatch,
    Entry,
    Epoch,
    Finished,
    Refused,
    Sending,
    Sent,
    Summarized,
    Thought,
    TryFailed,
    Withdrawn,
)
from squadron.actors.runs.state import RunState
from squadron.replay.recording import RecordedRun

E = TypeVar("E", bound=Entry)
#: What follows on a try that was in vain.
_AFTER = (Asking, Refused, Finished, Epoch)


class Tape:
    """The entries of one run, and how many of them the replay has come past.

    It is the clock, too: it shows when the next entry was written, for the code decided shortly before.
    """

    def __init__(self, recorded: RecordedRun) -> None:
        self.entries = recorded.entries
        #: Of each entry, in which message of the log it stands.
        self._messages = [number for number, message in enumerate(recorded.messages) for _ in message]
        self.at = 0
        #: The first entry of the attempt that plays, behind its epoch; and whether it tells what it had seen.
        self._began, self._tells = 0, False
        self._now = self.entries[0].at if self.entries else 0.0

    @property
    def next(self) -> Entry | None:
        """The next entry; None where the recording ends."""
        return self.entries[self.at] if self.at < len(self.entries) else None

    @property
    def past(self) -> tuple[Entry, ...]:
        """The entries up to here."""
        return self.entries[: self.at]

    @property
    def cut(self) -> bool:
        """Whether the attempt that plays here wrote nothing more: another took over, or it was still under way."""
        return self.next is None or isinstance(self.next, Epoch)

    @property
    def _before(self) -> Entry | None:
        """The entry that was stored together with the next one, before it."""
        together = 0 < self.at < len(self.entries) and self._messages[self.at - 1] == self._messages[self.at]
        return self.entries[self.at - 1] if together else None

    @property
    def _summarizes(self) -> bool:
        """Whether the last question was for a summary, which there is none of yet."""
        for entry in reversed(self.past):
            if isinstance(entry, Asking):
                return entry.covers != ""
            if isinstance(entry, Thought | Summarized | Epoch):
                return False
        return False

    def time(self) -> float:
        """Seconds since the epoch; never goes back."""
        coming = self.next
        self._now = max(self._now, coming.at if coming is not None else self._now)
        return self._now

    def begin(self) -> None:
        """An attempt begins, with the epoch that is next."""
        self._began = self.at + 1
        self._tells = self.entries[self.at].seen is not None

    def go_on(self) -> None:
        """Come past the next entry."""
        self.time()
        self.at += 1

    def coming(self, *kinds: type[E]) -> Iterator[E]:
        """The entries of some kinds that this attempt still comes to."""
        return (entry for entry in self._attempt() if isinstance(entry, kinds))

    def _attempt(self) -> Iterator[Entry]:
        for entry in self.entries[max(self.at, self._began) :]:
            if isinstance(entry, Epoch):
                return
            yield entry

    def decisions(self) -> Iterator[Entry]:
        """What the loop still decides in this attempt, as far as its log tells that apart from all else."""
        return (entry for entry in self._attempt() if entry.seen is not None or not self._tells)

    @property
    def seen(self) -> int | None:
        """How many entries the loop had seen when it decided what it decides next; None for all before it."""
        decided = next(self.decisions(), None)
        return decided.seen if decided is not None else None

    @property
    def refusal(self) -> Refused | None:
        """What the model's account said when it did not let it be asked, if that is what comes next."""
        told = (entry for entry in self._attempt() if entry.seen is not None or isinstance(entry, Refused))
        return refused if isinstance(refused := next(told, None), Refused) else None

    def pause_after(self, failed: TryFailed | Refused) -> float | None:
        """How long to wait after a try in vain, in seconds: pauses are drawn by lot, and one may be too long."""
        following = self.entries[self.entries.index(failed) + 1 :]
        after = next((entry for entry in following if isinstance(entry, _AFTER)), None)
        if isinstance(after, Asking | Refused):
            return 0.0 if after.model == failed.model else failed.retry_after_s
        return math.inf

    def pass_time(self) -> bool:
        """Let it be as late as it was when the loop stored what it decides next; whether that is any later."""
        decided, before = next(self.decisions(), None), self.time()
        self._now = max(before, decided.at if decided is not None else before)
        return self._now > before

    def next_bid(self, state: RunState) -> str:
        """The call whose next bid the next entry tries, or finds to be over; empty if it is anything else.

        Who tries bids goes on beside the loop.
        """
        match self.next:
            case Sending(calls=(Dispatch(call=id, first=first),), seen=None) if first:
                call = state.calls.get(id)
                return id if call is not None and call.award is not None else ""
            case CallsEnded(ends=(CallEnd(call=id, index=index),), seen=None):
                call = state.calls.get(id)
                if call is None or call.award is None or call.dispatch is None:
                    return ""
                return id if index >= call.dispatch.first + call.dispatch.tasks else ""
            case _:
                return ""

    def from_outside(self, state: RunState) -> bool:
        """Whether the next entry tells of something that no code of ours decided, given the state up to here."""
        if self.next is None or self.next.seen is not None or self.next_bid(state):
            return False
        match self.next:
            case Accepted() | Sent() | Answered() | Withdrawn():
                return True
            case Asking(covers=covers):
                # A model is asked for a summary: what it says is not held against the code.
                return covers != ""
            case TryFailed():
                return self._summarizes
            case Summarized():
                return self._tells or self._summarizes
            case CallsEnded() if self._tells:
                return True
            case CallsEnded(ends=ends):
                told = isinstance(self._before, Answered)
                return all(_came(end, state, told) for end in ends)
            case Finished():
                # A tool of the agent's own has ended the run.
                return self._tells or isinstance(self._before, CallsEnded)
            case _:
                return False


def _came(end: CallEnd, state: RunState, told: bool) -> bool:
    """Whether a task, a tool or a person ended it, and not the run itself."""
    call = state.calls.get(end.call)
    if call is None:
        return False
    if call.asks:
        return end.outcome != "cancelled"
    if call.dispatch is None:
        return told and call.answer is not None
    return end.index < call.dispatch.first + call.dispatch.tasks
