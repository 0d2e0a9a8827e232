"""How a run asks its model: a question is stored before it is put, an answer before anything comes of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from squadron.actors.runs.books import RunBooks, reserve_of
from squadron.actors.runs.entries import Accepted, Asking, Summarized, Thought, TryFailed
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.thinking.account import accounts_of
from squadron.actors.thinking.catalog import (
    USUAL_ANSWER,
    Estimate,
    reserve_for,
    spent_by_failure,
    spent_of,
    window_of,
)
from squadron.actors.thinking.choice import OFFLINE
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, Resumable, ToolCall
from squadron.actors.thinking.summarize import extract
from squadron.actors.thinking.tokens import conversation_tokens, family_of, limit_named, tools_tokens
from squadron.actors.thinking.tries import Account, chain_from, take_up, think_patiently
from squadron.actors.thinking.window import Fitted, fit
from squadron.runtime.errors import ModelError, RunOverError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.texts import encoded
from squadron.runtime.wire.limits import UNLIMITED
from squadron.runtime.wire.spent import NOTHING, Spent

#: The window of a model that nobody knows, in tokens: that of the smallest current ones.
DEFAULT_WINDOW = 128_000
#: With less than this left the time is up, in seconds: two clocks never agree to the last digit.
MOMENT_S = 0.01


@dataclass
class Mind:
    """The models of one run, and how they are asked.

    Attributes:
        sampling: `temperature` and `max_tokens` of the task.
        on_text: hears the text as it comes.
        on_event: hears of retries and of another model that is taken instead.
    """

    ctx: TurnContext
    recorder: Recorder
    books: RunBooks
    chain: Sequence[Model]
    sampling: dict[str, Any]
    on_text: Callable[[str], None]
    on_event: Callable[[dict[str, Any]], None]
    output_schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._asked = Asking(at=0, round=0, number=0, model="", digest="")
        self._estimate = Estimate(NOTHING, None, 0)

    @property
    def _state(self) -> RunState:
        return self.recorder.state

    async def think(self) -> None:
        """Ask for the next turn, and store it.

        Raises:
            BudgetError: nothing is left to ask with.
            ModelError: no model of the chain gives an answer.
            RunOverError: the run's time is up.
            SupersededError: another attempt has taken the run over.
        """
        started = self.ctx.caller.loop.time()
        # Whoever admits the call wants to know its size; what is said in the end is decided when it is made.
        request = ModelRequest(
            tuple(self._state.transcript.asked(self._state.still_running())),
            self._state.toolbox.definitions(),
            output_schema=self.output_schema,
            cache_key=self._state.run,
            **self.sampling,
        )
        try:
            turn = await self._taken_up(request) or await self._answer(request)
        except asyncio.CancelledError:
            # Of a replica that is drained the next one takes it up.
            if self.ctx.cancelled:
                await self._give_up()
            raise
        turn = replace(turn, model=turn.model or self._asked.model)
        used = {call.id for message in self._state.transcript.messages for call in message.tool_calls}
        if not turn.blocks:
            turn = with_unique_ids(turn, used)
        await self.recorder.store(
            Thought(
                at=self._now(),
                round=self._state.round + 1,
                turn=turn,
                spent=spent_of(turn.model, turn.usage).to_wire(),
                seconds=round(self.ctx.caller.loop.time() - started, 3),
            )
        )

    async def _taken_up(self, request: ModelRequest) -> ModelTurn | None:
        """The answer to a question of an attempt that died; None if there is none, and it has to be put anew."""
        asking, accepted = self._state.asking, self._state.accepted
        if asking is None or accepted is None:
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
                within_s=max(0.0, self.left_s()),
                on_text=self.on_text,
                on_event=self._tell,
            )
        except ModelError as error:
            if error.kind == "refusal":
                raise
            return None

    def _resumable(self, name: str) -> Resumable | None:
        return next((each for each in self.chain if isinstance(each, Resumable) and each.name == name), None)

    async def _give_up(self) -> None:
        """Nobody will take up the answer that is made now, if there is one."""
        asking, accepted = self._state.asking, self._state.accepted
        if asking is not None and accepted is not None and (model := self._resumable(asking.model)):
            await model.give_up(accepted.response_id)

    async def _answer(self, request: ModelRequest) -> ModelTurn:
        try:
            return await self._ask(request)
        except ModelError as error:
            if error.kind != "overflow" or not self._state.overflows:
                raise
            # The count was an estimate; what is shown from here on is shorter.
            return await self._ask(request)

    def account(self) -> Account | None:
        """Who says when a model may be asked."""
        return accounts_of(self.ctx.caller)

    def left_s(self) -> float:
        """Seconds until the run's time is up, or that of this attempt; below zero if it is."""
        return min(self._state.deadline_at, self.ctx.answer_by.at_ms / 1000) - self._now()

    async def _ask(self, request: ModelRequest) -> ModelTurn:
        left_s = self.left_s()
        if left_s <= 0:
            raise RunOverError("its time is up")
        last = self._state.last
        try:
            return await think_patiently(
                chain_from(self.chain, last.turn.model if last is not None else ""),
                request,
                books=self,
                within_s=left_s,
                on_text=self.on_text,
                on_event=self._tell,
                account=self.account(),
                priority=self.ctx.message.routing.priority,
            )
        except ModelError as error:
            if self.left_s() < MOMENT_S:
                raise RunOverError("its time is up") from error
            raise

    def _tell(self, event: dict[str, Any]) -> None:
        self.on_event(event | {"round": self._state.round + 1})

    async def asking(self, model: Model, request: ModelRequest, number: int) -> ModelRequest:
        """What this model is to be asked, when that is stored; see `tries.Books`."""
        async with self.recorder.lock:
            return await self._asking(model, request)

    async def _asking(self, model: Model, request: ModelRequest) -> ModelRequest:
        state, family, tools = self._state, family_of(model.name), self._state.toolbox.definitions()
        # What is told with this question is what was stored before it: so it is said in the same words later.
        fitted = await self._fitted(model, request, state.transcript.asked(state.still_running()))
        known, new = self._reckoned(model, fitted, tools_tokens(tools, family))
        left = self.books.ledger.left
        if model.name.startswith(f"{OFFLINE}:"):
            # It uses no tokens, so that none need be left.
            left, known, new = replace(left, tokens=None, usd=None), 0, 0
        estimate = reserve_for(model.name, left, known=known, new=new, max_tokens=request.max_tokens)
        limited = self.books.ledger.grant != UNLIMITED
        request = replace(request, messages=fitted.messages, tools=tools, max_tokens=estimate.max_tokens)
        self._estimate = estimate
        self._asked = Asking(
            at=self._now(),
            round=state.round + 1,
            number=state.tries + 1,
            model=model.name,
            digest=digest_of(request),
            tokens=estimate.amount.tokens if limited and new else estimate.input,
            usd_micros=estimate.amount.usd_micros if limited else 0,
        )
        await self.note(self._asked, request)
        return request

    async def note(self, asked: Asking, request: ModelRequest) -> None:
        """Store that the model is about to be asked this; who calls it holds the lock."""
        await self.recorder.store_locked(asked)

    async def _fitted(self, model: Model, request: ModelRequest, messages: list[ChatMessage]) -> Fitted:
        """The conversation as it fits into the model's window; summaries are stored before they are shown."""
        state, family = self._state, family_of(model.name)
        window = window_of(model.name) or DEFAULT_WINDOW
        overflow = state.overflows.get(model.name, 0)
        if overflow > 0:
            window = overflow
        tools = tools_tokens(state.toolbox.definitions(), family)
        how: dict[str, Any] = {
            "window_tokens": window,
            "reserved_tokens": tools + min(request.max_tokens or USUAL_ANSWER, window // 4),
            "family": family,
            "goal": len(state.started.opening) - 1 if state.started is not None else None,
            "references": {
                call.said.id: json.dumps({"$from": call.id}) for call in state.calls.values() if call.ends
            },
            "pending": {call.said.id for call in state.outstanding},
            "overflowed": overflow != 0,
        }
        while True:
            fitted = fit(messages, summaries=state.summaries, **how)
            if fitted.to_summarize is None:
                return fitted
            summary = extract(fitted.to_summarize, state.fence)
            await self.recorder.store_locked(Summarized(at=self._now(), summary=summary))

    def _reckoned(self, model: Model, fitted: Fitted, tools: int) -> tuple[int, int]:
        """Tokens that the last call's usage tells, and an estimate of what came since."""
        last = self._state.last
        if last is None or last.turn.model != model.name or last.turn.usage.estimated or fitted.steps:
            return 0, fitted.tokens + tools
        spoken = max(i for i, message in enumerate(fitted.messages) if message.role == "assistant")
        since = conversation_tokens(fitted.messages[spoken + 1 :], family_of(model.name))
        return last.turn.tokens, since

    async def accepted(self, model: Resumable, response_id: str, number: int) -> None:
        """A try can be taken up; see `tries.Books`."""
        asked = self._asked
        await self.recorder.store(
            Accepted(at=self._now(), round=asked.round, number=asked.number, response_id=response_id)
        )

    async def failed(self, model: Model, error: ModelError, number: int) -> None:
        """A try was in vain; see `tries.Books`."""
        if error.retryable:
            # It may go on there, and another one is asked for.
            await self._give_up()
        spent = spent_by_failure(model.name, error, self._estimate)
        if number == 0 and not error.tokens:
            # One of an attempt that died: it may have cost all that was set aside.
            spent = self._estimate.amount
        await self._note_failure(model.name, error, spent)

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
                limit=limit,
                retry_after_s=error.retry_after_s,
            )
        )

    def _now(self) -> float:
        return self.ctx.caller.ports.clock.time()


def digest_of(request: ModelRequest) -> str:
    """What a request is known by, SHA-256 in hex."""
    return hashlib.sha256(encoded((request.messages, request.tools, request.max_tokens))).hexdigest()


def with_unique_ids(turn: ModelTurn, used: set[str]) -> ModelTurn:
    """The turn with call ids that no other call has; some servers number the calls of each turn anew."""
    taken, calls = set(used), list[ToolCall]()
    for call in turn.tool_calls:
        base = call.id.replace("#", "_") or "call"
        number, unique = 1, base
        while unique in taken:
            number += 1
            unique = f"{base}-{number}"
        taken.add(unique)
        calls.append(replace(call, id=unique))
    return replace(turn, tool_calls=tuple(calls))
