"""Work beside everything else, that nobody awaits: none of it ends without somebody hearing of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any, Self, TypeVar

from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of, traceback_of

T = TypeVar("T")

#: How long a task that was cancelled may take to end before it is cancelled again, in seconds; and one that runs
#: code of others, which may have much to put back.
CANCEL_AGAIN_S, CANCEL_OTHERS_AGAIN_S = 5.0, 60.0

_log = get_logger("squadron.background")


class Health:
    """Whether the lasting work of one process goes on; `fault` says which broke, and is empty if none did."""

    def __init__(self) -> None:
        self.fault = ""

    @classmethod
    def begin(cls) -> Self:
        """Keep account of what is spawned from here on, by the running task and by all that come of it."""
        made = cls()
        _health.set(made)
        return made


#: Tasks inherit it, so that nobody has to hand it on.
_health: ContextVar[Health | None] = ContextVar("health", default=None)


def spawn(
    work: Coroutine[Any, Any, T],
    name: str,
    *,
    lasting: bool = False,
    loop: asyncio.AbstractEventLoop | None = None,
) -> asyncio.Task[T]:
    """Run `work` in the background, and log it if it raises; whoever spawns it keeps the task, and may cancel it.

    Args:
        lasting: its owner is of no use without it, so that if it breaks the whole process has a fault. What works
            on a single message has none: the next replica would get the same message.
        loop: the running one, if it is at hand: asking for it costs a system call each time.
    """
    task = (loop or asyncio.get_running_loop()).create_task(work, name=name)
    task.add_done_callback(partial(_ended, _health.get() if lasting else None))
    return task


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; who is cancelled meanwhile goes on when it is over, however it ended.

    For what another place may carry out although nobody waits for it any more, before it is taken back there.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Whoever cancels may do so again.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            # Seen, though nobody is told.
            task.exception()
        raise


async def cancel_all(tasks: Iterable[asyncio.Task[Any]], *, again_s: float | None = None) -> None:
    """Cancel tasks, and wait until each has ended, however; again after `again_s` seconds, 5 by default.

    One cancel may get lost: `wait_for` of CPython 3.11 forgets it if what it waits for comes at the same moment.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        ended, running = await asyncio.wait(running, timeout=again_s or CANCEL_AGAIN_S)
        for task in ended:
            if not task.cancelled():
                # Seen, though nobody is told.
                task.exception()


def _ended(health: Health | None, task: asyncio.Task[Any]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    _log.error("background.broke", task=task.get_name(), traceback=traceback_of(error))
    if health is not None:
        health.fault = health.fault or f"{task.get_name()} broke: {summary_of(error)}"
