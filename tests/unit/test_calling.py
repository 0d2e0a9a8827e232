"""What people write is called where it belongs, and always ends."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from squadron.runtime.calling import Threads, call


def _where(*, returned: str = "") -> tuple[str, bool]:
    return returned, threading.current_thread() is threading.main_thread()


async def _async_where(*, returned: str = "") -> tuple[str, bool]:
    return _where(returned=returned)


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(**arguments: Any) -> Any:
        assert threading.current_thread() is threading.main_thread(), "what is async inside begins in the loop"
        return function(**arguments)

    return inner


class _Callable:
    async def __call__(self, **arguments: Any) -> tuple[str, bool]:
        return _where(**arguments)


@pytest.mark.parametrize(
    "function", [_async_where, _decorated(_async_where), _Callable(), functools.partial(_async_where)]
)
async def test_what_is_async_runs_in_the_loop(function: Callable[..., Any]) -> None:
    assert await call(Threads(), function, returned="x") == ("x", True)


@pytest.mark.parametrize("function", [_where, functools.partial(_where)])
async def test_what_is_plain_runs_in_a_thread(function: Callable[..., Any]) -> None:
    assert await call(Threads(), function, returned="x") == ("x", False)


async def test_what_a_plain_function_returns_is_awaited_if_it_can_be() -> None:
    assert await call(Threads(), lambda: _async_where(returned="x")) == ("x", True)


async def test_a_plain_function_that_raises_stop_iteration_ends_too() -> None:
    """No future can carry it: whoever awaited it would wait for ever."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(call(Threads(), lambda: next(iter(()))), 10)


def test_what_fails_in_a_thread_after_its_attempt_is_told_once_and_not_by_asyncio(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    free, begun = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        free.wait(10)
        raise ValueError("too late")

    async def leave_it() -> bool:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        threads = Threads()
        # The second waits for a thread of the pool, and never begins.
        waited = [asyncio.create_task(call(threads, function)) for function in (fail, fail)]
        while not begun.is_set():
            await asyncio.sleep(0.001)
        for one in waited:
            one.cancel()
        await asyncio.wait(waited)
        threads.close()
        free.set()
        return await threads.ended(10)

    assert asyncio.run(leave_it())
    gc.collect()
    assert capsys.readouterr().out.count("too late") == 1
    assert not caplog.records
