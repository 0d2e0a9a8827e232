"""Processes with supervisors as users have them, which die by SIGKILL at chosen points of chosen runs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from squadron.actors.goals.supervisor import Supervisor
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.config import Settings
from tests.contract.run_worker import Death, serve

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "tests.contract.conftest", "anthropic", "openai"])


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


@dataclass
class Supervisors:
    """So many processes with one each; a context, within which who dies is replaced. Once one ends otherwise, so
    does what is within: there is nobody whom it could wait for.

    Attributes:
        environ: what they find in their environment, the models' servers for example.
        pids: of those that live.
        killed: how many died.
    """

    settings: Settings
    fate: Fate
    environ: Mapping[str, str]
    count: int = 1
    pids: dict[int, int] = field(default_factory=dict)
    killed: int = 0

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._keepers = [self._group.create_task(self._keep(number)) for number in range(self.count)]
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await self._group.__aexit__(*exc_info)

    async def _keep(self, number: int) -> None:
        while True:
            name = f"supervisor-{number}-{self.killed}"
            args = (self.settings, name, self.environ, self.fate)
            process = PROCESSES.Process(target=main, args=args, daemon=True)
            process.start()
            assert process.pid is not None
            self.pids[number] = process.pid
            try:
                while process.is_alive():
                    await asyncio.sleep(0.02)
                assert process.exitcode == -signal.SIGKILL, f"{name} ended by itself"
                self.killed += 1
            finally:
                process.kill()
                process.join()
