"""How a run asks its model for the next turn, with a conversation that fits into its window."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from squadron.actors.runs.asker import DEFAULT_WINDOW, Asker
from squadron.actors.runs.entries import Summarized, Thought
from squadron.actors.runs.summary_writer import SummaryWriter
from squadron.actors.thinking.catalog import USUAL_ANSWER, reserve_for, spent_of, window_of
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall
from squadron.actors.thinking.summarize import extract
from squadron.actors.thinking.tokens import conversation_tokens, family_of, tools_tokens
from squadron.actors.thinking.tries import chain_from
from squadron.actors.thinking.window import Fitted, Summary, fit
from squadron.runtime.errors import ModelError, RunOverError
from squadron.runtime.wire.limits import UNLIMITED

#: With less than this left the time is up, in seconds: two clocks never agree to the last digit.
MOMENT_S = 0.01


@dataclass(kw_only=True)
class Mind(Asker):
    """The models of one run, and how they are asked for its next turn.

    Attributes:
        sampling: `temperature` and `max_tokens` of the task.
        summary_models: what summarizes a conversation that is too long; without any, extracts are taken.
    """

    sampling: dict[str, Any]
    output_schema: dict[str, Any] | None = None
    summary_models: Sequence[Model] = ()

    @property
    def _candidates(self) -> Sequence[Model]:
        """The chain without those from which the run fell back."""
        last = self._state.last
        return chain_from(self.chain, last.turn.model if last is not None else "")

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
        turn = await self._answer(request, self.left_s())
        turn = replace(turn, model=turn.model or self._asked.model)
        used = {call.id for message in self._state.transcript.messages for call in message.tool_calls}
        # Its blocks keep the ids of their server, to which `echo_of` finds the way back.
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

    async def _ask(self, request: ModelRequest, within_s: float) -> ModelTurn:
        try:
            return await self._ask_once(request)
        except ModelError as error:
            if error.kind != "overflow" or not self._state.overflows:
                raise
            # The count was an estimate; what is shown from here on is shorter.
            return await self._ask_once(request)

    async def _ask_once(self, request: ModelRequest) -> ModelTurn:
        if self.left_s() <= 0:
            raise RunOverError("its time is up")
        await self._shorten(request)
        try:
            return await super()._ask(request, self.left_s())
        except ModelError as error:
            if self.left_s() < MOMENT_S:
                raise RunOverError("its time is up") from error
            raise

    async def _shorten(self, request: ModelRequest) -> None:
        """Have summarized what is too much for the model that is asked first.

        It takes its time, so it comes before the account admits the question, and without the recorder's lock.
        What comes meanwhile, and what another model of the chain can't take, is in an extract.
        """
        model, state = self._candidates[0], self._state
        while self.summary_models:
            messages = state.transcript.asked(state.still_running())
            span = self._fit(model, request, messages, state.summaries).to_summarize
            if span is None:
                return
            short = extract(span, state.fence)
            after = self._fit(model, request, messages, [*state.summaries, short])
            new = after.tokens + tools_tokens(state.toolbox.definitions(), family_of(model.name))
            turn = reserve_for(model.name, UNLIMITED, known=0, new=new, max_tokens=request.max_tokens)
            await SummaryWriter(
                ctx=self.ctx,
                recorder=self.recorder,
                books=self.books,
                chain=self._candidates if self.summary_models == self.chain else self.summary_models,
                span=span,
                short=short,
                beside=turn.amount,
            ).write()

    async def _asking(self, model: Model, request: ModelRequest) -> ModelRequest:
        state, tools = self._state, self._state.toolbox.definitions()
        # What is told with this question is what was stored before it: so it is said in the same words later.
        fitted = await self._fitted(model, request, state.transcript.asked(state.still_running()))
        known, new = self._reckoned(model, fitted, tools_tokens(tools, family_of(model.name)))
        request = replace(request, messages=fitted.messages, tools=tools)
        estimate = self._reserve(model, request, self.books.ledger.left, known=known, new=new)
        return await self._store_asking(model, request, estimate)

    async def _fitted(self, model: Model, request: ModelRequest, messages: list[ChatMessage]) -> Fitted:
        """The conversation as it fits into the model's window; summaries are stored before they are shown."""
        while True:
            fitted = self._fit(model, request, messages, self._state.summaries)
            if (span := fitted.to_summarize) is None:
                return fitted
            short = extract(span, self._state.fence)
            await self.recorder.decide_locked(
                Summarized(at=self._now(), summary=short, messages=len(span.messages))
            )

    def _fit(
        self, model: Model, request: ModelRequest, messages: list[ChatMessage], summaries: Sequence[Summary]
    ) -> Fitted:
        state, family = self._state, family_of(model.name)
        window = window_of(model.name) or DEFAULT_WINDOW
        overflow = state.overflows.get(model.name, 0)
        if overflow > 0:
            # What it names may be bytes, or the limit of something else.
            window = min(window, overflow)
        tools = tools_tokens(state.toolbox.definitions(), family)
        return fit(
            messages,
            window_tokens=window,
            reserved_tokens=tools + min(request.max_tokens or USUAL_ANSWER, window // 4),
            family=family,
            goal=len(state.started.opening) - 1 if state.started is not None else None,
            summaries=summaries,
            references={
                call.said.id: json.dumps({"$from": call.id}) for call in state.calls.values() if call.ends
            },
            pending={call.said.id for call in state.outstanding},
            overflowed=overflow != 0,
        )

    def _reckoned(self, model: Model, fitted: Fitted, tools: int) -> tuple[int, int]:
        """Tokens that the last call's usage tells, and an estimate of what came since."""
        last = self._state.last
        if last is None or last.turn.model != model.name or last.turn.usage.estimated or fitted.steps:
            return 0, fitted.tokens + tools
        spoken = max(i for i, message in enumerate(fitted.messages) if message.role == "assistant")
        since = conversation_tokens(fitted.messages[spoken + 1 :], family_of(model.name))
        return last.turn.tokens, since


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
