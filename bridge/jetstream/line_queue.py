"""What stands in line for an ordered agent, in a stream of its own.

It reads and removes by numbers, which stand in the body of a call: no list of permissions holds them to subjects.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from squadron.bridge.jetstream.former_streams import give_up, remove
from squadron.bridge.jetstream.lease import NOTE_TTL_S
from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.own_streams import own_names
from squadron.bridge.jetstream.publish_acks import read_ack
from squadron.bridge.jetstream.queue import JetStreamQueue, subjects_held
from squadron.bridge.jetstream.stream_configs import (
    CONSUMER_NOT_FOUND,
    DUPLICATE_WINDOW_S,
    FRESH_SEQS,
    MAX_CONSUMERS,
    STREAM_NOT_FOUND,
    StreamNames,
    ask_for,
    ensure_stream,
    find,
)
from squadron.runtime.errors import (
    BusUnavailableError,
    FencedError,
    InvalidMessageError,
    InvalidSubjectError,
    MessageTooLargeError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.running.line_numbers import brought_along, number_of
from squadron.runtime.running.once import mark_key
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import Subjects, TicketSubject

#: How often the bridge looks whether each line is called, in seconds. Who puts a task in line calls its head, but
#: for replicas of a release that looks for that among all tasks.
CALL_S = 5.0

_log = get_logger("squadron.lines")


class _LineStream(JetStreamQueue):
    """A stream of lines, whatever it is called. It holds nothing as long as there is none."""

    _nothing = JetStreamQueue._nothing | {STREAM_NOT_FOUND}

    def __init__(self, connection: Connection, subjects: Subjects, stream: str) -> None:
        super().__init__(connection, subjects)
        self._stream = stream

    async def _info(self, consumer: str) -> dict[str, Any] | None:
        answer = await self._connection.api(f"CONSUMER.INFO.{self._stream}.{consumer}", {})
        error = answer.get("error", {})
        if error.get("err_code") in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
            return None
        if error:
            raise BusUnavailableError(f"{self._stream} does not tell of {consumer}: {error.get('description')}")
        return answer


class LineQueue(_LineStream):
    """The lines of one ordered agent, where principals are apart. There are none as long as there is no stream.

    Args:
        keeper: whether this is the bridge, which makes the stream, and brings there what stands elsewhere.
    """

    def __init__(self, connection: Connection, subjects: Subjects, agent: str, *, keeper: bool) -> None:
        names = StreamNames(subjects.environment)
        super().__init__(connection, subjects, names.line(agent))
        self._agent, self._line, self._tickets = agent, subjects.line(agent), subjects.tickets(agent)
        #: Where lines stood before: among all tasks, and in a stream of another name.
        self._elsewhere: tuple[JetStreamQueue, ...] = ()
        self._former = names.former(self._stream)
        if keeper:
            former = _LineStream(connection, subjects, self._former)
            self._elsewhere = JetStreamQueue(connection, subjects), former

    async def declare(self, mailbox: Mailbox) -> None:
        """Make the stream and the mailbox, or change them to fit; keeps what they hold."""
        if self._elsewhere:
            is_former = await give_up(self._connection, self._names, self._stream, self._held_subjects)
            await self._make()
            for source in self._elsewhere[: 1 + is_former]:
                await self._bring(source, mailbox)
            if is_former:
                await remove(self._connection, self._former)
            await self.call_all()
        await super().declare(mailbox)

    async def head(self, pattern: str) -> Entry | None:
        """The oldest message whose subject matches; for the bridge also one that it has yet to bring."""
        found = await super().head(pattern)
        for source in self._elsewhere:
            found = found or await source.head(pattern)
        return found

    async def call_all(self) -> None:
        """See to it that the head of each line has its ticket.

        Raises:
            BusUnavailableError: the server can't be reached, or refuses.
        """
        waiting, called = await self._conversations(self._line), await self._conversations(self._tickets)
        for conversation in waiting - called:
            # That of one that has left meanwhile changes nothing: whoever gets it calls the next.
            await self._call(conversation)

    async def _conversations(self, pattern: str) -> set[str]:
        held = await subjects_held(self._connection, self._stream, [pattern])
        return {subject.split(".")[4] for subject in held}

    async def _call(self, conversation: str) -> Entry | None:
        first = await super().head(self._subjects.line(self._agent, conversation))
        if first is not None:
            place = TicketSubject(self._subjects.environment, self._agent, conversation, first.seq)
            await self.put_alone(str(place), b"")
        return first

    @property
    def _held_subjects(self) -> list[str]:
        return [self._line, self._tickets]

    async def _make(self) -> None:
        tasks = await ask_for(self._connection, f"STREAM.INFO.{self._names.tasks}")
        config: dict[str, Any] = {
            "name": self._stream,
            "subjects": self._held_subjects,
            "storage": "file",
            "max_consumers": MAX_CONSUMERS,
            "num_replicas": tasks["config"]["num_replicas"],
            "retention": "workqueue",
            "allow_direct": True,
            "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
        }
        if await find(self._connection, f"STREAM.INFO.{self._stream}", missing=STREAM_NOT_FOUND) is None:
            former = await find(self._connection, f"STREAM.INFO.{self._former}", missing=STREAM_NOT_FOUND)
            # Beyond all numbers of where lines stood before, and of one that was lost: by them tasks are known.
            last = max(each["state"]["last_seq"] for each in (tasks, former) if each is not None)
            config["first_seq"] = max(round(time.time() * 1000), last + FRESH_SEQS)
        await ensure_stream(self._connection, config)

    async def _bring(self, source: JetStreamQueue, box: Mailbox) -> None:
        """Bring what stands in line elsewhere, as the tasks that they are, and call again whoever was called.

        Each is there before it is gone from where it was, so a bridge that is killed has at most one in both: the
        oldest that is left.
        """
        if await source.knows(box.name):
            await source.remove(box.name)
        is_first = True
        while (head := await source.head(self._line)) is not None:
            if not (is_first and await self._has(head)):
                await self._take(head)
            await source.discard(head.seq)
            is_first = False
        while (ticket := await source.head(self._tickets)) is not None:
            with contextlib.suppress(InvalidSubjectError):
                await self._call_again(ticket.seq, TicketSubject.parse(ticket.key))
            await source.discard(ticket.seq)

    async def _has(self, task: Entry) -> bool:
        """Whether a task was brought here already."""
        here = await self._stored({"seq": 1, "next_by_subj": task.key})
        while here is not None:
            if number_of(here) == number_of(task) or here.data == task.data:
                return True
            here = await self._stored({"seq": here.seq + 1, "next_by_subj": task.key})
        return False

    async def _take(self, task: Entry) -> None:
        """Put a task here."""
        headers, id = brought_along(task), task.headers.get("Nats-Msg-Id", "")
        try:
            seq = await self._store(task, headers | ({"Nats-Msg-Id": id} if id else {}))
            here = await self._stored({"seq": seq})
            if here is not None and number_of(here) != number_of(task):
                # A copy of it came here first, under its id, and that one may be none that runs.
                await self._store(task, headers)
        except MessageTooLargeError:
            # It leaves no room for the header by which it is known again: it begins anew, before its copies.
            await self._forget_mark(task)
            await self._store(task, {})

    async def _store(self, task: Entry, headers: dict[str, str]) -> int:
        return await self._connection.ask(task.key, task.data, read_ack, headers=headers)

    async def _forget_mark(self, task: Entry) -> None:
        with contextlib.suppress(InvalidMessageError):
            key = mark_key(self._subjects, AgentMessage.decode(task.data))
            mark = await self._notes.last(key)
            if mark is not None and mark.data.startswith(b"%d." % number_of(task)):
                await self._notes.erase(key, through_seq=mark.seq)

    async def _call_again(self, seq: int, place: TicketSubject) -> None:
        """Make the ticket that takes the place of one elsewhere, with what is known of how often work began."""
        head = await self._call(place.conversation)
        if head is None or number_of(head) != place.seq:
            return
        ticket = await super().head(
            str(TicketSubject(place.environment, place.mailbox, place.conversation, head.seq))
        )
        note = await self._notes.last(self._subjects.lite("begun", str(seq)))
        # The first beginning leaves no note, but the mark.
        beginnings = note.data if note is not None else (b"1" if await self._has_begun(head) else b"")
        if ticket is not None and beginnings:
            key = self._subjects.lite("begun", str(ticket.seq))
            with contextlib.suppress(FencedError):
                await self._notes.append(key, beginnings, ttl_s=NOTE_TTL_S, expect_seq=0)

    async def _has_begun(self, head: Entry) -> bool:
        try:
            mark = await self._notes.last(mark_key(self._subjects, AgentMessage.decode(head.data)))
        except InvalidMessageError:
            return False
        return mark is not None and mark.data.startswith(b"%d." % number_of(head))


async def keep_lines_called(connection: Connection, subjects: Subjects) -> None:
    """Have the head of each line of each agent called: of one that nobody calls nothing runs any more.

    Runs until it is cancelled.
    """
    names = StreamNames(subjects.environment)
    while True:
        try:
            for stream in await own_names(connection, names, "ticket"):
                agent = stream.removeprefix(names.line(""))
                # Those that are to be brought yet stand among all tasks.
                if stream == names.line(agent):
                    await LineQueue(connection, subjects, agent, keeper=False).call_all()
        except BusUnavailableError as error:
            _log.info("lines.later", error=str(error))
        await asyncio.sleep(CALL_S)
