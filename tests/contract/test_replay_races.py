"""What comes between a decision of a run and its entry: a replay knows that it had not been seen.

Each race is brought about, and is in the log: the test fails if it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import bid, topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.runs.entries import Asking, CallsEnded, Entry, Finished, Refused, Thought
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.bridge.memory.journal import MemoryJournal
from squadron.replay.player import play
from squadron.replay.recording import RecordedRun
from squadron.runtime.errors import Terminal
from squadron.runtime.wire.bids import Bid
from squadron.runtime.wire.limits import UNLIMITED, Budget
from squadron.testing import MemorySquad, run

#: Goal of a run whose model thinks for so many seconds.
HOLD = "hold the place of the account for"


@dataclass(frozen=True)
class Race:
    """One run, and what comes when.

    Attributes:
        turns: what the model calls, turn by turn; then it finishes.
        between: what comes between a decision and its entry: kinds of both.
        thinks_s: how long the model takes for a turn, in seconds.
        stores_s: how long it takes to store an entry, in seconds.
        acks_s: how long it takes then until that is known here, in seconds.
        answers_at_s: when a person answers all there is to answer, in seconds after the beginning.
        taken_s: from when to when another run has the only place that the model's account has, in seconds.
    """

    turns: Sequence[Sequence[ToolCall]]
    between: tuple[str, str]
    gather: dict[str, Any] = field(default_factory=dict)
    thinks_s: float = 0.1
    stores_s: float = 0.0
    acks_s: float = 0.0
    answers_at_s: float | None = None
    taken_s: tuple[float, float] | None = None
    budget: Budget = UNLIMITED
    window: int = 128_000
    chain: tuple[str, ...] = ("mind:test",)


class Mind:
    """A model that says what is in the script; it decides by what it is shown alone."""

    def __init__(self, race: Race, name: str) -> None:
        self._race, self.name = race, name

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        goal = next(message.content for message in request.messages if message.role == "user")
        if goal.startswith(HOLD):
            await asyncio.sleep(float(goal.removeprefix(HOLD)))
            return ModelTurn("", (ToolCall("end", "finish", {"answer": "held"}),), Usage(10, 5))
        await asyncio.sleep(self._race.thinks_s)
        spoken = sum(message.role == "assistant" for message in request.messages)
        if spoken < len(self._race.turns):
            return ModelTurn("", tuple(self._race.turns[spoken]), Usage(10, 5))
        return ModelTurn("", (ToolCall("end", "finish", {"answer": "done"}),), Usage(10, 5))

    async def aclose(self) -> None:
        pass


class Thinker(Supervisor):
    """A supervisor with a script."""

    name: ClassVar[str] = "supervisor"
    race: Race

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return Mind(self.race, spec)


class Steps(Agent):
    """Takes steps."""

    slots = 64

    @topic("steps.take")
    async def take(self, key: str, takes_s: float) -> str:
        """Take a step."""
        await asyncio.sleep(takes_s)
        return key

    @topic("steps.fail", max_attempts=1)
    async def fail(self, key: str, takes_s: float) -> str:
        """Stumble."""
        await asyncio.sleep(takes_s)
        raise Terminal("it can't be done")

    @topic("steps.jump", approval="it is a long way down")
    async def jump(self, key: str) -> str:
        """Jump."""
        return key

    @topic("steps.recite")
    async def recite(self, key: str) -> str:
        """Tell of steps that were taken."""
        return f"{key}: " + "and on it goes " * 300

    @bid
    async def offer(self, topic: str) -> Bid:
        """Be surest of what will fail."""
        return Bid(confidence={"steps.fail": 0.9}.get(topic, 0.1))


def take(key: str, takes_s: float) -> ToolCall:
    return ToolCall(key, "steps__take", {"key": key, "takes_s": takes_s})


def jump(key: str) -> ToolCall:
    return ToolCall(key, "steps__jump", {"key": key})


def recite(key: str) -> ToolCall:
    return ToolCall(key, "steps__recite", {"key": key})


def bids(key: str, takes_s: float) -> ToolCall:
    tools = ["steps.fail", "steps.take"]
    return ToolCall(key, "call_for_bids", {"tools": tools, "arguments": {"key": key, "takes_s": takes_s}})


def use(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, name, arguments)


#: One turn after another, where storing takes a second: a call goes out at 4.1 s, the next turn is stored from 7.2
#: to 8.2 s, and what the model wants is decided then. What comes at 7.7 s is stored before that is.
SLOWLY: dict[str, Any] = {"gather": {"after": 1}, "stores_s": 1.0}
#: What is stored is heard of a second later: a question is to be taken back while the next bid goes out, which is
#: stored from 11.4 to 12.4 s, and then the answer is being stored.
ACKNOWLEDGED_SLOWLY: dict[str, Any] = {"gather": {"after": 1}, "acks_s": 1.0, "answers_at_s": 12.6}
ASK = use("ask_person", question="Who are you?")
B = take("b", 3.6)

RACES: dict[str, Race] = {
    "a person approves while the account has the model wait that time was up for": Race(
        [[take("a", 0.1), jump("j")]],
        ("answer", "asking"),
        gather={"after": "all", "within_s": 3.0},
        taken_s=(1.0, 9.0),
        answers_at_s=6.0,
    ),
    "a late end comes while the account has the model wait": Race(
        [[take("a", 1.5), take("b", 5.0)]], ("ended", "asking"), gather={"after": 1}, taken_s=(1.0, 9.0)
    ),
    "what is waited for ends while the account has the model wait, for that took too long": Race(
        [[take("a", 0.1), take("b", 5.0)], [use("wait_for", calls=["b"], most_s=2.0)]],
        ("ended", "asking"),
        gather={"after": 1},
        taken_s=(1.0, 9.0),
    ),
    "a bid is in vain while the model thinks, and the next one is tried": Race(
        [[bids("x", 2.0), take("a", 0.1)]], ("sending", "thought"), gather={"after": 1}, thinks_s=5.0
    ),
    "a bid is in vain while the account has the model wait": Race(
        [[bids("x", 5.0), take("a", 1.5)]], ("sending", "asking"), gather={"after": 1}, taken_s=(1.0, 20.0)
    ),
    "an end comes while a question is taken back": Race(
        [[take("a", 0.1), B, jump("j")], [use("cancel_calls", calls=["j"])]], ("ended", "ended"), **SLOWLY
    ),
    "an end comes while the run comes to its own": Race([[take("a", 0.1), B]], ("ended", "finished"), **SLOWLY),
    "an end comes while calls are made ready": Race(
        [[take("a", 0.1), B], [take("c", 0.1)]], ("ended", "sending"), **SLOWLY
    ),
    "an end comes while a topic is sought": Race(
        [[take("a", 0.1), B], [use("discover_topics", intent="take a step")]], ("ended", "ended"), **SLOWLY
    ),
    "an end comes while it is to be waited for": Race(
        [[take("a", 0.1), B], [use("wait_for", calls=["b"])]], ("ended", "waiting"), **SLOWLY
    ),
    "an end comes while a person is to be asked": Race(
        [[take("a", 0.1), B], [jump("j")]], ("ended", "query"), answers_at_s=15.0, **SLOWLY
    ),
    "an end comes while a call is refused that the budget has no task for": Race(
        [[take("a", 0.1), B], [take("c", 0.1)]], ("ended", "ended"), budget=Budget(tasks=2), **SLOWLY
    ),
    "an end comes while a part of the conversation is to be put into an extract": Race(
        [[recite("a"), recite("b"), take("c", 5.0)], [recite("d"), recite("e")], [recite("f"), recite("g")]],
        ("ended", "summarized"),
        gather={"after": 2},
        thinks_s=1.0,
        taken_s=(2.5, 9.0),
        window=16_000,
    ),
}


@contextlib.contextmanager
def slow_stores(seconds: float, acks_s: float) -> Iterator[None]:
    """It takes so long to store an entry of a run, and so long to hear of it."""
    append = MemoryJournal.append

    async def slow(journal: Any, key: str, *args: Any, **options: Any) -> int:
        if ".run." in key:
            await asyncio.sleep(seconds)
        seq = await append(journal, key, *args, **options)
        if ".run." in key:
            await asyncio.sleep(acks_s)
        return seq

    MemoryJournal.append = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        MemoryJournal.append = append  # type: ignore[method-assign]


async def perform(race: Race) -> RecordedRun:
    """Have it run; returns its log."""
    async with MemorySquad() as squad:
        thinker = Thinker()
        thinker.race = race
        await squad.deploy(Steps)
        await squad.deploy(thinker)

        async def answer() -> None:
            await asyncio.sleep(race.answers_at_s or 0.0)
            for each in await squad.questions():
                said = ("me",) if each.question.kind == "question" else ()
                await squad.answer(each.query_id, *said, by="ana")

        async def take_place(since_s: float, until_s: float) -> None:
            await asyncio.sleep(since_s)
            how: Any = {"topics": ["steps.*"], "within_s": 120.0, "model": "mind:test"}
            (await squad.run(f"{HOLD} {until_s - since_s}", **how)).unwrap()

        taking = asyncio.create_task(take_place(*race.taken_s)) if race.taken_s else None
        answering = asyncio.create_task(answer()) if race.answers_at_s is not None else None
        how: dict[str, Any] = {"gather": race.gather} if race.gather else {}
        how |= {"topics": ["steps.*"], "budget": race.budget, "model": ",".join(race.chain)}
        with slow_stores(race.stores_s, race.acks_s):
            await squad.run("do it", within_s=120.0, **how)
        await asyncio.gather(*(each for each in (answering, taking) if each is not None))
        ports = squad._place.ports
        (info,) = (info for info in await squad.runs.list() if info.title == "do it")
        messages = [entries_of(message) async for _, message in read(ports, ports.subjects.run(info.run))]
        return RecordedRun(run=info.run, messages=tuple(messages))


def between(entries: Sequence[Entry]) -> set[tuple[str, str]]:
    """What came between a decision, or a question to the model, and its entry: kinds of both."""
    found, asked = set[tuple[str, str]](), 0
    for at, entry in enumerate(entries):
        began = asked if isinstance(entry, Thought) else entry.seen
        asked = at + 1 if isinstance(entry, Asking) else asked
        others = entries[began:at] if began is not None else ()
        found |= {(other.kind, entry.kind) for other in others if other.seen is None}
    return found


def brought_about(race: Race) -> RecordedRun:
    """A run in which it came so; a machine that stalls for a second is late for it."""
    for _ in range(5):
        recorded = run(perform(race))
        if race.between in between(recorded.entries):
            return recorded
    told = [f"{at} {entry.kind} {entry.seen} {entry.at % 1000:.2f}" for at, entry in enumerate(recorded.entries)]
    raise AssertionError("\n".join([f"{race.between} did not come about", *told]))


@pytest.mark.parametrize("name", RACES)
def test_what_came_between_a_decision_and_its_entry_is_not_taken_as_seen(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = RACES[name]
    monkeypatch.setenv("SQUADRON_MODEL_LIMITS", json.dumps({"mind": {"concurrency": 1}} if race.taken_s else {}))
    prices = {"mind:test": {"input": 1, "output": 1, "window": race.window}}
    monkeypatch.setenv("SQUADRON_PRICES", json.dumps(prices))
    recorded = brought_about(race)
    kinds = [entry.kind for entry in recorded.entries]
    # Nobody took it over, and it did not take itself for superseded.
    assert kinds.count("epoch") == 1, kinds
    replay = play(recorded)
    assert replay.equal, (kinds, replay.difference)


@pytest.mark.parametrize("asked", [ASK, jump("j")])
def test_a_question_that_is_taken_back_while_its_answer_is_stored_leaves_the_run_whole(
    asked: ToolCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUADRON_MODEL_LIMITS", "{}")
    turns = [[take("a", 0.1), bids("x", 1.5), asked], [use("cancel_calls", calls=[asked.id])]]
    recorded = brought_about(Race(turns, ("answer", "ended"), **ACKNOWLEDGED_SLOWLY))
    kinds = [entry.kind for entry in recorded.entries]
    # Neither did anybody take the run over, nor did it take itself for superseded.
    assert kinds.count("epoch") == 1, kinds
    ends = [end for entry in recorded.entries if isinstance(entry, CallsEnded) for end in entry.ends]
    (end,) = (end for end in ends if end.topic == asked.name)
    assert end.outcome == ("result" if asked is ASK else "cancelled")
    replay = play(recorded)
    assert replay.equal, (kinds, replay.difference)


def test_a_log_that_does_not_say_what_was_seen_is_replayed_as_if_all_had_been() -> None:
    quiet = Race([[take("a", 0.1)]], ("", ""))
    recorded = run(perform(quiet))
    older = [tuple(entry.model_copy(update={"seen": None}) for entry in each) for each in recorded.messages]
    assert play(replace(recorded, messages=tuple(older))).equal


@pytest.mark.parametrize("chain", [("mind:test",), ("mind:test", "mind:spare")])
def test_what_an_account_refused_is_refused_again(chain: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # No minute has room for what the first model would be asked.
    monkeypatch.setenv("SQUADRON_MODEL_LIMITS", json.dumps({"mind:test": {"input_tpm": 10}}))
    recorded = run(perform(Race([[take("a", 0.1)]], ("", ""), chain=chain)))
    (refused,) = (entry for entry in recorded.entries if isinstance(entry, Refused))
    asked = [entry.model for entry in recorded.entries if isinstance(entry, Asking)]
    assert (refused.model, asked) == ("mind:test", ["mind:spare"] * 2 if chain[1:] else [])
    finished = recorded.entries[-1]
    assert isinstance(finished, Finished)
    assert finished.stopped == ("finished" if chain[1:] else "model")
    replay = play(recorded)
    assert replay.equal, replay.difference
