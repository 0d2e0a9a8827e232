"""Dead letters for plain scripts: the same calls, which block until they are done."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from squadron.runtime.store.dead_letters import DeadLetter, DeadLetters, Redriven


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
