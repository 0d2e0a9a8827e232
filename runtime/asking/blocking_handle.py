"""A task on its way, as code without an event loop holds it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from squadron.runtime.asking.handle import Handle
from squadron.runtime.wire.outcome import Outcome


class BlockingHandle:
    """See `Handle`; every call blocks until it is done."""

    def __init__(self, handle: Handle, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._handle, self._wait = handle, wait
        self.task_id, self.topic = handle.task_id, handle.topic

    def __repr__(self) -> str:
        return repr(self._handle)

    @property
    def done(self) -> bool:
        """See `Handle.done`."""
        return self._handle.done

    @property
    def ticket(self) -> str:
        """See `Handle.ticket`."""
        return self._handle.ticket

    def outcome(self) -> Outcome:
        """See `Handle.outcome`."""
        outcome: Outcome = self._wait(self._handle.outcome())
        return outcome

    def cancel(self) -> Outcome:
        """See `Handle.cancel`."""
        outcome: Outcome = self._wait(self._handle.cancel())
        return outcome
