"""The runs of an environment for plain scripts: the same calls without `await`."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squadron.actors.runs.lanes import Costs
from squadron.actors.runs.shelf import RunInfo, RunView
from squadron.actors.runs.timeline import Timeline
from squadron.replay.past_runs import PastRun, RunArchive

if TYPE_CHECKING:
    from squadron.replay.recording import Recording


class SyncRuns:
    """See `RunArchive`; every call blocks until it is done."""

    def __init__(self, runs: RunArchive, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._runs, self._wait = runs, wait

    def list(self, **options: Any) -> tuple[RunInfo, ...]:
        """See `Runs.list`."""
        found: tuple[RunInfo, ...] = self._wait(self._runs.list(**options))
        return found

    def find(self, id: str) -> RunInfo:
        """See `Runs.find`."""
        info: RunInfo = self._wait(self._runs.find(id))
        return info

    def trace(self, id: str) -> tuple[Timeline, Costs | None]:
        """See `Runs.trace`."""
        traced: tuple[Timeline, Costs | None] = self._wait(self._runs.trace(id))
        return traced

    def show(self, id: str) -> RunView:
        """See `Runs.show`."""
        view: RunView = self._wait(self._runs.show(id))
        return view

    def cancel(self, id: str) -> RunInfo:
        """See `Runs.cancel`."""
        info: RunInfo = self._wait(self._runs.cancel(id))
        return info

    def export(self, id: str) -> Recording:
        """See `RunArchive.export`."""
        recording: Recording = self._wait(self._runs.export(id))
        return recording

    def get(self, id: str | os.PathLike[str]) -> SyncPastRun:
        """See `RunArchive.get`."""
        return SyncPastRun(self._wait(self._runs.get(id)), self._wait)


class SyncPastRun:
    """See `PastRun`; a replay blocks until it is done."""

    def __init__(self, run: PastRun, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._run, self._wait = run, wait
        self.recording, self.replays = run.recording, run.replays

    @property
    def equal(self) -> bool:
        """See `PastRun.equal`."""
        return self._run.equal

    def replay(self, **changes: Any) -> SyncPastRun:
        """See `PastRun.replay`."""
        return SyncPastRun(self._wait(self._run.replay(**changes)), self._wait)

    def diff(self, other: SyncPastRun) -> str:
        """See `PastRun.diff`."""
        return self._run.diff(other._run)

    def save(self, path: str | os.PathLike[str]) -> None:
        """See `PastRun.save`."""
        self.recording.save(Path(path))

    def __str__(self) -> str:
        return str(self._run)
