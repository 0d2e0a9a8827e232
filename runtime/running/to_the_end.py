"""Running a handler until nothing of it acts any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from squadron.runtime.calling import THREAD_GRACE_S
from squadron.runtime.running.context import TurnContext


async def run_to_the_end(running: Awaitable[Any], context: TurnContext, turn: asyncio.Task[Any]) -> Any:
    """Await a handler; what fails is over when nothing of it acts in a thread any more: two attempts never act."""
    try:
        return await running
    except GeneratorExit:
        raise
    except BaseException as error:
        # What counts cancellations may count one of a task group that is over (CPython 3.11).
        if context.cancelled or (isinstance(error, asyncio.CancelledError) and turn.cancelling()):
            context.stop()
            await context.threads.ended(THREAD_GRACE_S)
        else:
            # Until its own time is up.
            await context.threads.ended()
        raise
