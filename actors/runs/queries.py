"""What a run asks people: whether a call may go out, and what only they know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from squadron.actors.runs.built_in import AskPerson, read_arguments
from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import Answered, CallEnd, CallsEnded, Entry, Query
from squadron.actors.runs.prepare import Ready, Unsendable
from squadron.actors.runs.recorder import Recorder
from squadron.runtime.asking.people import Asked, check_may_ask, park_for, put_question
from squadron.runtime.asking.question_records import withdraw_question
from squadron.runtime.errors import InvalidInputError, MessageTooLargeError, Park, UnansweredError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.approvals import Approvals, needs_approval
from squadron.runtime.wire.question import TEXT_SCHEMA, Proposal, Question, Reply
from squadron.runtime.wire.subjects import token_of


@dataclass
class Queries:
    """The questions of one attempt at a run; each is stored in the log before it is asked."""

    ctx: TurnContext
    recorder: Recorder
    rules: Approvals
    _asked: dict[str, Asked] = field(default_factory=dict)

    def check_may_ask(self) -> None:
        """Check that people may be asked.

        Raises:
            InvalidInputError: the task is sealed, and what people are asked can be read by anybody.
        """
        check_may_ask(sealed=self.ctx.is_sealed)

    def needed(self, call: Call, ready: Ready) -> bool:
        """Whether a person has to approve a call first; what would be refused anyway nobody is asked for.

        Raises:
            InvalidInputError: the topic does not take it.
        """
        state = self.recorder.state
        if ready.own or call.answer is not None:
            return False
        card = state.toolbox.find(ready.topic).topic
        if not needs_approval(card, self.rules, state.always):
            return False
        self.check_may_ask()
        for content in ready.contents:
            if not isinstance(content, Unsendable):
                card.check(card.wrap(content))
        return True

    def entry(self, call: Call, *, approval: bool = False, deadline_ms: int) -> Query:
        """What is stored before a question is asked.

        Raises:
            ValueError, BadReferenceError, InvalidInputError: it is no question.
        """
        at = self.ctx.caller.ports.clock.time()
        token = token_of(f"{self.recorder.state.run} {call.id}")
        query = Query(at=at, call=call.id, query=token, approval=approval, deadline_ms=deadline_ms)
        # What is stored is asked by every attempt: one that can't be would end them all.
        self._question(call, query)
        return query

    async def ask(self, call: Call) -> None:
        """Ask, be it again after a crash, and store what comes of it."""
        assert call.query is not None
        try:
            asked = await put_question(
                self.ctx.caller,
                self._question(call, call.query),
                call.query.query,
                about=self.ctx.message.id,
                conversation_id=self.ctx.message.context.conversation_id,
            )
            self._asked[call.id] = asked
            entries = list(self._answered(call, await asked.answer()))
        except (UnansweredError, InvalidInputError, MessageTooLargeError) as error:
            entries = [self._end(call, "rejected", reason=str(error))]
        await self.recorder.store(*entries)

    def _question(self, call: Call, query: Query) -> Question:
        state = self.recorder.state
        if query.approval:
            ready = state.prepared(call)
            card = state.toolbox.find(ready.topic).topic
            why = card.approval if isinstance(card.approval, str) else ""
            if ready.items is not None:
                # Of many at once nobody edits one.
                sendable = [each for each in ready.contents if not isinstance(each, Unsendable)]
                return Question.approval(Proposal(ready.topic, sendable), why=why, deadline_ms=query.deadline_ms)
            proposal = Proposal(ready.topic, ready.contents[0], card.input_schema)
            return Question.approval(proposal, why=why, deadline_ms=query.deadline_ms)
        wanted = read_arguments(AskPerson, state.results.fill(call.said.arguments))
        schema = TEXT_SCHEMA
        if wanted.choices:
            choice = {"type": "string", "enum": wanted.choices}
            schema = {"type": "object", "properties": {"answer": choice}, "required": ["answer"]}
        return Question(message=wanted.question, schema=schema, deadline_ms=query.deadline_ms)

    def _answered(self, call: Call, reply: Reply) -> Iterable[Entry]:
        assert call.query is not None
        at = self.ctx.caller.ports.clock.time()
        if not reply.accepted:
            yield Answered(at=at, call=call.id, by=reply.by)
            said = f": {reply.reason}" if reply.reason else ""
            yield self._end(call, "rejected", reason=f"a person said no{said}")
        elif call.query.approval:
            always = reply.content.get("always") is True
            yield Answered(
                at=at, call=call.id, by=reply.by, arguments=reply.content.get("arguments"), always=always
            )
        else:
            yield Answered(at=at, call=call.id, by=reply.by)
            content = dict(reply.content)
            only = next(iter(content.values())) if len(content) == 1 else content
            yield self._end(call, "result", data=only)

    def _end(self, call: Call, outcome: str, **what: Any) -> CallsEnded:
        end = CallEnd(call=call.id, topic=call.said.name, outcome=outcome, **what)
        return CallsEnded(at=self.ctx.caller.ports.clock.time(), ends=(end,))

    def park(self, calls: Sequence[Call], *, until: float) -> Park | None:
        """What has the turn parked until one of these is answered; None while one of them is not asked yet, or
        something else goes on in the turn.

        Args:
            until: when it is to go on at the latest, in seconds since the epoch.
        """
        waiting = [self._asked[call.id] for call in calls if call.id in self._asked]
        if len(waiting) < len(calls) or len(self.ctx.thinking) > 1:
            return None
        park = park_for(waiting)
        return Park(queries=park.queries, deadline_ms=min(park.deadline_ms, round(1000 * until)))

    async def withdraw(self, calls: Sequence[Call]) -> None:
        """Nobody waits for these answers any more, whichever attempt asked."""
        for call in calls:
            if call.query is not None and call.answer is None:
                caller = self.ctx.caller
                await withdraw_question(caller.ports, caller.lite_topics, call.query.query)
