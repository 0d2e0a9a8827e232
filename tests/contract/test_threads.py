"""What acts in a thread can't be stopped: no other attempt begins while it does."""

from __future__ import annotations

import threading

import pytest

from squadron import Context, Retry, topic
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.thinking.model import Model, ModelTurn, ToolCall
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.retries import Retries
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.pump import Pump
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.outcome import DeadLettered, Outcome, TimedOut
from squadron.testing import ScriptedModel
from tests.contract.conftest import SOON_S, Inbox, Peer, Serve, World, until

#: A lapse would be seen soon, and an extension may be late.
LEASE_S = 4.0
#: How long what acts goes on, in seconds, if no other attempt begins meanwhile: longer than a lease.
ACTS_S = 1.2 * LEASE_S


class Acts:
    """Something that blocks its thread, and knows whether it was begun again meanwhile."""

    def __init__(self) -> None:
        self.times, self.overlapped = 0, False
        self.begun, self.again, self.free = threading.Event(), threading.Event(), threading.Event()

    def act(self, acts_s: float = ACTS_S) -> None:
        self.times += 1
        self.begun.set()
        if self.times == 1:
            self.overlapped = self.again.wait(acts_s)
        else:
            self.again.set()

    def hang(self) -> None:
        self.times += 1
        self.begun.set()
        self.free.wait(SOON_S)


class Worker(LLMAgent):
    """Has two tools: one acts in a thread, and the other raises when the first has begun."""

    def __init__(self, acts: Acts | None = None) -> None:
        self.acts = acts or Acts()

    def make_model(self, spec: str) -> Model:
        calls = ModelTurn("", (ToolCall("a", "slow", {}), ToolCall("b", "broken", {})))
        return ScriptedModel([calls, calls, calls])

    @topic("work.do", max_attempts=2)
    async def do(self, ctx: Context) -> str:
        return await self.think(ctx, "go")

    @topic("work.limited", max_attempts=2, run_timeout_s=3.0)
    async def limited(self, ctx: Context) -> str:
        return await self.think(ctx, "go")

    @tool(may_repeat=True)
    def slow(self) -> None:
        """Act."""
        self.acts.act()

    @tool
    async def broken(self) -> None:
        """Break."""
        await _set(self.acts.begun)
        raise Retry("again", after_s=0.0)


async def _set(event: threading.Event) -> None:
    async def is_set() -> bool:
        return event.is_set()

    await until(is_set)


async def _ask(peer: Peer, topic: str) -> Outcome:
    return await peer.caller.ask(topic, {}, AskOptions(within_s=60, model="scripted:x"))


async def test_a_task_is_not_tried_again_while_a_tool_of_it_acts_in_a_thread(serve: Serve, peer: Peer) -> None:
    acts = Acts()
    await serve(Worker(acts), lease_s=LEASE_S)
    # A replica that would take it over if the lease ended.
    await serve(Worker(acts), name="other", lease_s=LEASE_S)

    outcome = await _ask(peer, "work.do")

    assert isinstance(outcome, DeadLettered)
    # Once more at most for each attempt that began before it was known how it had ended: the tool that breaks
    # may end an attempt before a thread is free for the other.
    assert acts.times >= 1
    assert not acts.overlapped


async def test_a_tool_that_acts_for_ever_is_left_alone_when_the_time_is_up(serve: Serve, peer: Peer) -> None:
    acts = Acts()
    acts.act = acts.hang  # type: ignore[method-assign]
    await serve(Worker(acts))

    outcome = await _ask(peer, "work.limited")
    acts.free.set()

    assert isinstance(outcome, TimedOut)
    assert acts.times == 1


@pytest.mark.parametrize("hangs", [False, True])
async def test_an_event_is_not_tried_again_while_its_thread_acts(world: World, peer: Peer, hangs: bool) -> None:
    """Its time is up long before; one that does not even end in as much time again is buried."""
    acts, ended = Acts(), Inbox()

    def handle(message: AgentMessage) -> None:
        if hangs:
            acts.hang()
        else:
            acts.act(3.0)
            if acts.times == 2:
                ended(None)

    member = await world.join("replica")
    # One whose time is up before it has a thread is tried again, too.
    retries = Retries(9, 0.0, 0.0)
    limit_s = 0.3 if hangs else 2.0
    turns = EventTurns("desk.hear", handle, member.ports, retries=retries, run_timeout_s=limit_s)
    pump = Pump(member.events, EventGroup("desk.hear", "news.*", "first", LEASE_S), turns.run, slots=2)
    await pump.start()
    await peer.caller.sender.publish_durable("news.sport", 1)
    if hangs:
        pattern = f"agents.{peer.subjects.environment}.dead.>"

        async def is_buried() -> bool:
            return len(await peer.dead.latest(pattern)) == 1

        await until(is_buried)
        (letter,) = await peer.dead.latest(pattern)
        assert b"its thread still acts" in letter.data
        assert acts.times == 1
    else:
        await ended.next()
        assert acts.times == 2
        assert not acts.overlapped
    acts.free.set()
    await pump.aclose()
