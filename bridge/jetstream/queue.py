"""`Queue` on a JetStream work queue, with a pull loop of our own.

A mailbox is one durable consumer, plus one for each priority lane. Its replicas pull as many messages as they
have free slots, or are about to have, so little sits in memory that a crash could hold up.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from squadron.bridge.jetstream.audit_streams import sent_subject
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.lease import JetStreamLease
from squadron.bridge.jetstream.link.at_home import JS_API
from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.bridge.jetstream.publish_acks import NO_ROLLUP, read_new, read_refusal
from squadron.bridge.jetstream.pull_feed import PullFeed
from squadron.bridge.jetstream.serial_feed import SERIAL_GROUP, SerialFeed, SerialReader
from squadron.bridge.jetstream.stream_configs import (
    CONSUMER_NOT_FOUND,
    MAX_ACK_PENDING,
    MAX_WAITING,
    NO_MESSAGE,
    StreamNames,
    ask_for,
    find,
)
from squadron.runtime.errors import BusUnavailableError, FencedError, InvalidMessageError, RouteConflictError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import SERIAL_AT_ONCE, Backlog, Delivery, Feed, Lease, Mailbox
from squadron.runtime.wire.subjects import NORMAL_PRIORITY, Subjects, check_queued, lane_of, matches

#: Publishes of one process that may wait for their acknowledgement; the others wait their turn.
MAX_PUBLISHING = 512

#: JetStream error codes (nats-server `errors.json`).
_FILTER_NOT_UNIQUE, _MULTIPLE_NOT_FILTERED = 10100, 10099

#: Headers of a message that is not stored beside others: of its subject, or of a pattern.
_ALONE, _ALONE_AMONG = {"Nats-Expected-Last-Subject-Sequence": "0"}, "Nats-Expected-Last-Subject-Sequence-Subject"

#: The lanes beside the normal one.
_LANES = tuple(priority for priority in range(10) if priority != NORMAL_PRIORITY)

#: What a message is acknowledged on. Nothing else may stand in the line that is sent to the server.
_TOKEN = re.compile(r"\$JS\.ACK\.[^\s*>]{1,500}")

_log = get_logger("squadron.queue")


def filters(subjects: Subjects, mailbox: Mailbox, priority: int = NORMAL_PRIORITY) -> list[str]:
    """Subject filters of one lane; a topic inside a family of the same mailbox needs none of its own."""
    if mailbox.subject:
        return [mailbox.subject]
    patterns = mailbox.patterns
    broad = [one for one in patterns if not any(one != other and matches(other, one) for other in patterns)]
    plain = [subjects.task(pattern, priority) for pattern in broad]
    if mailbox.serial:
        return [*plain, *(f"{each}.*" for each in plain)]
    # The normal lane has no token, but somebody may spell it out.
    return plain if priority != NORMAL_PRIORITY else [*plain, *(f"{each}.p{NORMAL_PRIORITY}" for each in plain)]


class JetStreamQueue:
    """Leased work on the task stream of one environment."""

    #: Error codes by which the server says that there is no such message.
    _nothing = frozenset((NO_MESSAGE,))

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        *,
        strict: bool = False,
        make_own: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Make one.

        Args:
            strict: has each message that is put stored for the audit trail first.
            make_own: makes a stream of its own for an agent that gets a mailbox.
        """
        self._connection, self._subjects, self._strict = connection, subjects, strict
        names = StreamNames(subjects.environment)
        self._names, self._stream = names, names.tasks
        #: Who calls the API from another account may not have the subjects of tasks listed, only counted.
        self._lists = connection.api_prefix == JS_API
        self._make_own, self._making_own = make_own, asyncio.Lock()
        self._notes = JetStreamJournal(connection, names.lite)
        self._publishing = asyncio.Semaphore(MAX_PUBLISHING)

    async def declare(self, mailbox: Mailbox) -> None:
        """Make the mailbox, or change it to fit; keeps what it holds."""
        if self._make_own is not None and not mailbox.subject:
            # One after the other: each is added to what is told on.
            async with self._making_own:
                await self._make_own(mailbox.name)
        if not mailbox.patterns and not mailbox.subject:
            # An agent that only hears events: a consumer without a filter would get all tasks.
            return await self.remove(mailbox.name)
        present = await self._info(mailbox.name)
        if present is not None and await self._passed_over(present["config"], mailbox):
            # What is leased now is delivered again; the alternative is that what waits never is.
            await self.remove(mailbox.name)
        await self._declare_lane(mailbox, NORMAL_PRIORITY)
        if not mailbox.serial and not mailbox.subject:
            # All of them here, and none by whoever pulls: the server does not look which tasks a lane is for, so
            # that the right to make one is the right to any task.
            await asyncio.gather(*(self._declare_lane(mailbox, priority) for priority in _LANES))

    async def _passed_over(self, config: dict[str, Any], mailbox: Mailbox) -> bool:
        """Whether messages wait that the consumer, updated, would not go back for: it only ever goes on."""
        if mailbox.serial and not config.get("priority_groups"):
            return True
        had = config.get("filter_subjects") or [config["filter_subject"]]
        new = [each for each in filters(self._subjects, mailbox) if each not in had]
        lanes = [f"{each}.*" for each in new]
        return bool(new and await subjects_held(self._connection, self._stream, [*new, *lanes]))

    async def remove(self, name: str) -> None:
        """Forget a mailbox; what it holds stays in the stream."""
        for consumer in await self._consumers(name):
            call = f"CONSUMER.DELETE.{self._stream}.{consumer}"
            await find(self._connection, call, missing=CONSUMER_NOT_FOUND)

    async def _consumers(self, name: str) -> list[str]:
        return [info["name"] for info in (await self._infos(name)).values()]

    async def _infos(self, name: str) -> dict[int, dict[str, Any]]:
        """What the server knows of each lane of a mailbox, by priority."""
        lanes = (NORMAL_PRIORITY, *_LANES)
        infos = await asyncio.gather(*(self._info(_consumer(name, each)) for each in lanes))
        return {priority: info for priority, info in zip(lanes, infos, strict=True) if info is not None}

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> None:
        """Store one message; it is durable when this returns."""
        check_queued(subject)
        await self._file(subject, data, msg_id, signed=signed)
        await self._publish(subject, data, msg_id, dict(headers or {}), signed=signed)

    async def put_alone(
        self,
        subject: str,
        data: bytes,
        *,
        among: str = "",
        msg_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Store one message, unless one of exactly this subject is stored, or one that matches `among`."""
        alone = {**(headers or {}), **_ALONE}
        check_queued(subject)
        if among:
            alone[_ALONE_AMONG] = among
            await self._file(subject, data, msg_id)
        try:
            return await self._publish(subject, data, msg_id, alone)
        except FencedError:
            return 0

    async def _file(self, subject: str, data: bytes, msg_id: str, *, signed: bool = True) -> None:
        """First: what can't be recorded is not sent."""
        if self._strict:
            filed = sent_subject(self._subjects.environment, subject)
            await self._publish(filed, data, f"{msg_id}.sent" if msg_id else "", {}, signed=signed)

    async def _publish(
        self, subject: str, data: bytes, msg_id: str, headers: dict[str, str], *, signed: bool = True
    ) -> int:
        if msg_id:
            headers["Nats-Msg-Id"] = msg_id
        async with self._publishing:
            await self._connection.client.give_way()
            said = [("", data, headers)]
            return await self._connection.ask_many(subject, said, read_new, signed=signed)

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        """Pull from the mailbox."""

        async def consumer_of(priority: int) -> str:
            return _consumer(mailbox.name, priority)

        async def lanes_held() -> set[int]:
            if not self._lists:
                infos = await self._infos(mailbox.name)
                return {priority for priority, info in infos.items() if info["num_pending"]} - {NORMAL_PRIORITY}
            patterns = [f"{self._subjects.task(pattern)}.*" for pattern in mailbox.patterns]
            return {lane_of(each) for each in await subjects_held(self._connection, self._stream, patterns)}

        async def taken() -> int:
            info = await self._info(mailbox.name)
            return -1 if info is None else int(info["num_ack_pending"])

        ports = self._connection, self._stream, self._notes, self._subjects, mailbox
        if mailbox.serial:
            reader = SerialReader(sink, taken, mailbox.lease_s)
            pulled = PullFeed(*ports, reader.arrived, consumer_of, lanes_held, group=SERIAL_GROUP)
            unpin = f"{self._connection.api_prefix}.CONSUMER.UNPIN.{self._stream}.{mailbox.name}"
            serial = SerialFeed(self._connection, reader, pulled, unpin)
            await serial.open()
            return serial
        feed = PullFeed(*ports, sink, consumer_of, lanes_held)
        await feed.open()
        return feed

    async def wake(self, token: str) -> None:
        """Have a message that was parked delivered now."""
        self.take_over(token)
        await self._connection.request(token, b"-NAK")

    def take_over(self, token: str) -> Lease:
        """The lease that another process holds."""
        # It comes from the bus, and what is done with it is sent there.
        streams = f".{self._names.tasks}.", f".{self._names.line('')}"
        if not _TOKEN.fullmatch(token) or not any(each in token for each in streams):
            raise InvalidMessageError(f"{token[:80]!r} is no lease of {self._stream}")
        try:
            return JetStreamLease(self._connection, self._notes, self._subjects.lite_of("begun"), token)
        except ValueError:
            raise InvalidMessageError(f"{token[:80]!r} is no lease") from None

    async def backlog(self, name: str) -> Backlog:
        """How much the mailbox holds now, over all lanes, those not yet opened included."""
        if not self._lists:
            held_by = (await self._infos(name)).values()
            return Backlog(*(sum(each[what] for each in held_by) for what in ("num_pending", "num_ack_pending")))
        info = await self._info(name)
        if info is None:
            return Backlog()
        config = info["config"]
        normal = config.get("filter_subjects") or [config["filter_subject"]]
        # A serial mailbox is one consumer, whatever the lanes.
        tails = [] if config.get("priority_groups") else [f"{each}.*" for each in normal]
        # Not by the consumer's count of what it has pending: that grows a moment after a publish is acknowledged.
        held = await subjects_held(self._connection, self._stream, [*normal, *tails])
        lanes = {lane_of(subject) for subject in held} - {NORMAL_PRIORITY}
        infos = await asyncio.gather(*(self._info(_consumer(name, priority)) for priority in lanes))
        taken = sum(lane["num_ack_pending"] for lane in (info, *infos) if lane is not None)
        return Backlog(max(0, sum(held.values()) - taken), taken)

    async def knows(self, name: str) -> bool:
        """Whether there is a mailbox of this name."""
        return await self._info(name) is not None

    async def head(self, pattern: str) -> Entry | None:
        """The oldest message whose subject matches; asked of the leader, because a direct get may be outdated."""
        return await self._stored({"seq": 1, "next_by_subj": pattern})

    async def count(self, pattern: str) -> int:
        """How many messages have a subject that matches."""
        return sum((await subjects_held(self._connection, self._stream, [pattern])).values())

    async def discard(self, seq: int) -> None:
        """Take one message out for good."""
        answer = await self._connection.api(f"STREAM.MSG.DELETE.{self._stream}", {"seq": seq, "no_erase": True})
        # The server has one code for whatever went wrong.
        if "error" in answer and await self._stored({"seq": seq}) is not None:
            raise BusUnavailableError(f"message {seq} can't be deleted: {answer['error'].get('description')}")

    async def holds(self, pattern: str) -> bool:
        """Whether a message is stored whose subject matches, by the leader's word as in `head`.

        Asked with a message that is never stored: what its first condition lets pass, the next refuses. So it goes
        the way of what is stored; calls of the server's API wait in a queue of their own, and cost twice as much.
        """
        never = {**_ALONE, _ALONE_AMONG: pattern, "Nats-Rollup": "-"}
        at = pattern.replace("*", "-")
        refusal = await self._connection.ask_many(at, [("", b"", never)], read_refusal, signed=False)
        if not refusal and (stored := await self.head(at)) is not None:
            # By a server that takes any rollup: nobody could run it, and all others would stand behind it.
            await self.discard(stored.seq)
        # Refused for another reason, as by a server that is full, it tells nothing: who reads the head knows.
        return refusal != NO_ROLLUP

    async def _stored(self, which: dict[str, Any]) -> Entry | None:
        answer = await self._connection.api(f"STREAM.MSG.GET.{self._stream}", which)
        error = answer.get("error", {})
        if error.get("err_code") in self._nothing:
            return None
        if error:
            raise BusUnavailableError(f"{self._stream} can't be read: {error.get('description')}")
        found = answer["message"]
        data, headers = (base64.b64decode(found.get(part) or "") for part in ("data", "hdrs"))
        stored_at = datetime.fromisoformat(found["time"]).timestamp()
        return Entry(found["seq"], found["subject"], data, Heard("", "", b"", headers).headers, stored_at)

    async def _info(self, consumer: str) -> dict[str, Any] | None:
        call = f"CONSUMER.INFO.{self._stream}.{consumer}"
        return await find(self._connection, call, missing=CONSUMER_NOT_FOUND)

    async def _declare_lane(self, mailbox: Mailbox, priority: int) -> None:
        """Make or update the durable consumer of one lane.

        Raises:
            RouteConflictError: another mailbox serves one of the topics.
            BusUnavailableError: the server refuses otherwise.
        """
        name = _consumer(mailbox.name, priority)
        config: dict[str, Any] = {
            "durable_name": name,
            "name": name,
            "ack_policy": "explicit",
            "ack_wait": round(mailbox.lease_s * NANOSECONDS),
            "deliver_policy": "all",
            "filter_subjects": filters(self._subjects, mailbox, priority),
            "max_ack_pending": SERIAL_AT_ONCE if mailbox.serial else MAX_ACK_PENDING,
            "max_waiting": MAX_WAITING,
            # We count attempts ourselves; the server would only stop delivering, silently.
            "max_deliver": -1,
        }
        if mailbox.serial:
            config |= {
                "priority_groups": [SERIAL_GROUP],
                "priority_policy": "pinned_client",
                "priority_timeout": config["ack_wait"],
            }
        request = {"stream_name": self._stream, "config": config, "action": ""}
        answer = await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{name}", request)
        error = answer.get("error")
        if error is None:
            return
        if error.get("err_code") in (_FILTER_NOT_UNIQUE, _MULTIPLE_NOT_FILTERED):
            raise RouteConflictError(
                f"another agent already serves one of {', '.join(mailbox.patterns)}",
                hint="see `squadron topics`; take that agent down or name the topics apart",
            )
        raise BusUnavailableError(f"NATS refused the mailbox {name}: {error.get('description')}")


def _consumer(mailbox: str, priority: int) -> str:
    """Name of the consumer of one lane."""
    return mailbox if priority == NORMAL_PRIORITY else f"{mailbox}=p{priority}"


async def subjects_held(connection: Connection, stream: str, patterns: list[str]) -> dict[str, int]:
    """Messages that a work queue holds, by subject, for the subjects that match.

    Raises:
        BusUnavailableError: the server does not say.
    """
    held: dict[str, int] = {}
    for pattern in patterns:
        # The server tells 100,000 subjects at a time.
        offset, total = 0, 1
        while offset < total:
            query = {"subjects_filter": pattern, "offset": offset}
            info = await ask_for(connection, f"STREAM.INFO.{stream}", query)
            if not info["state"]["messages"]:
                return {}
            page = info["state"].get("subjects") or {}
            held.update(page)
            # What was settled meanwhile is told no more: an empty page is the last.
            offset, total = offset + len(page), info.get("total", 0) if page else 0
    return held
