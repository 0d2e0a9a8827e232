"""An exact replay: the code of today goes through a run again, and is held against what it did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from squadron.actors.goals.planner import OfflinePlanner
from squadron.actors.goals.supervisor import OWN_TOPIC, Pursuit, Terms
from squadron.actors.llm.tools import tools_of
from squadron.actors.runs.acting import Actions
from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.emitter import Emitter
from squadron.actors.runs.entries import Asking, Entry, Epoch, Finished
from squadron.actors.runs.mind import Mind
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.session import Session
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.model import Model, ToolDefinition
from squadron.bridge.memory import MemoryServer
from squadron.bridge.memory.turned_loop import TurnedLoop
from squadron.config import Settings
from squadron.replay.difference import Difference, between
from squadron.replay.doubles import (
    FOREVER_S,
    RecordedAim,
    RecordedBidding,
    RecordedModel,
    RecordedQueries,
    RecordedTool,
    ReplayContext,
)
from squadron.replay.held import NotingMind, ReplayActions, ReplayNotes, ReplayRecorder
from squadron.replay.recording import RecordedRun
from squadron.replay.tape import Tape
from squadron.runtime.errors import SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.approvals import Approvals
from squadron.runtime.wire.envelope import LAST_MS, AgentIdentity, AgentMessage, Constraints
from squadron.runtime.wire.limits import Deadline

#: The topic under whose name a replay's own process speaks.
_REPLAYER = AgentIdentity(id="replay", type="replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySession(Session):
    """One attempt at a run, on tape."""

    tape: Tape
    epoch: Epoch
    notes: ReplayNotes
    recorder: list[ReplayRecorder] = field(default_factory=list)

    def _recorder(self, state: RunState, books: RunBooks) -> Recorder:
        self.recorder.append(ReplayRecorder(self.tape, state, books, self.notes))
        return self.recorder[0]

    async def _check_free(self, state: RunState) -> None:
        pass

    def _delivery(self) -> tuple[int, int]:
        return self.epoch.redriven, self.epoch.delivered

    def _mind(self, recorder: Recorder, books: RunBooks, kind: type[Mind] = NotingMind) -> Mind:
        return Session._mind(self, recorder, books, kind)

    def _actions(self, recorder: Recorder, books: RunBooks, group: asyncio.TaskGroup) -> Actions:
        actions = ReplayActions(
            self.ctx, recorder, books, group, RecordedQueries(self.ctx, recorder, self.approvals)
        )
        actions.bidding = RecordedBidding(self.ctx, books, self.run, self.tape)
        self.recorder[0].actions = actions
        return actions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReplay:
    """What came of the replay of one run.

    Attributes:
        difference: the first place where the code of today did otherwise; None if there is none.
        entries, of: how many entries of the log it came past, of how many.
        requests: what models were asked, as in `RecordedRun`.
        decided: what the code asked and sent, as it would store it now.
    """

    run: str
    difference: Difference | None
    entries: int
    of: int
    state: RunState
    requests: dict[tuple[int, int], Sequence[str]]
    decided: Sequence[Entry] = ()

    @property
    def equal(self) -> bool:
        """Whether the code of today does what is recorded."""
        return self.difference is None


class Player:
    """Replays one run, attempt after attempt.

    Args:
        tools: the agent's own tools as they are now; as they are recorded if none are given.
        digests: False where they are not to be held against the recorded ones.
    """

    def __init__(
        self,
        recorded: RecordedRun,
        tools: Sequence[ToolDefinition] | None = None,
        *,
        digests: bool = True,
    ) -> None:
        self.recorded, self._tools = recorded, tools
        self.notes = ReplayNotes(recorded.requests, digests)
        self.tape = Tape(recorded)
        self._place = MemoryServer("replay", self.tape).place(_REPLAYER, Settings.load({}, model="offline"))

    async def play(self) -> RunReplay:
        """Go through the whole of it."""
        difference, state = None, RunState(self.recorded.run, Toolbox())
        while difference is None and self.tape.next is not None:
            epoch = self.tape.next
            if not isinstance(epoch, Epoch):
                difference = between(epoch, None)
                break
            difference, state = await self._attempt(epoch)
        return RunReplay(
            run=self.recorded.run,
            difference=difference,
            entries=self.tape.at,
            of=len(self.tape.entries),
            state=state,
            requests=self.notes.requests,
            decided=self.notes.decided,
        )

    async def _attempt(self, epoch: Epoch) -> tuple[Difference | None, RunState]:
        self.tape.begin()
        ctx = self._context(epoch)
        async with Emitter(ctx) as emitter:
            session = self._session(ctx, emitter, epoch)
            aim = RecordedAim(self.tape, session.toolbox)
            started = self.recorded.started
            if started.topic == OWN_TOPIC:
                terms = Terms.model_validate(started.terms)
                aim.inner = Pursuit(ctx, started.title, terms, session.toolbox)
            pursuing = asyncio.create_task(session.pursue(aim, aim.begin))
            while not session.recorder:
                await asyncio.wait([pursuing], timeout=0)
            recorder = session.recorder[0]
            ends: list[asyncio.Future[Any]] = [pursuing, recorder.over]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=FOREVER_S / 2)
            return await self._end_of(pursuing, recorder), recorder.state

    async def _end_of(self, pursuing: asyncio.Task[Any], recorder: ReplayRecorder) -> Difference | None:
        if pursuing.done():
            # Who has finished with an error raises it.
            error = pursuing.exception()
            if error is not None and not isinstance(error, SquadronError):
                raise error
            if recorder.state.finished is None:
                return Difference(f"the code ends the run otherwise: {error}", "", str(error))
        else:
            pursuing.cancel()
            with contextlib.suppress(asyncio.CancelledError, SquadronError):
                await pursuing
        if recorder.over.done():
            return recorder.over.result()
        return None if self.tape.cut else between(self.tape.next, None)

    def _context(self, epoch: Epoch) -> ReplayContext:
        started = self.recorded.started
        message = AgentMessage.new("task", _REPLAYER, None, id=epoch.task or started.task)
        return ReplayContext(
            message,
            agent=started.agent,
            topic=started.topic,
            attempt=epoch.delivered,
            deadline=Deadline(self._answer_by_ms(), self.tape),
            ledger=Ledger(Constraints.model_validate(epoch.grant).budget),
            caller=self._place.caller,
            lite_key=self._place.ports.subjects.lite("replay", "replay"),
            log=get_logger("squadron.replay"),
        )

    def _answer_by_ms(self) -> int:
        """When this attempt had to end: the log tells it only of one that did for that."""
        ends = [entry.at for entry in self.tape.coming(Finished) if entry.stopped == "time"]
        return int(1000 * ends[0]) if ends else LAST_MS

    def _session(self, ctx: ReplayContext, emitter: Emitter, epoch: Epoch) -> ReplaySession:
        started, tape = self.recorded.started, self.tape
        pursues = started.topic == OWN_TOPIC
        terms = Terms.model_validate(started.terms if pursues else {})
        tools = [RecordedTool(each, tape) for each in (epoch.tools if self._tools is None else self._tools)]
        session: ReplaySession
        asked = tuple(dict.fromkeys(entry.model for entry in tape.coming(Asking) if not entry.covers))
        # Who had it go on may have named other models.
        names = started.models if set(asked) <= set(started.models) and started.models else asked
        chain: list[Model] = [RecordedModel(name, tape, lambda: session.recorder[0].answered()) for name in names]
        session = ReplaySession(
            ctx=ctx,
            run=self.recorded.run,
            toolbox=Toolbox(
                tuple(BUILT_IN) if pursues else (),
                tools,
                allowed=terms.topics,
                never={started.topic, OWN_TOPIC} if pursues else (),
            ),
            chain=[_planning(model, terms) for model in chain],
            emitter=emitter,
            max_rounds=max(1, epoch.max_rounds),
            within_s=FOREVER_S,
            sampling=epoch.sampling,
            gather=started.gather,
            output_schema=epoch.output_schema,
            again=bool(epoch.task) and epoch.task != started.task,
            approvals=Approvals(ask=terms.approve, trust=terms.trust),
            tape=tape,
            epoch=epoch,
            notes=self.notes,
        )
        return session


def _planning(model: Model, terms: Terms) -> Model:
    """The planner itself in the place of what it said: it is code of ours, and does the same each time."""
    return OfflinePlanner(terms.plan) if model.name == OfflinePlanner().name else model


async def _play(recorded: RecordedRun, tools: Sequence[ToolDefinition] | None, digests: bool) -> RunReplay:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TurnedLoop)
    loop.turned = True
    return await Player(recorded, tools, digests=digests).play()


def play(
    recorded: RecordedRun, tools: Sequence[ToolDefinition] | None = None, *, digests: bool = True
) -> RunReplay:
    """Replay one run; takes no longer than its decisions, whatever its pauses were. Needs no event loop.

    Args:
        tools, digests: see `Player`.

    Raises:
        RecordingError: it does not say how the run began.
    """
    with asyncio.Runner(loop_factory=TurnedLoop) as runner:
        return runner.run(_play(recorded, tools, digests))


def tools_in(agent: Any) -> tuple[ToolDefinition, ...]:
    """The tools of an agent's class or instance."""
    return tuple(spec.definition for spec in tools_of(agent() if isinstance(agent, type) else agent))
