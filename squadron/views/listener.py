"""Hearing everything that passes on the bus, and never at the bus's expense."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Self

from squadron.runtime.closing import AsyncClosing
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.registry.registry import Registry
from squadron.runtime.store.port_set import Ports
from squadron.views.passing import Passing, Reader

#: What waits for a slow reader at most, in messages and in bytes: beyond that it is counted and dropped. A server
#: cuts off who reads its socket too slowly, and with it all else that the process does.
MOST_WAITING, MOST_BYTES = 10_000, 32 * 1024 * 1024


@dataclass(slots=True)
class Missed:
    """Here messages passed that nobody will be shown.

    Attributes:
        count: how many; 0 if nobody can tell, as after a lost connection.
    """

    count: int = 0


class Listener(AsyncClosing):
    """All messages of an environment as they pass, one by one: `async for it in listener`.

    It sends nothing. What comes faster than it is read is dropped and counted, so that the connection is always
    read; in its place there is a `Missed`.

    Args:
        most, most_bytes: how much may wait.
    """

    def __init__(self, reader: Reader, *, most: int = MOST_WAITING, most_bytes: int = MOST_BYTES) -> None:
        self._reader, self._most, self._most_bytes = reader, most, most_bytes
        self._waiting, self._bytes = deque[Note | Missed](), 0
        self._changed, self._closed = asyncio.Event(), False
        self._subscription: Subscription | None = None

    @classmethod
    async def open(cls, ports: Ports, registry: Registry, *, contents: bool = False) -> Self:
        """Listen; active when this returns.

        Args:
            contents: whether to read what messages hold, too.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        listener = cls(Reader(registry, contents=contents))
        listener._subscription = await ports.bus.subscribe(ports.subjects.all, listener.hear)
        # A connection keeps its sinks for good.
        known = weakref.ref(listener)

        async def lost() -> None:
            if (it := known()) is not None:
                it.miss(0)

        ports.bus.on_reconnect(lost)
        return listener

    def hear(self, note: Note) -> None:
        """Take in one message."""
        if len(self._waiting) >= self._most or self._bytes + len(note.data) > self._most_bytes:
            self.miss(1)
            return
        self._waiting.append(note)
        self._bytes += len(note.data)
        self._changed.set()

    def miss(self, count: int) -> None:
        """Messages passed that were not taken in; 0 if nobody knows how many."""
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, Missed) and count and last.count:
            last.count += count
        elif not (isinstance(last, Missed) and last.count == count):
            self._waiting.append(Missed(count))
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Passing | Missed:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._next()

    def ready(self, most: int) -> list[Passing | Missed]:
        """What is there already, at most so many."""
        return [self._next() for _ in range(min(most, len(self._waiting)))]

    def _next(self) -> Passing | Missed:
        item = self._waiting.popleft()
        if isinstance(item, Missed):
            return item
        self._bytes -= len(item.data)
        return self._reader.read(item)

    async def aclose(self) -> None:
        """Stop listening; what waits can still be read. May be called twice."""
        self._closed = True
        self._changed.set()
        if self._subscription is not None:
            await self._subscription.aclose()
