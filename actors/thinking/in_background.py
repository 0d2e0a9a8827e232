"""Answers that OpenAI makes in the background: they outlive the connection, and the process that asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from squadron.actors.thinking.assemble import TurnParts
from squadron.actors.thinking.model import ModelRequest, ModelTurn
from squadron.actors.thinking.openai_responses import INCLUDED
from squadron.actors.thinking.provider_model import ProviderModel
from squadron.runtime.errors import ModelError
from squadron.runtime.retries import LONGEST_BACKOFF_S, backoff_s

#: How often in a row a stream that broke is asked for again, before anything new came.
MOST_BREAKS = 3
#: How long it may take to have an answer cancelled, in seconds: somebody waits for it.
_GIVE_UP_S = 5.0


class InBackground(ProviderModel):
    """What a model does whose wire asks for `background`, `store` and `stream`; see `Resumable`.

    Events are numbered, and a stream goes on after any of them (OpenAI's guide to background mode).
    """

    async def think_resumably(
        self,
        request: ModelRequest,
        on_text: Callable[[str], None],
        on_accepted: Callable[[str], Awaitable[None]],
    ) -> ModelTurn:
        """See `Resumable`."""

        async def note(response_id: str) -> None:
            try:
                await on_accepted(response_id)
            except Exception:
                # Nobody will know of it.
                await self.give_up(response_id)
                raise

        return await self._turn(request, on_text, self._ask, note)

    async def take_up(
        self, response_id: str, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelTurn:
        """See `Resumable`."""
        # From its first event on: what came before is in the memory of a process that is gone.
        return await self._turn(request, on_text, lambda _: self._told(response_id), response_id=response_id)

    async def give_up(self, response_id: str) -> None:
        """See `Resumable`."""
        # What fails in here is the SDK's; the answer ends by itself then, and is thrown away.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_GIVE_UP_S):
                await self._renew_keys()
                await self._client.responses.cancel(response_id)

    async def _told(self, response_id: str, **after: int) -> Any:
        return await self._client.responses.retrieve(response_id, stream=True, include=list(INCLUDED), **after)

    async def _events(
        self, open_stream: Callable[[], Awaitable[Any]], parts: TurnParts
    ) -> AsyncGenerator[Any, None]:
        """The events, over as many connections as it takes."""
        breaks, last = 0, -1
        while True:
            broken: ModelError | None = None
            try:
                async with aclosing(super()._events(open_stream, parts)) as events:
                    async for event in events:
                        number = getattr(event, "sequence_number", last + 1)
                        if number <= last:
                            continue  # a server that begins anew, whatever it was asked
                        breaks, last = 0, number
                        yield event
            except ModelError as error:
                if not error.retryable:
                    raise
                broken = error
            if parts.stop_reason:
                return
            breaks += 1
            if not parts.response_id or breaks > MOST_BREAKS:
                if broken is not None:
                    raise broken
                return
            told_s = (broken.retry_after_s or 0.0) if broken is not None else 0.0
            # The answer is paid and goes on: we look for it again, however long we are told to stay away.
            await asyncio.sleep(min(LONGEST_BACKOFF_S, max(backoff_s(breaks), told_s)))
            after = {"starting_after": last} if last >= 0 else {}
            open_stream = partial(self._told, parts.response_id, **after)
