"""Asking people: a question is a lite topic, its first answer that fits is the one that counts. See ADR 0023."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.question_records import (
    KEPT_BEYOND_S,
    PEOPLE,
    QuestionRecord,
    question_key,
    read_question,
    store_reply,
    withdraw_question,
)
from squadron.runtime.errors import (
    BusUnavailableError,
    FencedError,
    InvalidInputError,
    Park,
    SquadClosedError,
    UnansweredError,
)
from squadron.runtime.lite.topic import LONGEST_TTL_S, LiteTopic
from squadron.runtime.store.port_set import Ports
from squadron.runtime.telemetry.happenings import PersonAnswered, PersonAsked
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.question import DEFAULT_BY, Question, Reply
from squadron.runtime.wire.subjects import token_of

#: The durable event that tells who listens of a new question.
ASKED = "people.asked"
#: Longest time for an answer, in seconds: the store keeps no entry longer than `LONGEST_TTL_S`.
LONGEST_QUESTION_S = LONGEST_TTL_S - KEPT_BEYOND_S
#: How long a server that is away at the deadline is waited for, in milliseconds; a restart takes a second or two.
AWAY_MS = 60_000
#: How long people have when the asker does not say, in seconds: an hour.
QUESTION_WITHIN_S = 3600.0


class Asked:
    """A question that is on its way to people; made by `put_question`.

    Attributes:
        question: as it is stored: of one that was asked before, with the deadline that it had then.
    """

    def __init__(self, query_id: str, question: Question, caller: Caller) -> None:
        self.query_id, self.question = query_id, question
        self.deadline = Deadline(question.deadline_ms, caller.ports.clock)
        self._caller, self._ports = caller, caller.ports
        self._topic: LiteTopic = caller.lite_topics.topic(query_id, PEOPLE)
        self._reply: Reply | None = None

    @property
    def done(self) -> bool:
        """Whether its answer is known here."""
        return self._reply is not None

    async def answer(self) -> Reply:
        """Wait for the answer that counts, or for the deadline; may be called again, after a crash as well.

        At the deadline the default is stored as the answer, so that all who ask later are told the same.

        Raises:
            UnansweredError: nobody answered in time, and there is no default; or it was withdrawn.
            BusUnavailableError: the server was away beyond the deadline.
            SquadClosedError: the squad was closed before; the question waits on.
        """
        tries = 0
        while self._reply is None:
            # An answer that was stored in time counts, however late its asker comes back.
            record = await self._insist(read_question, self._ports, self.query_id)
            self._take(record)
            if self._reply is None and self.deadline.passed:
                default = self.question.at_deadline()
                await self._insist(store_reply, self._ports, record, default, tries)
                tries += 1
            elif self._reply is None:
                with contextlib.suppress(TimeoutError, BusUnavailableError):
                    async with asyncio.timeout(self.deadline.remaining_s()):
                        await self._listen()
        if self._ports.observers.on:
            reply = self._reply
            self._ports.observers.tell(PersonAnswered(query=self.query_id, by=reply.by, action=reply.action))
        if self._reply.by == DEFAULT_BY and self.question.default is None:
            raise UnansweredError(f"nobody answered in time: {self.question.message}")
        return self._reply

    async def answer_or_park(self) -> Reply:
        """The answer, if there is one; else have the turn parked until there is.

        Raises:
            Park: there is none yet.
            UnansweredError, BusUnavailableError, SquadClosedError: as `answer`.
        """
        if not self.deadline.passed:
            self._take(await self._insist(read_question, self._ports, self.query_id))
            if self._reply is None:
                raise park_for([self])
        return await self.answer()

    async def _insist(self, call: Any, *args: Any) -> Any:
        return await self._caller._insist(Deadline(self.deadline.at_ms + AWAY_MS, self._ports.clock), call, *args)

    def _take(self, record: QuestionRecord) -> None:
        if record.withdrawn or record.question is None:
            raise UnansweredError(f"it was withdrawn: {self.question.message}")
        self._reply = record.reply

    async def _listen(self) -> None:
        """Wait until an answer counts, or the question has ended."""
        record = QuestionRecord(self.query_id)
        async with aclosing(self._topic.read("first")) as messages:
            async for each in messages:
                await record.hear(self._ports, each)
                if record.reply is not None:
                    self._reply = record.reply
                    return
            if messages.end is None:
                raise SquadClosedError("the squad was closed before the question had an answer; it waits on")

    async def withdraw(self) -> None:
        """Nobody waits for the answer any more: end the question, unless it has one. May be called twice.

        Raises:
            BusUnavailableError: not acknowledged in time; trying again is safe.
        """
        if not self.done:
            await withdraw_question(self._ports, self._caller.lite_topics, self.query_id)


def park_for(waiting: Sequence[Asked]) -> Park:
    """What a handler raises to be run again when one of these has an answer, or the first deadline passes."""
    return Park(
        queries=[each.query_id for each in waiting], deadline_ms=min(each.deadline.at_ms for each in waiting)
    )


def check_may_ask(*, sealed: bool) -> None:
    """Check that people may be asked from a task.

    Raises:
        InvalidInputError: it is sealed.
    """
    if sealed:
        raise InvalidInputError(
            "a sealed task asks no people: what they are asked can be read by anybody",
            field="sealed",
            hint="have it answered by what lacks, and asked again by who knows it",
        )


async def put_question(
    caller: Caller, question: Question, query_id: str, *, about: str = "", conversation_id: str = ""
) -> Asked:
    """Ask people; stored when this returns. The same id again is the same question, with the answer that it has.

    Args:
        query_id: a token; it says what is asked: the same in each attempt, another for each question.
        about: the run or task that waits for the answer, and whose end withdraws the question.

    Raises:
        InvalidInputError: the id stands for another question, or its deadline is too far away.
        MessageTooLargeError: larger than any message may be.
        BusUnavailableError: not acknowledged before its deadline.
    """
    deadline = Deadline(question.deadline_ms, caller.ports.clock)
    if deadline.remaining_s() > LONGEST_QUESTION_S:
        hint = f"at most {LONGEST_QUESTION_S:,.0f} s (29 days)"
        raise InvalidInputError("people have no answer kept for so long", field="within_s", hint=hint)
    stored, record = await caller._insist(deadline, _put, caller.ports, question, query_id, about, conversation_id)
    if stored.digest != question.digest:
        raise InvalidInputError(f"the query id {query_id!r} stands for another question", field="query_id")
    if record.is_open(caller.ports.clock):
        if caller.ports.observers.on:
            caller.ports.observers.tell(PersonAsked(query=query_id, message=stored.message, about=about))
        await _tell(caller, query_id, stored, about)
    return Asked(query_id, stored, caller)


async def _put(
    ports: Ports, question: Question, query_id: str, about: str, conversation_id: str
) -> tuple[Question, QuestionRecord]:
    key = question_key(ports, query_id)
    while True:
        record = await read_question(ports, query_id)
        if record.question is not None:
            return record.question, record
        keep_s = Deadline(question.deadline_ms, ports.clock).remaining_s() + KEPT_BEYOND_S
        payload = {"content": question.to_content(), "constraints": {"deadline": question.deadline_ms}}
        data = ports.pack(
            "query",
            payload,
            id=query_id,
            reply_to=key,
            correlation_id=about or None,
            conversation_id=conversation_id,
        )
        data = await ports.claims.seal(data, keep_s=keep_s)
        # Fenced: another attempt asked at this moment.
        with contextlib.suppress(FencedError):
            await ports.lite.append(key, data, ttl_s=keep_s, expect_seq=record.seq)


async def _tell(caller: Caller, query_id: str, question: Question, about: str) -> None:
    """Tell who listens; who asks again tells again, because an attempt may have died in between."""
    told: dict[str, Any] = {"query": query_id, "kind": question.kind, "message": question.message, "about": about}
    told["deadline"] = question.deadline_ms
    # They find it in the list, too.
    with contextlib.suppress(BusUnavailableError):
        await caller.sender.publish_durable(ASKED, told, event_id=f"{query_id}.asked")


class TurnQuestions:
    """The questions of one turn, under ids that its next attempt finds them by."""

    def __init__(self, caller: Caller, message: AgentMessage) -> None:
        self._caller, self._message = caller, message
        self._counts: Counter[str] = Counter()
        #: By id, what was asked; None as long as it is on its way.
        self._asked: dict[str, Asked | None] = {}

    async def ask(self, question: Question, *, park: bool = False) -> Reply:
        """Ask, and wait for the answer, or have the turn parked; see `put_question` and `Asked.answer`.

        Raises:
            Park: there is no answer yet, and it is to be waited for so.
        """
        # By what is asked and how often it was before: two at once never mix, in whatever order they come.
        number = self._counts[question.digest]
        self._counts[question.digest] += 1
        query_id = token_of(f"question {number} {question.digest} of {self._message.id}")
        # Before it is sent: who is cut off meanwhile may have asked.
        self._asked[query_id] = None
        conversation = self._message.context.conversation_id
        asked = await put_question(
            self._caller, question, query_id, about=self._message.id, conversation_id=conversation
        )
        self._asked[query_id] = asked
        return await (asked.answer_or_park() if park else asked.answer())

    async def withdraw(self) -> None:
        """The turn is over for good: what it asked and was not told is asked no more."""
        # Who can't be told now finds the question until its deadline.
        with contextlib.suppress(BusUnavailableError):
            for query_id, asked in self._asked.items():
                if asked is None or not asked.done:
                    await withdraw_question(self._caller.ports, self._caller.lite_topics, query_id)
