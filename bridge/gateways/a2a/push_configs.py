"""Requests of clients that want to be told of a task, instead of asking."""

from __future__ import annotations

import uuid

from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import InvalidParamsError, TaskNotFoundError

from squadron.bridge.gateways.a2a.push_records import MOST_RECEIVERS, Config, PushRecord, PushRecords
from squadron.bridge.gateways.a2a.push_targets import PushRefusedError, PushTargets
from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask
from squadron.runtime.wire.envelope import MAX_NAME

#: Longest token, scheme or credentials, in characters: a JWT has some 1,000.
MOST_CREDENTIALS = 4_096


class PushConfigs:
    """Who is told of which task."""

    def __init__(self, front: Front, targets: PushTargets) -> None:
        self._records, self._targets = PushRecords(front), targets

    async def checked(self, config: Config) -> Config:
        """What a client wants, as it is kept.

        Raises:
            InvalidParamsError: news must not be sent there, or something of it is too long.
        """
        kept = Config()
        kept.CopyFrom(config)
        kept.id = kept.id or uuid.uuid4().hex
        said = (kept.token, kept.authentication.scheme, kept.authentication.credentials)
        if len(kept.id) > MAX_NAME or any(len(each) > MOST_CREDENTIALS for each in said):
            raise InvalidParamsError(f"an id has at most {MAX_NAME} characters, credentials {MOST_CREDENTIALS}")
        if not all(each.isascii() and each.isprintable() for each in said):
            raise InvalidParamsError("a header can't hold that token, scheme or credentials")
        try:
            await self._targets.check(kept.url)
        except PushRefusedError as error:
            raise InvalidParamsError(str(error)) from None
        return kept

    async def add(self, task: KeptTask, config: Config) -> Config:
        """Have somebody told of a task, in the place of whoever had this id; returns what may be shown of it."""
        kept = await self.checked(config)
        kept.task_id = task.id

        def added(record: PushRecord) -> tuple[list[Config], set[str]]:
            others = [each for each in record.configs if each.id != kept.id]
            if len(others) >= MOST_RECEIVERS:
                raise InvalidParamsError(f"of a task at most {MOST_RECEIVERS} are told")
            return [*others, kept], set(record.told) - {kept.id}

        await self._records.change(task, added)
        return _shown(kept)

    async def get(self, task: KeptTask, id: str) -> Config:
        """One of those who are told."""
        for each in await self.all(task):
            if each.id == id:
                return each
        raise TaskNotFoundError(f"nobody is told of this task as {id[:100]!r}")

    async def all(self, task: KeptTask) -> list[Config]:
        """All who are told of a task."""
        return [_shown(each) for each in (await self._records.of(task.id)).configs]

    async def remove(self, task: KeptTask, id: str) -> None:
        """Have somebody told no more; nothing happens if nobody is by this id."""

        def removed(record: PushRecord) -> tuple[list[Config], set[str]]:
            return [each for each in record.configs if each.id != id], set(record.told) - {id}

        if any(each.id == id for each in await self.all(task)):
            await self._records.change(task, removed)


def _shown(config: Config) -> Config:
    """Without what the receiver knows us by."""
    shown = Config(id=config.id, task_id=config.task_id, url=config.url)
    if config.HasField("authentication"):
        shown.authentication.CopyFrom(pb.AuthenticationInfo(scheme=config.authentication.scheme))
    return shown
