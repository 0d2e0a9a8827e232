"""Sends news of tasks to whoever wants to be told. Of all processes of all gateways one does, as long as it lives.

Which one that is stands on a lite topic, which it renews; when it stops doing so, another takes its place and goes
on with what is kept. So news are sent at least once: what was sent just before may come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from a2a.types import a2a_pb2 as pb
from a2a.utils.proto_utils import to_stream_response
from google.protobuf.json_format import MessageToJson

from squadron.bridge.gateways.a2a.a2a_following import Following, Update
from squadron.bridge.gateways.a2a.a2a_tasks import artifact_update, status_update
from squadron.bridge.gateways.a2a.push_records import Config, PushRecord, PushRecords
from squadron.bridge.gateways.a2a.push_targets import PushLostError, PushRefusedError, PushTargets
from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTasks, UnknownTaskError
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import BusUnavailableError, FencedError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Entry
from squadron.runtime.wire.outcome import Result

#: How often the place of the one who sends is renewed, and after how long without it another takes it, in seconds.
RENEW_S, LAPSE_S = 2.0, 8.0
#: How long the place is known after that, in seconds.
_KNOWN_S = 60.0
#: Pauses before news that did not arrive are sent again, in seconds.
PAUSES_S = (1.0, 5.0, 25.0)
#: Requests under way at once.
AT_ONCE = 64
#: How often all records are read, lest one was not heard of, in seconds.
LOOK_S = 30.0
#: The header of the token that a receiver gave, as the SDKs have it.
TOKEN_HEADER = "X-A2A-Notification-Token"

_log = get_logger("squadron.gateway")


class PushSender:
    """One process of a gateway, which sends if no other does."""

    def __init__(self, front: Front, kept: KeptTasks, targets: PushTargets) -> None:
        self._front, self._kept, self._targets = front, kept, targets
        self._following, self._records = Following(front), PushRecords(front)
        self._key = front.place.ports.subjects.lite("a2a-push-sender", "holder")
        self._at_once = asyncio.Semaphore(AT_ONCE)
        #: By task: who is told, and what tells them.
        self._wanted: dict[str, PushRecord] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send as long as this is entered, if it is ours to do."""
        taking = spawn(self._take_turns(), "news of A2A tasks", lasting=True)
        try:
            yield
        finally:
            await cancel_all([taking])
            await self._targets.aclose()

    # --- whose turn it is ----------------------------------------------------------------------------

    async def _take_turns(self) -> None:
        lite, loop = self._front.place.ports.lite, asyncio.get_running_loop()
        seen, since = -1, loop.time()
        while True:
            with contextlib.suppress(BusUnavailableError, FencedError):
                entry = await lite.last(self._key)
                seq = 0 if entry is None else entry.seq
                if seq != seen:
                    # By our clock alone: how long ago it was renewed by theirs says nothing.
                    seen, since = seq, loop.time()
                if seq == 0 or _is_free(entry) or loop.time() - since >= LAPSE_S:
                    await self._lead(await self._renewed(seq))
                    seen, since = -1, loop.time()
            await asyncio.sleep(RENEW_S)

    async def _renewed(self, seq: int, *, free: bool = False) -> int:
        ports = self._front.place.ports
        data = ports.pack("event", {"content": {"by": os.getpid(), "free": free}})
        return await ports.lite.append(self._key, data, ttl_s=_KNOWN_S, expect_seq=seq)

    async def _lead(self, seq: int) -> None:
        """Send until somebody else does; gives the place away when it is stopped."""
        sending = spawn(self._send_all(), "sending news of A2A tasks", lasting=True)
        try:
            while True:
                await asyncio.sleep(RENEW_S)
                with contextlib.suppress(BusUnavailableError):
                    seq = await self._renewed(seq)
        except asyncio.CancelledError:
            with contextlib.suppress(SquadronError, TimeoutError):
                async with asyncio.timeout(RENEW_S):
                    await self._renewed(seq, free=True)
            raise
        finally:
            for each in (sending, *self._sending.values()):
                each.cancel()
            self._sending.clear()
            self._wanted.clear()

    # --- what is sent --------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        heard: asyncio.Queue[Entry | None] = asyncio.Queue()
        lite = self._front.place.ports.lite
        subscription = await lite.follow(
            self._records.pattern, heard.put_nowait, lost=lambda: heard.put_nowait(None)
        )
        try:
            while True:
                with contextlib.suppress(BusUnavailableError):
                    for each in await self._records.all():
                        self._want(each)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        while (entry := await heard.get()) is not None:
                            self._want(self._records.read(entry))
        finally:
            await subscription.aclose()

    def _want(self, record: PushRecord) -> None:
        known = self._wanted.get(record.task_id)
        if known is not None and known.seq > record.seq:
            return
        if not record.waiting:
            self._wanted.pop(record.task_id, None)
            if sending := self._sending.pop(record.task_id, None):
                sending.cancel()
            return
        self._wanted[record.task_id] = record
        if record.task_id not in self._sending:
            self._sending[record.task_id] = spawn(self._follow(record.task_id), f"news of {record.task_id}")

    async def _follow(self, task_id: str) -> None:
        """Tell what becomes of a task until it has ended, and all were told."""
        answered = set[str]()
        try:
            task = await self._kept.of_id(task_id)
            while True:
                task, question = await self._following.settled(task, answered)
                if question is None:
                    break
                answered.add(question.query_id)
                await self._tell(task_id, status_update(task, question))
            told = set[str]()
            while waiting := [each for each in self._waiting(task_id) if each.id not in told]:
                if isinstance(task.outcome, Result):
                    await self._tell_each(waiting, artifact_update(task, task.outcome))
                await self._tell_each(waiting, status_update(task))
                told |= {each.id for each in waiting}
                # Somebody may have come meanwhile.
                await self._records.note_told(task, told)
        except UnknownTaskError:
            pass  # its life is over, and so is what was to be told
        except SquadronError as error:
            # Looked at again with all others.
            _log.warning("push.put_off", task=task_id, error=str(error))
        finally:
            if self._sending.get(task_id) is asyncio.current_task():
                del self._sending[task_id]

    def _waiting(self, task_id: str) -> list[Config]:
        record = self._wanted.get(task_id)
        return [] if record is None else record.waiting

    async def _tell(self, task_id: str, update: Update) -> None:
        await self._tell_each(self._waiting(task_id), update)

    async def _tell_each(self, receivers: list[Config], update: Update) -> None:
        body = MessageToJson(to_stream_response(update), indent=None).encode()
        await asyncio.gather(*(self._post(each, body) for each in receivers))

    async def _post(self, receiver: Config, body: bytes) -> None:
        for pause_s in (*PAUSES_S, None):
            try:
                async with self._at_once:
                    await self._targets.post(receiver.url, body, _headers_of(receiver))
                return
            except (PushLostError, PushRefusedError) as error:
                # The URL may hold a secret.
                _log.info("push.failed", task=receiver.task_id, error=str(error), again=error.retryable)
                if pause_s is None or not error.retryable:
                    return
            await asyncio.sleep(pause_s)


def _is_free(entry: Entry | None) -> bool:
    try:
        return entry is not None and json.loads(entry.data)["payload"]["content"]["free"] is True
    except (ValueError, TypeError, LookupError):
        return False


def _headers_of(receiver: pb.TaskPushNotificationConfig) -> dict[str, Any]:
    headers = {"Content-Type": "application/a2a+json"}
    if receiver.token:
        headers[TOKEN_HEADER] = receiver.token
    if receiver.authentication.scheme and receiver.authentication.credentials:
        said = receiver.authentication
        headers["Authorization"] = f"{said.scheme} {said.credentials}"
    return headers
