"""The other side of a question: who sees what waits for people, and answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from squadron.runtime.asking.question_records import (
    PEOPLE,
    QuestionRecord,
    read_question,
    read_questions,
    store_reply,
)
from squadron.runtime.errors import InvalidInputError, QuestionClosedError, UnknownQuestionError
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.steady import AHEAD, Steady
from squadron.runtime.store.operating import operating
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.question import DEFAULT_BY, Action, Question, Reply


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A question that waits for an answer.

    Attributes:
        asker: the replica or client that asks.
        about: the run or task that waits for it.
        asked_at: in seconds since the epoch.
    """

    query_id: str
    question: Question
    asker: str
    about: str
    conversation_id: str
    asked_at: float

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        head = {"query": self.query_id, "asker": self.asker, "about": self.about, "asked_at": self.asked_at}
        return head | {"deadline_ms": self.question.deadline_ms} | self.question.to_content()


@dataclass(frozen=True, slots=True)
class QuestionNews:
    """What became of a question; `reply` is there if it was answered."""

    what: Literal["asked", "answered", "withdrawn"]
    asked: OpenQuestion
    reply: Reply | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        reply = {} if self.reply is None else {"reply": self.reply.to_content()}
        return {"event": self.what, **self.asked.to_dict(), **reply}


class People:
    """What waits for people in this environment, and their answers; any number of processes may answer."""

    def __init__(self, ports: Ports, lite_topics: LiteTopics) -> None:
        self._ports, self._lite_topics = ports, lite_topics

    async def questions(self) -> list[OpenQuestion]:
        """What waits for an answer now, oldest first.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        records = await read_questions(self._ports)
        return [_open(each) for each in records.values() if each.is_open(self._ports.clock)]

    def follow(self) -> Steady[QuestionNews]:
        """What waits now, then what is asked, and what becomes of that; goes on over restarts of the server."""
        return Steady(self._follow(), ahead=AHEAD)

    async def _follow(self) -> AsyncGenerator[QuestionNews, None]:
        records: dict[str, QuestionRecord] = {}
        told: dict[str, OpenQuestion] = {}
        async with self._lite_topics.follow(PEOPLE) as feed:
            feed.add_all("first")
            async with aclosing(aiter(feed)) as batches:
                async for query_id, items in batches:
                    record = records.setdefault(query_id, QuestionRecord(query_id))
                    for item in items:
                        await record.hear(self._ports, item)
                    if query_id not in told and record.is_open(self._ports.clock):
                        told[query_id] = _open(record)
                        yield QuestionNews("asked", told[query_id])
                    elif query_id in told and (record.reply is not None or record.withdrawn):
                        what: Literal["answered", "withdrawn"] = "withdrawn" if record.withdrawn else "answered"
                        yield QuestionNews(what, told.pop(query_id), record.reply)
                    if record.reply is not None or record.withdrawn:
                        # What comes after it does not count.
                        del records[query_id]

    async def find(self, query_id: str) -> OpenQuestion:
        """The question of this id, or whose id begins with it.

        Raises:
            UnknownQuestionError: none waits under it, or several do.
            QuestionClosedError: it can't be answered any more.
        """
        records = await read_questions(self._ports)
        if found := records.get(query_id):
            return self._check_open(found)
        begins = [
            each for id, each in records.items() if id.startswith(query_id) and each.is_open(self._ports.clock)
        ]
        if len(begins) != 1 or not query_id:
            what = f"several questions begin with {query_id!r}" if begins else f"no question {query_id!r} waits"
            raise UnknownQuestionError(what, hint="`squadron asks` lists what waits")
        return _open(begins[0])

    def _check_open(self, record: QuestionRecord) -> OpenQuestion:
        if record.reply is not None:
            by, action = record.reply.by, record.reply.action
            if by == DEFAULT_BY:
                raise QuestionClosedError("its deadline has passed", by=by, action=action)
            raise QuestionClosedError(f"{by or 'somebody'} answered it: {action}", by=by, action=action)
        if record.withdrawn:
            raise QuestionClosedError("it was withdrawn: nobody waits for the answer any more")
        if record.question is None:
            raise UnknownQuestionError(f"there is no question {record.query_id!r}", hint="see `squadron asks`")
        if not record.is_open(self._ports.clock):
            raise QuestionClosedError("its deadline has passed", by=DEFAULT_BY)
        return _open(record)

    async def answer(self, query_id: str, content: Any = None, *, action: Action = "accept", by: str) -> Reply:
        """Answer a question; returns the answer that counts, which is this one.

        Args:
            query_id: in full, or its beginning.
            content: the fields of the question's schema; a bare value goes to the only one, or is the reason of
                what is not accepted.
            by: who answers.

        Raises:
            InvalidInputError: the content does not fit; `field` says where. Nothing was sent.
            UnknownQuestionError: no question waits under this id.
            QuestionClosedError: somebody was first (`by`), it was withdrawn, or its deadline has passed.
            MessageTooLargeError: larger than any message may be.
            BusUnavailableError: not acknowledged in time; answering again is safe.
        """
        if by == DEFAULT_BY or not isinstance(by, str):
            raise InvalidInputError(f"nobody answers as {by!r}", field="by", hint="name yourself")
        asked = await self.find(query_id)
        fields = asked.question.fields(content, action)
        reply = Reply.of_content({"action": action, "content": fields, "by": by})
        asked.question.check(reply)
        async with operating(self._ports, "answer", asked.query_id, action=action, person=by, about=asked.about):
            return await self._store(asked, reply)

    async def _store(self, asked: OpenQuestion, reply: Reply) -> Reply:
        record, tries = await read_question(self._ports, asked.query_id), 0
        while True:
            self._check_open(record)
            sent = await store_reply(self._ports, record, reply, tries)
            tries += 1
            # Its place among all that are stored decides.
            record = await read_question(self._ports, asked.query_id)
            if record.answered is not None and record.answered.id == sent:
                return reply
            if record.answered is None and sent in record.results:
                # By the server's clock, which is ahead of ours.
                raise QuestionClosedError("its deadline has passed", by=DEFAULT_BY)


def _open(record: QuestionRecord) -> OpenQuestion:
    query, question = record.query, record.question
    assert query is not None
    assert question is not None
    return OpenQuestion(
        record.query_id,
        question,
        query.source.id,
        query.correlation_id or "",
        query.context.conversation_id,
        query.timestamp,
    )
