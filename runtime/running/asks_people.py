"""What a handler asks of people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from squadron.runtime.asking.people import QUESTION_WITHIN_S, TurnQuestions, check_may_ask
from squadron.runtime.running.in_turn import InTurn
from squadron.runtime.texts import jsonable
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.question import Proposal, Question, Reply, schema_of

if TYPE_CHECKING:
    from pydantic import BaseModel


class AsksPeople(InTurn):
    """The part of `Context` that asks people."""

    deadline: Deadline
    #: Made by the first question.
    _questions: TurnQuestions | None = None

    async def ask_person(
        self,
        message: str,
        *,
        schema: Mapping[str, Any] | type[BaseModel] | None = None,
        within_s: float = QUESTION_WITHIN_S,
        default: Any = None,
        park: bool = False,
    ) -> Reply:
        """Ask people a question, and wait for the first answer that fits.

        A later attempt at this task finds the same question, with the answer and the deadline that it has.

        Args:
            schema: the fields of an answer, as a flat JSON Schema or a model with plain fields; by default a text.
            within_s: how long people have, in seconds: an hour by default, and never longer than the task's own
                deadline. The topic's `run_timeout_s` has to allow for it.
            default: the fields, or the only one, of the answer that counts when nobody answers in time.
            park: hold no slot meanwhile: the handler ends here, and is run again from its top when there is an
                answer. It counts as the same attempt.

        Raises:
            InvalidInputError: the task is sealed, the schema is not flat, or the default does not fit it.
            UnansweredError: nobody answered in time, and there is no default.
        """
        question = Question(message=message, schema=schema_of(schema), deadline_ms=self._answer_by(within_s))
        if default is not None:
            question = replace(question, default=Reply("accept", question.fields(jsonable(default))))
        return await self._ask_people(question, park)

    async def ask_approval(
        self,
        topic: str,
        arguments: Any,
        *,
        why: str = "",
        within_s: float = QUESTION_WITHIN_S,
        default: bool = False,
        park: bool = False,
    ) -> Reply:
        """Ask people whether a topic may be called so; they may change the arguments.

        The call itself is yours: `await ctx.ask(topic, reply.arguments)` if `reply.accepted`, else there is
        `reply.reason`.

        Args:
            within_s, park: as for `ask_person`.
            default: whether it is approved when nobody answers in time.

        Raises:
            InvalidSubjectError: `topic` is not `domain.specificity`.
        """
        found = self._caller.registry.find(topic)
        proposal = Proposal(topic, jsonable(arguments), {} if found is None else found.input_schema)
        counts = Reply("accept" if default else "decline")
        question = Question.approval(proposal, why=why, deadline_ms=self._answer_by(within_s), default=counts)
        return await self._ask_people(question, park)

    def _answer_by(self, within_s: float) -> int:
        return Deadline.after(self.deadline.earliest(within_s), self._caller.ports.clock).at_ms

    async def _ask_people(self, question: Question, park: bool) -> Reply:
        self._check_loop()
        check_may_ask(sealed=self.is_sealed)
        self._questions = self._questions or TurnQuestions(self._caller, self.message)
        return await self._questions.ask(question, park=park)
