"""An exact replay: the code of today goes through a run again, and is held against what it did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from squadron.actors.goals.planner import OfflinePlanner
from squadron.actors.goals.supervisor import OWN_TOPIC, Pursuit, Terms
from squadron.actors.llm.tools import tools_of
from squadron.actors.runs.acting import Actions
from squadron.actors.runs.books import RunBooks
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.emitter import Emitter
from squadron.actors.runs.entries import Asking, CallsEnded, Entry, Epoch, Finished, Sending, Sent
from squadron.actors.runs.mind import Mind
from squadron.actors.runs.recorder import Recorder
from squadron.actors.runs.session import Session
from squadron.actors.runs.state import RunState
from squadron.actors.runs.toolbox import Toolbox
from squadron.actors.thinking.model import Model, ModelRequest, ToolDefinition
from squadron.bridge.memory import MemoryServer
from squadron.bridge.memory.turned_loop import TurnedLoop
from squadron.config import Settings
from squadron.replay.difference import Difference, between, between_requests, parts_of, same
from squadron.replay.doubles import (
    FOREVER_S,
    RecordedAim,
    RecordedBidding,
    RecordedMind,
    RecordedModel,
    RecordedQueries,
    RecordedTool,
    ReplayContext,
    forever,
)
from squadron.replay.recording import RecordedRun
from squadron.replay.tape import Tape
from squadron.runtime.errors import SquadronError
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.wire.approvals import Approvals
from squadron.runtime.wire.envelope import LAST_MS, AgentIdentity, AgentMessage, Constraints
from squadron.runtime.wire.limits import Deadline

#: The topic under whose name a replay's own process speaks.
_REPLAYER = AgentIdentity(id="replay", type="replay")


class ReplayRecorder(Recorder):
    """Holds what the code stores against the tape, and takes from there what came from outside.

    What came from outside is taken as soon as its turn on the tape has come. Nobody can tell from a log whether
    the code had seen it already when it decided what comes next: at the places in `late` it had not.
    """

    def __init__(self, tape: Tape, state: RunState, books: RunBooks, late: frozenset[int]) -> None:
        super().__init__(None, state, books, None, lambda _: None)  # type: ignore[arg-type]
        self._tape, self._late = tape, late
        self.actions: Actions | None = None
        self.over: asyncio.Future[Difference | None] = asyncio.get_running_loop().create_future()
        #: What came from outside before this place: where that began.
        self.waves: dict[int, int] = {}
        #: What is about to be asked.
        self.request: ModelRequest | None = None
        self.requests: dict[tuple[int, int], Sequence[str]] = {}
        self.known: dict[tuple[int, int], Sequence[str]] = {}
        self.digests = True
        self.decided: list[Entry] = []

    async def replay(self) -> None:
        """Take in what this attempt found in the log."""
        for entry in self._tape.past:
            self._take(entry)
        self._announce()

    async def store_locked(self, *entries: Entry) -> None:
        """Hold entries against the tape; what is not there ends the replay."""
        for entry in entries:
            self.catch_up()
            if isinstance(entry, Sent) or self._is_known(entry):
                continue
            coming = self._tape.next
            if self._tape.cut and not isinstance(entry, Epoch):
                await self._end(None)
            elif coming is None or not same(coming, entry, digests=self.digests):
                await self._end(self._difference(coming, entry))
            if isinstance(coming, Asking) and self.request is not None:
                self.requests[coming.round, coming.number] = parts_of(self.request)
            if isinstance(entry, Asking | Sending):
                self.decided.append(entry)
            self._next()
            if self._tape.at not in self._late:
                self.catch_up()
        self._announce()
        self._check_over()

    async def _end(self, difference: Difference | None) -> None:
        if not self.over.done():
            self.over.set_result(difference)
        await forever()

    def _check_over(self) -> None:
        # Who has finished comes to an end by itself.
        if self._tape.cut and self.state.finished is None and not self.over.done():
            self.over.set_result(None)

    def _next(self) -> None:
        entry = self._tape.next
        assert entry is not None
        self._tape.go_on()
        self._take(entry)

    def _is_known(self, entry: Entry) -> bool:
        """Whether the tape had these ends already: the code comes to them, too."""
        if not isinstance(entry, CallsEnded):
            return False
        for end in entry.ends:
            known = self.state.calls[end.call].ends.get(end.index)
            if known is None:
                return False
            one, other = (CallsEnded(at=0, ends=(each,)) for each in (known, end))
            if not same(one, other, digests=self.digests):
                return False
        return True

    def catch_up(self) -> None:
        """Take what came from outside before the next thing that the code decides."""
        began, ended = self._tape.at, set[str]()
        while self._tape.from_outside(self.state):
            entry = self._tape.next
            self._next()
            if isinstance(entry, CallsEnded):
                ended |= {end.call for end in entry.ends}
        if self._tape.at == began:
            return
        self.waves[self._tape.at] = began
        self._announce()
        if self.actions is not None:
            for id in ended:
                self.actions.after_try(self.state.calls[id])
        self._check_over()

    async def changed(self, within_s: float | None) -> bool:
        """Wait until something is stored; nothing is left behind that is late."""
        at = self._tape.at
        self.catch_up()
        return self._tape.at != at or await super().changed(within_s)

    def _difference(self, recorded: Entry | None, now: Entry) -> Difference:
        if isinstance(recorded, Asking) and isinstance(now, Asking) and self.request is not None:
            asked = (recorded.round, recorded.number, recorded.model) == (now.round, now.number, now.model)
            if asked:
                where = f"round {now.round}, try {now.number}"
                known = self.known.get((recorded.round, recorded.number))
                return between_requests(where, known, parts_of(self.request), (recorded.digest, now.digest))
        return between(recorded, now)


class NotingMind(RecordedMind):
    """Tells the recorder what the model is asked, not only that it is."""

    async def note(self, asked: Asking, request: ModelRequest) -> None:
        assert isinstance(self.recorder, ReplayRecorder)
        self.recorder.request = request
        await super().note(asked, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySession(Session):
    """One attempt at a run, on tape."""

    tape: Tape
    epoch: Epoch
    recorder: list[ReplayRecorder] = field(default_factory=list)
    late: frozenset[int] = frozenset()

    def _recorder(self, state: RunState, books: RunBooks) -> Recorder:
        self.recorder.append(ReplayRecorder(self.tape, state, books, self.late))
        return self.recorder[0]

    async def _check_free(self, state: RunState) -> None:
        pass

    def _delivery(self) -> tuple[int, int]:
        return self.epoch.redriven, self.epoch.delivered

    def _mind(self, recorder: Recorder, books: RunBooks, kind: type[Mind] = NotingMind) -> Mind:
        return Session._mind(self, recorder, books, kind)

    def _actions(self, recorder: Recorder, books: RunBooks, group: asyncio.TaskGroup) -> Actions:
        actions = Actions(self.ctx, recorder, books, group, RecordedQueries(self.ctx, recorder, self.approvals))
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
        late: see `ReplayRecorder`.
    """

    def __init__(
        self,
        recorded: RecordedRun,
        tools: Sequence[ToolDefinition] | None = None,
        *,
        digests: bool = True,
        late: frozenset[int] = frozenset(),
    ) -> None:
        self.recorded, self._tools, self._digests, self._late = recorded, tools, digests, late
        self._decided: list[Entry] = []
        self.tape = Tape(recorded)
        self.requests: dict[tuple[int, int], Sequence[str]] = {}
        self.waves: dict[int, int] = {}
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
            requests=self.requests,
            decided=self._decided,
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
            recorder.known, recorder.requests = dict(self.recorded.requests), self.requests
            recorder.digests, recorder.decided = self._digests, self._decided
            await asyncio.wait([pursuing, recorder.over], return_when="FIRST_COMPLETED", timeout=FOREVER_S / 2)
            difference = await self._end_of(pursuing, recorder)
            self.waves |= recorder.waves
            return difference, recorder.state

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
            log=structlog.get_logger("squadron.replay"),
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
        asked = tuple(dict.fromkeys(entry.model for entry in tape.coming(Asking)))
        # Who had it go on may have named other models.
        names = started.models if set(asked) <= set(started.models) and started.models else asked
        chain: list[Model] = [RecordedModel(name, tape, lambda: session.recorder[0].catch_up()) for name in names]
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
            late=self._late,
        )
        return session


def _planning(model: Model, terms: Terms) -> Model:
    """The planner itself in the place of what it said: it is code of ours, and does the same each time."""
    return OfflinePlanner(terms.plan) if model.name == OfflinePlanner().name else model


async def _play(recorded: RecordedRun, tools: Sequence[ToolDefinition] | None, digests: bool) -> RunReplay:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TurnedLoop)
    loop.turned = True
    late, first = frozenset[int](), None
    while True:
        player = Player(recorded, tools, digests=digests, late=late)
        replay = await player.play()
        first = first if first is not None and first.entries >= replay.entries else replay
        came = player.waves.get(replay.entries)
        if replay.equal or came is None or came in late:
            return replay if replay.equal else first
        # Perhaps the code had not seen it yet when it decided.
        late |= {came}


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
