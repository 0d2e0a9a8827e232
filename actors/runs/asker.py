"""How a run asks models: a question is stored before it is put, and what became of it before it has an effect."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from squadron.actors.runs.books import RunBooks, reserve_of
from squadron.actors.runs.entries import Accepted, Asking, Refused, TryFailed
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.thinking.account import accounts_of
from squadron.actors.thinking.catalog import Estimate, reserve_for, spent_by_failure
from squadron.actors.thinking.choice import OFFLINE
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, Resumable
from squadron.actors.thinking.tokens import limit_named
from squadron.actors.thinking.tries import Account, take_up, think_patiently
from squadron.runtime.errors import ModelError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.texts import encoded
from squadron.runtime.wire.limits import UNLIMITED, Budget
from squadron.runtime.wire.spent import NOTHING, Spent

#: The window of a model that nobody knows, in tokens: that of the smallest current ones.
DEFAULT_WINDOW = 128_000


def unheard(_: Any) -> None:
    """Nobody reads along."""


@dataclass(kw_only=True)
class Asker(ABC):
    """Asks a chain of models on the account of a run; the `Books` of its tries.

    Attributes:
        chain: the models, the one to ask first at its head.
        on_text: hears the text as it comes.
        on_event: hears of retries and of another model that is taken instead.
    """

    ctx: TurnContext
    recorder: Recorder
    books: RunBooks
    chain: Sequence[Model]
    on_text: Callable[[str], None] = unheard
    on_event: Callable[[dict[str, Any]], None] = unheard

    def __post_init__(self) -> None:
        self._asked = Asking(at=0, round=0, number=0, model="", digest="")
        self._estimate = Estimate(NOTHING, None, 0)

    @property
    def _state(self) -> RunState:
        return self.recorder.state

    @property
    def _candidates(self) -> Sequence[Model]:
        """Those of the chain that are asked now."""
        return self.chain

    def left_s(self) -> float:
        """Seconds until the run's time is up, or that of this attempt; below zero if it is."""
        return min(self._state.deadline_at, self.ctx.answer_by.at_ms / 1000) - self._now()

    async def _answer(self, request: ModelRequest, within_s: float, covers: str = "") -> ModelTurn:
        """The answer to a request, be it one that an attempt that died has put already; see `Asking.covers`."""
        try:
            return await self._taken_up(request, within_s, covers) or await self._ask(request, within_s)
        except asyncio.CancelledError:
            # Of a replica that is drained the next one takes it up.
            if self.ctx.cancelled:
                await self._give_up(self._going_on())
            raise

    def account(self) -> Account | None:
        """Who says when a model may be asked."""
        return accounts_of(self.ctx.caller)

    async def note(self, asked: Asking, request: ModelRequest) -> None:
        """Store that the model is about to be asked this; who calls it holds the lock."""
        store = self.recorder.store_locked if asked.covers else self.recorder.decide_locked
        await store(asked)

    async def _ask(self, request: ModelRequest, within_s: float) -> ModelTurn:
        """The answer of the first model that gives one."""
        return await think_patiently(
            self._candidates,
            request,
            books=self,
            within_s=within_s,
            on_text=self.on_text,
            on_event=self._tell,
            account=self.account(),
            priority=self.ctx.message.routing.priority,
        )

    def _tell(self, event: dict[str, Any]) -> None:
        self.on_event(event | {"round": self._state.round + 1})

    async def _taken_up(self, request: ModelRequest, within_s: float, covers: str) -> ModelTurn | None:
        """The answer to a question of an attempt that died; None if there is none, and it has to be put anew."""
        asking, accepted = self._state.asking, self._state.accepted
        if asking is None or accepted is None or asking.covers != covers:
            return None
        self._asked, self._estimate = asking, Estimate(reserve_of(asking), None, asking.tokens)
        model = self._resumable(asking.model)
        if model is None:
            why = ModelError(f"{asking.model} is no model of the run any more", hint="deploy with the same models")
            await self._note_failure(asking.model, why, self._estimate.amount)
            return None
        try:
            return await take_up(
                model,
                accepted.response_id,
                request,
                books=self,
                within_s=max(0.0, within_s),
                on_text=self.on_text,
                on_event=self._tell,
            )
        except ModelError as error:
            if error.kind == "refusal":
                raise
            return None

    def _resumable(self, name: str) -> Resumable | None:
        return next((each for each in self.chain if isinstance(each, Resumable) and each.name == name), None)

    def _going_on(self) -> str:
        """The id of the answer that is made now to what we asked; empty if there is none."""
        asking, accepted = self._state.asking, self._state.accepted
        # What is stored says what had been seen, too.
        is_ours = asking is not None and (asking.round, asking.number) == (self._asked.round, self._asked.number)
        return accepted.response_id if is_ours and accepted is not None else ""

    async def _give_up(self, response_id: str) -> None:
        """Nobody will take up this answer, if there is one."""
        if response_id and (model := self._resumable(self._asked.model)) is not None:
            await model.give_up(response_id)

    async def asking(self, model: Model, request: ModelRequest, number: int) -> ModelRequest:
        """What this model is to be asked, when that is stored; see `tries.Books`."""
        async with self.recorder.lock:
            return await self._asking(model, request)

    @abstractmethod
    async def _asking(self, model: Model, request: ModelRequest) -> ModelRequest:
        """The same, with the recorder's lock held."""

    def _reserve(self, model: Model, request: ModelRequest, left: Budget, *, known: int, new: int) -> Estimate:
        """What to set aside for a call; arguments and errors are those of `reserve_for`."""
        if model.name.startswith(f"{OFFLINE}:"):
            # It uses no tokens, so that none need be left.
            left, known, new = replace(left, tokens=None, usd=None), 0, 0
        return reserve_for(model.name, left, known=known, new=new, max_tokens=request.max_tokens)

    async def _store_asking(
        self, model: Model, request: ModelRequest, estimate: Estimate, covers: str = ""
    ) -> ModelRequest:
        """Set that aside, and store that the call is about to be made; see `Asking.covers`."""
        limited = self.books.ledger.grant != UNLIMITED
        request = replace(request, max_tokens=estimate.max_tokens)
        self._estimate = estimate
        self._asked = Asking(
            at=self._now(),
            round=self._state.round + 1,
            number=self._state.tries + 1,
            model=model.name,
            digest=digest_of(request),
            tokens=estimate.amount.tokens if limited and estimate.input else estimate.input,
            usd_micros=estimate.amount.usd_micros if limited else 0,
            covers=covers,
        )
        await self.note(self._asked, request)
        return request

    async def accepted(self, model: Resumable, response_id: str, number: int) -> None:
        """A try can be taken up; see `tries.Books`."""
        asked = self._asked
        await self.recorder.store(
            Accepted(at=self._now(), round=asked.round, number=asked.number, response_id=response_id)
        )

    async def refused(self, model: Model, error: ModelError) -> None:
        """Its account does not let a model be asked; see `tries.Books`."""
        await self.recorder.store(
            Refused(
                at=self._now(),
                round=self._state.round + 1,
                model=model.name,
                error=error.kind,
                reason=str(error),
                retry_after_s=error.retry_after_s,
            )
        )

    async def failed(self, model: Model, error: ModelError, number: int) -> None:
        """A try was in vain; see `tries.Books`."""
        going_on = self._going_on() if error.retryable else ""
        spent = spent_by_failure(model.name, error, self._estimate)
        if number == 0 and not error.tokens:
            # One of an attempt that died: it may have cost all that was set aside.
            spent = self._estimate.amount
        await self._note_failure(model.name, error, spent)
        # It may go on there, and another one is asked for. Not before that is stored: another attempt, to which we
        # have lost the run, may have taken it up.
        await self._give_up(going_on)

    async def _note_failure(self, model: str, error: ModelError, spent: Spent) -> None:
        limit = (limit_named(str(error)) or -1) if error.kind == "overflow" else 0
        await self.recorder.store(
            TryFailed(
                at=self._now(),
                round=self._asked.round,
                number=self._asked.number,
                model=model,
                error=error.kind,
                reason=str(error),
                spent=replace(spent, rounds=1).to_wire(),
                # How long a conversation may be is told by one, and not by the request for a summary of it.
                limit=0 if self._asked.covers else limit,
                retry_after_s=error.retry_after_s,
            )
        )

    def _now(self) -> float:
        return self.ctx.caller.ports.clock.time()


def digest_of(request: ModelRequest) -> str:
    """What a request is known by, SHA-256 in hex."""
    return hashlib.sha256(encoded((request.messages, request.tools, request.max_tokens))).hexdigest()
