"""What a run tells whoever follows it, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Self

from squadron.runtime.background import spawn
from squadron.runtime.errors import SquadronError
from squadron.runtime.running.context import Context

#: Outcome events kept in a timeline, so that a report stays far below NATS' `max_payload`; all are emitted.
MAX_TIMELINE = 1_000


class Emitter:
    """Sends what a turn emits in order, also from code that can't wait; text that piles up goes as one piece.

    A stream that breaks does not break the turn: the outcome is what counts.

    Args:
        wrap_text: what a piece of text is sent as.
        only: names of the events that are sent; all of them, by default.

    Attributes:
        timeline: the events up to now, whether they are sent or not.
        at_s: the time since the start of the run, in seconds, which each event is told with.
    """

    def __init__(
        self, ctx: Context, wrap_text: Callable[[str], Any] = str, only: Collection[str] | None = None
    ) -> None:
        self._ctx, self._wrap_text, self._only = ctx, wrap_text, only
        self.timeline: list[dict[str, Any]] = []
        self.at_s: Callable[[], float] = lambda: 0.0
        #: No more than one turn of the model says: texts that come while one is sent are joined.
        self._waiting: deque[tuple[bool, Any]] = deque()
        self._grown = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        self._writer = spawn(self._write(), "emitter")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._grown.set()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._writer.cancel()
        await asyncio.wait([self._writer])

    def send(self, event: dict[str, Any]) -> None:
        """Emit an event."""
        event = {"event": event["event"], "at_s": self.at_s(), **event}
        if event["event"] != "outcome" or len(self.timeline) < MAX_TIMELINE:
            self.timeline.append(event)
        if self._only is None or event["event"] in self._only:
            self._waiting.append((False, event))
            self._grown.set()

    def text(self, delta: str) -> None:
        """Emit a piece of text."""
        if self._waiting and self._waiting[-1][0]:
            delta = self._waiting.pop()[1] + delta
        self._waiting.append((True, delta))
        self._grown.set()

    async def _write(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._grown.clear()
                await self._grown.wait()
                continue
            is_text, chunk = self._waiting.popleft()
            try:
                await self._ctx.emit(self._wrap_text(chunk) if is_text else chunk)
            except SquadronError as error:
                self._ctx.log.warning("emit.lost", error=str(error))
