"""How a run asks its model: a question is stored before it is put, an answer before anything comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from squadron.actors.runs.books import Books
from squadron.actors.runs.entries import Asking, Failed, Summarized, Thought
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.thinking.catalog import cost_of, window_of
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall
from squadron.actors.thinking.summarize import extract
from squadron.actors.thinking.tokens import family_of, tools_tokens
from squadron.actors.thinking.tries import chain_from, think_patiently
from squadron.actors.thinking.window import fit
from squadron.runtime.errors import BudgetError, ModelError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.texts import encoded

#: The window of a model that nobody knows, in tokens: that of the smallest current ones.
DEFAULT_WINDOW = 128_000
#: Most tokens of an answer, where nobody says otherwise.
ANSWER_TOKENS = 16_384
#: Fewest tokens that an answer is worth asking for.
LEAST_ANSWER = 256
#: Estimates may be so much too low; see `docs/context.md`.
MARGIN = 1.3


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
    books: Books
    chain: Sequence[Model]
    sampling: dict[str, Any]
    on_text: Callable[[str], None]
    on_event: Callable[[dict[str, Any]], None]
    output_schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._overflowed = False
        self._asked = Asking(at=0, round=0, number=0, model="", digest="")

    @property
    def _state(self) -> RunState:
        return self.recorder.state

    async def think(self) -> None:
        """Ask for the next turn, and store it.

        Raises:
            BudgetError: nothing is left to ask with.
            ModelError: no model of the chain gives an answer.
            TimeoutError: the run's time is up.
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
            turn = await self._ask(request)
        except ModelError as error:
            if error.kind != "overflow" or self._overflowed:
                raise
            # The count was an estimate; what is shown from here on is shorter.
            self._overflowed = True
            turn = await self._ask(request)
        turn = replace(turn, model=turn.model or self._asked.model)
        used = {call.id for message in self._state.transcript.messages for call in message.tool_calls}
        if not turn.blocks:
            turn = with_unique_ids(turn, used)
        await self.recorder.store(
            Thought(
                at=self._now(),
                round=self._state.round + 1,
                turn=turn,
                usd_micros=cost_of(turn.model, turn.usage),
                seconds=round(self.ctx.caller.loop.time() - started, 3),
            )
        )

    async def _ask(self, request: ModelRequest) -> ModelTurn:
        left_s = self._state.deadline_at - self._now()
        if left_s <= 0:
            raise TimeoutError
        last = self._state.last
        return await think_patiently(
            chain_from(self.chain, last.turn.model if last is not None else ""),
            request,
            books=self,
            within_s=left_s,
            on_text=self.on_text,
            on_event=self.on_event,
        )

    async def asking(self, model: Model, request: ModelRequest, number: int) -> ModelRequest:
        """What this model is to be asked, when that is stored; see `tries.Books`."""
        async with self.recorder.lock:
            return await self._asking(model, request)

    async def _asking(self, model: Model, request: ModelRequest) -> ModelRequest:
        state, family = self._state, family_of(model.name)
        tools = state.toolbox.definitions()
        asking = Asking(at=self._now(), round=state.round + 1, number=state.tries + 1, model=model.name, digest="")
        # What is told with this question is what was stored before it: so it is said in the same words later.
        messages = state.transcript.asked(state.still_running())
        most = request.max_tokens or ANSWER_TOKENS
        window = window_of(model.name) or DEFAULT_WINDOW
        reserved = tools_tokens(tools, family) + min(most, window // 4)
        limits: dict[str, Any] = {"window_tokens": window, "reserved_tokens": reserved, "family": family}
        references = {call.said.id: call.id for call in state.calls.values()}
        while True:
            fitted = fit(
                messages, summaries=state.summaries, references=references, overflowed=self._overflowed, **limits
            )
            if fitted.to_summarize is None:
                break
            summary = extract(fitted.to_summarize, state.fence)
            await self.recorder.store_locked(Summarized(at=self._now(), summary=summary))
        request = replace(request, messages=tuple(fitted.messages), tools=tools)
        tokens = round(MARGIN * (fitted.tokens + tools_tokens(tools, family)))
        request, asking = self._afford(model, request, asking, tokens)
        asking = asking.model_copy(update={"digest": digest_of(request)})
        await self.recorder.store_locked(asking)
        self._asked = asking
        return request

    def _afford(
        self, model: Model, request: ModelRequest, asking: Asking, tokens: int
    ) -> tuple[ModelRequest, Asking]:
        """The request with what is left to answer it, and what is set aside for it."""
        left = self.books.ledger.left
        if left.rounds == 0:
            raise BudgetError("no rounds are left", field="rounds")
        most = request.max_tokens or ANSWER_TOKENS
        # Without a budget it is what is charged if nobody hears how the call ended.
        asking = asking.model_copy(update={"tokens": tokens})
        if left.tokens is not None:
            most = min(most, left.tokens - tokens)
            if most < LEAST_ANSWER:
                raise BudgetError(
                    f"{left.tokens} tokens are left, and asking takes about {tokens}", field="tokens"
                )
            request, asking = (
                replace(request, max_tokens=most),
                asking.model_copy(update={"tokens": tokens + most}),
            )
        return request, asking

    async def failed(self, model: Model, error: ModelError, number: int) -> None:
        """A try was in vain; see `tries.Books`."""
        await self.recorder.store(
            Failed(
                at=self._now(),
                round=self._asked.round,
                number=self._asked.number,
                model=model.name,
                error=error.kind,
                reason=str(error),
                tokens=error.tokens,
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
