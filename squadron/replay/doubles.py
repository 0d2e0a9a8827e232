"""What stands for the world in a replay: models, tools, tasks, people and bidders that do as is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from squadron.actors.runs.acting import INTERRUPTED
from squadron.actors.runs.bidding_calls import BiddingCalls, Wanted
from squadron.actors.runs.built_in import Finish
from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import (
    Asking,
    Awarded,
    CallsEnded,
    Entry,
    Finished,
    Nudge,
    Offered,
    Started,
    Thought,
    TryFailed,
)
from squadron.actors.runs.loop import Aim, Conclusion, Stopped
from squadron.actors.runs.queries import Queries
from squadron.actors.runs.session import Beginning
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolDefinition
from squadron.replay.recording import LAPSED
from squadron.replay.tape import Tape
from squadron.runtime.errors import ModelError, RecordingError, Terminal
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.bids import Bids
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.topics import SemanticTopic

#: Longest wait in a replay that is none, in seconds: no limit of a run comes near.
FOREVER_S = 10 * 365 * 24 * 3600.0


async def forever() -> Any:
    """What the recording does not tell of does not come."""
    await asyncio.get_running_loop().create_future()


class RecordedModel:
    """A model that says what it said; `Resumable`, as far as the recording has it so."""

    def __init__(self, name: str, tape: Tape, answered: Callable[[], Awaitable[Entry | None]]) -> None:
        self.name, self._tape, self._answered = name, tape, answered

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """The recorded turn, after as long as it took.

        Raises:
            ModelError: the try failed.
        """
        coming = await self._answered()
        if isinstance(coming, Thought | TryFailed):
            asked = next((entry for entry in reversed(self._tape.past) if isinstance(entry, Asking)), coming)
            await asyncio.sleep(max(0.0, coming.at - asked.at))
        match coming:
            case Thought(turn=turn):
                if turn.text and on_text is not None:
                    on_text(turn.text)
                return turn
            case TryFailed():
                raise ModelError(coming.reason, kind=coming.error, retry_after_s=self._tape.pause_after(coming))
            case _:
                return await forever()  # type: ignore[no-any-return]

    async def think_resumably(
        self,
        request: ModelRequest,
        on_text: Callable[[str], None],
        on_accepted: Callable[[str], Awaitable[None]],
    ) -> ModelTurn:
        """The same: that it was accepted is on the tape."""
        return await self.think(request, on_text)

    async def take_up(
        self, response_id: str, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelTurn:
        """The recorded turn of a call that an earlier attempt made."""
        return await self.think(request, on_text)

    async def give_up(self, response_id: str) -> None:
        """Nobody works on it."""

    async def aclose(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class RecordedTool:
    """A tool of the agent's own, whose ends are on the tape."""

    definition: ToolDefinition
    tape: Tape
    within_s: float = FOREVER_S

    @property
    def may_repeat(self) -> bool:
        """Whether it was run again after an attempt that died."""
        ends = (end for entry in self.tape.coming(CallsEnded) for end in entry.ends)
        return not any(end.topic == self.definition.name and end.reason == INTERRUPTED for end in ends)

    async def run(self, arguments: Any) -> Any:
        """It comes to its end when the tape does."""
        return await forever()


@dataclass
class SilentHandle:
    """A task that nobody runs: its end is on the tape."""

    task_id: str
    topic: str
    done: bool = False

    async def outcome(self) -> Any:
        """Never known here."""
        return await forever()

    async def cancel(self) -> None:
        """It is as good as cancelled: what came of that is on the tape."""


class ReplayContext(TurnContext):
    """A turn whose tasks go nowhere, and which nobody follows."""

    async def emit(self, chunk: Any) -> None:
        """Nobody reads along."""

    async def submit_for(self, owner: str, topic: str, content: Any, *, reserved: str = "", **options: Any) -> Any:
        """A task that goes nowhere."""
        return SilentHandle(reserved, topic)

    async def adopt(self, task_id: str, topic: str, reply_to: str, deadline: Deadline) -> Any:
        """One of an earlier attempt, of which nothing is known but what is on the tape."""
        return SilentHandle(task_id, topic)


class RecordedQueries(Queries):
    """Questions that nobody is asked."""

    async def ask(self, call: Call) -> None:
        await forever()

    async def withdraw(self, calls: Sequence[Call]) -> None:
        pass


@dataclass(frozen=True)
class RecordedAccount:
    """Lets a model be asked where it did, at once."""

    tape: Tape

    async def admit(self, model: Model, request: ModelRequest, *, within_s: float, priority: int = 0) -> Any:
        """The right to ask it, which costs nothing here.

        Raises:
            ModelError: it was refused.
        """
        refused = self.tape.refusal
        if refused is not None and refused.model == model.name:
            raise ModelError(refused.reason, kind=refused.error, retry_after_s=self.tape.pause_after(refused))
        return self

    def settle(self, *how: Any) -> None:
        """Nothing was set aside."""


@dataclass
class RecordedBidding(BiddingCalls):
    """Negotiations whose bids are on the tape."""

    tape: Tape = None  # type: ignore[assignment]

    async def bids(self, wanted: Sequence[Wanted], deadline_ms: int) -> list[Bids]:
        awarded = {entry.call: entry.bids for entry in self.tape.coming(Awarded)}
        refused = {end.call for entry in self.tape.coming(CallsEnded) for end in entry.ends}
        if any(call.id not in awarded and call.id not in refused for call, _ in wanted):
            # Its attempt died before they were in.
            await forever()
        return [awarded.get(call.id, Bids((), {})) for call, _ in wanted]

    def awards(self, wanted: Sequence[Wanted], bids: Sequence[Bids], deadline_ms: int) -> list[Entry]:
        awarded = {entry.call for entry in self.tape.coming(Awarded)}
        entries = list[Entry]()
        for each, given in zip(wanted, bids, strict=True):
            if each[0].id in awarded:
                entries += super().awards([each], [given], deadline_ms)
            else:
                # All of them cost too much: which they were is not recorded.
                ends = (entry for entry in self.tape.coming(CallsEnded))
                entries += [entry for entry in ends if any(end.call == each[0].id for end in entry.ends)][:1]
        return entries

    async def reject_others(self, call: Call) -> None:
        pass


@dataclass
class RecordedAim:
    """What a run is for, where the registry and what the agent's handler made of it come from the tape.

    Attributes:
        inner: judges as the code of today does; None where that takes the handler itself.
    """

    tape: Tape
    toolbox: Toolbox
    inner: Aim | None = None

    async def begin(self) -> Beginning:
        """The recorded opening, and the topics that were offered with it."""
        started = next(self.tape.coming(Started), None)
        if started is None:
            raise RecordingError("it does not say how it began", hint=LAPSED)
        topics = tuple[SemanticTopic, ...]()
        coming = self.tape.entries[self.tape.at :]
        after = coming[coming.index(started) + 1 :][:1]
        if after and isinstance(after[0], Offered):
            topics = after[0].cards
            self.toolbox.left_out |= after[0].left_out
        return Beginning(title=started.title, opening=started.opening, topics=topics, terms=started.terms)

    async def find(self, intent: str) -> Sequence[SemanticTopic]:
        """What was found then: what the model was told of it, and what was offered to it afresh."""
        cards = dict[str, SemanticTopic]()
        found = list[str]()
        for entry in self.tape.decisions():
            if isinstance(entry, Offered):
                cards |= {card.name: card for card in entry.cards}
                self.toolbox.left_out |= entry.left_out
            else:
                found = _told(entry)
                break
        # The names of tools depend on what was offered before.
        offering = self.toolbox.with_offer(cards.values())
        known = dict(cards)
        for each in offering.offered:
            known |= {each.definition.name: each.topic, each.topic.name: each.topic}
        told = {known[name].name: known[name] for name in found if name in known}
        return list((told | {name: card for name, card in cards.items() if name not in told}).values())

    def judge(self, state: RunState, turn: ModelTurn) -> Conclusion | str:
        """As the code does; without it, as the tape says."""
        if self.inner is not None:
            return self.inner.judge(state, turn)
        coming = next(self.tape.decisions(), None)
        if isinstance(coming, Nudge):
            return coming.text
        return self._end(turn.text)

    def finish(self, state: RunState, asked: Finish) -> Conclusion:
        """As the code does; without it, as the tape says."""
        return self.inner.finish(state, asked) if self.inner is not None else self._end(asked.answer)

    def stop(self, state: RunState, stopped: Stopped, why: str) -> Any:
        """As the code does; without it, as the tape says."""
        return self.inner.stop(state, stopped, why) if self.inner is not None else self._end(why).value

    def _end(self, otherwise: Any) -> Conclusion:
        coming = next(self.tape.decisions(), None)
        if not isinstance(coming, Finished):
            return Conclusion(otherwise)
        if coming.error:
            raise Terminal(coming.error)
        return Conclusion(coming.value, coming.stopped)  # type: ignore[arg-type]


def _told(entry: Entry) -> list[str]:
    """The names that an answer to `discover_topics` holds."""
    names = list[str]()
    if isinstance(entry, CallsEnded) and isinstance(entry.ends[0].data, list):
        for each in entry.ends[0].data:
            if isinstance(each, dict):
                names += [each["tool"]] if "tool" in each else list(each.get("not_offered", ()))
    return names
