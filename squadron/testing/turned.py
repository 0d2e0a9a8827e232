"""An event loop whose time can be turned on instead of waited for."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class TurnedLoop(asyncio.SelectorEventLoop):
    """While `turned`, it goes to its next timer as soon as nothing else is left to do.

    What waits for a thread waits in earnest. So hours pass in no time, and what is slow on a busy machine is
    never late: whatever can run runs before the next timer.
    """

    def __init__(self) -> None:
        self.turned = False
        self.ahead_s = 0.0
        self.threads = 0
        super().__init__(_TurningSelector(self))

    def time(self) -> float:
        return super().time() + self.ahead_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._left)
        return future

    def _left(self, _: object) -> None:
        self.threads -= 1


def now_s() -> float:
    """What the clock of the running loop shows: it waits, or is turned."""
    return asyncio.get_running_loop().time()


@contextmanager
def turned_time() -> Iterator[None]:
    """Nobody waits in here: time goes to the next timer when nothing else is left to do."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TurnedLoop)
    loop.turned = True
    try:
        yield
    finally:
        loop.turned = False


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
