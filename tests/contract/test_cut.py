"""The bus is cut and healed, in memory and by taking a real server away: nothing is heard, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from squadron import Settings
from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import BusUnavailableError, SquadronError
from squadron.runtime.ports.queue import Backlog, Mailbox
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.outcome import Undeliverable
from squadron.testing import turned_time
from tests.conftest import HEARTBEAT_S
from tests.contract.conftest import Inbox
from tests.contract.own_server import OwnServer

#: A lease that ends soon, so that a redelivery is soon seen.
LEASE_S = 1.5


@dataclass
class Site:
    """A server that can be out of reach, and who is there."""

    cut: Callable[[], None]
    heal: Callable[[], None]
    join: Callable[[str], Awaitable[Place]]


@pytest.fixture(params=["memory", "jetstream"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as opened:
        common: dict[str, Any] = {"env": "cut", "heartbeat_s": HEARTBEAT_S, "lease_s": LEASE_S, "home": tmp_path}
        if request.param == "memory":
            opened.enter_context(turned_time())
            memory, settings = MemoryServer("cut"), Settings(**common)

            async def place_of(identity: AgentIdentity) -> Place:
                place = memory.place(identity, settings)
                await place.start()
                return place

            cut, heal = memory.cut, memory.heal
        else:
            server = OwnServer(tmp_path)
            server.start()
            opened.callback(server.stop)
            on_nats = Settings(**common, nats_url=server.url)

            async def place_of(identity: AgentIdentity) -> Place:
                return await Wiring.open(on_nats, identity, create=True)

            cut, heal = server.stop, server.start

        async def join(name: str) -> Place:
            place = await place_of(AgentIdentity(id=name, type="test"))
            opened.push_async_callback(place.aclose)
            return place

        yield Site(cut, heal, join)


class Typist(Agent):
    """Types when told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    @topic("typist.wait")
    async def wait(self) -> str:
        self.begun.set()
        await self.go_on.wait()
        return "waited"

    @topic("typist.type")
    async def type(self, text: str) -> str:
        return text.upper()


async def test_a_bus_that_is_cut_and_healed_has_lost_nothing(site: Site) -> None:
    typist, spec = Typist(), AgentSpec.of(Typist)
    host = Host(await site.join("replica"), typist, spec, slots=4)
    caller = await site.join("caller")
    await caller.ports.queue.declare(host.mailbox)
    await caller.registry.advertise(spec.card())
    await host.start()
    back = asyncio.Event()

    async def hook() -> None:
        back.set()

    caller.ports.bus.on_reconnect(hook)
    events = Inbox()
    feed = await caller.ports.events.consume(EventGroup("listener", "news.*", "new", LEASE_S), events)
    feed.want(2)
    await caller.ports.events.append("news.first", b"first", msg_id="1")
    unsettled = await events.next()
    running = asyncio.create_task(caller.caller.ask("typist.wait", {}, AskOptions(within_s=60)))
    await typist.begun.wait()

    site.cut()
    asked: list[Coroutine[Any, Any, Any]] = [
        caller.ports.queue.put(caller.ports.subjects.task("typist.type"), b"{}", msg_id=""),
        caller.ports.lite.append(caller.ports.subjects.lite("me", "room"), b"{}"),
        caller.ports.lite.last(caller.ports.subjects.lite("me", "room")),
        caller.ports.bus.request(caller.ports.subjects.control("ping"), b"", within_s=2),
    ]
    waiting = asyncio.create_task(caller.caller.ask("typist.type", {"text": "late"}, AskOptions(within_s=60)))
    typist.go_on.set()
    asked.append(caller.caller.ask("typist.type", {"text": "never"}, AskOptions(within_s=1)))
    *refused, short = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in refused] == [BusUnavailableError] * len(refused)
    assert isinstance(short, Undeliverable)
    assert not back.is_set()
    assert not running.done()
    assert not waiting.done()
    site.heal()

    assert (await running).unwrap() == "waited"
    assert (await waiting).unwrap() == "LATE"
    await back.wait()
    again = await events.next(within_s=60)
    assert (again.data, again.seq) == (b"first", unsettled.seq)
    await feed.aclose()
    await host.stop(0.0)


async def test_of_a_place_that_was_given_up_nothing_is_heard_and_others_take_what_it_had(site: Site) -> None:
    first, second = await site.join("first"), await site.join("second")
    mailbox = Mailbox("typist", ("typist.*",), LEASE_S)
    await first.ports.queue.declare(mailbox)
    held, taken = Inbox(), Inbox()
    feed = await first.ports.queue.consume(mailbox, held)
    feed.want(1)
    await second.ports.queue.put(second.ports.subjects.task("typist.type"), b"{}", msg_id="1")
    delivery = await held.next()

    await first.disconnect()
    other = await second.ports.queue.consume(mailbox, taken)
    other.want(2)
    with contextlib.suppress(SquadronError):
        await delivery.lease.settle()
    redelivered = await taken.next(within_s=60)

    assert redelivered.lease.delivered == 2
    await redelivered.lease.settle(confirmed=True)
    assert await second.ports.queue.backlog("typist") == Backlog()
    with pytest.raises(SquadronError):
        await first.records.last("agents.cut.registry.card.typist")
    await other.aclose()
