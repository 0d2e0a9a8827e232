"""The archivist's side of the server: what the intake holds comes in order, what is sealed is appended.

One archivist at a time: each that begins makes the intake's consumer anew, which goes on right after what is in
the trail; and a batch is stored only if nobody appended one meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from squadron.bridge.jetstream.audit_streams import (
    AuditPolicy,
    audit_stream,
    audit_subject,
    baseline,
    intake_stream,
    read_policy,
)
from squadron.bridge.jetstream.bus import listen
from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.bridge.jetstream.publish_acks import read_ack
from squadron.bridge.jetstream.stream_configs import (
    CONSUMER_NOT_FOUND,
    STREAM_NOT_FOUND,
    StreamNames,
    ask_for,
    find,
)
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import Subscription

#: Messages that are asked for at once; as many may be in memory, and as many again are on their way.
PULLED = 512
#: How long the pull of the first one waits at the server, in seconds; how long without any answer one is lost.
PULL_S, PULL_LOST_S = 20.0, 30.0
#: An archivist that did nothing for so long, and waits for nothing, is gone, in seconds: it gives way to all else.
USED_S = 6.0


@dataclass(frozen=True, slots=True)
class Caught:
    """A message as the intake has it.

    Attributes:
        subject: where it was published at first.
        stream: the stream that it was stored in at first; empty if it never was in one.
        seq: its number there.
        at: when it was stored, in seconds since the epoch: there, or, of what was sourced, in the intake.
        place: its number in the intake; 0 if it was only heard.
    """

    subject: str
    data: bytes
    headers: dict[str, str]
    stream: str = ""
    seq: int = 0
    at: float = 0.0
    place: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A batch as the trail's stream has it: its number there, and the id it is stored under, which is its head."""

    seq: int
    head: str
    data: bytes


class Intake:
    """What comes in and what goes out, for one archivist. `begin` it; when anything is odd, begin it anew."""

    def __init__(self, connection: Connection, names: StreamNames) -> None:
        self._connection, self._names = connection, names
        self._stream, self._trail = intake_stream(names), audit_stream(names)
        self._came: deque[Caught] = deque()
        #: How many were asked for and have not come; whether the server may have more right now.
        self._asked, self._more, self._heard_at = 0, False, 0.0
        self._arrival = asyncio.Event()
        self._ears: list[Subscription] = []
        self._fault = ""
        self._inbox = self._consumer = ""

    async def policy(self) -> AuditPolicy | None:
        """What is to be recorded now; see `read_policy`."""
        return await read_policy(self._connection, self._names)

    async def wanted(self) -> bool:
        """Whether there is something to keep: not of a trail that was brought in, which has no intake."""
        policy = await self.policy()
        if policy is None or policy.mode != "off":
            return policy is not None
        return await find(self._connection, f"STREAM.INFO.{self._stream}", missing=STREAM_NOT_FOUND) is not None

    async def taken(self) -> bool:
        """Whether another archivist is at work."""
        return any(map(is_used, await archivists(self._connection, self._names)))

    async def look(self) -> tuple[str, dict[str, int], Stored | None]:
        """When the intake was made, what was before it of each stream, and the newest batch of the trail.

        Raises:
            BusUnavailableError: the server can't be reached, or there is no intake.
        """
        info = await ask_for(self._connection, f"STREAM.INFO.{self._stream}")
        return str(info["created"]), baseline(self._names, info["config"]), await self.last()

    async def begin(self, after: int) -> None:
        """Take the intake over, from the message after the one with this number on.

        Raises:
            BusUnavailableError: the server can't be reached, or there is no intake.
        """
        await self.aclose()
        for each in await archivists(self._connection, self._names):
            call = f"CONSUMER.DELETE.{self._stream}.{each['name']}"
            await find(self._connection, call, missing=CONSUMER_NOT_FOUND)
        # A name of its own: an older archivist that asks for more gets none of what is meant for this one.
        self._consumer = f"archivist-{uuid.uuid4().hex[:12]}"
        config = {
            "durable_name": self._consumer,
            "name": self._consumer,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
        }
        request = {"stream_name": self._stream, "config": config, "action": "create"}
        await ask_for(self._connection, f"CONSUMER.CREATE.{self._stream}.{self._consumer}", request)
        self._came.clear()
        self._asked, self._more, self._fault = 0, True, ""
        self._inbox = self._connection.client.new_inbox()
        self._ears.append(await listen(self._connection, self._inbox, self._hear, lost=self._lost))
        # Kept by no stream: who publishes them is promised nothing, and neither are we.
        for kind in ("event", "result"):
            pattern = f"agents.{self._names.environment}.{kind}.*.*"
            self._ears.append(await listen(self._connection, pattern, self._hear_plain))

    async def last(self) -> Stored | None:
        """The newest batch of the trail."""
        found = await self._connection.request(
            f"{self._connection.api_prefix}.DIRECT.GET.{self._trail}.{audit_subject(self._names)}", b""
        )
        if "Nats-Sequence" not in found.headers:
            if found.headers.get("Status") != "404":
                raise BusUnavailableError(f"{self._trail} answered {found.headers.get('Status')}")
            return None
        return Stored(int(found.headers["Nats-Sequence"]), found.headers.get("Nats-Msg-Id", ""), found.data)

    def _lost(self) -> None:
        self._break("the connection was lost")

    def _break(self, why: str) -> None:
        self._fault = why
        self._arrival.set()

    def _hear(self, msg: Heard) -> None:
        self._heard_at = time.monotonic()
        if msg.reply.startswith("$JS.ACK."):
            self._asked -= 1
            self._came.append(_caught(msg, self._names.tasks))
        else:
            status = msg.headers.get("Status")
            if status == "100":
                return
            if status not in ("404", "408"):
                # Deleted by another archivist, or the server restarts.
                self._break(f"the pull ended with {status} {msg.headers.get('Description', '')}")
            left = msg.headers.get("Nats-Pending-Messages")
            self._asked, self._more = max(0, self._asked - int(left)) if left else 0, False
        self._arrival.set()

    def _hear_plain(self, msg: Heard) -> None:
        # What a stream tells of is recorded as that stream has it.
        if "Nats-Stream" not in msg.headers and len(self._came) < 2 * PULLED:
            self._came.append(Caught(msg.subject, msg.data, msg.headers, at=time.time()))
            self._arrival.set()

    async def next(self, most: int, *, most_bytes: int, gather_s: float, within_s: float) -> list[Caught]:
        """What comes next, in order: waits for something, then a little for more. May be nothing.

        Args:
            gather_s: how long to wait for more, in seconds.
            within_s: how long to wait for anything, in seconds.

        Raises:
            BusUnavailableError: what comes next may not be what came next; begin anew.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        if not self._came and not self._more:
            # The first that comes tells that there is something. If all were handed out as they come, each would
            # cost the server and this process a write and a read: what comes meanwhile is fetched at once.
            while not self._came and loop.time() < until:
                if not self._asked:
                    await self._pull(1, {"expires": round(PULL_S * NANOSECONDS)})
                await self._hear_until(until)
            if self._came:
                await asyncio.sleep(gather_s)
                self._more = not self._asked
        while self._more and len(self._came) < most and loop.time() < until:
            if self._asked < PULLED // 2:
                await self._pull(PULLED, {"no_wait": True})
            await self._hear_until(until)
        return self._taken(most, most_bytes)

    async def _hear_until(self, until: float) -> None:
        """Wait until something is heard, at most to this time of the loop."""
        if self._asked and time.monotonic() > self._heard_at + PULL_LOST_S:
            self._fault = "a pull was never answered"
        if self._fault:
            raise BusUnavailableError(f"the intake: {self._fault}")
        waking = asyncio.get_running_loop().call_at(until, self._arrival.set)
        try:
            await self._arrival.wait()
        finally:
            waking.cancel()
            self._arrival.clear()

    def _taken(self, most: int, most_bytes: int) -> list[Caught]:
        taken: list[Caught] = []
        size = 0
        while self._came and len(taken) < most and (not taken or size + len(self._came[0].data) <= most_bytes):
            size += len(self._came[0].data)
            taken.append(self._came.popleft())
        return taken

    async def _pull(self, batch: int, how: dict[str, Any]) -> None:
        self._asked += batch
        self._heard_at = time.monotonic()
        call = f"{self._connection.api_prefix}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        request = json.dumps({"batch": batch, **how}).encode()
        await self._connection.publish(call, request, reply=self._inbox)

    async def append(self, data: bytes, head: str, *, after: int) -> int:
        """Store a batch right after the one with the number `after`; the same head again is stored once.

        Raises:
            FencedError: another archivist has appended one.
            BusUnavailableError: not acknowledged in time; it may be stored.
            MessageTooLargeError: larger than the server takes.
        """
        headers = {"Nats-Msg-Id": head, "Nats-Expected-Last-Sequence": str(after)}
        return await self._connection.ask(audit_subject(self._names), data, read_ack, headers=headers)

    async def purge(self, through: int) -> None:
        """What came up to this number is recorded, or is not to be: nothing of it stays here, as it came.

        A server that restarts with nothing here of a source reads that from where it was first to, anew.
        """
        await ask_for(self._connection, f"STREAM.PURGE.{self._stream}", {"seq": through + 1})

    async def aclose(self) -> None:
        """Hear nothing more. May be called twice."""
        ears, self._ears = self._ears, []
        for ear in ears:
            await ear.aclose()


async def archivists(connection: Connection, names: StreamNames) -> list[dict[str, Any]]:
    """The consumers of the intake: of the archivist at work, if there is one, and of those that died.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    listed = await find(connection, f"CONSUMER.LIST.{intake_stream(names)}", missing=STREAM_NOT_FOUND)
    return [] if listed is None else listed["consumers"] or []


def is_used(consumer: dict[str, Any]) -> bool:
    """Whether somebody waits for what comes, or, as who is busy does not wait, did something lately."""
    if consumer["num_waiting"]:
        return True
    now = datetime.fromisoformat(consumer["ts"])
    times = [consumer["created"], *(consumer[part].get("last_active") for part in ("delivered", "ack_floor"))]
    return any((now - datetime.fromisoformat(each)).total_seconds() < USED_S for each in times if each)


def _caught(msg: Heard, tasks: str) -> Caught:
    """A message of the intake; `tasks` is the stream that tells it what it stores."""
    headers = msg.headers
    # From the right: what stands before it differs between versions of the server.
    _, _, place, _, stored_ns, _ = msg.reply.rsplit(".", 5)
    stream, seq, at, subject = "", 0, int(stored_ns) / NANOSECONDS, msg.subject
    root, environment, kind, *rest = subject.split(".")
    # Only where the server itself puts them: every client may publish what is sent and done, with any headers.
    with contextlib.suppress(LookupError, ValueError, OverflowError):
        origin = tasks, ".".join((root, environment, *rest))
        if kind != "filed":
            name, number, *_ = headers["Nats-Stream-Source"].split(" ")
            seq, stream = int(number), name
        elif rest[0] not in ("sent", "action") and (headers["Nats-Stream"], headers["Nats-Subject"]) == origin:
            told_at = datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp()
            seq, at, (stream, subject) = int(headers["Nats-Sequence"]), told_at, origin
    return Caught(subject, msg.data, headers, stream, seq, at, int(place))
