"""What of one attempt acts in threads, which nobody can stop: the attempt is over when they are."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

#: How long what acts in a thread may go on after it was told to stop, in seconds, before it is left alone.
THREAD_GRACE_S = 1.0


class Threads:
    """The threads of one attempt, or of nothing but one call."""

    def __init__(self) -> None:
        self._acting: set[asyncio.Future[Any]] = set()
        self._closed = False

    def begin(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Begin a call in a thread of the loop's pool; shield what this returns: a cancel would stop nothing."""
        # Not a task: one in which `sys.exit()` is called takes the loop along.
        run = partial(contextvars.copy_context().run, self._call, call)
        thread = asyncio.get_running_loop().run_in_executor(None, run)
        self._acting.add(thread)
        thread.add_done_callback(self._acting.discard)
        return thread

    def _call(self, call: Callable[[], T]) -> T:
        if self._closed:
            raise RuntimeError("its attempt is over")
        try:
            return call()
        except StopIteration as error:
            # No future can carry it (it would never be done); PEP 479 does the same for generators.
            raise RuntimeError("it raised StopIteration in a thread") from error

    def close(self) -> None:
        """Nothing begins any more."""
        self._closed = True

    async def ended(self, within_s: float | None = None) -> bool:
        """Close, and wait until nothing acts any more, at most `within_s` seconds; whether that is so."""
        self.close()
        if self._acting:
            await asyncio.wait(self._acting, timeout=within_s)
        return not self._acting
