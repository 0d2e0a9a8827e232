"""Runs and dead letters for plain scripts: the same calls, which block until they are done."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from squadron.actors.runs.lanes import Costs
from squadron.actors.runs.shelf import RunInfo, Runs, RunView
from squadron.actors.runs.timeline import Timeline
from squadron.runtime.store.dead_letters import DeadLetter, DeadLetters, Redriven


class SyncRuns:
    """See `Runs`; every call blocks until it is done."""

    def __init__(self, runs: Runs, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._runs, self._wait = runs, wait

    def list(self, **options: Any) -> tuple[RunInfo, ...]:
        """See `Runs.list`."""
        found: tuple[RunInfo, ...] = self._wait(self._runs.list(**options))
        return found

    def find(self, id: str) -> RunInfo:
        """See `Runs.find`."""
        info: RunInfo = self._wait(self._runs.find(id))
        return info

    def show(self, id: str) -> RunView:
        """See `Runs.show`."""
        view: RunView = self._wait(self._runs.show(id))
        return view

    def trace(self, id: str) -> tuple[Timeline, Costs | None]:
        """See `Runs.trace`."""
        traced: tuple[Timeline, Costs | None] = self._wait(self._runs.trace(id))
        return traced

    def cancel(self, id: str) -> RunInfo:
        """See `Runs.cancel`."""
        info: RunInfo = self._wait(self._runs.cancel(id))
        return info


class SyncDeadLetters:
    """See `DeadLetters`; every call blocks until it is done."""

    def __init__(self, letters: DeadLetters, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._letters, self._wait = letters, wait

    def list(self, **options: Any) -> tuple[DeadLetter, ...]:
        """See `DeadLetters.list`."""
        found: tuple[DeadLetter, ...] = self._wait(self._letters.list(**options))
        return found

    def show(self, id: str, **options: Any) -> DeadLetter:
        """See `DeadLetters.show`."""
        letter: DeadLetter = self._wait(self._letters.show(id, **options))
        return letter

    def redrive(self, *ids: str, **options: Any) -> Redriven:
        """See `DeadLetters.redrive`."""
        redriven: Redriven = self._wait(self._letters.redrive(*ids, **options))
        return redriven

    def drop(self, *ids: str, **options: Any) -> int:
        """See `DeadLetters.drop`."""
        dropped: int = self._wait(self._letters.drop(*ids, **options))
        return dropped
