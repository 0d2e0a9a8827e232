"""Has a model summarize a part of a run's conversation; where that comes to nothing, an extract is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from squadron.actors.runs.asker import DEFAULT_WINDOW, Asker
from squadron.actors.runs.entries import Summarized
from squadron.actors.thinking.catalog import spent_of, window_of
from squadron.actors.thinking.model import Model, ModelRequest
from squadron.actors.thinking.summarize import is_summary, summary_request
from squadron.actors.thinking.tokens import conversation_tokens, family_of
from squadron.actors.thinking.window import Summary, ToSummarize
from squadron.runtime.errors import BudgetError, ModelError
from squadron.runtime.wire.spent import Spent

#: Longest time for a summary, and the shortest for which one is asked for, in seconds: 6,000 tokens at 50 a second
#: are two minutes. And its share of the time that is left: the run needs the rest.
MOST_S, LEAST_S, SHARE_OF_TIME = 120.0, 5.0, 0.25


@dataclass(kw_only=True)
class SummaryWriter(Asker):
    """Has one part summarized; that is a call of the run like any other, which nobody reads along.

    Attributes:
        short: what is taken if no model gives a summary, or the budget has no room for one.
        beside: what the budget must have left for the turn that it is made for.
    """

    span: ToSummarize
    short: Summary
    beside: Spent

    async def write(self) -> None:
        """Store the summary; it comes to one in any case.

        Raises:
            SupersededError: another attempt has taken the run over.
            BusUnavailableError: the server was away until the deadline.
        """
        started, within_s = self.ctx.caller.loop.time(), min(MOST_S, SHARE_OF_TIME * self.left_s())
        if within_s < LEAST_S:
            return await self._store(self.short)
        request = self._request(self.chain[0])
        try:
            turn = await self._answer(request, within_s, covers=self.span.digest)
        except (ModelError, BudgetError):
            return await self._store(self.short)
        spent = spent_of(turn.model, turn.usage)
        if not is_summary(turn):
            why = ModelError(f"{turn.model} wrote no summary, and stopped with {turn.stop!r}")
            await self._note_failure(turn.model, why, spent)
            return await self._store(self.short)
        await self._store(
            self.span.summary(turn.text.strip(), self._state.fence),
            model=turn.model,
            tokens=turn.tokens,
            spent=spent.to_wire(),
            seconds=round(self.ctx.caller.loop.time() - started, 3),
        )

    async def refused(self, model: Model, error: ModelError) -> None:
        """An extract is taken then: that is in the log."""

    async def _store(self, summary: Summary, **about: Any) -> None:
        messages = len(self.span.messages)
        await self.recorder.store(Summarized(at=self._now(), summary=summary, messages=messages, **about))

    def _request(self, model: Model) -> ModelRequest:
        window = window_of(model.name) or DEFAULT_WINDOW
        return summary_request(self.span, self._state.fence, window_tokens=window, family=family_of(model.name))

    async def _asking(self, model: Model, request: ModelRequest) -> ModelRequest:
        # Each model of the chain has a window of its own.
        request = self._request(model)
        new = conversation_tokens(request.messages, family_of(model.name))
        left = self.books.ledger.left.minus(self.beside)
        estimate = self._reserve(model, request, left, known=0, new=new)
        if estimate.max_tokens != request.max_tokens:
            # One that is cut would be paid for in vain.
            raise BudgetError("the budget leaves too little for a whole summary", hint="ask with a larger budget")
        return await self._store_asking(model, request, estimate, covers=self.span.digest)
