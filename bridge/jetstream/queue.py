"""`Queue` on a JetStream work queue, with a pull loop of our own.

A mailbox is one durable consumer, plus one for each priority lane that was ever used. Its replicas pull as
many messages as they have free slots, so nothing sits in memory that a crash could lose.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from squadron.bridge.jetstream.bus import CoreBus
from squadron.bridge.jetstream.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.journal import read_ack
from squadron.bridge.jetstream.streams import StreamNames
from squadron.runtime.errors import BusUnavailableError, RouteConflictError, SquadronError
from squadron.runtime.ports import Backlog, Delivery, Feed, Mailbox, Note, Subscription
from squadron.runtime.subjects import NORMAL_PRIORITY, Subjects, TaskSubject, lane_of, matches

#: Life of one pull request and its heartbeat, in seconds. A pull that was silent for two heartbeats is lost.
PULL_EXPIRES_S, PULL_HEARTBEAT_S = 30, 5
#: Messages of one mailbox that may be leased at once, over all replicas; slots are the real limit.
MAX_ACK_PENDING = 100_000
#: Pull requests that may wait at one consumer: one or two for each replica.
MAX_WAITING = 10_000

#: JetStream error codes (nats-server `errors.json`).
_FILTER_NOT_UNIQUE, _MULTIPLE_NOT_FILTERED = 10100, 10099

_log = structlog.get_logger("squadron.queue")


def filters(subjects: Subjects, mailbox: Mailbox, priority: int = NORMAL_PRIORITY) -> list[str]:
    """Subject filters of one lane; a topic inside a family of the same mailbox needs none of its own."""
    patterns = mailbox.patterns
    broad = [one for one in patterns if not any(one != other and matches(other, one) for other in patterns)]
    plain = [subjects.task(pattern, priority) for pattern in broad]
    if mailbox.serial:
        return [*plain, *(f"{each}.*" for each in plain)]
    # The normal lane has no token, but somebody may spell it out.
    return plain if priority != NORMAL_PRIORITY else [*plain, *(f"{each}.p{NORMAL_PRIORITY}" for each in plain)]


class JetStreamLease:
    """The right to work on one delivered message."""

    __slots__ = ("_connection", "_reply", "attempt", "seq")

    def __init__(self, connection: Connection, reply: str) -> None:
        self._connection, self._reply = connection, reply
        # Parsed from the right, because the left side grows with acknowledgements v2 (ADR-15).
        tokens = reply.split(".")
        self.attempt, self.seq = int(tokens[-5]), int(tokens[-4])

    async def settle(self, *, confirmed: bool = False) -> None:
        """The message leaves the queue, a moment later; until then a crash would only deliver it again."""
        if confirmed:
            await self._connection.request(self._reply, b"+ACK")
        else:
            self._connection.publish_soon(self._reply, b"+ACK")

    async def extend(self) -> None:
        """Start the lease's time anew."""
        await self._connection.publish(self._reply, b"+WPI")

    async def release(self, after_s: float = 0.0) -> None:
        """Hand the message back for another delivery."""
        delay = json.dumps({"delay": round(after_s * NANOSECONDS)})
        await self._connection.publish(self._reply, f"-NAK {delay}".encode())


class _Lane:
    """One consumer that a feed pulls from."""

    def __init__(self, feed: PullFeed, consumer: str, priority: int) -> None:
        self._feed, self._consumer, self.priority = feed, consumer, priority
        self._inbox: NatsSubscription | None = None
        self._heard_at = 0.0
        self.asked = 0

    async def open(self) -> None:
        connection = self._feed.connection
        self._inbox = await connection.listen(connection.client.new_inbox(), self._hear)

    async def close(self) -> None:
        if self._inbox is not None:
            await self._inbox.unsubscribe()

    async def pull(self, count: int) -> None:
        """Ask for `count` messages more."""
        if self._inbox is None or count <= 0:
            return
        self._heard_at = asyncio.get_running_loop().time()
        request = {
            "batch": count,
            "expires": PULL_EXPIRES_S * NANOSECONDS,
            "idle_heartbeat": PULL_HEARTBEAT_S * NANOSECONDS,
        }
        stream = self._feed.stream
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{self._consumer}"
        await self._feed.connection.publish(subject, json.dumps(request).encode(), reply=self._inbox.subject)
        self.asked += count

    def lost(self) -> bool:
        """Whether its pulls went silent: the server forgot them, or the connection did."""
        silent_s = asyncio.get_running_loop().time() - self._heard_at
        return self.asked > 0 and silent_s > 2.5 * PULL_HEARTBEAT_S

    def _hear(self, msg: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        status = (msg.headers or {}).get("Status")
        # A sender may have put a header of this name on a task; only deliveries are to be acknowledged.
        if status is None or msg.reply.startswith("$JS.ACK."):
            self.asked -= 1
            self._feed.arrived(self.priority, msg)
        elif status != "100":
            # 404, 408 and 409 end a pull request; what it did not deliver has to be asked for again.
            left = (msg.headers or {}).get("Nats-Pending-Messages")
            self.asked = max(0, self.asked - int(left)) if left else 0
            self._feed.again(after_s=0.0 if status == "408" else 0.25)


class PullFeed:
    """A running pull on all open lanes of a mailbox, highest first."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        subjects: Subjects,
        mailbox: Mailbox,
        sink: Callable[[Delivery], None],
    ) -> None:
        self.connection, self.stream = connection, stream
        self._subjects, self._mailbox, self._sink = subjects, mailbox, sink
        self._lanes: dict[int, _Lane] = {}
        self._wanted = 0
        #: Leased messages beyond what was wanted: each lane is asked for as many as there are free slots.
        self._early: list[tuple[int, int, Delivery]] = []
        self._work = asyncio.Event()
        #: Lanes that were heard of, and whether others may have been missed.
        self._unopened: set[int] = set()
        self._look = True
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._ears: list[Subscription] = []

    async def open(self) -> None:
        """Open the lanes that exist and begin to listen for new ones."""
        await self._open_lane(NORMAL_PRIORITY)
        bus = CoreBus(self.connection)
        for pattern in self._mailbox.patterns:
            lanes = f"{self._subjects.task(pattern)}.*"
            # A query is stored under the task's subject, but it is heard on its own.
            for heard in (lanes, lanes.replace(".task.", ".query.", 1)):
                self._ears.append(await bus.subscribe(heard, self._hear_lane))
        await self._open_lanes()
        self.connection.on_reconnect(self._reconnected)
        self._tasks = [
            asyncio.create_task(self._pull(), name=f"pull {self._mailbox.name}"),
            asyncio.create_task(self._watch(), name=f"watch {self._mailbox.name}"),
        ]

    def _lane_patterns(self) -> list[str]:
        return [f"{self._subjects.task(pattern)}.*" for pattern in self._mailbox.patterns]

    def _hear_lane(self, note: Note) -> None:
        priority = lane_of(note.subject)
        if priority not in self._lanes:
            self._unopened.add(priority)
            self._work.set()

    async def _open_lanes(self) -> None:
        """Open the lanes that were heard of; one after the other, so that each is opened once."""
        if self._look:
            for subject in await subjects_held(self.connection, self.stream, self._lane_patterns()):
                self._unopened.add(lane_of(subject))
            self._look = False
        for priority in sorted(self._unopened, reverse=True):
            if priority not in self._lanes:
                await self._open_lane(priority)
            self._unopened.discard(priority)

    async def _open_lane(self, priority: int) -> None:
        consumer = self._mailbox.name
        if priority != NORMAL_PRIORITY:
            consumer = f"{self._mailbox.name}=p{priority}"
            await declare_consumer(self.connection, self.stream, self._subjects, self._mailbox, priority)
        lane = _Lane(self, consumer, priority)
        await lane.open()
        self._lanes[priority] = lane
        self._work.set()

    def want(self, count: int) -> None:
        """Allow `count` more deliveries."""
        self._wanted += count
        while self._wanted and self._early:
            self._deliver(heapq.heappop(self._early)[2])
        self._work.set()

    def _deliver(self, delivery: Delivery) -> None:
        self._wanted -= 1
        self._sink(delivery)

    def arrived(self, priority: int, msg: Msg) -> None:
        """A lane got a message."""
        lease = JetStreamLease(self.connection, msg.reply)
        delivery = Delivery(msg.subject, msg.data, lease, lease.seq)
        if self._wanted > 0 and not self._closed:
            self._deliver(delivery)
        else:
            heapq.heappush(self._early, (-priority, lease.seq, delivery))

    def again(self, after_s: float) -> None:
        """A pull ended unanswered; look what has to be asked for anew."""
        asyncio.get_running_loop().call_later(after_s, self._work.set)

    async def _reconnected(self) -> None:
        # Pull requests die with the connection.
        for lane in self._lanes.values():
            lane.asked = 0
        # So does what was said of a new lane meanwhile.
        self._look = True
        self._work.set()

    async def _pull(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                for _, lane in sorted(self._lanes.items(), reverse=True):
                    # One request for many messages: each costs a system call here and one at the server.
                    if lane.asked <= self._wanted / 2:
                        await lane.pull(self._wanted - lane.asked)
                await self._open_lanes()
            except BusUnavailableError:
                self.again(after_s=0.25)
            except SquadronError as error:
                # A lane can't be opened; the others go on.
                _log.warning("queue.lane_refused", mailbox=self._mailbox.name, error=str(error))
                self.again(after_s=1.0)

    async def _watch(self) -> None:
        """Find pulls that went silent, and keep the leases of early messages."""
        while True:
            await asyncio.sleep(self._mailbox.lease_s / 3)
            for lane in self._lanes.values():
                if lane.lost():
                    _log.warning("queue.pull_lost", mailbox=self._mailbox.name, priority=lane.priority)
                    lane.asked = 0
                    self._work.set()
            with contextlib.suppress(BusUnavailableError):
                for _, _, delivery in list(self._early):
                    await delivery.lease.extend()

    async def aclose(self) -> None:
        """Stop pulling and hand back what came early. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for ear in self._ears:
            await ear.aclose()
        # A message that was on its way when the inbox closed is delivered again after its lease.
        try:
            for lane in self._lanes.values():
                await lane.close()
            while self._early:
                await heapq.heappop(self._early)[2].lease.release()
        except Exception as error:
            _log.info("queue.close_unclean", mailbox=self._mailbox.name, error=str(error))


class JetStreamQueue:
    """Leased work on the task stream of one environment."""

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._connection, self._subjects = connection, subjects
        self._stream = StreamNames(subjects.environment).tasks

    async def declare(self, mailbox: Mailbox) -> None:
        """Make the mailbox, or change it to fit; keeps what it holds."""
        await declare_consumer(self._connection, self._stream, self._subjects, mailbox, NORMAL_PRIORITY)
        # A lane that kept the old patterns would bar whoever serves them next.
        for consumer in await self._consumers(mailbox.name):
            _, lane, priority = consumer.partition("=p")
            if lane:
                await declare_consumer(self._connection, self._stream, self._subjects, mailbox, int(priority))

    async def remove(self, name: str) -> None:
        """Forget a mailbox; what it holds stays in the stream."""
        for consumer in await self._consumers(name):
            await self._connection.api(f"CONSUMER.DELETE.{self._stream}.{consumer}", {})

    async def _consumers(self, name: str) -> list[str]:
        lanes = [f"{name}=p{priority}" for priority in range(10) if priority != NORMAL_PRIORITY]
        infos = await asyncio.gather(*(self._info(each) for each in (name, *lanes)))
        return [info["name"] for info in infos if info is not None]

    async def put(self, subject: str, data: bytes, *, msg_id: str) -> None:
        """Store one message; it is durable when this returns."""
        TaskSubject.parse(subject)
        headers = {"Nats-Msg-Id": msg_id}
        read_ack(await self._connection.request(subject, data, headers=headers), subject)

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        """Pull from the mailbox."""
        feed = PullFeed(self._connection, self._stream, self._subjects, mailbox, sink)
        await feed.open()
        return feed

    async def backlog(self, name: str) -> Backlog:
        """How much the mailbox holds now, over all lanes, those not yet opened included."""
        info = await self._info(name)
        if info is None:
            return Backlog()
        config = info["config"]
        normal = config.get("filter_subjects") or [config["filter_subject"]]
        lanes: Counter[int] = Counter()
        held = await subjects_held(self._connection, self._stream, [f"{each}.*" for each in normal])
        for subject, count in held.items():
            if (priority := lane_of(subject)) != NORMAL_PRIORITY:
                lanes[priority] += count
        infos = await asyncio.gather(*(self._info(f"{name}=p{priority}") for priority in lanes))
        taken = sum(lane["num_ack_pending"] for lane in infos if lane is not None)
        waiting = max(0, lanes.total() - taken)
        return Backlog(info["num_pending"] + waiting, info["num_ack_pending"] + taken)

    async def head(self, pattern: str) -> int:
        """Sequence of the oldest message whose subject matches; 0 for none."""
        query = json.dumps({"seq": 1, "batch": 1, "next_by_subj": pattern}).encode()
        found = await self._connection.request_many(f"$JS.API.DIRECT.GET.{self._stream}", query)
        return int((found[0].headers or {})["Nats-Sequence"]) if found else 0

    async def _info(self, consumer: str) -> dict[str, Any] | None:
        answer = await self._connection.api(f"CONSUMER.INFO.{self._stream}.{consumer}", {})
        return None if "error" in answer else answer


async def declare_consumer(
    connection: Connection, stream: str, subjects: Subjects, mailbox: Mailbox, priority: int
) -> None:
    """Make or update the durable consumer of one lane.

    Raises:
        RouteConflictError: another mailbox serves one of the topics.
        BusUnavailableError: the server refuses otherwise.
    """
    lane = "" if priority == NORMAL_PRIORITY else f"=p{priority}"
    name = f"{mailbox.name}{lane}"
    config: dict[str, Any] = {
        "durable_name": name,
        "name": name,
        "ack_policy": "explicit",
        "ack_wait": round(mailbox.lease_s * NANOSECONDS),
        "deliver_policy": "all",
        "filter_subjects": filters(subjects, mailbox, priority),
        "max_ack_pending": 1 if mailbox.serial else MAX_ACK_PENDING,
        "max_waiting": MAX_WAITING,
        # We count attempts ourselves; the server would only stop delivering, silently.
        "max_deliver": -1,
    }
    request = {"stream_name": stream, "config": config, "action": ""}
    answer = await connection.api(f"CONSUMER.CREATE.{stream}.{name}", request)
    error = answer.get("error")
    if error is None:
        return
    if error.get("err_code") in (_FILTER_NOT_UNIQUE, _MULTIPLE_NOT_FILTERED):
        raise RouteConflictError(
            f"another agent already serves one of {', '.join(mailbox.patterns)}",
            hint="see `squadron topics`; take that agent down or name the topics apart",
        )
    raise BusUnavailableError(f"NATS refused the mailbox {name}: {error.get('description')}")


async def subjects_held(connection: Connection, stream: str, patterns: list[str]) -> dict[str, int]:
    """Messages that a work queue holds, by subject, for the subjects that match."""
    held: dict[str, int] = {}
    for pattern in patterns:
        info = await connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
        held.update(info.get("state", {}).get("subjects") or {})
    return held
