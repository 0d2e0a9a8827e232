"""A wait on a loop in another thread, and what a signal that comes at any moment of it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from squadron.client.portal import Portal

#: How often a wait is interrupted, each time a microsecond later: handing in takes some 100 of them.
TRIES = 600


@pytest.fixture
def portal() -> Iterator[Portal]:
    made = Portal()
    made.start()
    yield made
    made.close()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGUSR1 is what Ctrl-C is, and leaves the alarm to the test's own time-out."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def _interrupt(thread: int, after_s: float, go: threading.Event, over: threading.Event) -> None:
    go.wait()
    at = time.perf_counter() + after_s
    while time.perf_counter() < at:
        pass
    signal.pthread_kill(thread, signal.SIGUSR1)
    # What is raised while garbage is collected Python drops: people press again.
    # So late that on a machine that stalls none of them comes behind the wait.
    while not over.wait(10.0):
        signal.pthread_kill(thread, signal.SIGUSR1)


def _wait_interrupted(portal: Portal, after_s: float) -> None:
    go, over = threading.Event(), threading.Event()
    sender = threading.Thread(target=_interrupt, args=(threading.get_ident(), after_s, go, over))
    sender.start()
    try:
        go.set()
        portal.wait(asyncio.sleep(3600))
    except KeyboardInterrupt:
        over.set()
    sender.join()


@pytest.mark.usefixtures("interrupts")
def test_a_wait_that_is_interrupted_at_any_moment_leaves_nothing_behind(portal: Portal) -> None:
    told: list[dict[str, Any]] = []
    portal._loop.set_exception_handler(lambda _, context: told.append(context))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for number in range(TRIES):
            _wait_interrupted(portal, number / 1e6)
        gc.collect()

        async def left() -> int:
            while len(asyncio.all_tasks()) > 2:
                await asyncio.sleep(0.01)
            return len(asyncio.all_tasks())

        # What serves the portal, and this.
        assert portal.wait(left()) == 2
    assert told == []
    assert [each for each in warned if "never awaited" in str(each.message)] == []
