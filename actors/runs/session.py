"""An attempt at a run, from taking it over to its end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from squadron.actors.runs.acting import Actions
from squadron.actors.runs.asker import unheard
from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.emitter import Emitter
from squadron.actors.runs.ends import refusal
from squadron.actors.runs.entries import CallsEnded, Entry, Epoch, Finished, Gather, Nudge, Offered, Started
from squadron.actors.runs.log import RunLog
from squadron.actors.runs.loop import Aim, Loop, raised_of
from squadron.actors.runs.mind import Mind
from squadron.actors.runs.over import is_over
from squadron.actors.runs.queries import Queries
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.catalog import load_prices
from squadron.actors.thinking.model import ChatMessage, Model
from squadron.runtime.asking.cancel import cancellable, is_cancelled
from squadron.runtime.errors import SupersededError, Terminal
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.approvals import Approvals
from squadron.runtime.wire.limits import Budget, Deadline
from squadron.runtime.wire.topics import SemanticTopic

#: The cards of topics say what is to be approved.
NONE = Approvals()
#: The model is asked again when all has ended.
ALL = Gather()


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How a run begins: what the model is told first, which topics it is offered, and `Started.terms`."""

    title: str
    opening: Sequence[ChatMessage]
    topics: Sequence[SemanticTopic] = ()
    terms: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """All that one attempt at a run needs.

    Attributes:
        within_s: how long the whole run may take, in seconds.
        sampling: `temperature` and `max_tokens` of the model.
        approvals: which calls people have to approve, beside what cards say.
        again: whether a run that has ended is to go on.
        summary_models: what summarizes the conversation when it is too long; without any, extracts are taken.
    """

    ctx: TurnContext
    run: str
    toolbox: Toolbox
    chain: Sequence[Model]
    emitter: Emitter
    max_rounds: int
    within_s: float
    sampling: dict[str, Any]
    gather: Gather = ALL
    output_schema: dict[str, Any] | None = None
    again: bool = False
    approvals: Approvals = NONE
    summary_models: Sequence[Model] = ()

    async def pursue(self, aim: Aim, begin: Callable[[], Awaitable[Beginning]]) -> tuple[RunState, Finished]:
        """Take the run over, or begin it, and go on to its end.

        Args:
            begin: makes the `Beginning`, if this is the first attempt.

        Raises:
            SupersededError: another attempt has taken it over.
            Terminal: it comes to nothing; says why.
            BusUnavailableError: the server was away until the deadline.
        """
        clock = self.ctx.caller.ports.clock
        state, books = RunState(self.run, self.toolbox), RunBooks(self.run, self.ctx.message.id, self.ctx.ledger)
        self.emitter.at_s = lambda: state.at_s(clock.time())
        left, recorder = self.ctx.ledger.left, self._recorder(state, books)
        if any(model.name.startswith(("openai", "anthropic")) for model in (*self.chain, *self.summary_models)):
            await load_prices()
        await recorder.replay()
        redriven, delivered = self._delivery()
        epoch = state.epoch
        if epoch is None or epoch.task != self.ctx.message.id:
            await self._check_free(state)
            fresh = True
        elif (epoch.redriven, epoch.delivered) > (redriven, delivered):
            raise SupersededError(f"a later attempt goes on with {self.run}")
        else:
            fresh = epoch.redriven < redriven
        if state.finished is None or fresh:
            await recorder.decide(*await self._entries(state, begin, left, fresh=fresh))
        finished = await self._loop(recorder, books, aim)
        if finished.error:
            raise Terminal(finished.error)
        return state, finished

    def _recorder(self, state: RunState, books: RunBooks) -> Recorder:
        ports = self.ctx.caller.ports
        deadline = Deadline.after(self.within_s, ports.clock)
        log = RunLog(ports, self.run, deadline, agent=self.ctx.agent, sealed=self.ctx.is_sealed)
        return Recorder(log, state, books, self.ctx.lease, self.emitter.send)

    async def _check_free(self, state: RunState) -> None:
        """Of two tasks at one run the one that goes on with it has it, when the other is over."""
        if self.again and state.started is None:
            raise Terminal(f"there is no run {self.run!r}, or it ended more than a week ago")
        ports, epoch = self.ctx.caller.ports, state.epoch
        under_way = state.finished is None and ports.clock.time() < state.deadline_at
        if self.again and under_way and not (epoch is not None and await self._is_left(state.started, epoch.task)):
            raise Terminal(f"{self.run} is still under way")
        if not self.again and state.started is not None:
            raise SupersededError(f"another task goes on with {self.run}")

    async def _is_left(self, started: Started | None, task: str) -> bool:
        """Whether nobody goes on with a run that has no end in its log: it may have waited, or died meanwhile."""
        ports = self.ctx.caller.ports
        return await is_cancelled(ports, cancellable(task, self.ctx.message.source.id)) or (
            started is not None and await is_over(ports, started.agent, task)
        )

    def _delivery(self) -> tuple[int, int]:
        lease = self.ctx.lease
        return self.ctx.message.redriven, lease.delivered if lease is not None else self.ctx.attempt

    async def _entries(
        self, state: RunState, begin: Callable[[], Awaitable[Beginning]], left: Budget, *, fresh: bool
    ) -> list[Entry]:
        """What an attempt writes first."""
        now, epoch = self.ctx.caller.ports.clock.time(), state.epoch
        redriven, delivered = self._delivery()
        deadline_at, max_rounds = now + self.within_s, state.round + self.max_rounds
        if epoch is not None and not fresh:
            # Time and rounds go on counting over attempts.
            deadline_at, max_rounds = epoch.deadline_at, epoch.max_rounds
        entries: list[Entry] = [
            Epoch(
                at=now,
                number=epoch.number + 1 if epoch else 1,
                task=self.ctx.message.id,
                redriven=redriven,
                delivered=delivered,
                replica=self.ctx.caller.ports.identity.id,
                deadline_at=deadline_at,
                max_rounds=max_rounds,
                grant=left.to_wire(),
                sampling=self.sampling,
                tools=tuple(tool.definition for tool in self.toolbox.own.values()),
                output_schema=self.output_schema,
            )
        ]
        if state.finished is not None and (self.again or state.finished.error):
            # What it ended with did not count, or is not to be all.
            why = state.finished.error or f"the run had ended: {state.finished.stopped}"
            if state.is_silent:
                entries.append(Nudge(at=now, text=f"Go on: {why}."))
            if ends := tuple(refusal(call, f"go on: {why}") for call in state.unbegun):
                entries.append(CallsEnded(at=now, ends=ends))
        if state.started is None:
            beginning = await begin()
            entries.append(
                Started(
                    at=now,
                    agent=self.ctx.agent,
                    topic=self.ctx.topic,
                    task=self.ctx.message.id,
                    title=beginning.title,
                    opening=tuple(beginning.opening),
                    models=tuple(model.name for model in self.chain),
                    gather=self.gather,
                    terms=beginning.terms,
                )
            )
            if beginning.topics or self.toolbox.left_out:
                left_out = dict(self.toolbox.left_out)
                entries.append(Offered(at=now, cards=tuple(beginning.topics), left_out=left_out))
        return entries

    def _mind(self, recorder: Recorder, books: RunBooks, kind: type[Mind] = Mind) -> Mind:
        return kind(
            ctx=self.ctx,
            recorder=recorder,
            books=books,
            chain=self.chain,
            # A typed answer is for who asked, and perhaps not its last form: nobody reads along.
            on_text=self.emitter.text if self.output_schema is None else unheard,
            on_event=self.emitter.send,
            sampling=self.sampling,
            output_schema=self.output_schema,
            summary_models=self.summary_models,
        )

    def _actions(self, recorder: Recorder, books: RunBooks, group: asyncio.TaskGroup) -> Actions:
        return Actions(self.ctx, recorder, books, group, Queries(self.ctx, recorder, self.approvals))

    async def _loop(self, recorder: Recorder, books: RunBooks, aim: Aim) -> Finished:
        mind = self._mind(recorder, books)
        self.ctx.thinking.add(self.run)
        try:
            async with asyncio.TaskGroup() as group:
                actions = self._actions(recorder, books, group)
                try:
                    return await Loop(recorder, mind, aim, actions).run()
                finally:
                    actions.close()
        except BaseExceptionGroup as errors:
            raise raised_of(errors) from None
        finally:
            self.ctx.thinking.discard(self.run)
            self.ctx.caller.forget(self.run)


def run_id(message_id: str, *parts: str) -> str:
    """The id of a run: the same on every attempt, because the message is."""
    digest = hashlib.sha256("\0".join((message_id, *parts)).encode("utf-8", "surrogatepass")).hexdigest()
    return f"run-{digest[:24]}"
