"""An outcome without chunks before it, as soon as it is there: of most tasks nothing else is to be heard."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from squadron.runtime.wire.outcome import Outcome

if TYPE_CHECKING:
    from squadron.runtime.asking.handle import Handle


def wake(waiter: asyncio.Future[None]) -> None:
    """Let whoever awaits this go on."""
    if not waiter.done():
        waiter.set_result(None)


async def woken(handle: Handle, within_s: float = math.inf) -> None:
    """Wait until something was heard of a task, its deadline passed, or so many seconds."""
    loop = handle._caller.loop
    heard: asyncio.Future[None] = loop.create_future()
    handle._waiters.append(heard)
    # A plain timer: `asyncio.timeout` costs three times as much, for each task.
    late = loop.call_later(min(within_s, handle.deadline.remaining_s()), wake, heard)
    try:
        await heard
    finally:
        late.cancel()
        handle._waiters.remove(heard)


async def plainly(handle: Handle, within_s: float = math.inf) -> Outcome | None:
    """The outcome of a task that was submitted right here, if nothing was stored before it.

    None as soon as something was heard, or may have been missed: then `Handle.events` has all of it. To read a
    stream costs a subscription, a look into the store and their ends; this costs what an ask does. None as well
    if nothing is heard within so many seconds.
    """
    loop = handle._caller.loop
    until = loop.time() + within_s
    while handle._heard_as is None and not handle._emits:
        if handle.done or handle._closed or handle.deadline.passed or (left_s := until - loop.time()) <= 0:
            return None
        await woken(handle, left_s)
    heard = handle._heard_as
    # What was stored just before on this lite topic is known of what is told live.
    if handle._emits or heard is None or heard.previous != 0:
        return None
    return await handle.outcome()
