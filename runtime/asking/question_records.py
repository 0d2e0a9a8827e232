"""What is stored of questions to people, and how all who read it judge alike. See ADR 0023."""

from __future__ import annotations

import os
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from squadron.runtime.errors import BusUnavailableError, SquadClosedError, SquadronError
from squadron.runtime.lite.reader import End, LiteMessage
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.may_say import check_source
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import Clock, Deadline
from squadron.runtime.wire.question import DEFAULT_BY, Question, Reply

#: Owner of the lite topics of all questions.
PEOPLE = "people"
#: How much longer than its deadline a question and its answer are kept, in seconds: a day, for an asker that comes
#: back late.
KEPT_BEYOND_S = 24 * 3600.0


@dataclass(slots=True)
class QuestionRecord:
    """What is stored of one question: itself, and its first answer that fits and came in time.

    Attributes:
        query: its message; None as long as there is none.
        seq: of the last entry; a question that is asked anew comes after it.
        results: ids of all answers, those that do not count included.
        answered: the message that counts.
        withdrawn: its asker does not wait any more.
    """

    query_id: str
    query: AgentMessage | None = None
    question: Question | None = None
    seq: int = 0
    results: list[str] = field(default_factory=list)
    reply: Reply | None = None
    answered: AgentMessage | None = None
    withdrawn: bool = False

    def is_open(self, clock: Clock) -> bool:
        """Whether it still waits for an answer."""
        if self.question is None or self.withdrawn or self.reply is not None:
            return False
        return not Deadline(self.question.deadline_ms, clock).passed

    async def hear(self, ports: Ports, entry: Entry | LiteMessage | End) -> None:
        """Take in the next entry of its lite topic.

        Raises:
            BusUnavailableError: a large one is in the vault, which does not answer.
        """
        self.seq = entry.seq
        if isinstance(entry, End) or END_HEADER in entry.headers:
            self.query = self.question = self.reply = self.answered = None
            self.results, self.withdrawn = [], True
            return
        try:
            message = await ports.claims.open(entry.data)
            if self.question is not None and message.type == "result" and self.reply is None:
                # It counts among those that were tried, whatever it is.
                self.results.append(message.id)
            await self._check(ports, entry, message)
            if self.question is None:
                self.query, self.question = message, Question.of_message(message)
                self.withdrawn = False
            elif message.type == "result" and self.reply is None:
                self._judge(message, entry.time)
        except (BusUnavailableError, SquadClosedError):
            raise
        except SquadronError:
            # Anybody may write there; what is neither question nor answer does not count.
            return

    async def _check(self, ports: Ports, entry: Entry | LiteMessage, message: AgentMessage) -> None:
        """Hold a question, or an answer, to who signed it.

        Raises:
            UntrustedError: it is refused.
            BusUnavailableError: nobody says who signed it.
        """
        if ports.guard is None:
            return
        asker = None if self.query is None else self.query.source.id

        def may(signed: Signed) -> None:
            check_source(signed, message.source.id)
            if asker is not None and (message.payload.content or {}).get("by") == DEFAULT_BY:
                # What counts at the deadline is for who asked to say.
                check_source(signed, asker)

        key = question_key(ports, self.query_id)
        await ports.guard.admit("question", key, entry.data, entry.headers, at=entry.time, may=may)

    def _judge(self, message: AgentMessage, at_s: float) -> None:
        assert self.question is not None
        reply = Reply.of_content(message.payload.content)
        self.question.check(reply)
        # By the time at which it was stored, so that all who read it judge alike.
        in_time = reply.by == DEFAULT_BY or at_s * 1000 <= self.question.deadline_ms
        if message.correlation_id == self.query_id and in_time:
            self.reply, self.answered = self.question.whole(reply), message


async def read_question(ports: Ports, query_id: str) -> QuestionRecord:
    """What is stored of a question.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    record = QuestionRecord(query_id)
    async with aclosing(ports.lite.read(question_key(ports, query_id))) as entries:
        async for entry in entries:
            await record.hear(ports, entry)
    return record


def question_key(ports: Ports, query_id: str) -> str:
    """The lite topic of a question.

    Raises:
        InvalidSubjectError: the id is not a token.
    """
    return ports.subjects.lite(PEOPLE, query_id)


async def store_reply(ports: Ports, record: QuestionRecord, reply: Reply, tries: int) -> str:
    """Store what may be the answer, and return the id of its message: it counts if that is read back.

    Args:
        tries: how often it was tried. Of two answers at once the second is not even stored, and the next one after
            each that does not count is stored again.

    Raises:
        MessageTooLargeError: larger than any message may be.
        BusUnavailableError: not acknowledged in time; trying again is safe.
    """
    assert record.question is not None
    keep_s = Deadline(record.question.deadline_ms, ports.clock).remaining_s() + KEPT_BEYOND_S
    id, number = os.urandom(16).hex(), len(record.results) + tries
    head: dict[str, Any] = {"correlation_id": record.query_id, "parent": record.query_id}
    data = ports.pack("result", {"content": reply.to_content()}, id=id, **head)
    data = await ports.claims.seal(data, keep_s=keep_s)
    msg_id = f"{record.query_id}.answer" + (f".{number}" if number else "")
    await ports.lite.append(question_key(ports, record.query_id), data, ttl_s=keep_s, msg_id=msg_id)
    return id


async def withdraw_question(ports: Ports, lite_topics: LiteTopics, query_id: str) -> None:
    """End a question, unless it has an answer, or its deadline has passed.

    Raises:
        BusUnavailableError: not acknowledged in time; trying again is safe.
    """
    if (await read_question(ports, query_id)).is_open(ports.clock):
        await lite_topics.topic(query_id, PEOPLE).close()


async def withdraw_questions(ports: Ports, lite_topics: LiteTopics, about: str) -> None:
    """End all questions of a run or task that wait, whoever asked them.

    Raises:
        BusUnavailableError: the server can't be reached; trying again is safe.
    """
    records = await read_questions(ports)
    for each in records.values():
        if each.is_open(ports.clock) and each.query is not None and each.query.correlation_id == about:
            await lite_topics.topic(each.query_id, PEOPLE).close()


async def read_questions(ports: Ports) -> dict[str, QuestionRecord]:
    """All that is stored of all questions, by id, in the order in which they were asked.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    records: dict[str, QuestionRecord] = {}
    async with aclosing(ports.lite.read(ports.subjects.lite_of(PEOPLE))) as entries:
        async for entry in entries:
            query_id = entry.key.rsplit(".", 1)[-1]
            await records.setdefault(query_id, QuestionRecord(query_id)).hear(ports, entry)
    return records
