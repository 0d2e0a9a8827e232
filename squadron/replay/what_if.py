"""A what-if: a run goes on from some round with another model, goal, outcome or limit, as a run of its own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from squadron.actors.goals.planner import OfflinePlanner
from squadron.actors.goals.supervisor import OWN_TOPIC, Pursuit, Terms
from squadron.actors.runs.acting import Actions
from squadron.actors.runs.bidding_calls import BiddingCalls, Wanted
from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.built_in import BUILT_IN, Finish
from squadron.actors.runs.call import Call
from squadron.actors.runs.emitter import Emitter
from squadron.actors.runs.entries import CallEnd, CallsEnded, Entry, Epoch, Started
from squadron.actors.runs.log import RunLog, entries_of, read
from squadron.actors.runs.loop import SAID_NOTHING, Conclusion, Stopped, was_told
from squadron.actors.runs.queries import Queries
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.session import Beginning, Session
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.choice import OFFLINE, chain_of, open_model
from squadron.actors.thinking.model import Model, ModelTurn, ToolDefinition
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.config import Settings
from squadron.replay.export import scrubbed
from squadron.replay.fork import Changes, Fork, folded, fork
from squadron.replay.known import KnownWorld, outcome_of
from squadron.replay.recording import Header, RecordedRun, Recording
from squadron.runtime.errors import ConfigError, SquadronError, Terminal
from squadron.runtime.logs import get_logger
from squadron.runtime.redact import scrub_all
from squadron.runtime.running.context import TurnContext
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.approvals import Approvals
from squadron.runtime.wire.bids import Bids
from squadron.runtime.wire.envelope import LAST_MS, AgentIdentity, AgentMessage, Constraints
from squadron.runtime.wire.limits import Budget, Deadline
from squadron.runtime.wire.outcome import Cancelled, Outcome, Rejected
from squadron.runtime.wire.topics import SemanticTopic

#: Least time that a what-if has, in seconds: its models may be slower than those that were asked.
LEAST_S = 300.0
#: What is said of a call that is not recorded and may not go out.
REFUSED = "not in the recording, and a replay may call nothing live"

#: Asks a live agent: topic, content, seconds, budget.
LiveAsk = Callable[[str, Any, float, Budget], Awaitable[Outcome]]


class _Known:
    """A task whose outcome comes from the recording, or from an agent that was asked."""

    def __init__(self, task_id: str, topic: str, coming: Awaitable[Outcome]) -> None:
        self.task_id, self.topic = task_id, topic
        self._coming = asyncio.ensure_future(coming)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._coming.done()

    async def outcome(self) -> Outcome:
        """How it ended."""
        await asyncio.wait([self._coming])
        if self._coming.cancelled():
            return Cancelled(task_id=self.task_id, topic=self.topic, reason="it was cancelled")
        return self._coming.result()

    async def cancel(self) -> None:
        """Wait for it no longer."""
        self._coming.cancel()


class WhatIfContext(TurnContext):
    """A turn whose tasks are answered from a recording; what is not in it goes out, if it may."""

    world: KnownWorld
    live: LiveAsk | None = None
    run: str = ""

    async def emit(self, chunk: Any) -> None:
        """Nobody reads along."""

    async def submit_for(self, owner: str, topic: str, content: Any, *, reserved: str = "", **options: Any) -> Any:
        """A task that was asked before, or one that goes out."""
        return _Known(reserved, topic, self._ask(topic, content, options))

    async def _ask(self, topic: str, content: Any, options: dict[str, Any]) -> Outcome:
        if (end := self.world.end(topic, content)) is not None:
            return outcome_of(end)
        if self.live is None:
            return Rejected(topic=topic, reason=REFUSED)
        return await self.live(topic, content, options["within_s"], options["budget"])

    async def adopt(self, task_id: str, topic: str, reply_to: str, deadline: Deadline) -> Any:
        """A task that was under way when the recording was left."""
        # See `references.task_id`.
        call, _, index = task_id.removeprefix(f"{self.run}-").rpartition("-")
        end = self.world.end_of(call, int(index))
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        ended.set_result(outcome_of(end) if end is not None else Rejected(topic=topic, reason=REFUSED))
        return _Known(task_id, topic, ended)


@dataclass(frozen=True)
class _Tool:
    """A tool of the agent's own: it is not run, but answered from the recording."""

    definition: ToolDefinition
    world: KnownWorld
    may_repeat: bool = True
    within_s: float = LEAST_S

    async def run(self, arguments: Any) -> Any:
        end = self.world.end(self.definition.name, arguments)
        if end is None:
            raise SquadronError(REFUSED)
        if end.outcome != "result":
            raise SquadronError(end.reason)
        return list(end.attachments) or end.data


class _People(Queries):
    """People say what they said; what they were not asked they are not asked now."""

    async def ask(self, call: Call) -> None:
        world = self.ctx.world  # type: ignore[attr-defined]
        at = self.ctx.caller.ports.clock.time()
        refused = CallEnd(call=call.id, topic=call.said.name, outcome="rejected", reason=REFUSED)
        await self.recorder.store(*(world.answer(call, at) or [CallsEnded(at=at, ends=(refused,))]))

    async def withdraw(self, calls: Sequence[Call]) -> None:
        pass


@dataclass
class _NoBids(BiddingCalls):
    """Nobody bids: the first topic is asked plainly."""

    async def bids(self, wanted: Sequence[Wanted], deadline_ms: int) -> list[Bids]:
        return [Bids((), {}) for _ in wanted]

    async def reject_others(self, call: Call) -> None:
        pass


@dataclass
class _Aim:
    """What the run is for; topics are those that are recorded, and of an agent's answer its form counts."""

    ctx: WhatIfContext
    started: Started
    inner: Pursuit | None
    typed: bool

    async def begin(self) -> Beginning:
        """It has begun."""
        return Beginning(title=self.started.title, opening=self.started.opening)

    async def find(self, intent: str) -> Sequence[SemanticTopic]:
        return self.ctx.world.find(intent)

    def judge(self, state: RunState, turn: ModelTurn) -> Conclusion | str:
        if self.inner is not None:
            return self.inner.judge(state, turn)
        if not self.typed:
            return Conclusion(turn.text) if turn.text.strip() or was_told(state) else SAID_NOTHING
        try:
            return Conclusion(json.loads(turn.text.strip().removeprefix("```json").strip("`")))
        except (ValueError, RecursionError) as error:
            return f"Your answer is no JSON: {error}. Answer with nothing else."

    def finish(self, state: RunState, asked: Finish) -> Conclusion:
        return self.inner.finish(state, asked) if self.inner is not None else Conclusion(asked.answer)

    def stop(self, state: RunState, stopped: Stopped, why: str) -> Any:
        if self.inner is not None:
            return self.inner.stop(state, stopped, why)
        raise Terminal(f"it came to no answer: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfSession(Session):
    """The attempt that goes on otherwise."""

    async def _check_free(self, state: RunState) -> None:
        pass

    def _actions(self, recorder: Recorder, books: RunBooks, group: asyncio.TaskGroup) -> Actions:
        actions = Actions(self.ctx, recorder, books, group, _People(self.ctx, recorder, self.approvals))
        actions.bidding = _NoBids(self.ctx, books, self.run)
        return actions


async def what_if(
    recording: Recording,
    changes: Changes,
    *,
    models: Sequence[Model] = (),
    live: LiveAsk | None = None,
) -> Recording:
    """Have the main run of a recording go on otherwise; returns the new run, without secrets.

    The old one is not touched.

    Args:
        models: who is asked, in the place of those that `changes` or the recording name.
        live: has agents do what is not in the recording; without it such calls are refused.

    Raises:
        ConfigError: the changes don't fit the run, or there is no such model.
        RecordingError: the recording is not whole.
    """
    recorded = recording.main
    cut = fork(recorded, changes)
    new = f"run-{os.urandom(12).hex()}"
    changed = scrub_all(changes.to_dict())
    told = {"of": recording.header.run, "from": cut.round, "mode": "what-if", "changes": changed}
    place = MemoryServer("replay").place(
        AgentIdentity(id="replay", type="replay"), Settings.load({}, model=OFFLINE)
    )
    ports = place.ports
    deadline = Deadline.after(LEAST_S, ports.clock)
    log = RunLog(ports, recorded.run, deadline)
    await log.load()
    try:
        await log.append(*(_marked(entry, told) for entry in cut.entries), about={})
    except ValueError as error:
        raise ConfigError(f"the run can't be written: {error}", hint="nest outcomes less deeply") from None
    async with AsyncExitStack() as stack:
        chain = list(models) or _chain(changes.model, recorded.started)
        for model in () if models else chain:
            stack.push_async_callback(model.aclose)
        await _go_on(place, recorded, cut, changes, chain, new, live)
    messages = [entries_of(message) async for _, message in read(ports, ports.subjects.run(recorded.run))]
    gone_on = RecordedRun(run=recorded.run, messages=tuple(messages))
    header = Header(
        run=new,
        agent=recording.header.agent,
        topic=recording.header.topic,
        env=recording.header.env,
        exported_at=ports.clock.time(),
        code=recording.header.code,
        replay=told,
    )
    # What it was told and what models and agents said may hold secrets. In a thread, as in an export.
    return Recording(header=header, runs=(await asyncio.to_thread(scrubbed, gone_on),))


def _marked(entry: Entry, told: dict[str, Any]) -> Entry:
    return (
        entry.model_copy(update={"terms": {**entry.terms, "replay": told}})
        if isinstance(entry, Started)
        else entry
    )


def _chain(spec: str, started: Started) -> list[Model]:
    pursues = started.topic == OWN_TOPIC
    terms = Terms.model_validate(started.terms if pursues else {})
    try:
        names = chain_of(spec) if spec else [*started.models]
        planner = (OFFLINE, OfflinePlanner().name)
        return [OfflinePlanner(terms.plan) if pursues and name in planner else open_model(name) for name in names]
    except Terminal as error:
        raise ConfigError(f"the run can't go on: {error}", hint="name another model: --model") from None


async def _go_on(
    place: Place,
    recorded: RecordedRun,
    cut: Fork,
    changes: Changes,
    chain: Sequence[Model],
    new: str,
    live: LiveAsk | None,
) -> None:
    started = next(entry for entry in cut.entries if isinstance(entry, Started))
    epoch = [entry for entry in cut.entries if isinstance(entry, Epoch)][-1]
    whole, before = folded(recorded), RunState(recorded.run, Toolbox(tuple(BUILT_IN)))
    for entry in cut.entries:
        before.apply(entry)
    ctx = WhatIfContext(
        AgentMessage.new("task", place.ports.identity, None, id=new),
        agent=started.agent,
        topic=started.topic,
        attempt=1,
        deadline=Deadline(LAST_MS, place.ports.clock),
        ledger=Ledger(Constraints.model_validate(epoch.grant).budget.minus(before.spent)),
        caller=place.caller,
        lite_key=place.ports.subjects.lite("replay", "replay"),
        log=get_logger("squadron.replay"),
    )
    ctx.world, ctx.live, ctx.run = KnownWorld(recorded, whole, cut), live, recorded.run
    pursues = started.topic == OWN_TOPIC
    terms = Terms.model_validate(started.terms if pursues else {})
    toolbox = Toolbox(
        tuple(BUILT_IN) if pursues else (),
        [_Tool(each, ctx.world) for each in epoch.tools],
        allowed=terms.topics,
        never={started.topic, OWN_TOPIC} if pursues else (),
    )
    async with Emitter(ctx) as emitter:
        session = WhatIfSession(
            ctx=ctx,
            run=recorded.run,
            toolbox=toolbox,
            chain=chain,
            emitter=emitter,
            max_rounds=max(1, (changes.max_rounds or epoch.max_rounds) - cut.round + 1),
            within_s=max(LEAST_S, epoch.deadline_at - started.at),
            sampling=epoch.sampling,
            gather=started.gather,
            output_schema=epoch.output_schema,
            again=True,
            approvals=Approvals(ask=terms.approve, trust=terms.trust),
        )
        inner = Pursuit(ctx, started.title, terms, toolbox) if pursues else None
        aim = _Aim(ctx, started, inner, epoch.output_schema is not None)
        try:
            await session.pursue(aim, aim.begin)
        except Terminal:
            # Its log says so.
            return
