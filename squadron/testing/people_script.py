"""People who answer by a script what agents ask them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from squadron.runtime.asking.answering import OpenQuestion, QuestionNews
from squadron.runtime.background import spawn
from squadron.runtime.errors import QuestionClosedError
from squadron.runtime.steady import Steady
from squadron.runtime.wire.question import Reply


class PeopleScript:
    """Answers to questions and approvals, each given once, in the order in which they are asked.

    Beyond the last nobody answers: the deadline of a question passes.

    Attributes:
        asked: what people were asked, oldest first.
    """

    def __init__(self, news: Steady[QuestionNews], answer: Callable[..., Any], replies: tuple[Any, ...]) -> None:
        self.asked: list[OpenQuestion] = []
        self._left, self._answer = list(replies), answer
        self._following = spawn(self._follow(news), "people", lasting=True)

    @property
    def left(self) -> int:
        """How many answers were not given yet."""
        return len(self._left)

    async def _follow(self, news: Steady[QuestionNews]) -> None:
        async for each in news:
            if each.what != "asked":
                continue
            self.asked.append(each.asked)
            if self._left:
                reply = self._left.pop(0)
                given = reply(each.asked) if callable(reply) else reply
                content, how = given, {"by": "somebody"}
                if isinstance(given, Reply):
                    content, how = given.content, {"action": given.action, "by": given.by or "somebody"}
                # Somebody else, a test itself, may have been first.
                with contextlib.suppress(QuestionClosedError):
                    await self._answer(each.asked.query_id, content, **how)

    async def aclose(self) -> None:
        """Nobody answers any more. May be called twice.

        Raises:
            InvalidInputError: an answer of the script did not fit.
        """
        self._following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._following
