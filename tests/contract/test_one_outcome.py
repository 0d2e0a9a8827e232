"""A task has one outcome, whoever stores it, and however late another comes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.memory.common import DUPLICATE_WINDOW_S
from squadron.runtime.asking.caller import CANCEL_WITHIN_S
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Backlog, Mailbox
from squadron.runtime.running.context import Context
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Cancelled, Result, outcome_msg_id
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from squadron.testing import now_s
from tests.contract.conftest import SOON_S, Peer, Serve, World, until


class Desk(Agent):
    """Counts what it ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    @topic("desk.count")
    async def count(self, number: int) -> int:
        self.ran.append(number)
        return number

    @topic("desk.deaf", run_timeout_s=600)
    async def deaf(self, context: Context) -> str:
        """Goes on whatever it is told, longer than a message id is remembered."""
        self.ran.append(0)
        for _ in range(20):
            try:
                await asyncio.sleep(DUPLICATE_WINDOW_S / 10)
            except asyncio.CancelledError:
                continue
        return "done after all"


class Before(Agent):
    """Has a topic that goes to another agent while it is at work."""

    def __init__(self) -> None:
        self.began, self.go = asyncio.Event(), asyncio.Event()

    @topic("before.keep")
    async def keep(self) -> None:
        """Stays with it."""

    @topic("moving.work")
    async def work(self) -> str:
        self.began.set()
        await self.go.wait()
        return "before"


class After(Agent):
    """Has it then."""

    @topic("moving.work")
    async def work(self) -> str:
        return "after"


async def _outcomes(peer: Peer, key: str) -> list[str]:
    entries = [AgentMessage.decode(entry.data) async for entry in peer.lite.read(key)]
    return [message.payload.content["outcome"] for message in entries if message.type == "result"]


async def _backdated(peer: Peer, number: int, *, age_s: float, reply_to: str, id: str) -> None:
    """A task as it looks to a replica that takes it much later."""
    message = AgentMessage.new(
        "task",
        peer.caller.ports.identity,
        {"number": number},
        id=id,
        reply_to=reply_to,
        timestamp=peer.clock.time() - age_s,
    )
    await peer.queue.put(peer.subjects.task("desk.count"), message.encode(), msg_id=id)


def _result(peer: Peer, task_id: str, content: dict[str, Any], *, asker: str = "") -> bytes:
    answers: dict[str, Any] = {"metadata": {"answers": {"by": asker}}} if asker else {}
    outcome = AgentMessage.new(
        "result", peer.caller.ports.identity, content, parent=task_id, correlation_id=task_id, **answers
    )
    return outcome.encode()


async def _empty(peer: Peer) -> None:
    async def is_empty() -> bool:
        return await peer.queue.backlog("desk") == Backlog()

    await until(is_empty, within_s=600)


async def test_a_task_that_was_settled_long_ago_is_not_taken_up(world: World, serve: Serve) -> None:
    """Its caller stored `cancelled`; the message id by which a second outcome is dropped has lapsed since."""
    peer, desk = await world.join("caller"), Desk()
    key = peer.subjects.lite("caller", "old")
    cancelled = Cancelled(task_id="old", topic="desk.count", reason="cancelled").to_content()
    await peer.lite.append(key, _result(peer, "old", cancelled), msg_id="lapsed")
    await _backdated(peer, 1, age_s=600, reply_to=key, id="old")

    await serve(desk)
    await _empty(peer)

    assert desk.ran == []
    assert await _outcomes(peer, key) == ["cancelled"]


async def test_a_finished_task_is_known_though_others_use_its_reply_address(world: World, serve: Serve) -> None:
    """Tasks of a foreign client that share one `replyTo`, and a zombie's late chunk behind them."""
    peer, desk = await world.join("caller"), Desk()
    shared = peer.subjects.lite("foreign", "all")
    done = Result(task_id="one", topic="desk.count", data=1).to_content()
    await peer.lite.append(shared, _result(peer, "one", done), msg_id=outcome_msg_id("one", shared))
    await peer.lite.append(shared, _result(peer, "two", done), msg_id=outcome_msg_id("two", shared))
    chunk = AgentMessage.new("stream", peer.caller.ports.identity, {"sequenceNumber": 7}, correlation_id="one")
    await peer.lite.append(shared, chunk.encode())
    await peer.lite.append(shared, b"rubbish")
    # Old, so that it is looked for, as after a redelivery.
    await _backdated(peer, 1, age_s=600, reply_to=shared, id="one")

    await serve(desk)
    await _empty(peer)

    assert desk.ran == []
    assert await _outcomes_of(peer, shared, "one") == ["result"]


async def _outcomes_of(peer: Peer, key: str, task_id: str) -> list[str]:
    found = []
    async for entry in peer.lite.read(key):
        if b'"result"' in entry.data:
            message = AgentMessage.decode(entry.data)
            if message.context.parent_message_id == task_id:
                found.append(message.payload.content["outcome"])
    return found


#: It takes four minutes, which only turned time has.
@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_a_handler_that_ends_long_after_its_caller_gave_up_adds_no_outcome(
    world: World, serve: Serve
) -> None:
    peer, desk = await world.join("caller"), Desk()
    await serve(desk)
    handle = await peer.caller.submit("desk.deaf", {}, AskOptions(within_s=3600))

    async def runs() -> bool:
        return desk.ran == [0]

    await until(runs)
    assert isinstance(await handle.cancel(), Cancelled)
    await _empty(peer)

    assert await _outcomes(peer, handle.reply_to) == ["cancelled"]


class _CutOff:
    """The lite topics of a process that reads nothing for a while: the server, or the way to it, is away."""

    def __init__(self, lite: Any, until_s: float) -> None:
        self._lite, self._until_s = lite, until_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lite, name)

    def _check(self) -> None:
        if now_s() < self._until_s:
            raise BusUnavailableError("cut off")

    async def last(self, key: str) -> Entry | None:
        self._check()
        return await self._lite.last(key)

    async def read(self, *args: Any, **how: Any) -> AsyncIterator[Entry]:
        self._check()
        async for entry in self._lite.read(*args, **how):
            yield entry


@pytest.mark.parametrize("behind", [False, True])
async def test_who_cancels_by_a_ticket_while_cut_off_adds_no_outcome(world: World, behind: bool) -> None:
    """It ended so long ago that the message id by which a second outcome is dropped has lapsed."""
    peer, other = await world.join("caller"), await world.join("other")
    key = peer.subjects.lite("caller", "old")
    asker = other.caller.ports.identity.id
    result = _result(peer, "old", Result(task_id="old", topic="desk.count", data=1).to_content(), asker=asker)
    await peer.lite.append(key, result, msg_id="lapsed")
    if behind:
        chunk = AgentMessage.new("stream", peer.caller.ports.identity, {"sequenceNumber": 7}, correlation_id="old")
        await peer.lite.append(key, chunk.encode())
    deadline = int((peer.clock.time() + 600) * 1000)
    fields = {"task": "old", "topic": "desk.count", "replyTo": key, "deadline": deadline}
    cut_off: Any = _CutOff(other.lite, now_s() + CANCEL_WITHIN_S)
    other.caller.ports = replace(other.ports, lite=cut_off)

    outcome = await other.caller.resume(json.dumps(fields)).cancel()

    assert isinstance(outcome, Result)
    assert outcome.data == 1
    assert await _outcomes(peer, key) == ["result"]


async def test_who_is_cut_off_for_longer_is_told_so_and_adds_no_outcome(world: World) -> None:
    peer, other = await world.join("caller"), await world.join("other")
    key = peer.subjects.lite("caller", "old")
    fields = {
        "task": "old",
        "topic": "desk.count",
        "replyTo": key,
        "deadline": int(peer.clock.time() + 600) * 1000,
    }
    cut_off: Any = _CutOff(other.lite, math.inf)
    other.caller.ports = replace(other.ports, lite=cut_off)

    with pytest.raises(BusUnavailableError):
        await other.caller.resume(json.dumps(fields)).cancel()

    assert await _outcomes(peer, key) == []


async def test_a_cancel_by_ticket_is_heard_by_who_waits_for_the_task(world: World, serve: Serve) -> None:
    """Both in one process: the handle that was submitted, and one of its ticket."""
    peer = await world.join("caller")
    replica = await serve(Desk())
    await replica.handovers.aclose()
    await replica.pump.aclose()
    handle = await peer.caller.submit("desk.count", {"number": 1}, AskOptions(within_s=3600))
    waiting = asyncio.create_task(handle.outcome())
    await asyncio.sleep(0)

    assert isinstance(await peer.caller.resume(handle.ticket).cancel(), Cancelled)

    assert isinstance(await asyncio.wait_for(waiting, SOON_S), Cancelled)


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_a_handler_that_takes_minutes_is_heard(world: World, serve: Serve) -> None:
    peer, desk = await world.join("caller"), Desk()
    await serve(desk)

    handle = await peer.caller.submit("desk.deaf", {}, AskOptions(within_s=3600))

    assert (await handle.outcome()).unwrap() == "done after all"
    await _empty(peer)
    assert await _outcomes(peer, handle.reply_to) == ["result"]
    assert desk.ran == [0]


async def test_what_was_begun_before_its_topic_went_to_another_agent_is_answered(
    world: World, serve: Serve
) -> None:
    peer, before = await world.join("caller"), Before()
    await serve(before, name="before-1")
    handle = await peer.caller.submit("moving.work", {}, AskOptions(within_s=SOON_S))
    await before.began.wait()

    # As where it is deployed anew without it, and the other one then.
    bridge = await world.join("bridge", bridge=True)
    rest = AgentCard(agent="before", topics=(SemanticTopic(name="before.keep"),))
    await bridge.queue.declare(Mailbox("before", ("before.keep",), 30.0))
    await bridge.registry.advertise(rest)
    await serve(After(), name="after-1")

    async def has_moved() -> bool:
        return peer.registry.card("before") == rest and peer.registry.card("after") is not None

    await until(has_moved)
    before.go.set()
    assert (await handle.outcome()).unwrap() == "before"
