"""An event loop whose time can be turned on instead of waited for; the ports in memory go by it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: How many plain handlers act at once, of all replicas together: each may wait for another. More than the slots of
#: any test; a thread begins when none is idle.
MOST_THREADS = 1_000


class TurnedLoop(asyncio.SelectorEventLoop):
    """While `turned`, it goes to its next timer as soon as nothing else is left to do.

    What waits for a thread waits in earnest. So hours pass in no time, and what is slow on a busy machine is
    never late: whatever can run runs before the next timer. Of what comes from outside, by a socket or another
    process, it knows nothing: who waits for that may find its time over.
    """

    def __init__(self) -> None:
        self.turned = False
        self.ahead_s = 0.0
        self.threads = 0
        super().__init__(_TurningSelector(self))
        self.set_default_executor(ThreadPoolExecutor(MOST_THREADS, "handler"))

    def time(self) -> float:
        return super().time() + self.ahead_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._left)
        return future

    def _left(self, _: object) -> None:
        self.threads -= 1


class _TurningSelector(selectors.DefaultSelector):
    def __init__(self, loop: TurnedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if not timeout or timeout < 0 or not self._loop.turned or self._loop.threads:
            return super().select(timeout)
        events = super().select(0)
        if not events:
            self._loop.ahead_s += timeout
        return events
