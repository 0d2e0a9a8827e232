"""An archivist in a process of its own, which dies by SIGKILL at one exact point of its work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from squadron.bridge.audit.anchors import Seal
from squadron.bridge.audit.archivist import Archivist
from squadron.bridge.audit.records import RecordMaker
from squadron.bridge.audit.redaction import Redaction
from squadron.bridge.jetstream.intake import Intake
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.config import Settings
from squadron.runtime.errors import SquadronError

Point = Literal["never", "looked", "begun", "taken", "appended", "purged"]


@dataclass(frozen=True)
class Death:
    """Where: the nth time that something was looked at, begun, taken, appended or purged."""

    point: Point
    nth: int = 1


class DyingIntake(Intake):
    """The real one, up to the point."""

    death = Death("never")
    _times = 0

    def _here(self, point: Point) -> None:
        if point == self.death.point:
            self._times += 1
            if self._times == self.death.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    async def begin(self, after: int) -> None:
        self._here("looked")
        await super().begin(after)
        self._here("begun")

    async def append(self, data: bytes, head: str, *, after: int) -> int:
        self._here("taken")
        seq = await super().append(data, head, after=after)
        self._here("appended")
        return seq

    async def purge(self, through: int) -> None:
        await super().purge(through)
        self._here("purged")


def main(settings: Settings, death: Death) -> None:
    """Archive until it is killed."""
    DyingIntake.death = death
    persist(lambda: _archive(settings))


def persist(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run what goes on for ever; what can't begin, because the server was just killed, begins anew."""
    while True:
        with contextlib.suppress(SquadronError):
            asyncio.run(work())
        time.sleep(0.1)


async def _archive(settings: Settings) -> None:
    connection = await connect(settings, name="archivist")
    seal = Seal(settings.home, settings.env)
    intake = DyingIntake(connection, StreamNames(settings.env))
    maker = RecordMaker(Redaction(), seal.commitment_key)
    await Archivist(intake, maker, seal, anchor_s=0.2, purge_s=0.0).run()
