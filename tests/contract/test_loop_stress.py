"""The loop of runs among latencies, failures, cancellations and deaths: hypothesis looks for what it can't take.

In memory and on a turned clock, so that a minute of trouble takes a few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.runs.built_in import FINISH
from squadron.actors.runs.entries import Entry
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.bridge.memory.journal import MemoryJournal
from squadron.runtime.errors import BusUnavailableError, ModelError, Terminal
from squadron.runtime.running.context import Context
from squadron.runtime.wire.outcome import Outcome
from squadron.testing import MemorySquad, run

#: Replicas that think: one more than there are deaths.
MOST_DEATHS = 2
#: How long a run has, in seconds of a turned clock; some tasks take longer.
WITHIN_S = 30.0
SLOW_S = 80.0


@dataclass(frozen=True)
class Act:
    """One call of the model: its kind, how long it takes in seconds, if it fails, and which call it is about."""

    kind: str
    takes_s: float = 0.0
    fails: bool = False
    about: int = 0


@dataclass(frozen=True)
class Scene:
    """All that happens in one run.

    Attributes:
        rounds: what the model calls in each of its turns; then it finishes.
        refusals: how often it refuses before each turn.
        thinks_s: how long it takes for each turn, in seconds.
        deaths: at which entries of the log the replica that thinks dies, and whether that was stored.
        cancel_at: the entry of the log at which the user changes their mind; 0 for never.
        stores_s: how long it takes to store something in the log, in seconds: the slower, the more comes between.
    """

    rounds: Sequence[Sequence[Act]]
    refusals: Sequence[int]
    thinks_s: float
    gather: dict[str, Any]
    deaths: Sequence[tuple[int, bool]]
    cancel_at: int
    max_rounds: int
    stores_s: float = 0.0


@dataclass
class Stage:
    """What the parts of one run share, and what they noted."""

    scene: Scene
    squad: MemorySquad
    thinkers: list[Agent] = field(default_factory=list)
    thinking: Agent | None = None
    asked: list[tuple[ChatMessage, ...]] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    entries: int = 0
    died: int = 0
    cancelled: bool = False


def turn_of(scene: Scene, number: int, *, finishes: bool) -> ModelTurn:
    """What the model says in one of its turns."""
    if number > len(scene.rounds) and not finishes:
        return ModelTurn("done", (), Usage(10, 5))
    if number > len(scene.rounds):
        return ModelTurn("", (ToolCall("end", "finish", {"answer": "done"}),), Usage(10, 5))
    earlier = [f"r{r + 1}c{c}" for r, acts in enumerate(scene.rounds[: number - 1]) for c in range(len(acts))]
    calls = [_call(act, f"r{number}c{i}", earlier) for i, act in enumerate(scene.rounds[number - 1])]
    return ModelTurn("", tuple(calls), Usage(10, 5))


def _call(act: Act, id: str, earlier: list[str]) -> ToolCall:
    one = {"key": id, "takes_s": act.takes_s, "fails": act.fails}
    about = earlier[act.about % len(earlier)] if earlier else "nothing"
    match act.kind:
        case "task":
            return ToolCall(id, "steps__take", one)
        case "many":
            items = [one | {"key": f"{id}-{n}", "takes_s": n * act.takes_s} for n in range(act.about % 4)]
            return ToolCall(id, "for_each", {"topic": "steps.take", "items": items})
        case "wait":
            return ToolCall(id, "wait_for", {"calls": [about], "most_s": act.takes_s + 0.1})
        case "cancel":
            return ToolCall(id, "cancel_calls", {"calls": [about]})
        case "discover":
            return ToolCall(id, "discover_topics", {"intent": "take a step"})
        case "tool":
            return ToolCall(id, "work", one)
        case "again":
            return ToolCall(id, "look", one)
    return ToolCall(id, "steps__take", {"no": "such field"})


class Mind:
    """The model of a stage; it decides by what it is shown alone."""

    name = "mind:test"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def think(self, request: ModelRequest, on_text: Any = None) -> ModelTurn:
        stage, scene = self._stage, self._stage.scene
        stage.asked.append(request.messages)
        number = 1 + sum(message.role == "assistant" for message in request.messages)
        await asyncio.sleep(scene.thinks_s)
        if stage.refused[number] < scene.refusals[number % len(scene.refusals)]:
            stage.refused[number] += 1
            raise ModelError("overloaded", kind="passing", retry_after_s=0.1)
        return turn_of(scene, number, finishes=any(tool.name == FINISH for tool in request.tools))

    async def aclose(self) -> None:
        pass


class Thinker(Supervisor):
    """A supervisor on a stage."""

    name: ClassVar[str] = "supervisor"
    stage: Stage

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        self.stage.thinking = self
        return Mind(self.stage)


class Worker(LLMAgent):
    """You work."""

    name: ClassVar[str] = "worker"
    asks: ClassVar[tuple[str, ...]] = ("steps.take",)
    stage: Stage

    def make_model(self, spec: str) -> Model:
        return Mind(self.stage)

    @topic("works.do")
    async def do(self, ctx: Context, text: str) -> str:
        """Do some work."""
        self.stage.thinking = self
        return await self.think(ctx, text)

    @tool
    async def work(self, key: str, takes_s: float, fails: bool) -> str:
        """Work, which nobody may do twice."""
        return await step(self.stage, key, takes_s, fails)

    @tool(may_repeat=True)
    async def look(self, key: str, takes_s: float, fails: bool) -> str:
        """Look, as often as anybody likes."""
        await asyncio.sleep(takes_s)
        return key


class Steps(Agent):
    """Takes steps."""

    slots = 64
    stage: Stage

    @topic("steps.take", run_timeout_s=10 * SLOW_S)
    async def take(self, key: str, takes_s: float, fails: bool) -> str:
        """Take a step."""
        return await step(self.stage, key, takes_s, fails)


async def step(stage: Stage, key: str, takes_s: float, fails: bool) -> str:
    """Something that takes a while; it is noted when it begins and when it ends, however it does."""
    stage.begun[key] += 1
    try:
        await asyncio.sleep(takes_s)
    finally:
        stage.ended[key] += 1
    if fails:
        raise Terminal("it can't be done")
    return key


# --- what happens ------------------------------------------------------------------------------------

ACTS = st.builds(
    Act,
    st.sampled_from(["task"] * 3 + ["many", "wait", "cancel", "discover", "tool", "tool", "again", "bad"]),
    st.sampled_from([0.0, 0.1, 1.0, 7.0, SLOW_S]),
    st.booleans(),
    st.integers(0, 9),
)
SCENES = st.builds(
    Scene,
    rounds=st.lists(st.lists(ACTS, min_size=1, max_size=4), min_size=1, max_size=3),
    refusals=st.lists(st.sampled_from([0, 0, 0, 1, 2, 9]), min_size=1, max_size=3),
    thinks_s=st.sampled_from([0.0, 0.5, 5.0]),
    gather=st.sampled_from([{}, {"after": 1}, {"after": "quorum"}, {"after": "all", "within_s": 3.0}]),
    deaths=st.lists(st.tuples(st.integers(1, 24), st.booleans()), max_size=MOST_DEATHS),
    cancel_at=st.sampled_from([0, 0, 0, 3, 5, 8, 13]),
    max_rounds=st.integers(2, 6),
    stores_s=st.sampled_from([0.0, 0.0, 0.03, 0.3]),
)

#: Who thinks dies while it stores something and a tool of it works on.
DIES_AT_WORK = Scene([[Act("task"), Act("tool", SLOW_S)]], [0], 0.0, {}, [(5, False)], 0, 2)
#: Two tools come to nothing in the same moment.
TWO_GIVE_UP = Scene([[Act("tool", 7.0), Act("tool", 7.0, True), Act("tool", 7.0, True)]], [0], 0.5, {}, [], 0, 5)


class Trouble:
    """While this is entered, who thinks dies at entries of the log, and the user changes their mind at one."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._deaths = stage, dict(stage.scene.deaths)
        self._killing: list[asyncio.Task[Any]] = []
        self.cancel = asyncio.Event()

    def __enter__(self) -> None:
        self._append, trouble = MemoryJournal.append, self

        async def append(journal: Any, key: str, *args: Any, **options: Any) -> int:
            if ".run." not in key:
                return await trouble._append(journal, key, *args, **options)
            return await trouble._stored(journal, key, *args, **options)

        MemoryJournal.append = append  # type: ignore[method-assign]

    def __exit__(self, *exc_info: object) -> None:
        MemoryJournal.append = self._append  # type: ignore[method-assign]

    async def _stored(self, journal: Any, key: str, *args: Any, **options: Any) -> int:
        stage = self._stage
        if not journal._line.up:
            # Who is dead stores nothing, however often.
            return await self._append(journal, key, *args, **options)
        stage.entries += 1
        after = self._deaths.get(stage.entries)
        if stage.entries == stage.scene.cancel_at:
            self.cancel.set()
        if after is False:
            await self._die()
        if stage.scene.stores_s:
            await asyncio.sleep(stage.scene.stores_s)
        seq = await self._append(journal, key, *args, **options)
        if after:
            await self._die()
        return seq

    async def _die(self) -> None:
        assert self._stage.thinking is not None
        self._stage.died += 1
        self._killing.append(asyncio.create_task(self._stage.squad.kill(self._stage.thinking)))
        # What is being stored goes to its end: it has to have one, or the dead would work on.
        await asyncio.sleep(0)
        raise BusUnavailableError("no answer: the process has left the bus")


async def perform(scene: Scene, thinker: type[Thinker] | type[Worker]) -> tuple[str, list[tuple[Entry, ...]]]:
    """Play a scene, and check it; returns the id of the run, and its log message by message."""
    async with MemorySquad() as squad:
        stage = Stage(scene, squad)
        stage.thinkers = [thinker() for _ in range(MOST_DEATHS + 1)]
        steps = Steps()
        for each in (*stage.thinkers, steps):
            each.stage = stage  # type: ignore[attr-defined]
        await squad.deploy(steps)
        await squad.deploy(*stage.thinkers)
        goal, content = "works.do", {"text": "do it"}
        if thinker is Thinker:
            limits = {"max_rounds": scene.max_rounds, "within_s": WITHIN_S}
            gather = {"gather": scene.gather} if scene.gather else {}
            goal, content = "goal.pursue", {"goal": "do it", "topics": ["steps.*"], **limits, **gather}  # type: ignore[dict-item]
        trouble = Trouble(stage)
        with trouble:
            handle = await squad.submit(goal, content, within_s=2 * WITHIN_S)
            changes = asyncio.create_task(trouble.cancel.wait())
            ending = asyncio.create_task(handle.outcome())
            await asyncio.wait([changes, ending], return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                stage.cancelled = True
                await handle.cancel()
            changes.cancel()
            outcome = await ending
            # What was not needed any more is told so, and has ended, long before it would have.
            await asyncio.sleep(SLOW_S / 4)
        ports = squad._place.ports
        messages = [message async for _, message in read(ports, ports.subjects.run())]
        log = [entries_of(message) for message in messages]
        check(stage, outcome, [entry for entries in log for entry in entries])
        return messages[0].correlation_id or "" if messages else "", log


# --- what must hold ----------------------------------------------------------------------------------


def check(stage: Stage, outcome: Outcome, entries: Sequence[Entry]) -> None:
    kinds = Counter(entry.kind for entry in entries)
    # It comes to its end, as it should.
    if stage.cancelled and outcome.kind == "cancelled":
        pass
    elif outcome.kind == "timed_out":
        # An agent has all the time that its caller has; a supervisor reports before.
        assert isinstance(stage.thinking, Worker)
        return
    else:
        assert outcome.kind in ("result", "failed"), outcome
        assert kinds["finished"] == 1
    # Whatever the model was asked is accounted; a death, or a cancel right before it is asked, costs one at most.
    assert len(stage.asked) <= kinds["asking"] <= len(stage.asked) + stage.died + stage.cancelled
    if outcome.kind != "cancelled":
        assert outcome.spent.rounds == kinds["asking"], (outcome.spent, kinds)
    assert kinds["asking"] <= kinds["thought"] + kinds["failed"] + stage.died + stage.cancelled + 1
    # No step is taken twice, and none goes on when nobody wants it any more.
    assert all(count == 1 for count in stage.begun.values()), stage.begun
    assert stage.begun == stage.ended
    # Every call is answered, in its place; and what was said stays said.
    for messages in stage.asked:
        check_pairs(messages)
    for before, after in pairwise(stage.asked):
        assert before[: last_said(before)] == after[: last_said(before)]
    check_log(entries)


def last_said(messages: Sequence[ChatMessage]) -> int:
    """Where what the model said last stands, behind it."""
    spoken = [number for number, message in enumerate(messages, 1) if message.role == "assistant"]
    return spoken[-1] if spoken else 0


def check_pairs(messages: Sequence[ChatMessage]) -> None:
    """Each call has one result, right behind the turn that made it."""
    open_calls: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id in open_calls, messages
            open_calls.remove(message.tool_call_id)
            continue
        assert not open_calls, (open_calls, messages)
        open_calls = [call.id for call in message.tool_calls]
    assert not open_calls, messages


def check_log(entries: Sequence[Entry]) -> None:
    """Nothing has an effect twice: no call goes out twice, no task ends twice, and nothing follows the end."""
    sent = Counter(dispatch.call for entry in entries if entry.kind == "sending" for dispatch in entry.calls)
    withdrawn = Counter(call for entry in entries if entry.kind == "withdrawn" for call in entry.calls)
    assert all(count == 1 + withdrawn[call] for call, count in sent.items()), sent
    ended = Counter((end.call, end.index) for entry in entries if entry.kind == "ended" for end in entry.ends)
    assert all(count == 1 for count in ended.values()), ended
    rounds = [entry.round for entry in entries if entry.kind == "thought"]
    assert rounds == [*range(1, len(rounds) + 1)]


@pytest.fixture(params=[Thinker, Worker])
def thinker(request: pytest.FixtureRequest) -> type[Thinker] | type[Worker]:
    return request.param  # type: ignore[no-any-return]


def look_for_trouble(thinker: type[Thinker] | type[Worker], **how: Any) -> None:
    @settings(deadline=None, suppress_health_check=list(HealthCheck), **how)
    @given(SCENES)
    @example(TWO_GIVE_UP)
    @example(DIES_AT_WORK)
    def whatever(scene: Scene) -> None:
        run(perform(scene, thinker))

    whatever()


def test_whatever_happens_a_run_ends_once_and_does_nothing_twice(thinker: type[Thinker] | type[Worker]) -> None:
    look_for_trouble(thinker, max_examples=30, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_much_happens_and_a_run_still_ends_once(thinker: type[Thinker] | type[Worker]) -> None:
    look_for_trouble(thinker, max_examples=500)
