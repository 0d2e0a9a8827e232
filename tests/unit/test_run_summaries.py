"""Runs whose conversation outgrows the window: a model summarizes what has no room, or an extract is taken."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

import pytest
from rich.console import Console

from squadron import Agent, Budget, Context, topic
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.runs.entries import Asking, Entry, Summarized, Thought, TryFailed
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.cli.progress import Watch
from squadron.cli.tree import run_tree, summarized
from squadron.runtime.errors import ModelError, Terminal
from squadron.runtime.wire.outcome import Outcome
from squadron.testing import MemorySquad
from tests.llm_playing import ANTHROPIC, CHAT, RESPONSES, Provider

#: What a model that is asked for the nth summary says.
Summarize = Callable[[int], ModelTurn]
PAGES = 12
SUMMARY = "The first pages say little, and the reader reads on."
WRITTEN = ModelTurn(SUMMARY, (), Usage(70, 7))
BUSY = ModelError("overloaded", kind="passing", retry_after_s=0.01)


def reading(told: str) -> ModelTurn:
    """Read page after page, two at a time; the number of the last is in the newest result."""
    last = max(map(int, re.findall(r"page (\d+)", told)), default=0)
    if last >= PAGES:
        return ModelTurn("read", (), Usage(100, 10))
    calls = (ToolCall(f"p{number}", "page", {"number": number}) for number in (last + 1, last + 2))
    return ModelTurn("I read on.", tuple(calls), Usage(100, 10))


def is_summary(told: str) -> bool:
    return "You summarize a part of a conversation" in told


class Mind:
    """A model that reads, and summarizes as it is told.

    Attributes:
        turns, summaries: what it was asked for each.
    """

    def __init__(
        self,
        summarize: Summarize = lambda _: WRITTEN,
        name: str = "mind:a",
        decide: Callable[[str], ModelTurn] = reading,
    ) -> None:
        self.name, self._summarize, self._decide = name, summarize, decide
        self.turns, self.summaries = list[ModelRequest](), list[ModelRequest]()

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        told = "\n".join(message.content for message in request.messages)
        if not is_summary(told):
            self.turns.append(request)
            return self._decide(told)
        self.summaries.append(request)
        turn = self._summarize(len(self.summaries))
        if on_text is not None:
            on_text(turn.text)
        if turn.text == "too late":
            await asyncio.Event().wait()
        return turn

    async def aclose(self) -> None:
        pass


def raises(error: Exception) -> Summarize:
    def summarize(_: int) -> ModelTurn:
        raise error

    return summarize


class Reader(LLMAgent):
    """You read."""

    remembers: ClassVar[bool] = False

    def __init__(self, **models: Model) -> None:
        self._given = models

    def make_model(self, spec: str) -> Model:
        if spec not in self._given:
            raise Terminal(f"there is no {spec}")
        return self._given[spec]

    @topic("texts.read", run_timeout_s=900)
    async def read(self, ctx: Context) -> str:
        """Read a text."""
        return await self.think(ctx, "Read it.")

    @tool
    async def page(self, number: int) -> str:
        """One page of a book."""
        return f"page {number}: " + "and on it goes " * 60


class Plain(Reader):
    """You read, with models as they are."""

    def make_model(self, spec: str) -> Model:
        return LLMAgent.make_model(self, spec)


class Same(Reader):
    """You read."""

    summary_model: ClassVar[str] = "same"


class Small(Reader):
    """You read."""

    summary_model: ClassVar[str] = "small,main"


class Offline(Reader):
    """You read."""

    summary_model: ClassVar[str] = "offline"


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the supervisor is told first, and its tools, are longer.
    windows = {"mind:a": 8000, "mind:large": 12_000, "mind:boss": 11_000, "openai:m": 8000, "anthropic:m": 8000}
    prices = {name: {"input": 1, "output": 2, "window": window} for name, window in windows.items()}
    monkeypatch.setenv("SQUADRON_PRICES", json.dumps(prices))
    monkeypatch.delenv("SQUADRON_SUMMARY_MODEL", raising=False)


class Told:
    """A run that is over, and its log."""

    def __init__(self, outcome: Outcome, entries: list[Entry], view: Any) -> None:
        self.outcome, self.entries, self.view = outcome, entries, view

    def of(self, kind: type[Any]) -> list[Any]:
        return [entry for entry in self.entries if isinstance(entry, kind)]

    @property
    def written(self) -> list[Summarized]:
        return [entry for entry in self.of(Summarized) if entry.model]

    def check(self, *, tokens: int, calls: int) -> None:
        """All books say the same, to the token."""
        spent = self.outcome.spent
        assert (spent.tokens, spent.rounds) == (tokens, calls)
        assert (self.view.info.tokens, self.view.info.usd) == (tokens, pytest.approx(spent.usd))
        assert len(self.of(Asking)) == calls == self.view.tries


async def told(squad: MemorySquad, task: str, **how: Any) -> Told:
    outcome = await squad.ask(task, within_s=800, **how)
    ports = squad._wiring.ports
    entries = [entry async for _, each in read(ports, ports.subjects.run()) for entry in entries_of(each)]
    return Told(outcome, entries, await squad.runs.show((await squad.runs.list())[0].run))


async def read_by(kind: type[Reader], mind: Model, **how: Any) -> Told:
    async with MemorySquad() as squad:
        await squad.deploy(kind(**{"main": mind}))
        return await told(squad, "texts.read", model="main", **how)


async def test_by_default_an_extract_is_taken_and_no_model_asked() -> None:
    mind = Mind()
    run = await read_by(Reader, mind)

    assert run.outcome.unwrap() == "read"
    assert not mind.summaries
    assert run.of(Summarized)
    assert not run.written
    run.check(tokens=110 * len(mind.turns), calls=len(mind.turns))


@pytest.mark.parametrize(("kind", "setting"), [(Same, ""), (Reader, "same"), (Same, "offline")])
async def test_a_model_writes_the_summary_once_it_is_stored_before_it_is_shown_and_paid(
    kind: type[Reader], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUADRON_SUMMARY_MODEL", setting)
    mind = Mind()
    run = await read_by(kind, mind)

    assert run.outcome.unwrap() == "read"
    assert 1 <= len(mind.summaries) == len(run.written) == len(run.of(Summarized)) < len(mind.turns) / 2
    # It is the entry that answers its question, and what the next question shows.
    covers = [entry.covers for entry in run.of(Asking) if entry.covers]
    assert covers == [entry.summary.digest for entry in run.written]
    kinds = [(entry.kind, getattr(entry, "covers", "") != "") for entry in run.entries]
    at = kinds.index(("asking", True))
    assert kinds[at : at + 3] == [("asking", True), ("summarized", False), ("asking", False)]
    shown = next(turn for turn in mind.turns if SUMMARY in str(turn.messages))
    assert next(m for m in shown.messages if SUMMARY in m.content).content == run.written[0].summary.text
    run.check(tokens=110 * len(mind.turns) + 77 * len(mind.summaries), calls=len(mind.turns) + len(mind.summaries))
    assert run.of(Thought)[-1].round == len(mind.turns)


async def test_an_agent_may_insist_on_extracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUADRON_SUMMARY_MODEL", "same")
    mind = Mind()
    run = await read_by(Offline, mind)

    assert (run.outcome.unwrap(), mind.summaries, run.written) == ("read", [], [])


async def test_a_cheaper_model_of_its_own_may_write_it_and_the_turns_stay_with_the_other() -> None:
    mind, small = Mind(), Mind(name="mind:small")
    async with MemorySquad() as squad:
        await squad.deploy(Small(main=mind, small=small))
        run = await told(squad, "texts.read", model="main")

    assert run.outcome.unwrap() == "read"
    assert (mind.summaries, small.turns) == ([], [])
    assert {entry.model for entry in run.written} == {"mind:small"}
    assert {entry.turn.model for entry in run.of(Thought)} == {"mind:a"}
    run.check(
        tokens=110 * len(mind.turns) + 77 * len(small.summaries), calls=len(mind.turns) + len(small.summaries)
    )


async def test_in_the_place_of_one_that_stays_busy_the_next_of_the_chain_writes_it() -> None:
    mind, small = Mind(), Mind(raises(BUSY), name="mind:small")
    async with MemorySquad() as squad:
        await squad.deploy(Small(main=mind, small=small))
        run = await told(squad, "texts.read", model="main")

    assert run.outcome.unwrap() == "read"
    assert {entry.model for entry in run.written} == {"mind:a"}
    assert len(small.summaries) == 3 * len(mind.summaries) == run.view.failures > 0


async def test_a_model_that_can_not_be_made_fails_no_task(capsys: pytest.CaptureFixture[str]) -> None:
    run = await read_by(Small, Mind())

    assert run.outcome.unwrap() == "read"
    assert run.of(Summarized)
    assert "summary.no_model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("summarize", "failed", "spent"),
    [
        (raises(ModelError("no such model")), 1, 0),
        (raises(ModelError("refused", kind="refusal", tokens=30)), 1, 30),
        (raises(BUSY), 3, 0),
        (raises(ModelError("prompt is too long: 9000 tokens > 500 maximum", kind="overflow")), 1, 0),
        (raises(KeyError("choices")), 1, 0),
        (lambda _: ModelTurn("", (), Usage(40, 0)), 1, 40),
        (lambda _: ModelTurn("so far", (), Usage(40, 2), stop="pause"), 1, 42),
    ],
    ids=["lasting", "refused", "busy", "overflow", "raised", "empty", "paused"],
)
async def test_what_becomes_no_summary_is_an_extract_and_the_run_goes_on(
    summarize: Summarize, failed: int, spent: int
) -> None:
    mind = Mind(summarize)
    run = await read_by(Same, mind)

    assert run.outcome.unwrap() == "read"
    assert len(mind.summaries) == failed * len(run.of(Summarized)) == len(run.of(TryFailed)) == run.view.failures
    assert run.of(Summarized)
    assert not run.written
    # What the summary was refused for says nothing of the conversation.
    assert not any(entry.limit for entry in run.of(TryFailed))
    calls = len(mind.turns) + len(mind.summaries)
    run.check(tokens=110 * len(mind.turns) + spent * len(mind.summaries), calls=calls)


async def test_a_hiccup_is_survived_by_the_one_retry_loop() -> None:
    def once(number: int) -> ModelTurn:
        if number == 1:
            raise BUSY
        return WRITTEN

    mind = Mind(once)
    run = await read_by(Same, mind)

    assert run.outcome.unwrap() == "read"
    assert (len(run.of(TryFailed)), len(run.written)) == (1, len(mind.summaries) - 1)


async def test_who_falls_back_to_a_smaller_window_has_an_extract_then_and_later_summaries_again() -> None:
    def breaking_down(told: str) -> ModelTurn:
        turn = reading(told)
        if "page 8" in told:
            raise BUSY
        return turn

    mind, small = Mind(name="mind:large", decide=breaking_down), Mind()
    async with MemorySquad() as squad:
        await squad.deploy(Same(main=mind, small=small))
        run = await told(squad, "texts.read", model="main,small")

    assert run.outcome.unwrap() == "read"
    assert not mind.summaries
    assert [entry.model for entry in run.of(Summarized)][:2] == ["", "mind:a"]
    assert {entry.model for entry in run.of(Summarized)[1:]} == {"mind:a"}


async def test_a_summary_that_does_not_come_takes_a_part_of_the_time_and_no_more() -> None:
    mind = Mind(lambda _: ModelTurn("too late", (), Usage(70, 7)))
    run = await read_by(Same, mind)

    assert run.outcome.unwrap() == "read"
    assert run.of(TryFailed)
    assert not run.written
    first = run.of(TryFailed)[0]
    asked = next(entry for entry in run.of(Asking) if entry.covers)
    assert 100 < first.at - asked.at < 130


async def test_the_budget_keeps_what_the_next_turn_needs_and_an_extract_is_taken() -> None:
    plain = await read_by(Same, Mind())
    at = next(i for i, entry in enumerate(plain.entries) if isinstance(entry, Asking) and entry.covers)
    before = sum(isinstance(entry, Thought) for entry in plain.entries[:at])
    # A turn may say 16,384 tokens, after some 4,000; a summary is asked for 2,400, of the part of 3,000 before.
    rooms: list[tuple[dict[str, Any], bool]] = [
        ({"rounds": before + 1}, False),
        ({"rounds": before + 2}, True),
        ({"tokens": 110 * before + 24_000}, False),
        ({"tokens": 110 * before + 29_000}, True),
        ({"usd": 120e-6 * before + 0.040}, False),
        ({"usd": 120e-6 * before + 0.050}, True),
    ]
    for room, is_written in rooms:
        mind = Mind()
        run = await read_by(Same, mind, budget=Budget(**room))
        assert bool(mind.summaries) == is_written, room
        assert isinstance(run.of(Summarized)[0], Summarized), room
        # The turn for which it was made came about in any case.
        assert len(mind.turns) > before, room
        calls = len(mind.turns) + len(mind.summaries)
        run.check(tokens=110 * len(mind.turns) + 77 * len(mind.summaries), calls=calls)


async def test_a_budget_with_room_pays_for_it_and_adds_up() -> None:
    mind = Mind()
    run = await read_by(Same, mind, budget=Budget(tokens=60_000, usd=1.0, rounds=40))

    assert run.outcome.unwrap() == "read"
    assert len(run.written) == len(mind.summaries) >= 1
    run.check(tokens=110 * len(mind.turns) + 77 * len(mind.summaries), calls=len(mind.turns) + len(mind.summaries))
    asked = next(entry for entry in run.of(Asking) if entry.covers)
    # All that it may have cost was set aside.
    assert asked.tokens > 2_000
    assert asked.usd_micros > 4_000


async def test_a_turn_does_not_hold_the_only_place_of_its_account_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQUADRON_MODEL_LIMITS", '{"mind": {"concurrency": 1}}')
    mind = Mind()
    run = await read_by(Same, mind)

    assert run.outcome.unwrap() == "read"
    assert run.written


class Clerk(Supervisor):
    """Pursues with the model that it is given, and has that write summaries, too."""

    name: ClassVar[str] = "supervisor"
    summary_model: ClassVar[str] = "same"


class Library(Agent):
    """Has a book."""

    @topic("book.page")
    async def page(self, number: int) -> str:
        """One page of the book."""
        return f"page {number}: " + "and on it goes " * 60


def pursuing(told: str) -> ModelTurn:
    turn = reading(told)
    if not turn.tool_calls:
        return ModelTurn("", (ToolCall("end", "finish", {"answer": "read"}),), Usage(100, 10))
    calls = (ToolCall(call.id, "book__page", call.arguments) for call in turn.tool_calls)
    return ModelTurn(turn.text, tuple(calls), Usage(100, 10))


async def test_a_supervisors_summaries_are_in_its_report_its_books_and_what_is_shown_of_it() -> None:
    mind, watch, said = Mind(name="mind:boss", decide=pursuing), Watch("A job"), list[str]()

    def hear(event: dict[str, Any]) -> None:
        said.append(event.get("delta", ""))
        watch.event(event)

    async with MemorySquad() as squad:
        await squad.deploy(Clerk, model=mind)
        await squad.deploy(Library)
        outcome = await squad.run("read it", topics=["book.*"], on_event=hear, budget=Budget(usd=1.0))
        view = await squad.runs.show((await squad.runs.list())[0].run)

    report = outcome.unwrap()
    assert report["stopped"] == "finished"
    assert mind.summaries
    tokens = 110 * len(mind.turns) + 77 * len(mind.summaries)
    usd = (120e-6 * len(mind.turns) + 84e-6 * len(mind.summaries), len(mind.turns) + len(mind.summaries))
    assert (outcome.spent.tokens, report["tokens"], view.info.tokens, watch.tally.tokens) == (tokens,) * 4
    assert (outcome.spent.usd, outcome.spent.rounds) == pytest.approx(usd)
    assert [report["usd"], view.info.usd, watch.tally.usd] == pytest.approx([usd[0]] * 3)
    # It is for the model alone; who reads along is told of it: in the timeline, the view, and the tree.
    assert SUMMARY not in "".join(said)
    events = [event for event in report["timeline"] if event["event"] == "summarized"]
    views = [one for each in view.rounds for one in each.summarized]
    tallies = [one for each in watch.tally.rounds.values() for one in each.summarized]
    assert len(events) == len(views) == len(tallies) == len(mind.summaries)
    assert [asdict(one) for one in views] == [asdict(one) for one in tallies]
    assert (events[0]["model"], events[0]["tokens"], events[0]["usd"]) == ("mind:boss", 77, 84e-6)
    assert [one.messages for one in views] == [event["messages"] for event in events]
    assert views[0].messages > 1
    line = f"summarized {views[0].messages} messages  mind:boss · {views[0].seconds:.1f} s · 77 tokens · $0.0001"
    assert line in str(summarized(views[0]))
    console = Console(file=io.StringIO(), width=120)
    console.print(run_tree(watch.tally, height=99))
    assert isinstance(console.file, io.StringIO)
    assert line in console.file.getvalue()


@pytest.mark.parametrize("provider", [CHAT, RESPONSES, ANTHROPIC], ids=lambda each: each.name)
async def test_a_provider_sees_one_request_for_each_summary(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(body: dict[str, Any]) -> ModelTurn:
        told = json.dumps(body)
        return WRITTEN if is_summary(told) else reading(told)

    with provider.server(decide) as server:
        monkeypatch.setenv(f"{provider.prefix}_API_KEY", "k")
        monkeypatch.setenv(f"{provider.prefix}_BASE_URL", server.base_url)
        monkeypatch.setenv("SQUADRON_SUMMARY_MODEL", f"{provider.name}:mini")
        async with MemorySquad(turned=False) as squad:
            await squad.deploy(Plain)
            run = await told(squad, "texts.read", model=f"{provider.name}:m")
        bodies = [each.body for each in server.requests]

    assert run.outcome.unwrap() == "read"
    small = [body for body in bodies if body["model"] == "mini"]
    assert [is_summary(json.dumps(body)) for body in bodies] == [body in small for body in bodies]
    assert 1 <= len(small) == len(run.written) == len(run.of(Summarized))
    assert not any(body.get("tools") for body in small)
    run.check(tokens=110 * (len(bodies) - len(small)) + 77 * len(small), calls=len(bodies))
