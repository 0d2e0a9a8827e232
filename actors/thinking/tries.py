"""The one retry loop around models: patience, a chain of models to fall back on, and books of every try."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from squadron.actors.thinking.assemble import Pieces, mended_turn
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, Resumable
from squadron.runtime.errors import (
    BusUnavailableError,
    ConfigError,
    ModelError,
    Park,
    Retry,
    SupersededError,
    Terminal,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import backoff_s, places_of, summary_of

#: How often one model is asked before the next of the chain is: a hiccup and a second one are survived, a lasting
#: outage costs three requests and not nine (the SDKs try once, `max_retries=0`).
TRIES = 3
#: The same for 429, with longer pauses: 2, 4, 8, 16 and 30 s, a minute in all, which is the window in which both
#: providers count.
LIMIT_TRIES, FIRST_LIMIT_PAUSE_S = 6, 2.0
#: Added to what a provider asks us to wait, as a part of it and at most in seconds: replicas that were refused in
#: the same moment don't come back in the same moment.
WAIT_JITTER, MOST_JITTER_S = 0.25, 1.0

#: What says what is to become of the task, or that nothing can be noted now.
_OURS = (Terminal, Retry, Park, SupersededError, BusUnavailableError)
_log = get_logger("squadron.model")

OnText = Callable[[str], None]
OnEvent = Callable[[dict[str, Any]], None]


class Books(Protocol):
    """Who notes each try before it is made, and what became of it; tries count over the whole chain, from 1."""

    async def asking(self, model: Model, request: ModelRequest, number: int) -> ModelRequest:
        """Called before every call of a provider; returns what is asked in the end, perhaps with fewer
        `max_tokens`. What it raises ends it all, and nothing is asked.
        """
        ...

    async def accepted(self, model: Resumable, response_id: str, number: int) -> None:
        """Called when a provider began to answer a call that can be taken up under this id; see `take_up`."""
        ...

    async def refused(self, model: Model, error: ModelError) -> None:
        """Called when the model's account does not let it be asked."""
        ...

    async def failed(self, model: Model, error: ModelError, number: int) -> None:
        """Called after every try that failed; `error.tokens` is what it used, if that is known, and `number` is 0
        for one that was taken up.
        """
        ...


class Grant(Protocol):
    """The right to make one call."""

    def settle(self, asked: ModelRequest | None, turn: ModelTurn | None, error: ModelError | None = None) -> None:
        """The call is over; does not wait.

        Args:
            asked: what was asked in the end; None if nothing was.
            turn: what came of it; neither this nor an `error` if it was cancelled.
        """
        ...


class Account(Protocol):
    """Who knows what the provider accounts still allow, for all replicas."""

    async def admit(self, model: Model, request: ModelRequest, *, within_s: float, priority: int = 0) -> Grant:
        """Wait until the call may be made; of two that wait the higher `priority` is first.

        Raises:
            ModelError: of kind "limit": that will not be within `within_s` seconds.
        """
        ...


def chain_from(chain: Sequence[Model], name: str) -> Sequence[Model]:
    """The chain from the model `name` on: a run that fell back stays with the model it fell back to."""
    names = [model.name for model in chain]
    return chain[names.index(name) :] if name in names else chain


async def think_patiently(
    chain: Sequence[Model],
    request: ModelRequest,
    *,
    books: Books,
    within_s: float,
    on_text: OnText,
    on_event: OnEvent,
    account: Account | None = None,
    priority: int = 0,
) -> ModelTurn:
    """Ask the first model of the chain, again after a pause when its problem may pass, and then the next one.

    Text streams to `on_text`. When a try fails that had streamed some, `on_event` gets `{"event": "retry",
    "try": n}`: what readers have heard since the last event is void. Another model is announced by `{"event":
    "fallback", "from", "to", "why"}`; it is asked after 429, 5xx, broken and stalled streams that last, and never
    after a wrong key or request.

    Args:
        within_s: seconds for all of it; what a provider asks us to wait is waited within them or not at all.
        account: who says when a call may be made, by `priority`; None asks at once.

    Raises:
        ModelError: the last one, when no model of the chain gave an answer.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    thinking = _Thinking(request, books, deadline, account, priority, on_text, on_event)
    for position, model in enumerate(chain):
        try:
            return await thinking.ask_patiently(model)
        except ModelError as error:
            following = chain[position + 1 : position + 2]
            if not following or not error.retryable or thinking.left_s() <= 0:
                raise
            why = str(error.args[0])
            on_event({"event": "fallback", "from": model.name, "to": following[0].name, "why": why})
    raise ConfigError("the chain of models is empty", hint="name at least one model")


async def take_up(
    model: Resumable,
    response_id: str,
    request: ModelRequest,
    *,
    books: Books,
    within_s: float,
    on_text: OnText,
    on_event: OnEvent,
) -> ModelTurn:
    """The answer to a call that somebody else made, and that its provider accepted; asks nothing anew.

    It was admitted by its account when it was made. All of its text streams again, for readers that heard none.

    Raises:
        ModelError: there is no answer; the books were told.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    thinking = _Thinking(request, books, deadline, None, 0, on_text, on_event)
    return await thinking.hear(model, partial(model.take_up, response_id, request))


@dataclass
class _Thinking:
    """One answer that is sought: what is asked, and how often it was by now."""

    request: ModelRequest
    books: Books
    deadline: float
    account: Account | None
    priority: int
    on_text: OnText
    on_event: OnEvent
    number: int = 0

    def left_s(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    async def ask_patiently(self, model: Model) -> ModelTurn:
        """Ask one model until it answers or its trouble lasts."""
        tried = 0
        while True:
            try:
                return await self.ask(model)
            except ModelError as error:
                tried += 1
                pause_s = pause_after(error, tried)
                if pause_s is None or pause_s >= self.left_s():
                    raise
            await asyncio.sleep(pause_s)

    async def ask(self, model: Model) -> ModelTurn:
        """Ask once, with a grant and an entry in the books."""
        grant = None
        if self.account is not None:
            within_s, priority = max(self.left_s(), 0.0), self.priority
            try:
                grant = await self.account.admit(model, self.request, within_s=within_s, priority=priority)
            except ModelError as error:
                await self.books.refused(model, error)
                raise
        asked, turn, failure = None, None, None
        try:
            asked = await self.books.asking(model, self.request, self.number + 1)
            self.number += 1
            turn = await self.hear(model, partial(self._call, model, asked))
            return turn
        except ModelError as error:
            failure = error
            raise
        finally:
            if grant is not None:
                grant.settle(asked, turn, failure)

    async def _call(self, model: Model, request: ModelRequest, on_text: OnText) -> ModelTurn:
        if not isinstance(model, Resumable):
            return await model.think(request, on_text)

        async def accepted(response_id: str) -> None:
            await self.books.accepted(model, response_id, self.number)

        return await model.think_resumably(request, on_text, accepted)

    async def hear(self, model: Model, call: Callable[[OnText], Awaitable[ModelTurn]]) -> ModelTurn:
        """Hear one call out."""
        heard = _Heard(self.on_text)
        pieces = Pieces(heard)
        try:
            async with asyncio.timeout(max(self.left_s(), 0.0)) as limit:
                turn = await call(pieces.add)
            pieces.end()
            return mended_turn(replace(turn, model=turn.model or model.name))
        except ModelError as error:
            await self._failed(model, error, heard)
            raise
        except _OURS:
            raise
        except Exception as error:
            # Anybody may write a model; what it raises is booked as any other failed try.
            if isinstance(error, TimeoutError) and limit.expired():
                what = f"{model.name} did not answer in the time that was left"
                hint = "give it more time, or another model"
                # It may have thought in silence, and nobody will hear what that cost: it stays charged.
                failure = ModelError(what, hint=hint, kind="passing", began=True)
            else:
                failure = ModelError(
                    f"{model.name} raised {summary_of(error)}", hint="the replica's log says where"
                )
                # Where, and nothing of what was in its hands: the task may be sealed.
                _log.warning("model.raised", model=model.name, error=type(error).__name__, at=places_of(error))
            failure.began |= heard.any
            await self._failed(model, failure, heard)
            raise failure from error

    async def _failed(self, model: Model, error: ModelError, heard: _Heard) -> None:
        if heard.any:
            self.on_event({"event": "retry", "try": self.number})
        await self.books.failed(model, error, self.number)


class _Heard:
    """Passes text on, and knows whether there was any."""

    def __init__(self, on_text: OnText) -> None:
        self._on_text, self.any = on_text, False

    def __call__(self, piece: str) -> None:
        self.any = True
        self._on_text(piece)


def pause_after(error: ModelError, tried: int) -> float | None:
    """Seconds to wait after the nth failed try of one model; None if another one can't help.

    What the provider asks for is the least: our jitter comes on top of it. From the second time on our own growing
    pause is the least as well, or who always says "at once" would use up all tries at once.
    """
    is_limit = error.kind == "limit"
    if not error.retryable or tried >= (LIMIT_TRIES if is_limit else TRIES):
        return None
    own_s = backoff_s(tried, FIRST_LIMIT_PAUSE_S) if is_limit else backoff_s(tried)
    if error.retry_after_s is None:
        return own_s
    told_s = max(0.0, error.retry_after_s)
    told_s += random.uniform(0.0, min(MOST_JITTER_S, WAIT_JITTER * told_s))
    return told_s if tried == 1 else max(told_s, own_s)
