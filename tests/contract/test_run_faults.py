"""What went wrong with runs once: redeploys, cancelling, late takeovers, large turns. In memory and on NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.runs.entries import Entry
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall
from squadron.bridge.jetstream.link import dial
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from squadron.runtime.wire.outcome import LITE_TTL_S, Cancelled
from tests.contract.conftest import ON_NATS, Peer, Replica, Serve, World, until

#: Longer than any queue knows an id, in seconds.
LATE_S = 200.0
DRAINS = 10


class Words(Agent):
    """Counts words, slowly if it is told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.cancelled = 0

    @topic("words.count", tags=["count"])
    async def count(self, text: str) -> int:
        """Count the words of a text."""
        self.ran.append(text)
        return len(text.split())

    @topic("words.slow", tags=["count"], run_timeout_s=7200.0)
    async def slow(self, text: str, ctx: Context) -> int:
        """Count the words of a text when it is allowed to."""
        self.ran.append(text)
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return len(text.split())


Think = Callable[[Sequence[ChatMessage]], Any]


class Mind:
    """A model that does what it is told, and counts how often it was asked."""

    name = "mind:test"

    def __init__(self, think: Think) -> None:
        self._think = think
        self.asked = 0

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        self.asked += 1
        turn = self._think(request.messages)
        return await turn if asyncio.iscoroutine(turn) else turn  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        pass


class Thinker(Supervisor):
    """The supervisor with such a mind."""

    name = "supervisor"

    def __init__(self, think: Think = lambda _: None) -> None:
        self.mind = Mind(think)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.mind


def turns_of(messages: Sequence[ChatMessage]) -> int:
    return sum(message.role == "assistant" for message in messages)


def call(name: str, **arguments: Any) -> ModelTurn:
    return ModelTurn("", (ToolCall("c", name, arguments),))


async def entries(peer: Peer) -> list[Entry]:
    found = read(peer.ports, peer.ports.subjects.run())
    return [entry async for _, message in found for entry in entries_of(message)]


async def test_ten_redeploys_in_which_the_run_came_further_cost_no_attempt(peer: Peer, serve: Serve) -> None:
    words, minds, stuck = Words(), list[Mind](), asyncio.Event()
    await serve(words, name="words")

    async def one_round(messages: Sequence[ChatMessage]) -> ModelTurn:
        turns = turns_of(messages)
        if turns == len(minds) <= DRAINS:
            stuck.set()
            await asyncio.Event().wait()
        if turns == DRAINS:
            return call("finish", answer="done")
        return call("words__count", text=f"round {turns}")

    async def deploy(number: int) -> Replica:
        thinker = Thinker(one_round)
        minds.append(thinker.mind)
        return await serve(thinker, name=f"thinker-{number}")

    replica = await deploy(0)
    asked = asyncio.create_task(peer.caller.ask("goal.pursue", {"goal": "count"}, AskOptions(within_s=600.0)))
    for number in range(1, DRAINS + 1):
        waits = asyncio.create_task(stuck.wait())
        await asyncio.wait([waits, asked], return_when=asyncio.FIRST_COMPLETED)
        assert not asked.done(), asked.result()
        stuck.clear()
        await replica.pump.drain(0.0)
        replica = await deploy(number)
    outcome = await asked

    assert outcome.ok, outcome.reason
    assert outcome.unwrap()["attempts"] == DRAINS + 1
    # Far more often begun than a task may be, and nothing of it counted.
    assert outcome.attempt <= 2
    assert words.ran == [f"round {number}" for number in range(DRAINS)]
    # In each life one answer is cut off, and paid again by the next one: never more.
    assert sum(mind.asked for mind in minds) == DRAINS + 1 + DRAINS


async def test_cancelling_a_run_reaches_what_an_earlier_attempt_sent(peer: Peer, serve: Serve) -> None:
    words = Words()
    await serve(words, name="words")
    first = await serve(Thinker(lambda _: call("words__slow", text="one two")), name="first")
    handle = await peer.caller.submit("goal.pursue", {"goal": "count"}, AskOptions(within_s=600.0))
    await words.began.wait()

    async def noted() -> bool:
        return any(entry.kind == "sent" for entry in await entries(peer))

    await until(noted)
    await first.pump.drain(0.0)
    # The next one asks its model nothing: the call still runs.
    second = Thinker()
    await serve(second, name="second")
    async for event in handle.chunks():
        if event["event"] == "resumed":
            break

    assert isinstance(await handle.cancel(), Cancelled)

    async def stopped() -> bool:
        return words.cancelled == 1

    await until(stopped)
    assert (words.ran, second.mind.asked) == (["one two"], 0)


async def test_a_task_that_runs_and_is_sent_again_much_later_runs_once(world: World, serve: Serve) -> None:
    words, how = Words(), {"owner": "run-1", "once": True}
    replica = await serve(words, name="words")
    # Replicas of one agent, as who takes up a run is.
    first, second = await world.join("planner-0a"), await world.join("planner-0b")
    if world.settings is not None:
        await _shorten_window(world.settings)
    options = AskOptions(task_id="run-1-r1c1-0", within_s=3600.0)
    # When two processes send the task of a run, the second when the queue has forgotten the first
    sent = await first.caller.submit("words.slow", {"text": "one two"}, options, **how)
    await words.began.wait()
    await asyncio.sleep(LATE_S if world.settings is None else 0.5)
    again = await second.caller.submit("words.slow", {"text": "one two"}, options, **how)

    async def delivered_twice() -> bool:
        return len(replica.delivered) == 2

    # The queue did not notice: it was delivered again, as another one.
    await until(delivered_twice)
    words.go.set()
    assert [(await handle.outcome()).unwrap() for handle in (sent, again)] == [2, 2]
    assert words.ran == ["one two"]


async def _shorten_window(settings: Settings) -> None:
    """The queue knows an id for a tenth of a second, so that nobody has to wait for two minutes."""
    connection = await dial.connect(settings, name="test")
    try:
        stream = StreamNames(settings.env).tasks
        config = (await connection.api(f"STREAM.INFO.{stream}", {}))["config"]
        config |= {"duplicate_window": 100_000_000}
        changed = await connection.api(f"STREAM.UPDATE.{stream}", config)
        assert changed["config"]["duplicate_window"] == 100_000_000
    finally:
        await connection.aclose()


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_what_a_task_came_to_is_found_by_who_takes_its_run_over_hours_later(
    peer: Peer, serve: Serve
) -> None:
    words = Words()
    await serve(words, name="words")
    first = await serve(Thinker(lambda _: call("words__slow", text="one two")), name="first")
    asked = {"goal": "count", "within_s": 24 * 3600.0}
    handle = await peer.caller.submit("goal.pursue", asked, AskOptions(within_s=30 * 3600.0))
    await words.began.wait()
    await asyncio.sleep(1.0)
    await first.pump.drain(0.0)
    # Its task ends while nobody waits for it, and only long afterwards somebody does
    words.go.set()
    await asyncio.sleep(3 * LITE_TTL_S)
    await serve(Thinker(lambda _: call("finish", answer="done", deliverables={"n": {"$from": "c"}})), name="heir")

    report = (await handle.outcome()).unwrap()

    assert report["deliverables"] == {"n": 2}
    assert words.ran == ["one two"]


@ON_NATS
async def test_a_turn_larger_than_the_server_takes_is_stored_and_paid_once(peer: Peer, serve: Serve) -> None:
    large = "word " * 400_000

    def think(messages: Sequence[ChatMessage]) -> ModelTurn:
        if turns_of(messages) == 0:
            return ModelTurn(large, (ToolCall("c", "words__count", {"text": large}),))
        return call("finish", answer="done", deliverables={"n": {"$from": "c"}})

    words, thinker = Words(), Thinker(think)
    await serve(words, name="words")
    await serve(thinker)
    outcome = await peer.caller.ask("goal.pursue", {"goal": "count"}, AskOptions(within_s=60.0))

    assert len(large) > 1024 * 1024  # What a server takes if nobody says otherwise.
    # No window has room for it a second time, so the run ends there, with what it came to.
    report = outcome.unwrap()
    assert list(report["deliverables"].values()) == [400_000]
    assert (thinker.mind.asked, len(words.ran), report["attempts"]) == (1, 1, 1)
