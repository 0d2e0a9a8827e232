"""The state of a run comes from its log alone, and what the model is shown is always well formed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.entries import (
    ENTRIES,
    Accepted,
    Asking,
    CallEnd,
    CallsEnded,
    Dispatch,
    Entry,
    Epoch,
    Nudge,
    Offered,
    Sending,
    Sent,
    Started,
    Summarized,
    Thought,
    TryFailed,
    Withdrawn,
)
from squadron.actors.runs.references import call_id
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.model import ChatMessage, ModelTurn, ToolCall
from squadron.actors.thinking.window import Summary
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.limits import UNLIMITED
from squadron.runtime.wire.spent import Spent
from squadron.runtime.wire.topics import SemanticTopic

RUN = "run-1"
TOPIC = SemanticTopic(name="a.b", input_schema={"type": "object"})
OPENING = (ChatMessage("system", "rules"), ChatMessage("user", "the goal"))


def fresh() -> RunState:
    return RunState(RUN, Toolbox(tuple(BUILT_IN)))


class Writer:
    """Writes a log as attempts would, whatever ends when."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.state, self.log = draw, fresh(), list[Entry]()
        self.asked = list[tuple[ChatMessage, ...]]()

    def write(self, *entries: Entry) -> None:
        for entry in entries:
            if isinstance(entry, Asking) and not entry.covers:
                self.asked.append(tuple(self.state.transcript.asked(self.state.still_running())))
            self.log.append(entry)
            self.state.apply(entry)

    def begin(self) -> None:
        epoch = self.state.epoch
        number = epoch.number + 1 if epoch else 1
        self.write(
            Epoch(at=0, number=number, redriven=0, delivered=number, replica="x", deadline_at=9, max_rounds=99)
        )
        if self.state.started is None:
            self.write(
                Started(at=0, agent="s", topic="t", task="m", title="g", opening=OPENING, models=("m",)),
                Offered(at=0, cards=(TOPIC,)),
            )

    def ask(self) -> None:
        round, number = self.state.round + 1, self.state.tries
        if self.state.asking is None or self.state.asking.covers:
            if self.draw(st.booleans()):
                self.summarize()
            number = self.state.tries + 1
            self.write(Asking(at=0, round=round, number=number, model="m", digest="", tokens=100))
            if self.draw(st.booleans()):
                self.write(Accepted(at=0, round=round, number=number, response_id="resp-1"))
        # Else the call of an attempt that died is taken up.
        end = self.draw(st.sampled_from(["turn", "turn", "turn", "fails", "dies"]))
        spent = Spent(7, rounds=1).to_wire()
        if end == "dies":
            self.begin()
        elif end == "fails":
            why = {"error": "passing", "reason": "busy"}
            self.write(TryFailed(at=0, round=round, number=number, model="m", spent=spent, **why))
        else:
            count = self.draw(st.integers(0, 4))
            # Some servers number the calls of each turn anew.
            calls = tuple(
                ToolCall(f"c{n}", self.draw(st.sampled_from(["a__b", "for_each", "nobody"])), self.arguments())
                for n in range(count)
            )
            self.write(Thought(at=0, round=round, turn=ModelTurn("", calls), spent=spent, seconds=0))

    def summarize(self) -> None:
        """Have a model summarize, which answers, fails, or is asked when its replica dies; or take an extract."""
        summary, round = Summary("told", "said", 1, (), "digest"), self.state.round + 1
        if self.draw(st.booleans()):
            self.write(Summarized(at=0, summary=summary))
            return
        # Where another one was asked for and is not wanted any more, this is put in its place.
        asked = {"round": round, "number": self.state.tries + 1}
        self.write(Asking(at=0, model="s", digest="", tokens=100, covers="digest", **asked))
        if self.draw(st.booleans()):
            self.write(Accepted(at=0, response_id="resp-2", **asked))
        spent = Spent(7, rounds=1).to_wire()
        match self.draw(st.sampled_from(["turn", "fails", "dies"])):
            case "dies":
                self.begin()
            case "fails":
                why = {"error": "passing", "reason": "busy", "spent": spent}
                self.write(TryFailed(at=0, model="s", **asked, **why), Summarized(at=0, summary=summary))
            case _:
                self.write(Summarized(at=0, summary=summary, model="s", spent=spent))

    def arguments(self) -> dict[str, Any]:
        return {"topic": "a.b", "items": [{}] * self.draw(st.integers(0, 3)), "arguments": {}}

    def act(self) -> None:
        for call in self.state.unbegun:
            if call.said.name == "nobody" or self.draw(st.booleans()):
                self.write(CallsEnded(at=0, ends=(CallEnd(call=call.id, outcome="rejected", reason="no"),)))
                continue
            tasks = len(call.said.arguments["items"]) if call.said.name == "for_each" else 1
            if not tasks:
                self.write(CallsEnded(at=0, ends=(CallEnd(call=call.id, outcome="result", data=[]),)))
                continue
            dispatch = Dispatch(call=call.id, kind="topic", topic="a.b", tasks=tasks, deadline_ms=9)
            self.write(Sending(at=0, calls=(dispatch,)))
            if self.draw(st.booleans()):
                self.write(Sent(at=0, calls=(call.id,)))
            elif self.draw(st.booleans()):
                self.write(Withdrawn(at=0, calls=(call.id,)))

    def end_some(self) -> None:
        for call in self.state.running:
            for index in self.draw(st.lists(st.sampled_from(call.open), unique=True)):
                self.write(CallsEnded(at=0, ends=(self.end(call.id, index),)))

    def end(self, call: str, index: int) -> CallEnd:
        outcome = self.draw(st.sampled_from(["result", "failed"]))
        return CallEnd(call=call, index=index, topic="a.b", outcome=outcome, data=1, reason="why", source="x")

    def late_again(self) -> None:
        """The same end is told twice, as when an older attempt stored it, too."""
        for call in self.state.calls.values():
            for index in call.ends:
                if call.dispatch is not None and self.draw(st.booleans()):
                    self.write(CallsEnded(at=0, ends=(self.end(call.id, index),)))
                    return

    def nudge(self) -> None:
        self.write(Nudge(at=0, text="go on"))


@st.composite
def logs(draw: st.DrawFn) -> Writer:
    writer = Writer(draw)
    writer.begin()
    for step in draw(st.lists(st.sampled_from(["ask", "act", "end", "again", "begin", "nudge"]), max_size=25)):
        if step == "ask":
            writer.act() if writer.state.unbegun else None
            if not writer.state.unbegun:
                writer.ask()
        elif step == "act":
            writer.act()
        elif step == "end":
            writer.end_some()
        elif step == "again":
            writer.late_again()
        elif step == "begin":
            writer.begin()
        else:
            writer.nudge()
    return writer


@given(logs())
def test_each_question_is_charged_once_for_what_it_cost_or_for_what_was_set_aside(writer: Writer) -> None:
    ledger = Ledger(UNLIMITED)
    books = RunBooks(RUN, "", ledger)
    charged, open_, accepted = 0, False, False
    for entry in writer.log:
        books.apply(entry)
        match entry:
            case Asking():
                # A summary that nobody takes up is not wanted any more, and may have cost all of it.
                charged, open_, accepted = charged + 100 * open_, True, False
            case Accepted():
                accepted = True
            case Summarized(model=model) if not model:
                pass
            case Thought() | TryFailed() | Summarized():
                charged, open_ = charged + 7, False
            case Epoch() if open_ and not accepted:
                charged, open_ = charged + 100, False
    asked = sum(isinstance(entry, Asking) for entry in writer.log)

    assert (writer.state.asking is not None) == open_
    assert (writer.state.spent.tokens, writer.state.spent.rounds) == (charged, asked - open_)
    # What nobody knows the end of is charged in advance.
    assert (ledger.spent.tokens, ledger.spent.rounds) == (charged + 100 * open_, asked)


def test_an_answer_that_another_task_takes_up_is_paid_by_that_one() -> None:
    def epoch(number: int, task: str) -> Epoch:
        about = {"redriven": 0, "delivered": 1, "replica": "x", "deadline_at": 9, "max_rounds": 99}
        return Epoch(at=0, number=number, task=task, **about)

    asked = {"at": 0, "round": 1, "number": 1}
    asking, accepted = Asking(model="m", digest="", tokens=100, **asked), Accepted(response_id="resp-1", **asked)
    spent = Spent(7, rounds=1).to_wire()
    thought = Thought(at=0, round=1, turn=ModelTurn("said"), spent=spent, seconds=0)
    log = (epoch(1, "one"), asking, accepted, epoch(2, "other"), thought)

    def charged(task: str, entries: tuple[Entry, ...]) -> tuple[int, int]:
        books = RunBooks(RUN, task, Ledger(UNLIMITED))
        for entry in entries:
            books.apply(entry)
        return books.ledger.spent.tokens, books.ledger.spent.rounds

    assert charged("other", log[:4]) == (100, 1)
    assert charged("other", log) == (7, 1)
    # Who was left with it does not know how it ended. What nobody can take up was the other's.
    assert charged("one", log) == (100, 1)
    assert charged("other", (*log[:2], *log[3:])) == (0, 0)


def check_pairs(messages: Iterable[ChatMessage]) -> None:
    """Every call is answered exactly once, directly behind its turn and in the order of the calls."""
    open_ = list[str]()
    for message in messages:
        if message.role == "tool":
            assert open_
            assert message.tool_call_id == open_.pop(0)
            continue
        assert not open_
        open_ = [call.id for call in message.tool_calls]
    assert not open_


@given(logs())
def test_every_call_is_answered_once_directly_behind_its_turn_whatever_ended_when(writer: Writer) -> None:
    for messages in writer.asked:
        assert messages[: len(OPENING)] == OPENING
        check_pairs(messages)
    # Nothing that was shown is ever shown otherwise.
    for before, after in zip(writer.asked, writer.asked[1:], strict=False):
        assert after[: len(before)] == before


@given(logs())
def test_what_a_call_came_to_is_told_exactly_once(writer: Writer) -> None:
    state = writer.state
    shown = "\n".join(message.content for message in state.transcript.asked(state.still_running()))
    for call in state.calls.values():
        if not call.begun or call.running:
            continue
        told = shown.count(f"call {call.id}") + shown.count(f"Call {call.id} ended")
        assert told == 1


@given(logs(), st.data())
def test_the_same_entries_come_to_the_same_state_also_from_their_bytes(
    writer: Writer, data: st.DataObject
) -> None:
    dumped = ENTRIES.dump_json(tuple(writer.log))
    again = fresh()
    cut = data.draw(st.integers(0, len(writer.log)))
    for entry in (*writer.log[:cut], *ENTRIES.validate_json(dumped)[cut:]):
        again.apply(entry)

    assert again.transcript == writer.state.transcript
    assert again.calls == writer.state.calls
    assert again.results.values == writer.state.results.values
    assert (again.spent, again.tries, again.failures) == (
        writer.state.spent,
        writer.state.tries,
        writer.state.failures,
    )
    assert call_id(RUN, 1, 0) in again.calls or 1 not in again.turns or not again.turns[1].turn.tool_calls
