"""Agents that think: they may be given the model to think with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from squadron.actors.agent import Agent
from squadron.actors.thinking.choice import OFFLINE, SAME, chain_of, summary_spec_of
from squadron.actors.thinking.model import Model
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import Context


class Thinker(Agent):
    """Base of agents that ask a model.

    Attributes:
        given_model: what it thinks with, whatever a task names; None asks `make_model`. Tests give it, with
            `MemorySquad.deploy(…, model=…)`.
        summary_model: what summarizes a conversation that is too long: a spec, "same" as the run, or "offline" for
            an extract by no model; empty is the setting `summary_model`, by default an extract.
    """

    given_model: Model | None = None
    summary_model: ClassVar[str] = ""

    async def models_for_summaries(
        self, ctx: Context, chain: Sequence[Model], make: Callable[[Sequence[str]], Awaitable[Sequence[Model]]]
    ) -> Sequence[Model]:
        """The models to summarize with, the one to ask first at its head; none for an extract.

        Args:
            chain: the models of the run; if the first is none, there is none for summaries either.
            make: opens the models of these specs.
        """
        spec = summary_spec_of(self.summary_model)
        if spec == OFFLINE or chain[0].name.startswith(f"{OFFLINE}:"):
            return ()
        if spec == SAME or self.given_model is not None:
            return chain
        try:
            return await make(chain_of(spec))
        except Terminal as error:
            # No task fails for want of a summary.
            ctx.log.warning("summary.no_model", model=spec, error=str(error))
            return ()
