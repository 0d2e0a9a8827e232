"""A pump whose leases lapse under running turns, as they do while the server is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from squadron.runtime.ports.queue import Backlog, Delivery, Mailbox
from squadron.runtime.running.pump import Pump
from squadron.runtime.wire.outcome import Outcome
from tests.contract.conftest import Inbox, Peer, until

LEASE_S = 0.6
BOX = Mailbox("reader", ("book.read",), lease_s=LEASE_S)
#: A pump of this box believes that its leases last, so it never extends them.
CARELESS = replace(BOX, lease_s=1000.0)


class Reader:
    """Turns that last until they are told to end."""

    def __init__(self) -> None:
        self.started, self.may_end = Inbox(), asyncio.Event()

    async def __call__(self, delivery: Delivery) -> Outcome | None:
        self.started(delivery.lease.delivered)
        await self.may_end.wait()
        await delivery.lease.settle()
        return None


async def test_a_task_that_comes_back_to_where_it_still_runs_is_not_run_again(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    reader = Reader()
    pump = Pump(peer.queue, CARELESS, reader, slots=2)
    await pump.start()
    await peer.queue.put(peer.subjects.task("book.read"), b"slow", msg_id="slow")
    assert await reader.started.next() == 1

    # Two leases pass; the other slot is free all the time.
    await asyncio.sleep(2.5 * LEASE_S)

    assert reader.started.is_empty
    reader.may_end.set()

    async def settled() -> bool:
        return await peer.queue.backlog(BOX.name) == Backlog()

    await until(settled)
    await peer.queue.put(peer.subjects.task("book.read"), b"next", msg_id="next")
    assert await reader.started.next() == 1
    await pump.aclose()
