"""What a task emits: numbered messages on its lite topic, of which none is lost and none comes twice.

Each attempt at a task has a stream of its own. Its `epoch` is higher than that of all attempts before it, so that
a reader knows what is outdated, be it late or from a replica that goes on without its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, SquadronError
from squadron.runtime.store.port_set import Ports
from squadron.runtime.texts import encoded
from squadron.runtime.trust.sealing import Box, SealKey, info_for
from squadron.runtime.wire.envelope import AgentMessage, lay_out
from squadron.runtime.wire.outcome import LITE_TTL_S, Outcome

#: How far a writer may be ahead of the oldest chunk that is not acknowledged. Enough for 20,000 chunks a second on
#: acknowledgements that take 10 ms; a reader holds back so many at most.
WINDOW = 256
#: Chunks after which a writer lets others have their turn, and so sends them.
AT_ONCE = 64
#: Pause before what was not acknowledged is sent again, in seconds.
AGAIN_S = 0.25
#: How long the last acknowledgements may take, in seconds: a restart of the server takes one or two.
FINISH_WITHIN_S = 20.0
#: Attempts in one life of a task; each life after a redrive begins so many epochs later.
EPOCHS_PER_LIFE = 1000


def epoch_of(redriven: int, attempt: int) -> int:
    """The epoch of an attempt: its number, and higher for a task that was put back `redriven` times."""
    return redriven * EPOCHS_PER_LIFE + attempt


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk; `number` counts from 0 in each epoch, and is -1 if a foreign producer did not number it."""

    value: Any
    number: int
    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """The task is run again: forget the chunks so far, those that follow are of the new epoch."""

    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Nested:
    """A chunk of a task that was asked by this one, or by one further down.

    `path` holds the ids of the tasks on the way, the emitting one last; `topic` is the emitting one's.
    """

    path: tuple[str, ...]
    topic: str
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a stream: the task's one outcome. `chunks` is how many the last epoch had."""

    outcome: Outcome
    chunks: int


class StreamWriter:
    """The stream of one attempt at a task.

    Chunks are sealed for the `readers`, if there are any.

    They are sent in order, all of a turn of the loop at once, without waiting until they are stored; what is not
    acknowledged is sent again, one by one. Each is also told to whoever listens on the live view
    (`Subjects.stream`).
    """

    def __init__(
        self,
        ports: Ports,
        lite_key: str,
        message: AgentMessage,
        attempt: int,
        readers: Sequence[SealKey] = (),
    ) -> None:
        self._ports, self._key, self._message = ports, lite_key, message
        self._loop = asyncio.get_running_loop()
        #: A box of its own for each run, whose key each chunk has: who joins in the middle needs nothing else.
        self._box = Box(readers, info_for("stream", ports.identity.id)) if readers else None
        self._readers = readers
        self._view = ports.subjects.stream(lite_key.rpartition(".")[2])
        #: Tells this run of the handler from all others: a server that was killed forgets what it delivered, so
        #: that two may run under the same number.
        self._run, self._secret = os.urandom(8).hex(), os.urandom(16)
        self._which = {"attempt": attempt, "epoch": epoch_of(message.redriven, attempt), "run": self._run}
        #: What all its messages say.
        self._wire = lay_out(
            "stream",
            ports.identity,
            {},
            conversation_id=message.context.conversation_id,
            correlation_id=message.id,
            sensitive=bool(readers),
        )
        #: The number that comes next, and that of the first that is to be sent in this turn of the loop.
        self._next = self._unsent = 0
        self._ended = False
        #: Chunks are numbered in the order in which they were emitted, though one may wait for the vault.
        self._turn = asyncio.Lock()
        #: What was sent and not acknowledged, oldest first, and which of it has to be sent again.
        self._unacknowledged: dict[int, bytes] = {}
        self._again: set[int] = set()
        self._mending: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        #: Why no more can be sent, ever.
        self._fault: SquadronError | None = None

    async def write(self, chunk: Any) -> None:
        """Send one chunk; waits only while too many are not acknowledged.

        Raises:
            MessageTooLargeError: larger than any message may be; the stream goes on without it.
            BusUnavailableError: the vault did not take a large one; likewise.
        """
        await self._send({"chunk": chunk})

    async def point_to(self, task_id: str, topic: str, lite_topic: str) -> None:
        """Tell readers of a task that was asked, whose chunks they are to see as well."""
        pointer = {"taskId": task_id, "topic": topic, "liteTopic": lite_topic}
        await self._send({"child": pointer})

    async def _send(self, content: dict[str, Any]) -> None:
        async with self._turn:
            self._check_open()
            number = self._next
            data = await self._packed(number, content)
            self._check_open()
            while number - next(iter(self._unacknowledged), number) >= WINDOW:
                await self._acknowledgement()
                self._check_open()
            # From here on it has its number: if it can't be sent now, it is sent again.
            self._next += 1
            self._unacknowledged[number] = data
            if number == self._unsent:
                self._loop.call_soon(self._send_new)
            await self._show(data)
            if not self._next % AT_ONCE:
                await asyncio.sleep(0)

    def _send_new(self) -> None:
        first, self._unsent = self._unsent, self._next
        if self._unacknowledged:
            self._append(range(first, self._next))

    def _check_open(self) -> None:
        if self._ended:
            raise SquadronError("the stream has ended", hint="emit before the handler returns")
        if self._fault is not None:
            raise self._fault

    async def _packed(self, number: int, content: dict[str, Any], *, final: bool = False) -> bytes:
        wire, claims = self._wire, self._ports.claims
        wire["id"], wire["timestamp"] = f"{self._run}.{number}", self._ports.clock.time()
        numbered = {"sequenceNumber": number, "isFirst": number == 0, "isFinal": final}
        wire["payload"] = {**numbered, **content, **self._which}
        if not self._readers:
            return await claims.seal(encoded(wire), keep_s=LITE_TTL_S)
        place = self._message.reply_to or self._key
        return await claims.seal_for(self._readers, wire, place, keep_s=LITE_TTL_S, box=self._box)

    def _msg_id(self, number: int) -> str:
        """That nobody can take first: who reads the chunks so far knows the ids of those that come."""
        return hashlib.blake2b(b"%d" % number, key=self._secret, digest_size=16).hexdigest()

    async def _show(self, data: bytes) -> None:
        with contextlib.suppress(BusUnavailableError):
            await self._ports.bus.publish(self._view, data)

    def _append(self, numbers: Sequence[int]) -> None:
        entries = [(self._unacknowledged[number], self._msg_id(number)) for number in numbers]
        try:
            stored = self._ports.lite.append_soon(self._key, entries, ttl_s=LITE_TTL_S)
        except SquadronError as error:
            # It would fail again: whoever emits next, or ends the stream, is told.
            self._fault = error
            self._wake()
            return
        stored.add_done_callback(lambda stored: self._heard(numbers, stored))

    def _heard(self, numbers: Sequence[int], stored: asyncio.Future[int]) -> None:
        count = 0 if stored.exception() is not None else stored.result()
        for number in numbers[:count]:
            self._unacknowledged.pop(number, None)
        if self._unacknowledged:
            self._send_again(numbers[count:])
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _acknowledgement(self) -> None:
        self._waiting = self._loop.create_future()
        await self._waiting

    def _send_again(self, numbers: Sequence[int]) -> None:
        self._again.update(numbers)
        if self._again and (self._mending is None or self._mending.done()):
            self._mending = spawn(self._mend(), f"mend {self._run}")

    async def _mend(self) -> None:
        while self._again:
            await asyncio.sleep(AGAIN_S)
            again, self._again = sorted(self._again & self._unacknowledged.keys()), set()
            for number in again:
                self._append([number])

    async def finish(self, end: str) -> None:
        """End the stream: wait until all is acknowledged, then store the final message with the count.

        Args:
            end: how the attempt ended: the kind of its outcome, or "again" if there will be another.

        Raises:
            BusUnavailableError: not acknowledged in time.
            SquadClosedError: it was closed meanwhile.
        """
        try:
            async with asyncio.timeout(FINISH_WITHIN_S), self._turn:
                self._ended = True
                while self._unacknowledged:
                    if self._fault is not None:
                        raise self._fault
                    await self._acknowledgement()
        except TimeoutError:
            left = len(self._unacknowledged)
            reason = f"{self._key}: {left} chunks were not acknowledged within {FINISH_WITHIN_S:g} s"
            raise BusUnavailableError(reason) from None
        count = self._next
        data = await self._packed(count, {"count": count, "end": end}, final=True)
        await self._ports.lite.append(self._key, data, ttl_s=LITE_TTL_S, msg_id=self._msg_id(count))
        await self._show(data)

    def close(self) -> None:
        """Give up what is not acknowledged; nothing if `finish` has returned."""
        self._ended = True
        self._unacknowledged.clear()
        # Who emits in the background is told.
        self._wake()
        if self._mending is not None:
            self._mending.cancel()
