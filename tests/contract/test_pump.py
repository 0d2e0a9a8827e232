"""A pump and its slots: whatever comes, comes twice, or is handed to it by others, and when its leases lapse."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from squadron.runtime.ports.queue import Backlog, Delivery, Lease, Mailbox
from squadron.runtime.running.pump import Pump, free_slot
from squadron.runtime.wire.outcome import Outcome
from squadron.testing import now_s
from tests.contract.conftest import Inbox, Peer, until

LEASE_S = 0.6
BOX = Mailbox("reader", ("book.read",), lease_s=LEASE_S)
#: A pump of this box believes that its leases last, so it never extends them.
CARELESS = replace(BOX, lease_s=1000.0)
#: Nothing of this one comes back while a test runs.
PATIENT = replace(BOX, lease_s=60.0)


class Reader:
    """Turns that last until one more may end."""

    def __init__(self) -> None:
        self.started, self.may_end = Inbox(), asyncio.Semaphore(0)
        self.running = self.most = 0

    async def __call__(self, delivery: Delivery) -> Outcome | None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.started(delivery.data)
        await self.may_end.acquire()
        self.running -= 1
        await delivery.lease.settle()
        return None


async def _put(peer: Peer, *names: str) -> None:
    for name in names:
        await peer.queue.put(peer.subjects.task("book.read"), name.encode(), msg_id=name)


async def _leased(peer: Peer, *names: str) -> list[Delivery]:
    """Put them into the box, as another replica was delivered them."""
    inbox = Inbox()
    feed = await peer.queue.consume(PATIENT, inbox)
    feed.want(len(names))
    await _put(peer, *names)
    deliveries = await inbox.take(len(names))
    await feed.aclose()
    return deliveries


async def _run_out(peer: Peer, reader: Reader, count: int) -> None:
    """End turns one by one, until `count` more have started and all are settled."""
    for _ in range(count):
        reader.may_end.release()
        await reader.started.next()
    reader.may_end.release()
    reader.may_end.release()

    async def settled() -> bool:
        return await peer.queue.backlog(BOX.name) == Backlog()

    await until(settled)


async def test_a_task_that_comes_back_to_where_it_still_runs_is_not_run_again(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    reader = Reader()
    pump = Pump(peer.queue, CARELESS, reader, slots=2)
    await pump.start()
    await _put(peer, "slow")
    assert await reader.started.next() == b"slow"

    # Two leases pass; the other slot is free all the time.
    await asyncio.sleep(2.5 * LEASE_S)

    assert reader.started.is_empty
    # No slot was lost by that, and none was made.
    await _put(peer, "a", "b", "c")
    await reader.started.next()
    await _run_out(peer, reader, 2)
    assert reader.most == 2
    await pump.aclose()


class Counted:
    """A lease that knows when it was extended."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.extended_at: list[float] = []

    async def extend(self) -> None:
        self.extended_at.append(now_s())
        await self._lease.extend()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lease, name)


#: By turned time, which is exact.
@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_of_the_extensions_of_a_lease_two_may_be_lost_and_no_more_are_sent(peer: Peer) -> None:
    await peer.queue.declare(PATIENT)
    (delivery,) = await _leased(peer, "long")
    counted, reader, started_at = Counted(delivery.lease), Reader(), now_s()
    pump = Pump(peer.queue, PATIENT, reader, slots=1)
    await pump.start()
    await asyncio.sleep(1)
    assert pump.offer(replace(delivery, lease=counted))

    await asyncio.sleep(3 * PATIENT.lease_s)

    # Whatever is held at a look is extended, however lately it came.
    times = [at_s - started_at for at_s in counted.extended_at]
    assert times == pytest.approx([n * PATIENT.lease_s / 3 for n in range(1, 10)], abs=1.0)
    await pump.aclose()


async def test_what_others_hand_over_takes_a_slot_like_any_other(peer: Peer) -> None:
    await peer.queue.declare(PATIENT)
    (handed,) = await _leased(peer, "handed")
    reader = Reader()
    pump = Pump(peer.queue, PATIENT, reader, slots=2)
    await pump.start()

    assert pump.offer(handed)
    await _put(peer, "a", "b", "c", "d")

    # The second slot takes one, and each that ends makes room for one.
    assert [await reader.started.next() for _ in range(2)] == [b"handed", b"a"]
    await _run_out(peer, reader, 3)
    assert reader.most == 2
    await pump.aclose()


async def test_what_is_handed_over_twice_is_run_once_and_no_more_waits_than_runs(peer: Peer) -> None:
    await peer.queue.declare(PATIENT)
    runs, waits, over = await _leased(peer, "runs", "waits", "over")
    reader = Reader()
    pump = Pump(peer.queue, PATIENT, reader, slots=1)
    await pump.start()

    # Who asked the first time may have missed the answer.
    for delivery, is_taken in ((runs, True), (runs, True), (waits, True), (waits, True), (over, False)):
        assert pump.offer(delivery) is is_taken
    await over.lease.release()

    assert await reader.started.next() == b"runs"
    reader.may_end.release()
    assert await reader.started.next() == b"waits"
    await _run_out(peer, reader, 1)
    assert reader.started.is_empty
    assert reader.most == 1
    await pump.aclose()


async def test_what_was_handed_over_and_comes_again_before_it_begins_is_run_once_as_it_came_last(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, arrived, at_once = Reader(), Inbox(), Pump._arrived
    delivered: list[int] = []

    async def run(delivery: Delivery) -> Outcome | None:
        delivered.append(delivery.lease.delivered)
        return await reader(delivery)

    def arrives(pump: Pump, delivery: Delivery) -> None:
        at_once(pump, delivery)
        arrived(delivery)

    monkeypatch.setattr(Pump, "_arrived", arrives)
    await peer.queue.declare(PATIENT)
    pump = Pump(peer.queue, PATIENT, run, slots=2)
    await pump.start()
    await _put(peer, "a", "b")
    await reader.started.take(2)
    await arrived.take(2)
    (handed,) = await _leased(peer, "handed")
    assert pump.offer(handed)
    # As if one more had been asked for before a slot is free, and its lease had lapsed.
    pump._asked_early.append(float("inf"))
    pump._feed.want(1)  # type: ignore[union-attr]
    await handed.lease.release()
    assert (await arrived.next()).seq == handed.seq

    await _run_out(peer, reader, 1)
    assert reader.started.is_empty
    assert delivered == [1, 1, 2]
    # What was wanted is wanted still.
    await _put(peer, "c", "d", "e")
    await reader.started.take(2)
    await _run_out(peer, reader, 1)
    assert reader.most == 2
    await pump.aclose()


async def test_a_pump_that_was_stopped_takes_nothing_and_leaves_nothing_running(peer: Peer) -> None:
    await peer.queue.declare(PATIENT)
    (late,) = await _leased(peer, "late")
    reader = Reader()
    pump = Pump(peer.queue, PATIENT, reader, slots=1)
    await pump.start()
    await pump.aclose()

    assert not pump.offer(late)
    await asyncio.sleep(0)  # what was cancelled ends
    assert "leases reader" not in {task.get_name() for task in asyncio.all_tasks()}


class Storer(Reader):
    """Turns that free their slot when one more may, and then store until one more may end."""

    def __init__(self) -> None:
        super().__init__()
        self.may_free, self.freed = asyncio.Semaphore(0), Inbox()
        self.stored: list[bytes] = []

    async def __call__(self, delivery: Delivery) -> Outcome | None:
        self.started(delivery.data)
        await self.may_free.acquire()
        free_slot()
        self.freed(delivery.data)
        await self.may_end.acquire()
        self.stored.append(delivery.data)
        await delivery.lease.settle()
        return None


async def test_a_slot_is_free_while_an_outcome_is_stored_but_no_more_are_stored_at_once_than_run(
    peer: Peer,
) -> None:
    await peer.queue.declare(PATIENT)
    storer = Storer()
    pump = Pump(peer.queue, PATIENT, storer, slots=1)
    await pump.start()
    await _put(peer, "a", "b", "c")
    assert await storer.started.next() == b"a"

    storer.may_free.release()
    assert await storer.started.next() == b"b"
    assert pump.statistics().in_flight == 1
    # The second has to keep its slot until its own end, because the first still stores.
    storer.may_free.release()
    assert await storer.freed.take(2) == [b"a", b"b"]
    assert await peer.queue.backlog(PATIENT.name) == Backlog(waiting=1, taken=2)
    storer.may_end.release()
    storer.may_end.release()

    assert await storer.started.next() == b"c"
    assert storer.stored == [b"a", b"b"]
    storer.may_free.release()
    storer.may_end.release()
    await pump.drain(10.0)


async def test_who_drains_waits_for_what_is_stored_and_hands_back_what_is_not(peer: Peer) -> None:
    await peer.queue.declare(PATIENT)
    storer = Storer()
    pump = Pump(peer.queue, PATIENT, storer, slots=1)
    await pump.start()
    await _put(peer, "a", "b")
    assert await storer.started.next() == b"a"
    storer.may_free.release()
    assert await storer.started.next() == b"b"

    storer.may_end.release()
    await pump.drain(0.2)

    assert storer.stored == [b"a"]
    inbox = Inbox()
    feed = await peer.queue.consume(PATIENT, inbox)
    feed.want(1)
    assert await inbox.next() is not None
    await feed.aclose()
    assert pump.statistics().in_flight == 0
