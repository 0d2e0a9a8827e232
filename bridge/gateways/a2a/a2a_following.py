"""What becomes of a task, as A2A tells it: at once, when it ends or asks, or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from a2a.types import a2a_pb2 as pb

from squadron.bridge.gateways.a2a.a2a_tasks import artifact_update, chunk_update, status_update, task_of
from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask
from squadron.runtime.asking.answering import OpenQuestion
from squadron.runtime.asking.emitted import emitted_so_far
from squadron.runtime.background import spawn
from squadron.runtime.streams.writer import Chunk, Ended, Restarted
from squadron.runtime.wire.outcome import Outcome, Result

Update = pb.Task | pb.TaskStatusUpdateEvent | pb.TaskArtifactUpdateEvent


class Following:
    """Follows tasks; whoever stops following one does not stop it."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def ended(self, task: KeptTask, outcome: Outcome) -> KeptTask:
        """The task, now that this has come of it."""
        return replace(task, outcome=outcome, news_at=self._front.place.ports.clock.time())

    async def shown(
        self, task: KeptTask, question: OpenQuestion | None = None, *, with_history: bool = True
    ) -> pb.Task:
        """A task as it is now, with all that it has emitted."""
        chunks = await emitted_so_far(task.handle)
        return task_of(task, question, chunks, with_history=with_history)

    async def question(self, task: KeptTask) -> OpenQuestion | None:
        """What a task waits to be told."""
        if task.outcome is not None:
            return None
        return next(iter(await self._front.questions.about(task.id)), None)

    async def settled(self, task: KeptTask, answered: set[str]) -> tuple[KeptTask, OpenQuestion | None]:
        """Wait until a task ends, or asks something that is not among the answered."""
        if task.outcome is not None:
            return task, None
        ended = spawn(task.handle.outcome(), "a task's end")
        asks = spawn(self._front.questions.next_about(task.id, but=answered), "a task's question")
        try:
            await asyncio.wait({ended, asks}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return self.ended(task, ended.result()), None
            return task, asks.result()
        finally:
            ended.cancel()
            asks.cancel()
            self.leave(task)

    def leave(self, task: KeptTask) -> None:
        """Nobody waits for it here: who comes for it reads what is stored, so an open task costs nothing."""
        self._front.place.caller.leave(task.handle)

    async def updates(self, task: KeptTask, answered: set[str]) -> AsyncGenerator[Update, None]:
        """The task as it is now, then its chunks, and what it comes to or asks."""
        seen = await emitted_so_far(task.handle)
        yield task_of(task, None, seen, with_history=False)
        if task.outcome is not None:
            return
        # Its end is heard by who reads its events.
        self.leave(task)
        asks = spawn(self._front.questions.next_about(task.id, but=answered), "a task's question")
        place = _Place(seen)
        try:
            async with task.handle.events() as events:
                while True:
                    event = await self._next(events, asks)
                    if isinstance(event, OpenQuestion):
                        yield status_update(task, event)
                        return
                    if isinstance(event, Ended):
                        break
                    if isinstance(event, Restarted):
                        place.restart()
                    elif isinstance(event, Chunk) and place.is_new(event):
                        yield chunk_update(task, event, first=place.first)
        finally:
            asks.cancel()
        task = self.ended(task, event.outcome)
        if isinstance(event.outcome, Result):
            yield artifact_update(task, event.outcome)
        yield status_update(task)

    @staticmethod
    async def _next(events: Any, asks: asyncio.Task[OpenQuestion]) -> Any:
        """What comes first: a chunk, the end, or a question."""
        event = spawn(anext(events), "what comes of a task")
        try:
            await asyncio.wait({event, asks}, return_when=asyncio.FIRST_COMPLETED)
            return event.result() if event.done() else asks.result()
        finally:
            # It is there for the next who asks for one.
            event.cancel()


class _Place:
    """Where a client is in a stream that it was shown the beginning of."""

    def __init__(self, seen: list[Chunk]) -> None:
        self._epoch, self._seen = (seen[-1].epoch, len(seen)) if seen else (0, 0)
        self._count = 0
        #: Whether the chunk that is told takes the place of all before it.
        self.first = False

    def restart(self) -> None:
        """Another attempt begins."""
        self._count = 0

    def is_new(self, chunk: Chunk) -> bool:
        """Whether the client was not shown this chunk."""
        self._count += 1
        shown = self._seen if chunk.epoch == self._epoch else 0
        self.first = self._count == 1
        return chunk.epoch >= self._epoch and self._count > shown
