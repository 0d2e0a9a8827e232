"""An archivist in a process of its own, which dies by SIGKILL at one exact point of its work."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from typing import Literal

from squadron.bridge.audit.anchors import Seal
from squadron.bridge.audit.archivist import Archivist
from squadron.bridge.audit.records import RecordMaker
from squadron.bridge.audit.redaction import Redaction
from squadron.bridge.jetstream.intake import Caught, Intake
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.config import Settings

Point = Literal["never", "begun", "taken", "appended", "half acknowledged", "acknowledged"]


@dataclass(frozen=True)
class Death:
    """Where: the nth time that something was taken, appended or acknowledged."""

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

    async def begin(self):  # type: ignore[no-untyped-def]  # as its base
        found = await super().begin()
        self._here("begun")
        return found

    async def append(self, data: bytes, head: str, *, after: int) -> int:
        self._here("taken")
        seq = await super().append(data, head, after=after)
        self._here("appended")
        return seq

    def acknowledge(self, caught: Caught) -> None:
        super().acknowledge(caught)
        if self.death.point == "half acknowledged":
            self._connection._publish_soon()
            self._connection.client.flush_now()
            self._here("half acknowledged")
        if self.death.point == "acknowledged":
            asyncio.get_running_loop().call_later(0.1, self._here, "acknowledged")


def main(settings: Settings, death: Death) -> None:
    """Archive until it is killed."""
    DyingIntake.death = death
    asyncio.run(_archive(settings))


async def _archive(settings: Settings) -> None:
    connection = await connect(settings, name="archivist")
    seal = Seal(settings.home, settings.env)
    intake = DyingIntake(connection, StreamNames(settings.env))
    await Archivist(intake, RecordMaker(Redaction(), seal.commitment_key), seal, anchor_s=0.2).run()
