"""Calls of a model that go on at its provider: the next attempt takes them up. In memory and on NATS."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.runs.entries import Entry
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ModelError
from squadron.runtime.streams.writer import Chunk, Restarted
from squadron.runtime.wire.outcome import Cancelled
from tests.contract.conftest import Peer, Replica, Serve, until

Decide = Callable[[Sequence[ChatMessage]], ModelTurn]


def turns_of(messages: Sequence[ChatMessage]) -> int:
    return sum(message.role == "assistant" for message in messages)


def call_and_finish(messages: Sequence[ChatMessage]) -> ModelTurn:
    if turns_of(messages):
        return ModelTurn("Done.", (ToolCall("end", "finish", {"answer": "done"}),), Usage(10, 5))
    return ModelTurn("I count.", (ToolCall("c", "words__count", {"text": "one two"}),), Usage(10, 5))


@dataclass
class Distant:
    """Where calls go on, whoever made them; `held` are the numbers of those that don't end by themselves."""

    decide: Decide = call_and_finish
    held: set[int] = field(default_factory=lambda: {1})
    made: dict[str, tuple[ModelTurn, asyncio.Event]] = field(default_factory=dict)
    begun: int = 0
    taken_up: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    failure: ModelError | None = None
    broken: ModelError | None = None

    def begin(self, request: ModelRequest) -> str:
        self.begun += 1
        id, over = f"resp-{self.begun}", asyncio.Event()
        self.made[id] = (self.decide(request.messages), over)
        if self.begun not in self.held:
            over.set()
        return id

    async def end(self, id: str) -> ModelTurn:
        turn, over = self.made[id]
        await over.wait()
        if (broken := self.broken) is not None:
            self.broken = None
            raise broken
        return turn


class Thoughtful:
    """A model whose calls can be taken up."""

    name = "mind:test"

    def __init__(self, distant: Distant) -> None:
        self._distant = distant

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        raise AssertionError("who can take calls up is asked so that they can be")

    async def think_resumably(
        self,
        request: ModelRequest,
        on_text: Callable[[str], None],
        on_accepted: Callable[[str], Awaitable[None]],
    ) -> ModelTurn:
        id = self._distant.begin(request)
        await on_accepted(id)
        return await self._told(id, on_text)

    async def take_up(
        self, response_id: str, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelTurn:
        self._distant.taken_up.append(response_id)
        if self._distant.failure is not None:
            raise self._distant.failure
        if response_id not in self._distant.made:
            raise ModelError(f"HTTP 404: {response_id} is not found")
        return await self._told(response_id, on_text or (lambda _: None))

    async def _told(self, id: str, on_text: Callable[[str], None]) -> ModelTurn:
        text = self._distant.made[id][0].text
        on_text(text[:4])
        turn = await self._distant.end(id)
        on_text(text[4:])
        return turn

    async def give_up(self, response_id: str) -> None:
        self._distant.given_up.append(response_id)

    async def aclose(self) -> None:
        pass


class Plain:
    """Another model of the same name, whose calls can't be."""

    name = Thoughtful.name

    def __init__(self, decide: Decide) -> None:
        self._decide = decide

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        return self._decide(request.messages)

    async def aclose(self) -> None:
        pass


class Thinker(Supervisor):
    """The supervisor with such a model."""

    name = "supervisor"

    def __init__(self, model: Model | None = None) -> None:
        self._given = model

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        assert self._given is not None
        return self._given


class Words(Agent):
    """Counts words."""

    @topic("words.count")
    async def count(self, text: str) -> int:
        """Count the words of a text."""
        return len(text.split())


async def entries(peer: Peer) -> list[Entry]:
    found = read(peer.ports, peer.ports.subjects.run())
    return [entry async for _, message in found for entry in entries_of(message)]


async def accepted(peer: Peer, times: int = 1) -> None:
    """Wait until so many calls were accepted."""

    async def is_so() -> bool:
        return sum(entry.kind == "accepted" for entry in await entries(peer)) == times

    await until(is_so)


async def text_of(handle: Handle) -> str:
    """What whoever reads along has read in the end."""
    text = ""
    async for event in handle.events():
        if isinstance(event, Restarted):
            text = ""
        elif isinstance(event, Chunk) and event.value["event"] == "text":
            text += event.value["delta"]
    return text


@dataclass
class Scene:
    """A run whose model thinks."""

    peer: Peer
    replica: Replica
    handle: Handle

    async def kinds(self) -> Counter[str]:
        return Counter(entry.kind for entry in await entries(self.peer))


async def thinking(
    peer: Peer, serve: Serve, distant: Distant, *, within_s: float = 600.0, calls: int = 1
) -> Scene:
    await serve(Words(), name="words")
    replica = await serve(Thinker(Thoughtful(distant)), name="first")
    handle = await peer.caller.submit("goal.pursue", {"goal": "count"}, AskOptions(within_s=within_s))
    await accepted(peer, calls)
    return Scene(peer, replica, handle)


async def test_the_next_attempt_takes_a_call_up_and_pays_it_once(peer: Peer, serve: Serve) -> None:
    distant = Distant()
    scene = await thinking(peer, serve, distant)
    await scene.replica.pump.drain(0.0)
    await serve(Thinker(Thoughtful(distant)), name="second")
    text = asyncio.create_task(text_of(scene.handle))

    async def taken_up() -> bool:
        return bool(distant.taken_up)

    await until(taken_up)
    distant.made["resp-1"][1].set()
    outcome = await scene.handle.outcome()

    assert outcome.unwrap()["answer"] == "done"
    assert (distant.begun, distant.taken_up, distant.given_up) == (2, ["resp-1"], [])
    assert await text == "I count.Done."
    kinds = await scene.kinds()
    assert (kinds["epoch"], kinds["asking"], kinds["accepted"], kinds["thought"]) == (2, 2, 2, 2)
    assert (outcome.spent.tokens, outcome.spent.rounds) == (30, 2)
    assert outcome.unwrap()["tokens"] == 30


async def test_a_call_that_nobody_knows_any_more_is_charged_and_made_again(peer: Peer, serve: Serve) -> None:
    distant = Distant()
    scene = await thinking(peer, serve, distant)
    await scene.replica.pump.drain(0.0)
    distant.made.clear()
    await serve(Thinker(Thoughtful(distant)), name="second")
    outcome = await scene.handle.outcome()

    assert outcome.unwrap()["answer"] == "done"
    assert (distant.begun, distant.taken_up) == (3, ["resp-1"])
    kinds = await scene.kinds()
    assert (kinds["asking"], kinds["accepted"], kinds["failed"], kinds["thought"]) == (3, 3, 1, 2)
    asked = next(entry for entry in await entries(peer) if entry.kind == "asking")
    assert asked.tokens > 0
    assert (outcome.spent.tokens, outcome.spent.rounds) == (30 + asked.tokens, 3)
    assert outcome.unwrap()["tokens"] == 30 + asked.tokens


async def test_a_call_that_failed_there_is_charged_for_what_it_used(peer: Peer, serve: Serve) -> None:
    distant = Distant()
    scene = await thinking(peer, serve, distant)
    await scene.replica.pump.drain(0.0)
    distant.failure = ModelError("the response failed", kind="passing", tokens=12)
    await serve(Thinker(Thoughtful(distant)), name="second")
    outcome = await scene.handle.outcome()

    assert outcome.unwrap()["answer"] == "done"
    # It may still go on, and is not wanted any more.
    assert (distant.begun, distant.given_up) == (3, ["resp-1"])
    assert (outcome.spent.tokens, outcome.spent.rounds) == (30 + 12, 3)


async def test_an_attempt_that_lost_its_run_does_not_end_the_call_that_its_heir_takes_up(
    peer: Peer, serve: Serve
) -> None:
    distant = Distant()
    scene = await thinking(peer, serve, distant)
    ports = scene.replica.peer.ports
    *_, (seq, message) = [each async for each in read(ports, ports.subjects.run())]
    run = message.correlation_id or ""
    # Somebody else writes on in its log, and then its stream breaks.
    data = ports.pack("event", {"content": []}, id="heir", correlation_id=run)
    await ports.runs.append(ports.subjects.run(run), data, ttl_s=600.0, expect_seq=seq)
    distant.broken = ModelError("silent for 60 s", kind="passing")
    distant.made["resp-1"][1].set()
    outcome = await scene.handle.outcome()

    assert outcome.unwrap()["answer"] == "done"
    assert (distant.begun, distant.taken_up, distant.given_up) == (2, ["resp-1"], [])
    assert outcome.unwrap()["tokens"] == 30


async def test_who_can_t_take_a_call_up_makes_it_again(peer: Peer, serve: Serve) -> None:
    distant = Distant()
    scene = await thinking(peer, serve, distant)
    await scene.replica.pump.drain(0.0)
    await serve(Thinker(Plain(call_and_finish)), name="second")
    outcome = await scene.handle.outcome()

    assert outcome.unwrap()["answer"] == "done"
    kinds = await scene.kinds()
    assert (kinds["asking"], kinds["failed"], kinds["thought"]) == (3, 1, 2)
    assert outcome.spent.rounds == 3


async def test_a_run_that_is_cancelled_ends_its_call_at_the_provider(peer: Peer, serve: Serve) -> None:
    distant = Distant()
    scene = await thinking(peer, serve, distant)

    assert isinstance(await scene.handle.cancel(), Cancelled)

    async def given_up() -> bool:
        return distant.given_up == ["resp-1"]

    await until(given_up)


async def test_a_call_that_takes_too_long_is_ended_at_the_provider(peer: Peer, serve: Serve) -> None:
    distant = Distant()
    scene = await thinking(peer, serve, distant, within_s=4.0)

    await scene.handle.outcome()

    async def given_up() -> bool:
        return distant.given_up == ["resp-1"]

    await until(given_up)


async def test_a_question_that_was_put_is_answered_though_the_run_makes_no_progress(
    peer: Peer, serve: Serve
) -> None:
    # Given a model that asks for the same again and again, until the run ends for that
    def stubborn(messages: Sequence[ChatMessage]) -> ModelTurn:
        call = ToolCall(f"c{turns_of(messages)}", "words__count", {"text": "one two"})
        return ModelTurn("", (call,), Usage(10, 5))

    distant = Distant(stubborn, held=set())
    scene = await thinking(peer, serve, distant, calls=6)
    report = (await scene.handle.outcome()).unwrap()
    assert report["stopped"] == "stuck"
    # When its replica is drained while it thinks for the last time
    distant.begun, distant.held = 0, {report["rounds"]}
    handle = await peer.caller.submit("goal.pursue", {"goal": "count"}, AskOptions(within_s=600.0))
    await accepted(peer, 2 * report["rounds"])
    await scene.replica.pump.drain(0.0)
    distant.made[f"resp-{report['rounds']}"][1].set()
    await serve(Thinker(Thoughtful(distant)), name="second")

    again = (await handle.outcome()).unwrap()

    assert (again["stopped"], again["rounds"]) == ("stuck", report["rounds"])
    assert distant.taken_up == [f"resp-{report['rounds']}"]


def read_and_finish(messages: Sequence[ChatMessage]) -> ModelTurn:
    """Read page after page, and summarize those before when that is asked for."""
    if "You summarize" in messages[0].content:
        return ModelTurn("The pages say little.", (), Usage(70, 7))
    told = "\n".join(message.content for message in messages)
    last = max(map(int, re.findall(r"page (\d+)", told)), default=0)
    if last >= 16:
        return ModelTurn("", (ToolCall("end", "finish", {"answer": "read"}),), Usage(10, 5))
    return ModelTurn("", (ToolCall(f"p{last + 1}", "book__page", {"number": last + 1}),), Usage(10, 5))


class Summarizing(Thinker):
    """The supervisor with such a model, which writes summaries, too."""

    summary_model = "same"


class Book(Agent):
    """Has pages."""

    @topic("book.page")
    async def page(self, number: int) -> str:
        """One page."""
        return f"page {number}: " + "and on it goes " * 60


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUADRON_PRICES", '{"mind:test": {"input": 1, "output": 1, "window": 11000}}')


class Desk(Distant):
    """Where the first summary does not end by itself."""

    def begin(self, request: ModelRequest) -> str:
        if "You summarize" in request.messages[0].content and not self.held:
            self.held = {self.begun + 1}
        return super().begin(request)


async def summarizing(peer: Peer, serve: Serve) -> tuple[Scene, Distant, str]:
    """A run whose first summary is being written, and the provider's id of that."""
    desk = Desk(read_and_finish, held=set())
    await serve(Book(), name="book")
    replica = await serve(Summarizing(Thoughtful(desk)), name="first")
    goal = {"goal": "read", "topics": ["book.page"], "max_rounds": 20}
    handle = await peer.caller.submit("goal.pursue", goal, AskOptions(within_s=600.0))

    async def is_asked() -> bool:
        return bool(desk.held)

    await until(is_asked)
    await accepted(peer, desk.begun)
    return Scene(peer, replica, handle), desk, f"resp-{desk.begun}"


@pytest.mark.usefixtures("small_window")
async def test_a_summary_is_taken_up_and_paid_once(peer: Peer, serve: Serve) -> None:
    scene, distant, id = await summarizing(peer, serve)
    await scene.replica.pump.drain(0.0)
    await serve(Summarizing(Thoughtful(distant)), name="second")
    distant.made[id][1].set()
    outcome = await scene.handle.outcome()

    assert outcome.unwrap()["answer"] == "read"
    assert (distant.taken_up, distant.given_up) == ([id], [])
    log = await entries(peer)
    written = [entry for entry in log if entry.kind == "summarized"]
    turns = sum(entry.kind == "thought" for entry in log)
    assert all(entry.model for entry in written)
    assert distant.begun == turns + len(written)
    assert (outcome.spent.tokens, outcome.spent.rounds) == (15 * turns + 77 * len(written), distant.begun)
    assert outcome.unwrap()["tokens"] == outcome.spent.tokens


@pytest.mark.usefixtures("small_window")
async def test_a_summary_of_a_run_that_is_cancelled_is_ended_at_the_provider(peer: Peer, serve: Serve) -> None:
    scene, distant, id = await summarizing(peer, serve)

    assert isinstance(await scene.handle.cancel(), Cancelled)

    async def given_up() -> bool:
        return distant.given_up == [id]

    await until(given_up)
