"""A running pull on the lanes of a mailbox: strictly by priority, and never more than there are free slots."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import nats.errors
from nats.aio.subscription import Subscription as NatsSubscription

from squadron.bridge.jetstream.bus import CoreBus
from squadron.bridge.jetstream.lease import JetStreamLease
from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import BusUnavailableError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.queue import Delivery, Mailbox
from squadron.runtime.retries import summary_of
from squadron.runtime.texts import encoded
from squadron.runtime.wire.subjects import NORMAL_PRIORITY, Subjects, lane_of

#: Life of one waiting pull and its heartbeat, in seconds. A pull that was silent for two heartbeats is lost.
PULL_EXPIRES_S, PULL_HEARTBEAT_S = 30, 5
#: Status of the answer to a pull on a consumer that does not exist: nobody is there to answer (ADR-4 of NATS).
_NO_CONSUMER = "503"
#: Status of the end of a pull with a pin that is over, and the header that tells the new one (ADR-42 of NATS).
_NO_PIN, _PIN = "423", "Nats-Pin-Id"
#: How long the server may take to answer a pull that does not wait, in seconds, before it counts as lost.
TAKE_WITHIN_S = 2.0

_log = get_logger("squadron.queue")


class _Lane:
    """One consumer that a feed pulls from: by pulls that wait, and by such that take what is there."""

    def __init__(self, feed: PullFeed, consumer: str, priority: int) -> None:
        self._feed, self.priority = feed, priority
        self._subject = f"{feed.connection.api_prefix}.CONSUMER.MSG.NEXT.{feed.stream}.{consumer}"
        self._waiting: NatsSubscription | None = None
        self._taking: NatsSubscription | None = None
        self._take_left = 0
        self._taken: asyncio.Future[None] | None = None
        self._heard_at = 0.0
        #: When it was last taken from or seen empty.
        self.served_at = time.monotonic()
        #: Messages that waiting pulls may still bring.
        self.asked = 0
        #: What the consumer still held when it last delivered.
        self.pending = 0
        #: By which the server knows that it is this reader whose turn it is, where there is one at a time.
        self.pin = ""

    async def open(self) -> None:
        connection = self._feed.connection
        self._waiting = await connection.listen(connection.client.new_inbox(), self._hear)
        self._taking = await connection.listen(connection.client.new_inbox(), self._hear_taken)

    async def reopen(self) -> None:
        """Begin anew on a connection that came back: pulls have died with the one before.

        At inboxes of their own: a server that sees the old connection's end only now ends whatever waits at those
        of before, where that is in another account than the consumer. Else they live on, or somebody asked there
        since: what comes still arrives.
        """
        before = (self._waiting, self._taking)
        await self.open()
        self.asked, self.pin = 0, ""
        self._feed.in_background(_let_go(before))

    async def close(self) -> None:
        """Let nothing more come; what is on its way still arrives before this returns."""
        await _drain((self._waiting, self._taking))

    async def _ask(self, inbox: NatsSubscription | None, request: dict[str, int | bool | str]) -> None:
        assert inbox is not None
        await self._feed.connection.publish(self._subject, encoded(request), reply=inbox.subject)

    async def poll(self, count: int) -> None:
        """Ask for the next `count` messages, whenever they come."""
        self._heard_at = self.served_at = time.monotonic()
        expires, heartbeat = PULL_EXPIRES_S * NANOSECONDS, PULL_HEARTBEAT_S * NANOSECONDS
        self.asked += count
        request: dict[str, int | bool | str] = {"batch": count, "expires": expires, "idle_heartbeat": heartbeat}
        if self._feed.group:
            request |= {"group": self._feed.group} | ({"id": self.pin} if self.pin else {})
        await self._ask(self._waiting, request)

    async def take(self, count: int) -> bool:
        """Take up to `count` messages that are there now; whether there may be more."""
        self._take_left, self._taken = count, asyncio.get_running_loop().create_future()
        try:
            await self._ask(self._taking, {"batch": count, "no_wait": True})
            async with asyncio.timeout(TAKE_WITHIN_S):
                await self._taken
        except TimeoutError:
            raise BusUnavailableError(f"no answer to a pull on {self._subject}") from None
        finally:
            self._taken = None
        self.served_at = time.monotonic()
        return self._take_left == 0

    def lost(self) -> bool:
        """Whether its waiting pulls went silent: the server forgot them, or the connection did."""
        return self.asked > 0 and time.monotonic() - self._heard_at > 2.5 * PULL_HEARTBEAT_S

    def _hear(self, msg: Heard) -> None:
        self._heard_at = time.monotonic()
        if _is_delivery(msg):
            self.asked = max(0, self.asked - 1)
            lease = self._feed.lease(msg)
            self.pending = lease.pending
            if self._feed.group:
                self.pin = msg.headers.get(_PIN, "")
            self._feed.arrived(msg, lease)
            self._feed.go_on(self.asked)
        elif (headers := msg.headers).get("Status") != "100":
            if headers.get("Status") == _NO_CONSUMER:
                self._feed.missing.add(self.priority)
            # 404, 408 and 409 end a pull request; what it did not deliver has to be asked for again.
            left = headers.get("Nats-Pending-Messages")
            self.asked = max(0, self.asked - int(left)) if left else 0
            if headers.get("Status") == _NO_PIN:
                # It was silent for long, or another is the reader now.
                self.pin = ""
            self._feed.again(after_s=0.0 if headers.get("Status") in ("408", _NO_PIN) else 0.25)

    def _hear_taken(self, msg: Heard) -> None:
        over = True
        if _is_delivery(msg):
            self._take_left -= 1
            over = self._take_left == 0
            self._feed.arrived(msg, self._feed.lease(msg), taken=True)
        if over and self._taken is not None and not self._taken.done():
            self._taken.set_result(None)


async def _let_go(inboxes: Iterable[NatsSubscription | None]) -> None:
    # Lost again: then nothing comes there any more.
    with contextlib.suppress(nats.errors.Error, OSError):
        await _drain(inboxes)


async def _drain(inboxes: Iterable[NatsSubscription | None]) -> None:
    for inbox in inboxes:
        if inbox is not None:
            # Shielded: nats-py's read loop ends when a flush was cancelled.
            await asyncio.shield(inbox.drain())  # type: ignore[no-untyped-call]


def _is_delivery(msg: Heard) -> bool:
    # A sender may have put a header named `Status` on a task; only deliveries are to be acknowledged.
    return msg.reply.startswith("$JS.ACK.")


class PullFeed:
    """A running pull on all open lanes of a mailbox.

    As long as there are free slots, pulls wait at every lane. When there are none, nothing is pulled, and what
    still comes is handed back for others. The next free slot is then filled from the highest lane that holds
    something, so that the order is strict when it matters.

    Args:
        group: the consumer's, which has the server deliver to one reader at a time.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        notes: Journal,
        subjects: Subjects,
        mailbox: Mailbox,
        sink: Callable[[Delivery], None],
        consumer_of: Callable[[int], Awaitable[str]],
        lanes_held: Callable[[], Awaitable[set[int]]],
        *,
        note_owner: str = "begun",
        group: str = "",
    ) -> None:
        self.connection, self.stream, self.group, self._notes = connection, stream, group, notes
        self._note_pattern = subjects.lite_of(note_owner)
        self._subjects, self._mailbox, self._sink = subjects, mailbox, sink
        self._consumer_of, self._lanes_held = consumer_of, lanes_held
        self._lanes: dict[int, _Lane] = {}
        self._wanted = 0
        #: Whether all slots were taken since the lanes were last seen empty.
        self._full = True
        self._work = asyncio.Event()
        #: Lanes that were heard of, and whether others may have been missed.
        self._unopened: set[int] = set()
        self._look = self._look_again = not mailbox.serial
        #: Lanes whose consumer the server does not know: it came back without its store.
        self.missing: set[int] = set()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._ears: list[Subscription] = []

    async def open(self) -> None:
        """Open the lanes that exist and begin to listen for new ones."""
        try:
            await self._open()
        except BaseException:
            await self.aclose()
            raise

    async def _open(self) -> None:
        await self._open_lane(NORMAL_PRIORITY)
        if not self._mailbox.serial:
            bus = CoreBus(self.connection)
            for pattern in self._mailbox.patterns:
                lanes = f"{self._subjects.task(pattern)}.*"
                # A query is stored under the task's subject, but it is heard on its own.
                for heard in (lanes, lanes.replace(".task.", ".query.", 1)):
                    self._ears.append(await bus.subscribe(heard, self._hear_lane))
        await self._open_lanes()
        self.connection.on_reconnect(self._reconnected)
        self._tasks = [
            spawn(self._pull(), f"pull {self._mailbox.name}", lasting=True),
            spawn(self._watch(), f"watch {self._mailbox.name}", lasting=True),
        ]

    def _hear_lane(self, note: Note) -> None:
        priority = lane_of(note.subject)
        if priority not in self._lanes:
            self._unopened.add(priority)
            self._work.set()

    async def _open_lanes(self) -> None:
        """Open the lanes that were heard of; one after the other, so that each is opened once."""
        if self._look:
            self._unopened |= await self._lanes_held()
            self._look = False
        for priority in sorted(self._unopened, reverse=True):
            if priority not in self._lanes:
                await self._open_lane(priority)
            self._unopened.discard(priority)

    async def _open_lane(self, priority: int) -> None:
        lane = _Lane(self, await self._consumer_of(priority), priority)
        await lane.open()
        self._lanes[priority] = lane
        self._work.set()

    def want(self, count: int) -> None:
        """Allow `count` more deliveries."""
        self._wanted += count
        lanes = list(self._lanes.values())
        if len(lanes) != 1 or lanes[0].asked <= self._wanted / 2:
            # Else there is nothing to do yet: see `_poll`.
            self._work.set()

    def lease(self, msg: Heard) -> JetStreamLease:
        """The lease that came with a message."""
        lease_s = self._mailbox.lease_s
        return JetStreamLease(self.connection, self._notes, self._note_pattern, msg.reply, lease_s=lease_s)

    def arrived(self, msg: Heard, lease: JetStreamLease, *, taken: bool = False) -> None:
        """A lane got a message, by a pull that waited or by one that took what was there."""
        in_turn = taken or not self._full or len(self._lanes) == 1
        if self._wanted > 0 and in_turn and not self._closed:
            self._wanted -= 1
            self._full = self._full or self._wanted == 0
            # Of several lanes the highest is next, and which that is shows when there is a slot.
            behind = lease.pending if len(self._lanes) == 1 else 0
            self._sink(Delivery(msg.subject, msg.data, lease, lease.seq, msg, lease.stored_at, behind=behind))
        else:
            # It came early: somebody else may have a slot for it, or a higher lane comes first.
            self.in_background(self._hand_back(lease))

    def go_on(self, asked: int) -> None:
        """A lane got a message, and still may get `asked`: slots that were freed meanwhile may want for more."""
        if asked <= self._wanted / 2 and self._wanted > 0:
            self._work.set()

    async def _hand_back(self, lease: JetStreamLease) -> None:
        # Without the server it is delivered again after its lease.
        with contextlib.suppress(BusUnavailableError):
            await lease.release()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done before `aclose` returns."""
        task = spawn(work, f"settle {self._mailbox.name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def again(self, after_s: float) -> None:
        """A pull ended unanswered; look what has to be asked for anew."""
        asyncio.get_running_loop().call_later(after_s, self._work.set)

    async def _reconnected(self) -> None:
        for lane in list(self._lanes.values()):
            await lane.reopen()
        # So does what was said of a new lane meanwhile.
        self._look = self._look_again = not self._mailbox.serial
        self._work.set()

    async def _pull(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if not self.connection.is_connected:
                # What is asked for now would be sent later, on top of what is asked for when it is back.
                continue
            try:
                while self.missing:
                    await self._consumer_of(self.missing.pop())
                if self._look or self._unopened:
                    await self._open_lanes()
                if self._full and len(self._lanes) > 1:
                    await self._sweep()
                await self._poll()
            except (BusUnavailableError, nats.errors.Error, OSError):
                self.again(after_s=0.25)
            except SquadronError as error:
                # A lane can't be opened; the others go on.
                _log.warning("queue.lane_refused", mailbox=self._mailbox.name, error=str(error))
                self.again(after_s=1.0)

    async def _sweep(self) -> None:
        """Fill free slots from the highest lane down, but first from one that was passed over for too long."""
        lanes = [lane for _, lane in sorted(self._lanes.items(), reverse=True)]
        patience_s = self._mailbox.patience_s
        neglected = [lane for lane in lanes if time.monotonic() - lane.served_at > patience_s]
        if neglected and self._wanted > 0:
            await min(neglected, key=lambda lane: lane.served_at).take(1)
        for lane in lanes:
            while self._wanted > 0:
                if not await lane.take(self._wanted):
                    break
        if self._wanted > 0:
            self._full = False

    async def _poll(self) -> None:
        """Let pulls wait for as many messages as there are free slots."""
        if self._full and len(self._lanes) > 1:
            return
        for priority, lane in sorted(self._lanes.items(), reverse=True):
            # The normal lane may fill all slots. In the others one pull waits, and more where more is held: what
            # came beyond the free slots would have to be handed back.
            wanted = self._wanted if priority == NORMAL_PRIORITY else min(self._wanted, max(1, lane.pending))
            # One request for many messages: each costs a system call here and one at the server.
            if lane.asked <= wanted / 2 and wanted > 0:
                await lane.poll(wanted - lane.asked)

    async def _watch(self) -> None:
        """Find pulls that went silent."""
        while True:
            await asyncio.sleep(PULL_HEARTBEAT_S)
            if self._look_again:
                # A lane's count grows a moment after a task was stored: the first look may have come in between.
                self._look_again, self._look = False, True
                self._work.set()
            for lane in self._lanes.values():
                if lane.lost():
                    _log.warning("queue.pull_lost", mailbox=self._mailbox.name, priority=lane.priority)
                    lane.asked = 0
                    self._work.set()

    @property
    def is_pinned(self) -> bool:
        """Whether it was last known to be the one reader of its group."""
        return any(lane.pin for lane in self._lanes.values())

    async def aclose(self) -> None:
        """Stop pulling and hand back what is on its way. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.connection.off_reconnect(self._reconnected)
        await cancel_all(self._tasks)
        for ear in self._ears:
            await ear.aclose()
        try:
            for lane in self._lanes.values():
                await lane.close()
            await asyncio.gather(*self._background, return_exceptions=True)
            await self.connection.confirm_soon()
        except Exception as error:
            # Without the server nothing can be handed back; it is delivered again after its lease.
            _log.info("queue.close_unclean", mailbox=self._mailbox.name, error=summary_of(error))
