"""`EventLog` on a JetStream stream: one durable pull consumer for each group of subscribers.

The server republishes what it stores to the subject of plain events, so that who listens there hears it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from squadron.bridge.jetstream.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.queue import (
    MAX_ACK_PENDING,
    MAX_WAITING,
    PULL_EXPIRES_S,
    PULL_HEARTBEAT_S,
    JetStreamLease,
)
from squadron.bridge.jetstream.streams import StreamNames
from squadron.runtime.durable import EventGroup, check_start
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports import Delivery, Feed
from squadron.runtime.subjects import Subjects

#: JetStream error codes (nats-server `errors.json`).
_CONSUMER_EXISTS = 10148

_log = structlog.get_logger("squadron.events")


def _consumer(group: str) -> str:
    """Name of a group's consumer: an agent's group has a dot, which a consumer must not."""
    return group.replace(".", "=")


class JetStreamEventLog:
    """Durable events of one environment."""

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._connection, self._subjects = connection, subjects
        self._stream = StreamNames(subjects.environment).events
        self._journal = JetStreamJournal(connection, self._stream)

    async def append(self, topic: str, data: bytes, *, msg_id: str) -> int:
        """Store one event and return its sequence; goes on while the server is away for a moment."""
        return await self._journal.append(self._subjects.durable(topic), data, msg_id=msg_id)

    async def consume(self, group: EventGroup, sink: Callable[[Delivery], None]) -> Feed:
        """Pull as a member of the group, which is made if it is new."""
        await self._declare(group)
        feed = EventFeed(self._connection, self._stream, _consumer(group.name), sink)
        await feed.open()
        return feed

    async def _declare(self, group: EventGroup) -> None:
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
            info = await self._connection.api(f"CONSUMER.INFO.{self._stream}.{name}", {})
            # It keeps its place, so it must keep where it once started.
            answer = await self._create(name, "update", info.get("config", fixed) | wanted)
        if error := answer.get("error"):
            raise BusUnavailableError(f"NATS refused the subscription {group.name}: {error.get('description')}")

    async def _create(self, name: str, action: str, config: dict[str, Any]) -> dict[str, Any]:
        request = {"stream_name": self._stream, "config": config, "action": action}
        return await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{name}", request)

    async def forget(self, name: str) -> None:
        """Delete a group with its place in the log."""
        await self._connection.api(f"CONSUMER.DELETE.{self._stream}.{_consumer(name)}", {})


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


class EventFeed:
    """A running pull on one consumer; asks for no more messages than are wanted."""

    def __init__(
        self, connection: Connection, stream: str, consumer: str, sink: Callable[[Delivery], None]
    ) -> None:
        self._connection, self._sink, self._consumer = connection, sink, consumer
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox: NatsSubscription | None = None
        self._task: asyncio.Task[None] | None = None
        #: Deliveries that are wanted and not here yet, and those of them that the server was asked for.
        self._wanted = self._asked = 0
        self._work = asyncio.Event()
        self._heard_at = 0.0
        self._closed = False

    async def open(self) -> None:
        """Begin to listen; pulls when something is wanted."""
        self._inbox = await self._connection.listen(self._connection.client.new_inbox(), self._hear)
        self._connection.on_reconnect(self._reconnected)
        self._task = asyncio.create_task(self._pull(self._inbox.subject), name=f"pull {self._consumer}")

    def want(self, count: int) -> None:
        """Allow `count` more deliveries."""
        self._wanted += count
        self._work.set()

    async def _reconnected(self) -> None:
        # Pull requests die with the connection.
        self._asked = 0
        self._work.set()

    async def _pull(self, inbox: str) -> None:
        while True:
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes together with the result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PULL_HEARTBEAT_S):
                    await self._work.wait()
            self._work.clear()
            if self._asked and self._now() - self._heard_at > 2.5 * PULL_HEARTBEAT_S:
                _log.warning("events.pull_lost", consumer=self._consumer)
                self._asked = 0
            # One request for many messages: each costs a system call here and one at the server.
            count = self._wanted - self._asked
            if count <= 0 or self._asked > self._wanted / 2:
                continue
            request = {
                "batch": count,
                "expires": PULL_EXPIRES_S * NANOSECONDS,
                "idle_heartbeat": PULL_HEARTBEAT_S * NANOSECONDS,
            }
            try:
                self._heard_at = self._now()
                await self._connection.publish(self._subject, json.dumps(request).encode(), reply=inbox)
                self._asked += count
            except BusUnavailableError:
                self._again(after_s=0.25)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _again(self, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, self._work.set)

    def _hear(self, msg: Msg) -> None:
        self._heard_at = self._now()
        status = (msg.headers or {}).get("Status")
        # A sender may have put a header of this name on an event; only deliveries are to be acknowledged.
        if status is None or msg.reply.startswith("$JS.ACK."):
            self._arrived(msg)
        elif status != "100":
            # 404, 408, 409 and 503 end a pull request; what it did not deliver has to be asked for again.
            left = (msg.headers or {}).get("Nats-Pending-Messages")
            self._asked = max(0, self._asked - int(left)) if left else 0
            self._again(after_s=0.0 if status == "408" else 0.25)

    def _arrived(self, msg: Msg) -> None:
        self._asked = max(0, self._asked - 1)
        if self._closed or self._wanted <= 0:
            # A pull that was taken for lost was not; somebody else may be free.
            self._connection.publish_soon(msg.reply, b"-NAK")
            return
        self._wanted -= 1
        lease = JetStreamLease(self._connection, msg.reply)
        self._sink(Delivery(msg.subject, msg.data, lease, lease.seq))

    async def aclose(self) -> None:
        """Stop pulling. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._inbox is not None:
            # A message that was on its way when the inbox closed is delivered again after its lease.
            try:
                await self._inbox.unsubscribe()
            except Exception as error:
                _log.info("events.close_unclean", consumer=self._consumer, error=str(error))
