"""To whom news of a task are sent, on a lite topic of the task's: it outlives every process of the gateway.

What is kept is sealed with a key of the gateway's, as it holds what receivers know the gateway by; nobody else on
the bus can read it, or have something sent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from a2a.types.a2a_pb2 import TaskPushNotificationConfig
from google.protobuf.json_format import Error as ProtoJsonError
from google.protobuf.json_format import MessageToDict, ParseDict
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask
from squadron.runtime.errors import FencedError, InvalidMessageError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.wire.outcome import LITE_TTL_S

#: Owner of the lite topics; each has the id of its task.
OWNER = "a2a-push"
#: Receivers of the news of one task.
MOST_RECEIVERS = 10
#: Tries to store a record that others write, too.
_TRIES = 10

Config = TaskPushNotificationConfig


@dataclass(frozen=True, slots=True)
class PushRecord:
    """Who is told of a task.

    Attributes:
        seq: of the entry that says so; 0 if there is none.
        told: ids of those who were told how it ended.
    """

    task_id: str
    seq: int = 0
    configs: tuple[Config, ...] = ()
    told: frozenset[str] = frozenset()

    @property
    def waiting(self) -> list[Config]:
        """Those who are to be told of the end."""
        return [each for each in self.configs if each.id not in self.told]


class PushRecords:
    """The records of all tasks."""

    def __init__(self, front: Front) -> None:
        self._ports = front.place.ports
        self._box = SecretBox(front.secret.key("receivers of A2A news"))
        self.pattern = self._ports.subjects.lite_of(OWNER)

    async def of(self, task_id: str) -> PushRecord:
        """The record of a task, which may say that nobody is told.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        entry = await self._ports.lite.last(self._ports.subjects.lite(OWNER, task_id))
        return PushRecord(task_id) if entry is None else self.read(entry)

    async def all(self) -> list[PushRecord]:
        """The records of all tasks.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        return [self.read(each) for each in await self._ports.lite.latest(self.pattern)]

    def read(self, entry: Entry) -> PushRecord:
        """The record in an entry; what somebody else wrote there says that nobody is told."""
        task_id = entry.key.rsplit(".", 1)[-1]
        try:
            sealed = json.loads(entry.data)["payload"]["content"]["sealed"]
            said = json.loads(self._box.decrypt(base64.b64decode(sealed)))
            configs = tuple(ParseDict(each, Config()) for each in said["configs"])
            told = frozenset(map(str, said["told"]))
            if said["task"] != task_id:
                raise InvalidMessageError("it is of another task")
        except (CryptoError, InvalidMessageError, ProtoJsonError, ValueError, TypeError, LookupError):
            return PushRecord(task_id, entry.seq)
        return PushRecord(task_id, entry.seq, configs, told)

    async def change(self, task: KeptTask, change: Callable[[PushRecord], tuple[list[Config], set[str]]]) -> None:
        """Store what `change` makes of the record, whoever else stores something meanwhile.

        Raises:
            FencedError: others stored something each time.
            BusUnavailableError: the server can't be reached.
        """
        for tries in range(_TRIES):
            record = await self.of(task.id)
            configs, told = change(record)
            try:
                await self._store(task, record.seq, configs, told)
                return
            except FencedError:
                if tries == _TRIES - 1:
                    raise

    async def note_told(self, task: KeptTask, ids: Collection[str]) -> None:
        """Note who was told of a task's end.

        Raises:
            FencedError, BusUnavailableError: see `change`.
        """
        await self.change(task, lambda record: (list(record.configs), {*record.told, *ids}))

    async def _store(self, task: KeptTask, seq: int, configs: list[Config], told: set[str]) -> None:
        ports = self._ports
        said: dict[str, Any] = {"task": task.id, "configs": [MessageToDict(each) for each in configs]}
        plain = json.dumps(said | {"told": sorted(told)}).encode()
        sealed = base64.b64encode(self._box.encrypt(plain)).decode()
        data = ports.pack("event", {"content": {"sealed": sealed}})
        keep_s = max(0.0, task.handle.deadline.remaining_s()) + LITE_TTL_S
        await ports.lite.append(ports.subjects.lite(OWNER, task.id), data, ttl_s=keep_s, expect_seq=seq)
