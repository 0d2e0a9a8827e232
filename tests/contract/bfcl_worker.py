"""A process with a supervisor as users have it, which dies by SIGKILL at chosen points of chosen runs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squadron.actors.goals.supervisor import Supervisor
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.config import Settings
from tests.contract.run_worker import Death, serve


@dataclass(frozen=True)
class Fate:
    """Which runs kill who thinks them: each once, at the nth entry of its log, whoever writes that.

    Attributes:
        deaths: run → when.
        folder: where all processes keep how many entries a run has, and which death was died.
    """

    deaths: Mapping[str, Death]
    folder: Path

    def arm(self) -> None:
        append = JetStreamJournal.append

        async def deadly(journal: Any, key: str, *args: Any, **options: Any) -> int:
            run = key.rpartition(".")[2]
            death = self.deaths.get(run)
            if ".run." not in key or death is None:
                return await append(journal, key, *args, **options)
            count = self._count(run)
            if count == death.at and not death.after:
                self._die(run)
            seq = await append(journal, key, *args, **options)
            if count == death.at:
                self._die(run)
            return seq

        JetStreamJournal.append = deadly  # type: ignore[method-assign]

    def _count(self, run: str) -> int:
        with (self.folder / f"entries-{run}").open("ab") as file:
            file.write(b".")
        return (self.folder / f"entries-{run}").stat().st_size

    def _die(self, run: str) -> None:
        (self.folder / f"died-{run}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def died(self) -> set[str]:
        """The runs that killed somebody."""
        return {path.name.removeprefix("died-") for path in self.folder.glob("died-*")}


def main(settings: Settings, name: str, environ: Mapping[str, str], fate: Fate) -> None:
    """Serve a supervisor until the process is killed."""
    os.environ.update(environ)
    fate.arm()
    asyncio.run(serve(settings, [Supervisor()], name))
