"""A loop whose time can be turned on instead of waited for, in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from squadron.bridge.memory.turned_loop import TurnedLoop as TurnedLoop
from squadron.testing.misuse import NoTurnedLoopError

T = TypeVar("T")


def now_s() -> float:
    """What the clock of the running loop shows: it waits, or is turned."""
    return asyncio.get_running_loop().time()


@contextmanager
def turned_time() -> Iterator[None]:
    """Nobody waits in here: time goes to the next timer when nothing else is left to do.

    Raises:
        NoTurnedLoopError: the running loop is another.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, TurnedLoop):
        raise NoTurnedLoopError(
            f"time can't be turned on a {type(loop).__name__}",
            hint="`from squadron.testing import pytest_asyncio_loop_factories` in conftest.py, or "
            "`squadron.testing.run(main())`, or MemorySquad(turned=False)",
        )
    before, loop.turned = loop.turned, True
    try:
        yield
    finally:
        loop.turned = before


def pytest_asyncio_loop_factories() -> dict[str, type[TurnedLoop]]:
    """A hook of pytest-asyncio: imported into a `conftest.py`, it has the tests there run on a `TurnedLoop`."""
    return {"turned": TurnedLoop}


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a `TurnedLoop`, for scripts and for tests without a plug-in."""
    with asyncio.Runner(loop_factory=TurnedLoop) as runner:
        return runner.run(main)
