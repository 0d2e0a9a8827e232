"""The processes of an environment: the client, and what runs on Ray."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from squadron import Settings, Squad
from squadron.bridge.serve import local
from tests.chaos.client import Plan
from tests.chaos.ledger import Line, read

ROOT = Path(__file__).parents[2]


class ClientProcess:
    """Lives of a client on one folder: the ledgers of all of them are one story."""

    def __init__(self, settings: Settings, folder: Path, plan: Plan) -> None:
        self._settings, self._folder = settings, folder
        plan.store(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin a life; the one before must have been killed.

        Raises:
            AssertionError: it ended by itself.
        """
        if self._process is not None:
            assert self._process.wait(10) == -signal.SIGKILL, self.output()
        with (self._folder / "client.log").open("a") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.client", str(self._folder)],
                cwd=ROOT,
                env=os.environ | self._settings.environ(),
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def until_told(self, outcomes: int, *, within_s: float = 120.0) -> None:
        """Wait until it has heard so many outcomes."""
        async with asyncio.timeout(within_s):
            while len(self.outcomes()) < outcomes:
                assert self._process is not None
                assert self._process.poll() is None, f"the client ended:\n{self.output()}"
                await asyncio.sleep(0.1)

    def has_begun(self) -> bool:
        """Whether this life has taken up its tasks."""
        return any(line["what"] == "began" and line["pid"] == self.pid for line in self._lines())

    def _lines(self) -> list[Line]:
        return read(self._folder / "client")

    def outcomes(self) -> list[Line]:
        """What it was told so far."""
        return [line for line in self._lines() if line["what"] == "outcome"]

    def output(self) -> str:
        """What it printed."""
        return (self._folder / "client.log").read_text()[-4000:]

    async def finish(self, *, within_s: float) -> None:
        """Tell it to send no more, and wait until it has heard the outcome of all it sent.

        Raises:
            AssertionError: it hangs, or failed.
        """
        (self._folder / "stop").touch()
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, within_s)
        assert self._process.poll() is not None, f"the client still waits after {within_s:g} s"
        assert self._process.returncode == 0, self.output()

    def kill(self) -> None:
        """End it, whatever it does; fine if it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


def ray_processes(settings: Settings, title: str) -> Iterator[psutil.Process]:
    """The living processes of this home's Ray whose title begins so."""
    found = local.find(settings.home)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            if words and words[0].startswith(title) and found and os.getsid(process.pid) == found.session_id:
                yield process


async def replica_pids(squad: Squad, agent: str = "worker") -> list[int]:
    """The processes of the agent's replicas that are present, and alive."""
    for each in (await squad.status())["agents"]:
        if each["agent"] == agent:
            return [replica["pid"] for replica in each["replicas"] if is_alive(replica["pid"])]
    return []


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
