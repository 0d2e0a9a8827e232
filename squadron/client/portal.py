"""An event loop in a thread of its own, for code that blocks: every wait for it has an end."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from squadron.runtime.errors import BlockingCallError, SquadClosedError

T = TypeVar("T")


class Portal:
    """Runs coroutines for other threads, until it is closed; at the end of the interpreter it is.

    Not anyio's `BlockingPortal`: a wait that Ctrl-C interrupts must cancel what was waited for, and the end of one
    must wait until what was cancelled has cleaned up.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._ending = asyncio.Event()
        #: Set when the thread has done all. A `join` that Ctrl-C interrupts takes it for ended (CPython 3.11).
        self._over = threading.Event()
        self._over.set()
        self._thread = threading.Thread(target=self._run, name="squadron", daemon=True)
        self._process = os.getpid()
        #: Guards `_closed`: what is handed in before it is set is run, or cancelled.
        self._handing_in, self._closed = threading.Lock(), False
        self._at_end: Callable[[], Awaitable[None]] | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start the thread.

        Raises:
            BlockingCallError: an event loop runs in this thread.
        """
        self._check_thread()
        atexit.register(self.close)
        self._loop = asyncio.new_event_loop()
        self._over.clear()
        try:
            self._thread.start()
        except RuntimeError:
            # There can be no more threads.
            self._over.set()
            raise

    def at_end(self, leave: Callable[[], Awaitable[None]]) -> None:
        """Await `leave` when this is closed, before what still runs is cancelled; `close` raises what it does."""
        self._at_end = leave

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._over.set()

    async def _serve(self) -> None:
        await self._ending.wait()
        if self._at_end is not None:
            try:
                await self._at_end()
            except BaseException as error:
                self._failure = error

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, and wait for its result.

        Raises:
            SquadClosedError: this is closed, or was meanwhile, or belongs to the process that forked this one.
            BlockingCallError: an event loop runs in this thread.
        """
        future = self.begin(work)
        try:
            return self.result(future)
        except BaseException:
            # Whatever a signal's handler raises ends it; it is nothing to what has ended.
            future.cancel()
            raise

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine there; `result` waits for it.

        Raises:
            SquadClosedError, BlockingCallError: as `wait`.
        """
        try:
            self._check_thread()
            return self._hand_in(work)
        except (SquadClosedError, BlockingCallError):
            work.close()
            raise
        except BaseException:
            # A signal's handler raised: before it was handed in, or after.
            try:
                self._loop.call_soon_threadsafe(_give_up, work)
            except RuntimeError:
                work.close()
            raise

    def check(self) -> None:
        """Say if nobody can wait here.

        Raises:
            SquadClosedError: this belongs to the process that forked this one.
            BlockingCallError: an event loop runs in this thread.
        """
        self._check_thread()
        self._check_process()

    def result(self, future: concurrent.futures.Future[T]) -> T:
        """Wait for what was begun; it goes on if a signal's handler raises meanwhile.

        Raises:
            SquadClosedError: this was closed meanwhile.
        """
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise SquadClosedError("the squad was closed meanwhile", hint="open another") from None

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a clean-up there, and wait for it where that can be done; after the end there is nothing to clean.

        An iterator that was dropped is closed by whichever thread collects garbage, be it that of the loop.
        """
        try:
            if asyncio._get_running_loop() is None:
                self.wait(work)
            else:
                self._hand_in(work)
        except SquadClosedError:
            work.close()

    def _check_thread(self) -> None:
        # Not of the process that forked this one: its loop runs there.
        if asyncio._get_running_loop() is not None and not _is_cell():
            raise BlockingCallError(
                "this call would block the event loop that runs here",
                hint="use `async with Squad.up() as squad` and await the calls, or asyncio.to_thread",
            )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise SquadClosedError(
                "the squad belongs to the process that forked this one",
                hint="open one here: `with Squad.connect() as squad`",
            )

    def _hand_in(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        self._check_process()
        with self._handing_in:
            if self._closed:
                raise SquadClosedError("the squad is closed", hint="open another: Squad.up() or Squad.connect()")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End: leave, cancel what still runs, and wait until it has cleaned up. May be called twice.

        A second Ctrl-C meanwhile does not cut it short. In a process that was forked it does nothing.

        Raises:
            BlockingCallError: it would wait for the thread that it is called in.
        """
        if os.getpid() != self._process:
            return
        if threading.current_thread() is self._thread:
            self._check_thread()
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                self._end()
                break
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure

    def _end(self) -> None:
        with self._handing_in:
            self._closed = True
        if not self._over.is_set():
            # It may end by itself in between.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ending.set)
            self._over.wait()
        atexit.unregister(self.close)


def _is_cell() -> bool:
    """Whether this thread runs a notebook's cell: its kernel's loop waits for each plain cell as it is."""
    if threading.current_thread() is not threading.main_thread():
        return False
    shells = sys.modules.get("IPython.core.interactiveshell")
    shell = shells and shells.InteractiveShell
    return bool(shell and shell.initialized() and hasattr(shell.instance(), "kernel"))


def _give_up(work: Coroutine[Any, Any, Any]) -> None:
    """End a coroutine that may have become a task of this loop: closed by another thread it would break that."""
    for task in asyncio.all_tasks():
        if task.get_coro() is work:
            task.cancel()
            return
    work.close()
