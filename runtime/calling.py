"""Calling what people write, be it `def` or `async def`: the one in a thread, the other in the loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of

T = TypeVar("T")

_log = get_logger("squadron.calling")

#: How long what acts in a thread may go on after it was told to stop, in seconds, before it is left alone.
THREAD_GRACE_S = 1.0


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it is made for the loop, or is around what is: nothing async may begin in a thread."""
    # A decorator may be of another kind than what it wraps, and any object may be called.
    each = (function, inspect.unwrap(function), type(function).__call__)
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in each)


class _TooLateError(RuntimeError):
    """Said to nobody: whoever began it is gone."""


class Threads:
    """What of one attempt acts in threads, which nobody can stop: the attempt is over when they are."""

    def __init__(self) -> None:
        self._acting: set[asyncio.Future[Any]] = set()
        self._closed = False

    def begin(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Begin a call in a thread of the loop's pool, with the caller's context variables.

        Shield what this returns: a cancel would stop nothing.
        """
        # Not a task: one in which `sys.exit()` is called takes the loop along.
        run = partial(contextvars.copy_context().run, self._call, call)
        thread = asyncio.get_running_loop().run_in_executor(None, run)
        self._acting.add(thread)
        thread.add_done_callback(self._ended)
        return thread

    def _ended(self, thread: asyncio.Future[Any]) -> None:
        self._acting.discard(thread)
        if not self._closed or thread.cancelled() or (error := thread.exception()) is None:
            return
        # Nobody waits any more, and asyncio would tell of it at some time, as of a fault of its own.
        if not isinstance(error, _TooLateError):
            _log.warning("thread.failed_late", error=summary_of(error))

    def _call(self, call: Callable[[], T]) -> T:
        if self._closed:
            raise _TooLateError("its attempt is over")
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


async def call(threads: Threads, function: Callable[..., Any], /, *args: Any, **arguments: Any) -> Any:
    """Call it where it belongs, and await what it returns if that can be awaited."""
    if is_async(function):
        returned = function(*args, **arguments)
    else:
        returned = await asyncio.shield(threads.begin(partial(function, *args, **arguments)))
    return await returned if inspect.isawaitable(returned) else returned
