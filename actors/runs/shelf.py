"""The runs of an environment: which there are, what became of them, and how to stop them or have them go on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from squadron.actors.runs.authors import Authors
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import Summarized, TryFailed
from squadron.actors.runs.lanes import Costs, costs_of, timeline_of
from squadron.actors.runs.log import entries_of, read
from squadron.actors.runs.moments import Bar, ModelCost, Moments
from squadron.actors.runs.over import is_over
from squadron.actors.runs.state import RunState
from squadron.actors.runs.task_trace import lanes_of_task
from squadron.actors.runs.timeline import Timeline, spanning
from squadron.actors.runs.toolbox import Toolbox
from squadron.runtime.asking.cancel import request_cancel
from squadron.runtime.errors import ConfigError, InvalidMessageError
from squadron.runtime.html_table import ShownAsTable
from squadron.runtime.store.operating import operating
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.spent import Spent
from squadron.runtime.wire.subjects import token_of

#: Runs that are looked at for one list; the oldest of more are not seen.
MOST_RUNS = 10_000


@with_config(ConfigDict(allow_inf_nan=False))
@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run in a list. Times are in seconds since the epoch; `usd` is in US dollars.

    `state` is "running", "failed", or how it ended: see `RunReport.stopped`. One without an end that nobody works
    on any more is "stale": its task has ended or was given up, or its deadline has passed; "cancelled" if somebody
    stopped it.
    """

    run: str
    state: str
    agent: str = ""
    topic: str = ""
    task: str = ""
    title: str = ""
    rounds: int = 0
    running: int = 0
    tokens: int = 0
    usd: float = 0.0
    started: float = 0.0
    deadline: float = 0.0
    updated: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nobody works on it any more."""
        return self.state != "running"


class RunList(ShownAsTable, tuple[RunInfo, ...]):
    """Runs, the latest change first.

    `left_out` is how many more there may be, where `verify` is `require`: those whose logs no agent signed as its
    own, or another one began.
    """

    left_out: int = 0

    HEADER = ("run", "state", "agent", "what for", "rounds", "tokens", "US dollars")
    NONE = "Nothing was thought yet."

    @staticmethod
    def _row(each: Any, /) -> Sequence[object]:
        return each.run, each.state, each.agent, each.title, each.rounds, f"{each.tokens:,}", f"{each.usd:.4f}"


@dataclass(frozen=True, slots=True)
class CallView:
    """One call of a run: where it went, how its tasks ended, and the runs that they are themselves.

    `query` is the question to a person, if there was one; `answered_by` who answered it, None while nobody has.
    `bars` is what its time went to, `again` how many of its tasks took more than one attempt.
    """

    id: str
    name: str
    tasks: int
    outcomes: dict[str, int]
    reason: str
    seconds: float | None
    tokens: int
    usd: float
    query: str = ""
    approval: bool = False
    answered_by: str | None = None
    runs: tuple[RunView, ...] = ()
    bars: tuple[Bar, ...] = ()
    again: int = 0


@dataclass(frozen=True, slots=True)
class SummaryView:
    """So many messages were summarized; `model` wrote the summary and used so much, empty for an extract."""

    messages: int
    model: str
    seconds: float
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class RoundView:
    """One turn of the model and its calls, and before it: why it was asked in vain, and what was summarized."""

    round: int
    model: str
    text: str
    seconds: float
    tokens: int
    usd: float
    calls: tuple[CallView, ...]
    failed: tuple[str, ...] = ()
    summarized: tuple[SummaryView, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as a tree: rounds, their calls, and the runs of the agents that were called.

    `thinking` is how long the model has been asked for the turn that is to come, `ended` when the run was over, in
    seconds since the epoch, `passed_over` how many messages of its log nobody can read or its agent did not sign.
    """

    info: RunInfo
    attempts: int
    tries: int
    failures: int
    entries: int
    bytes: int
    answer: Any
    error: str
    rounds: tuple[RoundView, ...] = field(default=())
    models: tuple[ModelCost, ...] = ()
    thinking: tuple[Bar, ...] = ()
    ended: float | None = None
    passed_over: int = 0

    def timeline(self) -> Timeline:
        """Where its time went: in a notebook a picture, elsewhere text."""
        return timeline_of(self)

    def _repr_html_(self) -> str:
        return self.timeline()._repr_html_()

    def costs(self) -> Costs:
        """What it cost by model, by round and by call."""
        return costs_of(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


_INFO = TypeAdapter(RunInfo)
#: Runs by the task that they are, oldest first.
Infos = Mapping[str, list[RunInfo]]


@dataclass(slots=True)
class _Before:
    """What came before a turn: why a model was asked in vain, and what was summarized."""

    failed: list[str] = field(default_factory=list)
    summarized: list[SummaryView] = field(default_factory=list)


class Runs:
    """What has been thought, and is being thought, in one environment."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._authors = Authors(ports)

    async def list(self, *, most: int = 50, agent: str = "") -> RunList:
        """The newest runs, the latest change first.

        Args:
            agent: only those of this agent.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        infos = await self._infos()
        found = [info for info in infos if agent in ("", info.agent)]
        runs = RunList([await self._looked(info) for info in found[:most]])
        runs.left_out = infos.left_out
        return runs

    async def _infos(self) -> RunList:
        """All runs by what is stored of them, the latest change first."""
        entries, left_out = await self._authors.newest_of_runs()
        stopped = {
            entry.key.rpartition(".")[2]
            for entry in await self._ports.lite.latest(self._ports.subjects.lite_of("cancel"))
        }
        found = [info for each in entries if (info := self._info(each.key, each.data, each.time, stopped))]
        infos = RunList(sorted(found, key=lambda info: -info.updated)[:MOST_RUNS])
        infos.left_out = left_out
        return infos

    def _info(self, key: str, data: bytes, at: float, stopped: Collection[str]) -> RunInfo | None:
        try:
            message = AgentMessage.decode(data)
        except InvalidMessageError:
            return None
        about = (message.metadata or {}).get("about")
        if not isinstance(about, Mapping):
            return None
        try:
            named = {"run": key.rpartition(".")[2], "updated": at}
            info = _INFO.validate_python({"state": "running", **about, **named})
        except ValidationError:
            # Anybody may write there.
            return None
        if not info.ended and token_of(info.task) in stopped:
            return replace(info, state="cancelled", running=0)
        # Nobody ends a run whose caller is gone.
        stale = not info.ended and self._ports.clock.time() > info.deadline > 0
        return replace(info, state="stale", running=0) if stale else info

    async def _looked(self, info: RunInfo) -> RunInfo:
        """The same, when it is known whether its task still is."""
        over = not info.ended and await is_over(self._ports, info.agent, info.task)
        return replace(info, state="stale", running=0) if over else info

    async def find(self, id: str) -> RunInfo:
        """The run of this id, or the only one that begins with it.

        Raises:
            ConfigError: there is none, or more than one.
        """
        exact = id if id.startswith("run-") else f"run-{id}"
        found = [info for info in await self._infos() if info.run.startswith(exact)]
        whole = [info for info in found if info.run == exact]
        if len(whole or found) != 1:
            what = f"{len(found)} runs begin with {id!r}" if found else f"there is no run {id!r}"
            raise ConfigError(what, hint="see `squadron runs list`")
        return await self._looked((whole or found)[0])

    async def show(self, id: str) -> RunView:
        """One run with all that its log tells, and with the runs that it called.

        Raises:
            ConfigError: there is none, or more than one.
            BusUnavailableError: the server can't be reached.
        """
        infos = defaultdict[str, list[RunInfo]](list)
        for info in sorted(await self._infos(), key=lambda info: info.started):
            # A handler may think more than once.
            infos[info.task].append(info)
        return await self._view(await self.find(id), infos, set())

    async def trace(self, id: str) -> tuple[Timeline, Costs | None]:
        """Where the time of a run or of a task went, and what a run cost.

        Args:
            id: of a run, or its beginning; or of a task, in full: the runs that it was, or its outcome while it
                lives.

        Raises:
            ConfigError: nothing is known of it.
            BusUnavailableError: the server can't be reached.
        """
        runs = [info.run for info in await self._infos() if info.task == id]
        if len(runs) == 1 or id.startswith("run-"):
            view = await self.show(runs[0] if runs else id)
            return view.timeline(), view.costs()
        lanes = await lanes_of_task(self._ports, id)
        for run in reversed(runs):
            lanes += (await self.show(run)).timeline().lanes
        if lanes:
            return spanning(f"task {id}", lanes), None
        try:
            view = await self.show(id)
        except ConfigError as error:
            hint = "runs: `squadron runs list`; of a task its outcome is kept for an hour"
            raise ConfigError(f"{error.args[0]}, and no task of this id is known", hint=hint) from None
        return view.timeline(), view.costs()

    async def _view(self, info: RunInfo, infos: Infos, above: set[str]) -> RunView:
        state, moments, entries, size, before, passed_over = await self._read(info)
        rounds = []
        for number, thought in sorted(state.turns.items()):
            # What the run ended with is told as its answer.
            calls = [call for call in state.calls.values() if call.round == number and call.begun]
            views = [await self._call(state, moments, call, infos, above | {info.run}) for call in calls]
            usd, turn = Spent.of_wire(thought.spent).usd, thought.turn
            rounds.append(
                RoundView(
                    *(number, turn.model, turn.text, thought.seconds, turn.tokens, usd),
                    calls=tuple(views),
                    failed=tuple(before[number].failed),
                    summarized=tuple(before[number].summarized),
                    bars=moments.of_round(number),
                )
            )
        attempts, end = state.epoch.number if state.epoch else 0, state.finished
        counts = (attempts, state.tries, state.failures, entries, size)
        answer = (end.value if end else None, end.error if end else "")
        thinking = moments.of_round(moments.coming) if moments.coming else ()
        costs = tuple(moments.models.values())
        return RunView(info, *counts, *answer, tuple(rounds), costs, thinking, moments.ended, passed_over)

    async def _read(self, info: RunInfo) -> tuple[RunState, Moments, int, int, Mapping[int, _Before], int]:
        before = defaultdict[int, _Before](_Before)
        state, count, key = RunState(info.run, Toolbox(tuple(BUILT_IN))), 0, self._ports.subjects.run(info.run)
        moments, passed_over = Moments(), 0
        size = sum([len(stored.data) async for stored in self._ports.runs.read(key)])
        async for _, message in read(self._ports, key, by=info.agent):
            entries = entries_of(message)
            passed_over += not entries
            for entry in entries:
                count += 1
                state.apply(entry)
                moments.apply(entry)
                if isinstance(entry, TryFailed):
                    before[entry.round].failed.append(f"{entry.model}, try {entry.number}: {entry.reason}")
                elif isinstance(entry, Summarized):
                    figures = (entry.model, entry.seconds, entry.tokens, Spent.of_wire(entry.spent).usd)
                    before[state.round + 1].summarized.append(SummaryView(entry.messages, *figures))
        return state, moments, count, size, before, passed_over

    async def _call(
        self, state: RunState, moments: Moments, call: Call, infos: Infos, above: set[str]
    ) -> CallView:
        inner = [info for index in range(call.tasks) for info in infos.get(state.task(call.id, index), ())]
        runs = [
            await self._view(await self._looked(each), infos, above) for each in inner if each.run not in above
        ]
        spent = state.spent_on(call)
        reasons = [end.reason for end in call.ends.values() if end.reason]
        return CallView(
            id=call.id,
            name=call.dispatch.topic if call.dispatch is not None else call.said.name,
            tasks=call.tasks,
            outcomes=call.outcomes,
            reason=reasons[0] if reasons else "",
            seconds=round(call.ended_at - call.sent_at, 3) if call.ended_at and call.sent_at else None,
            tokens=spent.tokens,
            usd=spent.usd,
            query=call.query.query if call.query is not None else "",
            approval=call.query is not None and call.query.approval,
            answered_by=call.answer.by if call.answer is not None else None,
            runs=tuple(runs),
            bars=moments.of_call(call.id),
            again=sum(end.attempt > 1 for end in call.ends.values()),
        )

    async def cancel(self, id: str) -> RunInfo:
        """Ask a run to stop, with all that it asked of others; does not wait for it.

        Raises:
            ConfigError: there is none, it has ended, or several agents signed its log.
            BusUnavailableError: the server can't be reached.
        """
        info = await self.find(id)
        if await self._authors.are_several(info.run):
            # The task that the first of them names may be anybody's.
            said = f"several agents signed the log of {info.run}: whose it is, nobody knows"
            raise ConfigError(said, hint="whoever asked can still cancel the task")
        if info.ended:
            resumes = info.topic == "goal.pursue"
            verb = f"runs resume {info.run}" if resumes else f"dlq redrive {info.task}"
            raise ConfigError(f"{info.run} has ended: {info.state}", hint=f"`squadron {verb}` has it go on")
        async with operating(self._ports, "cancel", info.task, run=info.run):
            await request_cancel(self._ports, info.task, deadline_at_s=info.deadline, operator=True)
        return info
