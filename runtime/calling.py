"""Calling what people write, be it `def` or `async def`: the one in a thread, the other in the loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it is made for the loop, or is around what is: nothing async may begin in a thread."""
    # A decorator may be of another kind than what it wraps, and any object may be called.
    each = (function, inspect.unwrap(function), type(function).__call__)
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in each)


async def call(function: Callable[..., Any], /, *args: Any, **arguments: Any) -> Any:
    """Call it where it belongs, and await what it returns if that can be awaited."""
    if is_async(function):
        returned = function(*args, **arguments)
    else:
        returned = await in_thread(function, *args, **arguments)
    return await returned if inspect.isawaitable(returned) else returned


def in_thread(function: Callable[..., Any], /, *args: Any, **arguments: Any) -> asyncio.Future[Any]:
    """Begin to call it in a thread of the loop's executor, with the caller's context variables."""
    # Not a task: one in which `sys.exit()` is called takes the loop along.
    run = partial(contextvars.copy_context().run, _run, function, args, arguments)
    return asyncio.get_running_loop().run_in_executor(None, run)


def _run(function: Callable[..., Any], args: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
    try:
        return function(*args, **arguments)
    except StopIteration as error:
        # No future can carry it (it would never be done); PEP 479 does the same for generators.
        raise RuntimeError("the handler raised StopIteration") from error
