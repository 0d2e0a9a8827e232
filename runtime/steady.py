"""Iterating with a time limit: who gives up waiting for an item loses nothing, and may ask again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import TypeVar

from squadron.runtime.background import cancel_all
from squadron.runtime.closing import AsyncClosing

T = TypeVar("T")

#: What a reader that takes nothing away by reading may fetch ahead, and what of it that is there at once: a
#: task for each item costs 10 µs, and who gets fewer than come in a turn of the loop falls behind.
AHEAD, AT_ONCE = 16, 512


class Steady(AsyncClosing, AsyncIterator[T]):
    """The items of an iterator that a cancelled `anext` would end, like every async generator.

    A task of its own gets them. So whoever waits may be cancelled, by a time-out, say: the item that comes then is
    there for the next call. Several may wait; each item goes to one of them. It is closed when nobody holds it any
    more.

    Args:
        ahead: how many items are got before somebody asks for them. With none, that an item is asked for says that
            the one before it is done.
    """

    def __init__(self, items: AsyncIterator[T], *, ahead: int = 0) -> None:
        self._items, self._ahead = items, max(1, ahead)
        self._got, self._changed = deque[T](), asyncio.Event()
        self._getting: asyncio.Task[None] | None = None
        self._closed = False

    async def __anext__(self) -> T:
        while not self._got:
            if self._closed:
                raise StopAsyncIteration
            if self._getting is None:
                # Without a reference to this, so that it ends when this is dropped.
                getting = _get(self._items, self._got, self._changed, self._ahead)
                self._getting = asyncio.create_task(getting, name="next items")
                self._getting.add_done_callback(_seen)
            elif self._getting.done():
                ended, self._getting = self._getting, None
                ended.result()
                continue
            self._changed.clear()
            await self._changed.wait()
        return self._got.popleft()

    async def aclose(self) -> None:
        """Stop; who waits is told that there is nothing more. May be called twice."""
        self._closed = True
        self._got.clear()
        self._changed.set()
        getting, self._getting = self._getting, None
        if getting is not None:
            await cancel_all([getting])
        if (close := getattr(self._items, "aclose", None)) is not None:
            await close()

    def __del__(self) -> None:
        getting = getattr(self, "_getting", None)
        if getting is not None and not getting.done():
            # Garbage is collected by any thread, and after the loop has ended.
            with contextlib.suppress(RuntimeError):
                getting.get_loop().call_soon_threadsafe(getting.cancel)


async def _get(items: AsyncIterator[T], got: deque[T], changed: asyncio.Event, ahead: int) -> None:
    loop, has_waited = asyncio.get_running_loop(), [True]
    try:
        while True:
            if has_waited:
                has_waited.clear()
                loop.call_soon(has_waited.append, True)
            got.append(await anext(items))
            changed.set()
            if len(got) >= (ahead if has_waited or ahead == 1 else AT_ONCE):
                return
    finally:
        changed.set()


def _seen(getting: asyncio.Task[None]) -> None:
    # Whoever gave up waiting does not miss how it ended.
    if not getting.cancelled():
        getting.exception()
