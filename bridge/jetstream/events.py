"""`EventLog` on a JetStream stream: one durable pull consumer for each group of subscribers.

The server republishes what it stores to the subject of plain events, so that who listens there hears it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.pull_feed import PullFeed
from squadron.bridge.jetstream.stream_configs import (
    CONSUMER_NOT_FOUND,
    MAX_ACK_PENDING,
    MAX_WAITING,
    StreamNames,
    ask_for,
    find,
)
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.queue import Delivery, Feed, Mailbox
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.start import check_start
from squadron.runtime.wire.subjects import Subjects, token_of

#: JetStream error codes (nats-server `errors.json`).
_CONSUMER_EXISTS = 10148


def _consumer(group: str) -> str:
    """Name of a group's consumer: an agent's group has a dot, which a consumer must not."""
    return group.replace(".", "=")


class JetStreamEventLog:
    """Durable events of one environment."""

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._connection, self._subjects = connection, subjects
        names = StreamNames(subjects.environment)
        self._stream = names.events
        self._journal = JetStreamJournal(connection, names.events, shared_ids=True)
        self._notes = JetStreamJournal(connection, names.lite)

    async def append(
        self, topic: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> int:
        """Store one event and return its sequence; goes on while the server is away for a moment."""
        return await self._journal.append(self._subjects.durable(topic), data, msg_id=msg_id, headers=headers)

    async def consume(self, group: EventGroup, sink: Callable[[Delivery], None]) -> Feed:
        """Pull as a member of the group, which is made if it is new."""
        log, consumer = await self._made_at(), await self._declare(group)

        async def consumer_of(_: int) -> str:
            nonlocal log
            if (now := await self._made_at()) != log:
                # The server came back with an empty store: all there is now is new to the group.
                await self._declare(replace(group, start="first"))
                log = now
            return consumer

        async def lanes_held() -> set[int]:
            return set()

        # To the feed it is a serial mailbox: one consumer, no lanes.
        mailbox = Mailbox(group.name, (), group.lease_s, serial=True)
        feed = PullFeed(
            self._connection,
            self._stream,
            self._notes,
            self._subjects,
            mailbox,
            sink,
            consumer_of,
            lanes_held,
            # Each group counts for itself how often work on an event began.
            note_owner=token_of(f"begun {group.name}"),
        )
        await feed.open()
        return feed

    async def _made_at(self) -> str:
        return str((await ask_for(self._connection, f"STREAM.INFO.{self._stream}"))["created"])

    async def _declare(self, group: EventGroup) -> str:
        name = _consumer(group.name)
        wanted: dict[str, Any] = {
            "filter_subjects": [self._subjects.durable(group.pattern)],
            "ack_wait": round(group.lease_s * NANOSECONDS),
        }
        fixed: dict[str, Any] = {
            "durable_name": name,
            "name": name,
            "ack_policy": "explicit",
            "max_ack_pending": MAX_ACK_PENDING,
            "max_waiting": MAX_WAITING,
            # Attempts are counted by whoever handles; the server would only stop delivering, silently.
            "max_deliver": -1,
        }
        answer = await self._create(name, "create", fixed | _start(group) | wanted)
        if answer.get("error", {}).get("err_code") == _CONSUMER_EXISTS:
            info = await ask_for(self._connection, f"CONSUMER.INFO.{self._stream}.{name}")
            # It keeps its place, so it must keep where it once started.
            answer = await self._create(name, "update", info["config"] | wanted)
        if error := answer.get("error"):
            raise BusUnavailableError(f"NATS refused the subscription {group.name}: {error.get('description')}")
        return name

    async def _create(self, name: str, action: str, config: dict[str, Any]) -> dict[str, Any]:
        request = {"stream_name": self._stream, "config": config, "action": action}
        return await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{name}", request)

    async def forget(self, name: str) -> None:
        """Delete a group with its place in the log."""
        call = f"CONSUMER.DELETE.{self._stream}.{_consumer(name)}"
        await find(self._connection, call, missing=CONSUMER_NOT_FOUND)


def _start(group: EventGroup) -> dict[str, Any]:
    match check_start(group.start):
        case "new":
            return {"deliver_policy": "new"}
        case "first":
            return {"deliver_policy": "all"}
        case int(seq):
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": seq}
        case float(at_s):
            at = datetime.fromtimestamp(at_s, UTC).isoformat()
            return {"deliver_policy": "by_start_time", "opt_start_time": at}
