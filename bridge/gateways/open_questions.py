"""What tasks that came through a door ask people: whoever asked for the task may answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from squadron.bridge.gateways.visitors import Visitor
from squadron.bridge.place import Place
from squadron.runtime.asking.answering import OpenQuestion, People
from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, QuestionClosedError, UnknownQuestionError
from squadron.runtime.logs import get_logger
from squadron.runtime.wire.question import Action

_log = get_logger("squadron.gateway")

#: Pause before the questions are followed anew, in seconds.
_AGAIN_S = 0.5


class OpenQuestions:
    """The questions that wait, by the task that they are about; one feed for the whole process."""

    def __init__(self, place: Place) -> None:
        self._people = People(place.ports, place.caller.lite_topics)
        self._about: dict[str, dict[str, OpenQuestion]] = {}
        #: Who is told of news, by the task: of ten thousand that wait each hears of its own alone.
        self._watching: dict[str, list[Callable[[], None]]] = {}
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow what is asked."""
        self._following = spawn(self._follow(), "questions at the door", lasting=True)

    async def aclose(self) -> None:
        """Stop following. May be called twice."""
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(BusUnavailableError):
                async with self._people.follow() as news:
                    async for each in news:
                        about = self._about.setdefault(each.asked.about, {})
                        if each.what == "asked":
                            about[each.asked.query_id] = each.asked
                        else:
                            about.pop(each.asked.query_id, None)
                        if not about:
                            del self._about[each.asked.about]
                        for tell in list(self._watching.get(each.asked.about, ())):
                            tell()
            await asyncio.sleep(_AGAIN_S)

    async def about(self, task_id: str) -> list[OpenQuestion]:
        """What waits now about a task, oldest first, as the server knows it.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        if task_id not in self._about:
            return []
        return [each for each in await self._people.questions() if each.about == task_id]

    def watch(self, task_id: str, tell: Callable[[], None]) -> Callable[[], None]:
        """Call `tell` at news of what is asked about a task, and now if something waits; its result ends it."""
        told = self._watching.setdefault(task_id, [])
        told.append(tell)
        if task_id in self._about:
            tell()

        def leave() -> None:
            told.remove(tell)
            if not told:
                del self._watching[task_id]

        return leave

    async def next_about(self, task_id: str, *, but: Collection[str] = ()) -> OpenQuestion:
        """Wait until something waits for an answer about a task, but for some questions; returns it."""
        news = asyncio.Event()
        leave = self.watch(task_id, news.set)
        try:
            while True:
                for query_id, asked in self._about.get(task_id, {}).items():
                    if query_id not in but:
                        return asked
                news.clear()
                await news.wait()
        finally:
            leave()

    async def answer(
        self, task_id: str, query_id: str, action: Action, content: Mapping[str, Any] | None, visitor: Visitor
    ) -> None:
        """Answer a question about a task; what was answered before, or is over, is left as it is.

        Raises:
            UnknownQuestionError: nothing of this id is asked about the task.
            InvalidInputError: the answer does not fit; `field` says where.
            BusUnavailableError: not acknowledged in time; answering again is safe.
        """
        try:
            asked = await self._people.find(query_id)
            if asked.about != task_id or asked.query_id != query_id:
                raise UnknownQuestionError(f"no question {query_id[:80]!r} waits about this task")
            await self._people.answer(query_id, content, action=action, by=visitor.principal)
        except QuestionClosedError as closed:
            # Somebody else was first: the task goes on by that.
            _log.info("question.closed", query=query_id, by=closed.by)
