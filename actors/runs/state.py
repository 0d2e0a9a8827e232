"""What the log of a run says, entry by entry. No I/O: the same entries always come to the same state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from squadron.actors.runs.built_in import named_in
from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import (
    Accepted,
    Answered,
    Asking,
    Awarded,
    CallEnd,
    CallsEnded,
    Dispatch,
    Entry,
    Epoch,
    Finished,
    Nudge,
    Offered,
    Query,
    Refused,
    Sending,
    Sent,
    Started,
    Summarized,
    Thought,
    TryFailed,
    Waiting,
    Withdrawn,
    calls_of,
)
from squadron.actors.runs.prepare import Ready, candidates, prepare
from squadron.actors.runs.references import BadReferenceError, Results, call_id, task_id
from squadron.actors.runs.telling import (
    about_end,
    failure_text,
    gathered,
    result_text,
    shown_end,
    still_running,
    waits_for_a_person,
    why_all,
)
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.runs.transcript import Transcript
from squadron.actors.thinking.fence import Fence
from squadron.actors.thinking.model import ChatMessage
from squadron.actors.thinking.repeats import Repeats
from squadron.actors.thinking.window import Summary
from squadron.runtime.wire.spent import NOTHING, Spent


class RunState:
    """One run as its log tells it.

    Attributes:
        events: what is told of it to who follows it: all that was noted since somebody took them.
    """

    def __init__(self, run: str, toolbox: Toolbox) -> None:
        self.run, self.toolbox = run, toolbox
        self.fence = Fence.of(run)
        self.results, self.transcript = Results(run), Transcript()
        self.epoch: Epoch | None = None
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.calls: dict[str, Call] = {}
        self.turns: dict[int, Thought] = {}
        #: A question to the model whose answer is not known.
        self.asking: Asking | None = None
        #: Under which id its provider goes on with the answer, whatever becomes of who asked.
        self.accepted: Accepted | None = None
        #: Whether all that there is to say was said to the model, and it has not answered with a turn yet.
        self.put = False
        self.waiting: Waiting | None = None
        self.summaries: list[Summary] = []
        #: Topics that a person approved for the rest of the run.
        self.always: set[str] = set()
        self.repeats = Repeats()
        #: Of each call that ended since the model was asked, whether that was something new.
        self._news: list[bool] = []
        #: Topics that can't be offered, and why; told once.
        self.left_out: dict[str, str] = {}
        #: How often a model was asked, and in vain.
        self.tries, self.failures = 0, 0
        #: How often something was said to a turn; after which round the last time, and what.
        self.nudges, self.nudged = 0, (0, "")
        #: Models that refused the conversation because it was too long, and the limits they named; -1 for none.
        self.overflows: dict[str, int] = {}
        #: By models and by tasks.
        self.spent = Spent()
        self.events: list[dict[str, Any]] = []

    @property
    def round(self) -> int:
        """The last round in which the model answered; 0 before the first."""
        return max(self.turns, default=0)

    @property
    def deadline_at(self) -> float:
        """When the run ends, in seconds since the epoch."""
        return self.epoch.deadline_at if self.epoch else 0.0

    @property
    def last(self) -> Thought | None:
        """The newest turn."""
        return self.turns.get(self.round)

    @property
    def is_silent(self) -> bool:
        """Whether the newest turn makes no calls, and stands: nothing was put to the model since."""
        last = self.last
        return last is not None and not self.put and not last.turn.tool_calls and last.turn.stop != "pause"

    @property
    def running(self) -> list[Call]:
        """Calls that went out and have not ended."""
        return [call for call in self.calls.values() if call.running]

    @property
    def asks(self) -> list[Call]:
        """Calls that wait for a person."""
        return [call for call in self.calls.values() if call.asks]

    @property
    def outstanding(self) -> list[Call]:
        """Calls whose end is still to come."""
        return [*self.running, *self.asks]

    @property
    def ended_since(self) -> int:
        """How many calls that went out have ended since the model was asked last."""
        gone_out = (self.calls[id] for id in self.transcript.news)
        return sum(1 for call in gone_out if call.dispatch is not None or call.query is not None)

    @property
    def unbegun(self) -> list[Call]:
        """Calls of the newest turn of which nothing was decided yet."""
        return [call for call in self.calls.values() if not call.begun]

    def at_s(self, at: float) -> float:
        """A time as seconds since the start of the run."""
        return round(at - self.started.at, 3) if self.started else 0.0

    def about(self, coming: Sequence[Entry] = ()) -> dict[str, Any]:
        """A few facts, for who lists runs, as they are once the coming entries are taken in."""
        started, finished, epoch = self.started, self.finished, self.epoch
        for entry in coming:
            started = entry if isinstance(entry, Started) else started
            finished = entry if isinstance(entry, Finished) else finished
            if isinstance(entry, Epoch):
                epoch, finished = entry, None
        state = "running"
        if finished is not None:
            state = "failed" if finished.error else finished.stopped
        about: dict[str, Any] = {"state": state, "rounds": self.round, "running": len(self.running)}
        about |= {"tokens": self.spent.tokens, "usd": self.spent.usd}
        if started is not None:
            # Whoever stops it has to reach the task that goes on with it.
            task = (epoch.task if epoch is not None else "") or started.task
            about |= {"title": started.title[:200], "agent": started.agent, "task": task}
            about |= {"topic": started.topic, "started": started.at}
            about["deadline"] = epoch.deadline_at if epoch is not None else 0.0
        return about

    def apply(self, entry: Entry) -> None:
        """Take in the next entry."""
        # Anybody may write there: what names a call that nobody made is passed over; refusals change nothing.
        if calls_of(entry) <= self.calls.keys() and not isinstance(entry, Refused):
            getattr(self, f"_{entry.kind}")(entry)

    def _tell(self, event: str, at: float, **fields: Any) -> None:
        self.events.append({"event": event, "at_s": self.at_s(at), **fields})

    def _epoch(self, entry: Epoch) -> None:
        self.epoch = entry
        if self.asking is not None and self.accepted is None:
            # Nobody will ever know what it cost; it may have been all that was set aside.
            self.spent += Spent(self.asking.tokens, self.asking.usd_micros, rounds=1)
            self.asking = None
        if self.started is not None:
            self._tell("resumed", entry.at, attempt=entry.number, replica=entry.replica)
        # Whoever takes up a run that had ended wants it to go on.
        self.finished = None

    def _cost(self, spent: dict[str, Any] | None) -> Spent:
        """What a call of the model cost; where nobody tells, what was set aside for it."""
        if spent is not None or self.asking is None:
            return replace(Spent.of_wire(spent), told=True)
        return Spent(self.asking.tokens, self.asking.usd_micros, rounds=1)

    def _started(self, entry: Started) -> None:
        self.started = entry
        self.transcript.messages = list(entry.opening)
        self._tell("started", entry.at, run=self.run, model=next(iter(entry.models), ""), goal=entry.title)

    def _offered(self, entry: Offered) -> None:
        self.toolbox.offer(entry.cards)
        self.left_out |= entry.left_out
        names = [card.name for card in entry.cards]
        changed = {name: self.toolbox.changed[name] for name in names if name in self.toolbox.changed}
        told = {"changed": changed, "left_out": entry.left_out}
        self._tell("offered", entry.at, topics=names, **{key: value for key, value in told.items() if value})

    def _asking(self, entry: Asking) -> None:
        if self.asking is not None:
            # Nobody wanted the answer any more.
            self.spent += self._cost(None)
        self.asking, self.accepted = entry, None
        self.tries += 1
        if entry.covers:
            return
        if not self.put:
            self.repeats.end_round(self._news)
            self._news = []
        self.put = True
        self.waiting = None
        self.transcript.ask(self.still_running())

    def _accepted(self, entry: Accepted) -> None:
        self.accepted = entry

    def still_running(self) -> dict[str, str]:
        """What is said of calls that still run, by their ids."""
        running = {call.id: still_running(call.id, call.tasks, len(call.ends)) for call in self.running}
        return running | {call.id: waits_for_a_person(call.id) for call in self.asks}

    def _failed(self, entry: TryFailed) -> None:
        self.failures += 1
        self.spent += self._cost(entry.spent)
        self.asking = self.accepted = None
        if entry.limit:
            self.overflows[entry.model] = entry.limit
        self._tell(
            "try_failed", entry.at, round=entry.round, number=entry.number, model=entry.model, reason=entry.reason
        )

    def _thought(self, entry: Thought) -> None:
        self.spent += self._cost(entry.spent)
        self.asking, self.accepted, self.put = None, None, False
        self.turns[entry.round] = entry
        turn = entry.turn
        ids = [call_id(self.run, entry.round, position) for position in range(len(turn.tool_calls))]
        for id, said in zip(ids, turn.tool_calls, strict=True):
            self.calls[id] = Call(id, entry.round, said)
            self.results.name(id, said.id)
            for name in named_in(said):
                self.toolbox.use(name)
        self.transcript.turn(turn, ids)
        shown = {"text": turn.text, "seconds": entry.seconds, "tokens": turn.tokens, "model": turn.model}
        usd = Spent.of_wire(entry.spent).usd
        cost = {"usd": usd} if usd else {}
        self._tell("thought", entry.at, round=entry.round, **shown, **cost)

    def _nudge(self, entry: Nudge) -> None:
        self.nudges, self.nudged = self.nudges + 1, (self.round, entry.text)
        self.transcript.nudge(entry.text)
        self._tell("nudged", entry.at, text=entry.text)

    def _awarded(self, entry: Awarded) -> None:
        call = self.calls[entry.call]
        call.award = entry
        order = [{"topic": offer.topic, **offer.bid.to_content()} for offer in entry.offers]
        refusals = dict(entry.bids.refusals)
        self._tell("awarded", entry.at, round=call.round, call=call.id, order=order, refusals=refusals)

    def _sending(self, entry: Sending) -> None:
        for dispatch in entry.calls:
            call = self.calls[dispatch.call]
            call.dispatch, call.sent, call.sent_at = dispatch, False, entry.at
            call.ready = self._prepared(call, dispatch)
            names = {"call": call.id, "topic": dispatch.topic, "tasks": call.tasks}
            self._tell("dispatched", entry.at, round=call.round, **names)
            if not call.running:
                self._conclude(call)

    def _prepared(self, call: Call, dispatch: Dispatch) -> Ready:
        try:
            # The results that it refers to never change, so it comes to what it came to when it was sent.
            if call.award is not None:
                contents = candidates(call.said, self.toolbox, self.results)
                return Ready(dispatch.topic, [contents[dispatch.topic]])
            return self.prepared(call)
        except (KeyError, ValueError, BadReferenceError):
            # Who reads the log has not the agent's own tools, or the agent has them no more.
            return Ready(dispatch.topic, [], own=dispatch.kind == "tool")

    def _sent(self, entry: Sent) -> None:
        for id in entry.calls:
            self.calls[id].sent = True

    def _withdrawn(self, entry: Withdrawn) -> None:
        for id in entry.calls:
            self.calls[id] = Call(id, self.calls[id].round, self.calls[id].said)

    def _ended(self, entry: CallsEnded) -> None:
        for end in entry.ends:
            call = self.calls[end.call]
            earlier = call.ends.get(end.index)
            call.ends[end.index] = end
            self.spent += Spent.of_wire(end.spent) - (Spent.of_wire(earlier.spent) if earlier else NOTHING)
            self._tell(
                "outcome",
                entry.at,
                round=call.round,
                call=call.id,
                task_id=task_id(self.run, end.call, end.index),
                **shown_end(end),
            )
            if not call.running and earlier is None:
                call.ended_at = entry.at
                self._conclude(call)

    def _conclude(self, call: Call) -> None:
        """Keep what a call came to, and have it told to the model."""
        name = call.ready.topic if call.ready else call.said.name
        items = call.ready.items if call.ready else None
        # Of tasks that were tried one after the other the last one counts; over no items there is none.
        end = call.ends[max(call.ends)] if call.ends else CallEnd(call=call.id, outcome="result", data=[])
        if items is not None:
            value = gathered(items, call.ends)
            good = sum(each.outcome == "result" for each in call.ends.values())
            self.results.keep(call.id, value)
            about = f", {good} of {len(items)} items without failure"
            text, failed = result_text(call.id, name, value, self.fence, about=about), bool(items) and not good
        elif end.outcome == "result":
            self.results.keep(call.id, end.data)
            text = result_text(call.id, name, end.data, self.fence, about=about_end(end), reasons=end.reasoning)
            failed = False
        else:
            self.results.fail(call.id, f"{end.outcome}: {end.reason}")
            text, failed = failure_text(call.id, end.outcome, why_all(list(call.ends.values())), self.fence), True
        self.transcript.end(call.id, ChatMessage("tool", text, is_error=failed, attachments=end.attachments))
        if call.ready is not None:
            came_to = self.results.values.get(call.id, [end.outcome, end.reason])
            self._news.append(self.repeats.note(call.ready.topic, call.ready.comparable, came_to))
        elif failed:
            self._news.append(False)

    def _query(self, entry: Query) -> None:
        call = self.calls[entry.call]
        call.query, call.sent_at = entry, entry.at
        about = {"call": call.id, "query": entry.query, "topic": call.said.name, "approval": entry.approval}
        self._tell("asked", entry.at, round=call.round, **about)

    def _answer(self, entry: Answered) -> None:
        call = self.calls[entry.call]
        call.answer = entry
        if entry.always:
            self.always.add(self.prepared(call).topic)
        self._tell("answered", entry.at, round=call.round, call=call.id, by=entry.by)

    def prepared(self, call: Call) -> Ready:
        """A call ready to go out, with the arguments that a person approved.

        Raises:
            ValueError, BadReferenceError: as `prepare`.
        """
        ready = prepare(call.said, self.toolbox, self.results)
        if call.answer is None or call.answer.arguments is None or ready.items is not None:
            return ready
        return replace(ready, contents=[call.answer.arguments])

    def _waiting(self, entry: Waiting) -> None:
        self.waiting = entry

    def _summarized(self, entry: Summarized) -> None:
        self.summaries.append(entry.summary)
        shown: dict[str, Any] = {"messages": entry.messages}
        if entry.model:
            self.spent += self._cost(entry.spent)
            self.asking = self.accepted = None
            usd = Spent.of_wire(entry.spent).usd
            shown |= {"model": entry.model, "seconds": entry.seconds, "tokens": entry.tokens}
            shown |= {"usd": usd} if usd else {}
        self._tell("summarized", entry.at, round=self.round + 1, **shown)

    def _finished(self, entry: Finished) -> None:
        if self.finished is not None:
            return
        self.finished = entry
        self._tell("finished", entry.at, stopped=entry.stopped, rounds=self.round)

    def task(self, call: str, index: int) -> str:
        """The id of one of a call's tasks."""
        return task_id(self.run, call, index)

    def spent_on(self, call: Call) -> Spent:
        """What the tasks of a call have spent."""
        return sum((Spent.of_wire(end.spent) for end in call.ends.values()), NOTHING)

    def counts(self) -> Counter[str]:
        """How the tasks that were sent have ended: kind of outcome → number."""
        sent = (call for call in self.calls.values() if call.dispatch is not None)
        return Counter(end.outcome for call in sent for end in call.ends.values())
