"""Who hears `expired` counts on it that nothing began: a task that did is never ended so, however it came back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from squadron import Agent, topic
from squadron.actors.agent import AgentSpec
from squadron.runtime.ports.queue import Lease, Mailbox
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Constraints, Payload, Routing
from squadron.runtime.wire.outcome import Expired, Outcome, Result, TimedOut
from squadron.runtime.wire.subjects import token_of
from tests.contract.conftest import Inbox, Peer, World

LEASE_S = 2.0


class Kiln(Agent):
    """Fires what it is given, and knows how often."""

    def __init__(self) -> None:
        self.fired = 0

    @topic("kiln.fire", max_attempts=5)
    async def fire(self) -> str:
        """Once more."""
        self.fired += 1
        return "fired"


@dataclass
class Yard:
    """A mailbox whose deliveries nobody takes but the test, and the turns that would run them."""

    peer: Peer
    kiln: Kiln
    turns: Turns
    inbox: Inbox

    async def put(self, *, deadline_in_s: float) -> None:
        """A task that had a second to be started in, ten seconds ago."""
        now = self.peer.clock.time()
        limits = Constraints(deadline=round((now + deadline_in_s) * 1000))
        message = AgentMessage.new(
            "task",
            AgentIdentity(id="stranger"),
            payload=Payload(content={}, constraints=limits),
            routing=Routing(timeout=1000),
            timestamp=now - 10.0,
            reply_to=self.peer.subjects.lite("stranger", "kiln"),
            conversation_id="c-1",
        )
        subject = self.peer.subjects.task("kiln.fire")
        await self.peer.queue.put(subject, message.encode(), msg_id=token_of(message.id))

    async def ended(self) -> Outcome | None:
        return await self.turns.run(await self.inbox.next())


@pytest.fixture(params=["in no order", "in order"])
async def yard(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Yard]:
    peer, kiln, inbox = await world.join("kiln-1"), Kiln(), Inbox()
    box = Mailbox("kiln", ("kiln.fire",), LEASE_S, ordered=request.param == "in order")
    await peer.queue.declare(box)
    feed = await peer.queue.consume(box, inbox)
    feed.want(8)
    yield Yard(peer, kiln, Turns("kiln", AgentSpec.of(Kiln).handlers(kiln), peer.caller), inbox)
    await feed.aclose()


async def _handed_back(lease: Lease, _: Inbox) -> None:
    await lease.begin()
    await lease.release()


async def _silent(lease: Lease, _: Inbox) -> None:
    """As of a replica that was killed."""
    await lease.begin()


async def _further(lease: Lease, _: Inbox) -> None:
    await lease.begin()
    await lease.progressed()
    await lease.release()


async def _further_and_silent(lease: Lease, _: Inbox) -> None:
    await lease.begin()
    await lease.progressed()


async def _parked(lease: Lease, _: Inbox) -> None:
    await lease.begin()
    await lease.park(0.0)


async def _parked_and_handed_back(lease: Lease, inbox: Inbox) -> None:
    """Whoever took it up went before it began."""
    await _parked(lease, inbox)
    await (await inbox.next()).lease.release()


async def _further_parked_and_handed_back(lease: Lease, inbox: Inbox) -> None:
    await lease.begin()
    await lease.progressed()
    await lease.park(0.0)
    await (await inbox.next()).lease.release()


BEGUN: list[Any] = [
    _handed_back,
    _silent,
    _further,
    _further_and_silent,
    _parked,
    _parked_and_handed_back,
    _further_parked_and_handed_back,
]
each_that_began = pytest.mark.parametrize("began", BEGUN, ids=lambda began: began.__name__.strip("_"))
Began = Callable[[Lease, Inbox], Awaitable[None]]


@each_that_began
async def test_what_has_begun_is_run_again_past_the_time_for_its_start(yard: Yard, began: Began) -> None:
    await yard.put(deadline_in_s=600)
    await began((await yard.inbox.next()).lease, yard.inbox)

    assert isinstance(await yard.ended(), Result)
    assert yard.kiln.fired == 1


@each_that_began
async def test_what_has_begun_is_timed_out_past_its_deadline(yard: Yard, began: Began) -> None:
    await yard.put(deadline_in_s=-1)
    await began((await yard.inbox.next()).lease, yard.inbox)

    assert isinstance(await yard.ended(), TimedOut)
    assert yard.kiln.fired == 0


@pytest.mark.parametrize("times", [0, 1, 3])
@pytest.mark.parametrize("deadline_in_s", [600, -1])
async def test_what_nobody_began_expires_however_often_it_was_handed_back(
    yard: Yard, times: int, deadline_in_s: float
) -> None:
    await yard.put(deadline_in_s=deadline_in_s)
    for _ in range(times):
        await (await yard.inbox.next()).lease.release()

    assert isinstance(await yard.ended(), Expired)
    assert yard.kiln.fired == 0


async def test_what_was_taken_over_is_known_to_have_begun(yard: Yard) -> None:
    await yard.put(deadline_in_s=600)
    first = (await yard.inbox.next()).lease
    assert not await first.begun_before()
    await _handed_back(first, yard.inbox)
    second = (await yard.inbox.next()).lease

    assert await yard.peer.queue.take_over(second.token).begun_before()
