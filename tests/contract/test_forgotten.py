"""A killed server forgets what it handed out in its last moments, and hands it out as if for the first time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.link import embedded
from squadron.runtime.ports.queue import Backlog, Mailbox
from tests.conftest import kill
from tests.contract.conftest import ON_NATS, Inbox, Peer, Serve, World, until


class Typist(Agent):
    """Types what it is given, once it may."""

    def __init__(self) -> None:
        self.typed = 0
        self.began, self.go = asyncio.Event(), asyncio.Event()

    @topic("typist.warm")
    async def warm(self) -> None:
        return None

    @topic("typist.type")
    async def type(self) -> int:
        self.typed += 1
        self.began.set()
        await self.go.wait()
        return self.typed


@ON_NATS
async def test_what_the_server_forgot_it_had_delivered_is_not_run_again_once_its_outcome_is_stored(
    world: World, peer: Peer, serve: Serve
) -> None:
    assert world.settings is not None
    home = world.settings.home
    typist = Typist()
    # One slot: what comes again comes when the outcome is stored.
    await serve(typist, slots=1)
    # It writes down what it delivered ten times a second: of two in a row it forgets the second.
    await peer.caller.ask("typist.warm", {})
    asking = asyncio.create_task(peer.caller.ask("typist.type", {}))
    await typist.began.wait()

    server = embedded.find(home)
    assert server is not None
    kill(server.pid)
    typist.go.set()
    await asyncio.to_thread(embedded.ensure, home)

    assert (await asking).unwrap() == 1

    async def empty() -> bool:
        return await peer.queue.backlog("typist") == Backlog()

    await until(empty)
    assert typist.typed == 1


@ON_NATS
async def test_beginnings_are_counted_though_the_server_forgot_that_it_was_handed_back(
    world: World, peer: Peer
) -> None:
    assert world.settings is not None
    home = world.settings.home
    box, inbox = Mailbox("reader", ("book.read",), lease_s=1.0), Inbox()
    await peer.queue.declare(box)
    feed = await peer.queue.consume(box, inbox)
    feed.want(4)
    subject = peer.subjects.task("book.read")
    await peer.queue.put(subject, b"warm", msg_id="")
    await (await inbox.next()).lease.settle(confirmed=True)
    await peer.queue.put(subject, b"task", msg_id="")
    await (await inbox.next()).lease.release(after_s=2.0)

    server = embedded.find(home)
    assert server is not None
    kill(server.pid)
    await asyncio.to_thread(embedded.ensure, home)

    begun = [await delivery.lease.begin() for delivery in await inbox.take(2)]
    assert begun == [1, 2]
    await feed.aclose()


@asynccontextmanager
async def _delivered(peer: Peer, *, lease_s: float) -> AsyncIterator[Inbox]:
    """What is delivered of one task, as often as that is."""
    box, inbox = Mailbox("reader", ("book.read",), lease_s=lease_s), Inbox()
    await peer.queue.declare(box)
    feed = await peer.queue.consume(box, inbox)
    feed.want(5)
    await peer.queue.put(peer.subjects.task("book.read"), b"task", msg_id="")
    yield inbox
    await feed.aclose()


async def test_what_was_delivered_to_nobody_has_not_begun(peer: Peer) -> None:
    # What a server is about to deliver to somebody who stops to pull at that moment goes to the next one, at once
    # and as the second time; as it does when the server is told that the first time was in vain.
    async with _delivered(peer, lease_s=4.0) as inbox:
        await peer.queue.wake((await inbox.next()).lease.token)
        again = await inbox.next()
        assert (again.lease.delivered, await again.lease.begin()) == (2, 1)

        # Handed back by who had begun, and as soon.
        await again.lease.release()
        assert await (await inbox.next()).lease.begin() == 2


async def test_what_is_handed_back_at_once_by_who_had_begun_has_begun(peer: Peer) -> None:
    async with _delivered(peer, lease_s=4.0) as inbox:
        first = await inbox.next()
        assert await first.lease.begin() == 1
        await first.lease.release()

        assert await (await inbox.next()).lease.begin() == 2


async def test_whose_lease_lapsed_had_begun(peer: Peer) -> None:
    async with _delivered(peer, lease_s=1.5) as inbox:
        await (await inbox.next()).lease.begin()

        assert await (await inbox.next()).lease.begin() == 2
