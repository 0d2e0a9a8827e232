"""What flows back: the chunks of a task, and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Self, TypeVar

from squadron.runtime.asking.handle import Handle
from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.steady import AHEAD, Steady
from squadron.runtime.streams.writer import Chunk, Ended, Nested, Restarted
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Outcome

T = TypeVar("T")


class Stream:
    """What a task emits: its chunks as an async iterator, or `events()`; then its outcome."""

    def __init__(
        self, submit: Callable[[], Coroutine[Any, Any, Handle]], outcome: Callable[[Handle], Awaitable[Outcome]]
    ) -> None:
        self._submit, self._outcome = submit, outcome
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
        return await self._outcome(await self._submitted())


class Events:
    """Events as they come, as an async iterator; close it to stop listening."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[AgentMessage | None] = asyncio.Queue()
        self._subscription: Subscription | None = None

    def hear(self, note: Note) -> None:
        """Take in one note of the bus; what is not a message is left out."""
        try:
            self._queue.put_nowait(AgentMessage.decode(note.data))
        except InvalidMessageError:
            return

    def attach(self, subscription: Subscription) -> Self:
        """Remember what to close."""
        self._subscription = subscription
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AgentMessage:
        if (message := await self._get()) is None:
            raise StopAsyncIteration
        return message

    async def _get(self) -> AgentMessage | None:
        message = await self._queue.get()
        if message is None:
            # The end is there for whoever asks again, and for others who wait.
            self._queue.put_nowait(None)
        return message

    async def next(self, *, within_s: float) -> AgentMessage:
        """The next event.

        Raises:
            TimeoutError: none came in time.
        """
        async with asyncio.timeout(within_s):
            message = await self._get()
        if message is None:
            raise TimeoutError("the subscription was closed")
        return message

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            # Ends an iteration that waits for more.
            self._queue.put_nowait(None)
            await subscription.aclose()
