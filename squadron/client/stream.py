"""What flows back from a task: its chunks, and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from squadron.runtime.asking.handle import Handle
from squadron.runtime.steady import AHEAD, Steady
from squadron.runtime.streams.writer import Chunk, Ended, Nested, Restarted
from squadron.runtime.wire.outcome import Outcome

T = TypeVar("T")


class Stream:
    """What a task emits: its chunks as an async iterator, or `events()`; then its outcome."""

    def __init__(self, submit: Callable[[], Coroutine[Any, Any, Handle]]) -> None:
        self._submit = submit
        self._handle: asyncio.Task[Handle] | None = None

    async def _submitted(self) -> Handle:
        if self._handle is None:
            self._handle = asyncio.create_task(self._submit(), name="submit")
        return await asyncio.shield(self._handle)

    def __aiter__(self) -> Steady[Any]:
        return Steady(self._all(Handle.chunks), ahead=AHEAD)

    def events(self) -> Steady[Chunk | Restarted | Nested | Ended]:
        """The chunks with their numbers, what a retry starts anew, chunks of nested tasks, and the end.

        Raises:
            StreamGapError: a chunk is lost for good.
        """
        return Steady(self._all(Handle.events), ahead=AHEAD)

    async def _all(self, read: Callable[[Handle], Steady[T]]) -> AsyncGenerator[T, None]:
        async with aclosing(read(await self._submitted())) as items:
            async for item in items:
                yield item

    async def outcome(self) -> Outcome:
        """The task's one outcome; waits for it."""
        return await (await self._submitted()).outcome()
