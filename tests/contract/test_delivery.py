"""What a caller may ask of delivery: cancel, route, deadlines, retries, bounded mailboxes, tickets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import BusUnavailableError, ConfigError, InvalidMessageError, Retry
from squadron.runtime.ports.bus import Note
from squadron.runtime.ports.queue import Backlog, Delivery, Mailbox
from squadron.runtime.running import handover
from squadron.runtime.running.context import Context
from squadron.runtime.running.handover import Courier, Handovers
from squadron.runtime.store.dead_letters import DeadLetters
from squadron.runtime.wire.envelope import AgentMessage, Constraints, Payload
from squadron.runtime.wire.outcome import (
    Cancelled,
    DeadLettered,
    Expired,
    Failed,
    Outcome,
    Rejected,
    Result,
    TimedOut,
    Undeliverable,
)
from squadron.runtime.wire.route import Route
from squadron.testing import now_s
from tests.contract.conftest import LEASE_S, ON_NATS, SOON_S, Inbox, Peer, Replica, Serve, World, until


class Bench(Agent):
    """Works until it is told to stop."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.stopped: list[Any] = []
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.thread_began = threading.Event()

    @topic("bench.work")
    async def work(self, number: int) -> int:
        self.started.append(number)
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.append(number)
            raise
        return number

    @topic("bench.saw")
    def saw(self, context: Context) -> str:
        """In a thread."""
        self.thread_began.set()
        given_up_at = time.monotonic() + SOON_S
        while not context.cancelled and time.monotonic() < given_up_at:
            time.sleep(0.01)
        self.stopped.append("saw")
        return "sawn"

    @topic("bench.parent")
    async def parent(self, context: Context) -> Any:
        return (await context.ask("bench.child", within_s=60)).kind

    @topic("bench.child")
    async def child(self, context: Context) -> Any:
        return (await context.ask("bench.work", {"number": 99}, within_s=60)).kind

    @topic("bench.patient", max_attempts=5, backoff_s=(0.05, 0.1), retry_on=(ConnectionError,))
    async def patient(self, error: str, context: Context) -> int:
        self.started.append(now_s())
        if context.attempt < 4:
            raise {"connection": ConnectionResetError, "value": ValueError, "config": ConfigError}[error]("no")
        return context.attempt

    @topic("bench.late")
    async def late(self) -> None:
        self.started.append("late")
        raise Retry("in a minute", after_s=60)

    @topic("bench.broken", max_attempts=1)
    async def broken(self) -> None:
        """Waits for something that is cancelled by others."""
        never = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, never.cancel)
        await never

    @topic("bench.clumsy", run_timeout_s=0.1)
    async def clumsy(self) -> None:
        """Fails when it is stopped."""
        try:
            await asyncio.sleep(60)
        finally:
            raise ZeroDivisionError

    @topic("bench.left")
    async def left(self, context: Context) -> float:
        """How long its child says that it may run."""
        return (await context.ask("bench.mine", within_s=1000)).unwrap()

    @topic("bench.mine")
    async def mine(self, context: Context) -> float:
        return context.deadline.remaining_s()


@pytest.fixture
async def bench(serve: Serve) -> Bench:
    agent = Bench()
    await serve(agent, slots=4)
    return agent


@pytest.fixture
async def client(world: World, bench: Bench) -> Peer:
    return await world.join("client")


async def _ask(peer: Peer, topic: str, ask: AskOptions | None = None, **content: Any) -> Outcome:
    return await asyncio.wait_for(peer.caller.ask(topic, content, ask or AskOptions(within_s=20)), 25)


async def _empty(peer: Peer, mailbox: str = "bench") -> None:
    async def nothing_left() -> bool:
        return await peer.queue.backlog(mailbox) == Backlog(0, 0)

    await until(nothing_left)


# --- cancel --------------------------------------------------------------------------------------------


async def test_a_running_task_is_cancelled_from_another_process(client: Peer, bench: Bench) -> None:
    handle = await client.caller.submit("bench.work", {"number": 1}, AskOptions(within_s=60))
    await bench.began.wait()

    outcome = await asyncio.wait_for(handle.cancel(), SOON_S)

    assert isinstance(outcome, Cancelled)
    assert (outcome.source, outcome.reason) == ("replica", "cancelled while it ran")
    assert bench.stopped == [1]
    assert await handle.cancel() is outcome
    await _empty(client)


async def test_a_cancelled_task_that_waits_never_runs(client: Peer, bench: Bench) -> None:
    running = [await client.caller.submit("bench.work", {"number": i}, AskOptions(within_s=60)) for i in range(4)]
    queued = await client.caller.submit("bench.work", {"number": 7}, AskOptions(within_s=60))

    outcome = await asyncio.wait_for(queued.cancel(), SOON_S)
    bench.go.set()
    for handle in running:
        assert isinstance(await client.caller.outcome(handle), Result)
    await _empty(client)

    assert isinstance(outcome, Cancelled)
    assert 7 not in bench.started
    # Who comes back for it later hears the same.
    assert isinstance(await client.caller.outcome(client.caller.resume(queued.ticket)), Cancelled)


async def test_a_thread_is_told_by_a_flag(client: Peer, bench: Bench) -> None:
    handle = await client.caller.submit("bench.saw", {}, AskOptions(within_s=60))
    await asyncio.to_thread(bench.thread_began.wait)

    assert isinstance(await asyncio.wait_for(handle.cancel(), SOON_S), Cancelled)
    assert bench.stopped == ["saw"]
    await _empty(client)


async def test_cancelling_reaches_the_children_of_children(client: Peer, bench: Bench) -> None:
    handle = await client.caller.submit("bench.parent", {}, AskOptions(within_s=60))
    await bench.began.wait()

    assert isinstance(await asyncio.wait_for(handle.cancel(), SOON_S), Cancelled)

    async def the_grandchild_stopped() -> bool:
        return bench.stopped == [99]

    await until(the_grandchild_stopped)
    await _empty(client)


async def test_cancelling_what_has_ended_changes_nothing(client: Peer) -> None:
    handle = await client.caller.submit("bench.mine", {}, AskOptions(within_s=20))
    await client.caller.outcome(handle)

    assert isinstance(await handle.cancel(), Result)
    again = client.caller.resume(handle.ticket)
    assert isinstance(await again.cancel(), Result)


async def test_a_replica_that_comes_later_knows_what_was_cancelled(world: World, serve: Serve) -> None:
    """Nobody serves the mailbox when the task is cancelled; whoever comes must not run it."""
    client = await world.join("client")
    agent = Bench()
    first = await serve(agent, name="first", slots=1)
    await first.pump.aclose()
    handle = await client.caller.submit("bench.work", {"number": 5}, AskOptions(within_s=60))
    assert isinstance(await asyncio.wait_for(handle.cancel(), SOON_S), Cancelled)

    later = Bench()
    later.go.set()
    await serve(later, name="later", slots=1)
    await _empty(client)

    assert later.started == []


async def test_a_drained_turn_is_not_a_cancelled_one(world: World, serve: Serve) -> None:
    client = await world.join("client")
    first, second = Bench(), Bench()
    one = await serve(first, name="one", slots=1)
    handle = await client.caller.submit("bench.work", {"number": 1}, AskOptions(within_s=60))
    await first.began.wait()
    await one.pump.aclose()

    second.go.set()
    await serve(second, name="two", slots=1)
    outcome = await client.caller.outcome(handle)

    assert (outcome.source, outcome.attempt) == ("two", 2)


# --- routing hints -------------------------------------------------------------------------------------


class Fleet(Agent):
    """Says who it is."""

    @topic("fleet.who")
    async def who(self, context: Context) -> str:
        return context.caller.ports.identity.id


@pytest.fixture
async def fleet(world: World, serve: Serve) -> Peer:
    for name, capabilities in (("red", {"paint"}), ("green", {"paint", "saw"}), ("blue", {"saw", "drill"})):
        agent = Fleet()
        agent.capabilities = frozenset(capabilities)
        await serve(agent, name=name, slots=2)
    return await world.join("client")


@pytest.mark.parametrize(
    ("route", "allowed"),
    [
        (Route(target="blue"), {"blue"}),
        (Route(target="fleet"), {"red", "green", "blue"}),
        (Route(capabilities=("paint", "saw")), {"green"}),
        (Route(exclusions=("red", "blue")), {"green"}),
        (Route(capabilities=("saw",), exclusions=("green",)), {"blue"}),
    ],
)
async def test_only_replicas_that_fit_run_it(fleet: Peer, route: Route, allowed: set[str]) -> None:
    asks = (_ask(fleet, "fleet.who", AskOptions(within_s=20, route=route)) for _ in range(6))

    outcomes = await asyncio.gather(*asks)

    assert {outcome.unwrap() for outcome in outcomes} <= allowed
    # Being handed on costs no attempt.
    assert {outcome.attempt for outcome in outcomes} == {1}


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (Route(target="purple"), "it is for 'purple'"),
        (Route(capabilities=("weld",)), "lacks weld"),
        (Route(capabilities=("paint", "drill")), "lacks"),
        (Route(exclusions=("red", "green", "blue")), "is excluded"),
        (Route(exclusions=("fleet",)), "fleet is excluded"),
    ],
)
async def test_if_none_fits_it_is_undeliverable_with_the_reason(fleet: Peer, route: Route, reason: str) -> None:
    outcome = await _ask(fleet, "fleet.who", AskOptions(within_s=20, route=route))

    assert isinstance(outcome, Undeliverable)
    assert reason in outcome.reason
    assert outcome.details["replicas"] == ["blue", "green", "red"]
    await _empty(fleet, "fleet")


class Ward(Agent):
    """Holds one task until it may go on."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    @topic("ward.hold")
    async def hold(self) -> str:
        await self.may_end.wait()
        return "held"

    @topic("ward.who")
    async def who(self, context: Context) -> str:
        return context.caller.ports.identity.id


#: Only this one of the wards.
RED = Route(target="red")


#: A lapse would be seen soon, and an extension may be late.
WARD_LEASE_S = 4.0


@pytest.fixture
async def wards(world: World, serve: Serve) -> dict[str, Replica]:
    """Six replicas with one slot each, that know each other; the one called red is busy."""
    names = ("red", "b", "c", "d", "e", "f")
    wards = {name: await serve(Ward(), name=name, slots=1, lease_s=WARD_LEASE_S) for name in names}
    client = await world.join("client")

    async def all_are_known() -> bool:
        peers = [client, *(each.peer for each in wards.values())]
        return all(peer.registry.replicas("ward").keys() == wards.keys() for peer in peers)

    await until(all_are_known)
    await client.caller.submit("ward.hold", {}, AskOptions(within_s=60, route=RED))

    async def is_busy() -> bool:
        return wards["red"].pump.statistics().in_flight == 1

    await until(is_busy)
    return wards


async def test_a_task_for_a_busy_replica_waits_there_and_troubles_nobody(
    client: Peer, wards: dict[str, Replica]
) -> None:
    for each in wards.values():
        each.delivered.clear()
    waits = await client.caller.submit("ward.who", {}, AskOptions(within_s=60, route=RED))
    enough_at = now_s() + 1.2 * WARD_LEASE_S

    async def bounced_or_more_than_a_lease_passed() -> bool:
        return sum(len(each.delivered) for each in wards.values()) > 10 or now_s() > enough_at

    await until(bounced_or_more_than_a_lease_passed)
    # The others are free for theirs meanwhile.
    other = await _ask(client, "ward.who", AskOptions(within_s=60, route=Route(exclusions=("red",))))
    assert other.unwrap() != "red"
    red = wards["red"].agent
    assert isinstance(red, Ward)
    red.may_end.set()

    outcome = await client.caller.outcome(waits)
    assert (outcome.unwrap(), outcome.attempt) == ("red", 1)
    # Each of the two came to one replica, and maybe from there to the right one; none was delivered again.
    delivered = [count for each in wards.values() for count in each.delivered]
    assert set(delivered) == {1}
    assert len(delivered) <= 4
    await _empty(client, "ward")


async def test_tasks_that_wait_at_a_replica_that_leaves_are_handed_back(
    client: Peer, wards: dict[str, Replica]
) -> None:
    red = wards["red"]
    # One more than may wait there.
    waits = [await client.caller.submit("ward.who", {}, AskOptions(within_s=60, route=RED)) for _ in range(2)]
    await red.handovers.aclose()
    await red.peer.registry.depart("ward", "red")
    await red.pump.aclose()

    for handle in waits:
        outcome = await client.caller.outcome(handle)
        assert isinstance(outcome, Undeliverable)
        assert "it is for 'red'" in outcome.reason


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"a b",
        b"a 1 x.y\n",
        b"_INBOX.a.b 1 %s\n{}",
        b"$JS.ACK.x 1 %s\n{}",
        b"$JS.ACK.other.c.1.1.1.1.0 1 %s\n{}",
    ],
)
async def test_rubbish_that_is_handed_over_is_left_out(
    client: Peer, wards: dict[str, Replica], data: bytes
) -> None:
    data = data.replace(b"%s", client.subjects.task("ward.who").encode())
    with pytest.raises(BusUnavailableError):
        await client.bus.request(client.subjects.hand("red"), data, within_s=0.05)
    red = wards["red"].agent
    assert isinstance(red, Ward)
    red.may_end.set()
    assert (await _ask(client, "ward.who", AskOptions(within_s=60, route=RED))).unwrap() == "red"


async def test_a_task_that_nobody_takes_stays_with_who_was_delivered_it(peer: Peer) -> None:
    box = Mailbox("ward", ("ward.who",), 60.0)
    await peer.queue.declare(box)
    await peer.queue.put(peer.subjects.task("ward.who"), b"{}", msg_id="one")
    inbox = Inbox()
    feed = await peer.queue.consume(box, inbox)
    feed.want(1)
    delivery = await inbox.next()

    class Local:
        """A lease that can't be taken over."""

        token = ""

    courier = Courier(peer.ports)
    assert not await courier.hand_over(delivery, ["gone"])
    assert not await courier.hand_over(replace(delivery, lease=Local()), ["gone"])
    await delivery.lease.settle()
    await feed.aclose()


class Taker:
    """A pump with room for all, that keeps what it is given."""

    lease_s = 60.0

    def __init__(self) -> None:
        self.taken: list[Delivery] = []

    def has_room(self, delivery: Delivery, *, beside: int = 0) -> bool:
        return True

    def offer(self, delivery: Delivery) -> bool:
        self.taken.append(delivery)
        return True


@pytest.fixture
async def leased(peer: Peer) -> AsyncIterator[Delivery]:
    """A task that was delivered to `peer`."""
    box = Mailbox("ward", ("ward.who",), 60.0)
    await peer.queue.declare(box)
    await peer.queue.put(peer.subjects.task("ward.who"), b"{}", msg_id="one")
    inbox = Inbox()
    feed = await peer.queue.consume(box, inbox)
    feed.want(1)
    delivery = await inbox.next()
    yield delivery
    await delivery.lease.settle()
    await feed.aclose()


@pytest.fixture
async def taking(world: World) -> AsyncIterator[tuple[Peer, Taker, Handovers]]:
    """Another replica that takes what it is brought."""
    other, taker = await world.join("taker"), Taker()
    ear = Handovers(other.ports, taker)  # type: ignore[arg-type]
    await ear.start()
    yield other, taker, ear
    await ear.aclose()


@ON_NATS
async def test_what_is_handed_over_tells_when_it_was_stored(
    peer: Peer, leased: Delivery, taking: tuple[Peer, Taker, Handovers]
) -> None:
    other, taker, _ = taking
    assert await Courier(peer.ports).hand_over(leased, [other.ports.identity.id])
    await until(lambda: _has(taker, 1))
    # A topic that is new to the taker is waited for from then on, and not from the year 1970.
    assert taker.taken[0].stored_at == leased.stored_at > 0


async def _has(taker: Taker, count: int) -> bool:
    return len(taker.taken) == count


async def test_who_promises_a_task_too_late_does_not_get_it_and_who_is_asked_next_does(
    peer: Peer, leased: Delivery, taking: tuple[Peer, Taker, Handovers], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, taker, _ = taking
    asked: list[Note] = []
    slow = await peer.bus.subscribe(peer.subjects.hand("slow"), asked.append)
    monkeypatch.setattr(handover, "TAKE_WITHIN_S", 0.2)
    monkeypatch.setattr(handover, "SILENT_S", 1000.0)
    courier = Courier(peer.ports)
    assert not await courier.hand_over(leased, ["slow"])
    # It is known to be silent now, and costs no other task a moment.
    monkeypatch.setattr(handover, "TAKE_WITHIN_S", 10.0)
    assert not await courier.hand_over(leased, ["slow"])
    assert await courier.hand_over(leased, [other.ports.identity.id])
    await peer.bus.publish(asked[0].reply, b"taken")

    await until(lambda: _has(taker, 1))
    # What was published after its late promise has come, and nothing came before.
    await peer.bus.publish(peer.subjects.hand("slow"), b"the end")

    async def it_came() -> bool:
        return asked[-1].data == b"the end"

    await until(it_came)
    assert len(asked) == 2
    assert len(taker.taken) == 1
    await slow.aclose()


async def test_a_promise_that_nobody_comes_back_to_starts_nothing(
    peer: Peer, leased: Delivery, taking: tuple[Peer, Taker, Handovers]
) -> None:
    other, taker, _ = taking
    subject = peer.subjects.hand(other.ports.identity.id)

    async def ask(seq: int, *, token: str = leased.lease.token) -> bytes:
        return await peer.bus.request(subject, f"{token} {seq} {leased.subject}\n{{}}".encode(), within_s=10.0)

    assert await ask(leased.seq) == b"taken"
    # Any word but that of its own lease is for nothing.
    await peer.bus.publish(subject, b"go\nanother")
    assert await ask(leased.seq + 1) == b"taken"
    assert taker.taken == []
    await peer.bus.publish(subject, f"go\n{leased.lease.token}".encode())
    await peer.bus.publish(subject, f"go\n{leased.lease.token}".encode())
    await until(lambda: _has(taker, 1))
    assert await ask(leased.seq + 2) == b"taken"
    assert len(taker.taken) == 1


async def test_a_word_that_comes_when_the_lease_may_have_run_out_starts_nothing(
    peer: Peer, leased: Delivery, taking: tuple[Peer, Taker, Handovers]
) -> None:
    other, taker, _ = taking
    subject = peer.subjects.hand(other.ports.identity.id)
    asked = f"{leased.lease.token} {leased.seq} {leased.subject}\n{{}}".encode()
    taker.lease_s = 0.0
    assert await peer.bus.request(subject, asked, within_s=10.0) == b"taken"
    await peer.bus.publish(subject, f"go\n{leased.lease.token}".encode())
    # It has heard that when it answers what came after it.
    assert await peer.bus.request(subject, asked, within_s=10.0) == b"taken"
    assert taker.taken == []


async def test_a_replica_that_stops_waits_for_what_it_promised_and_promises_no_more(
    peer: Peer, leased: Delivery, taking: tuple[Peer, Taker, Handovers], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, taker, ear = taking
    monkeypatch.setattr(handover, "TAKE_WITHIN_S", 60.0)
    subject = peer.subjects.hand(other.ports.identity.id)
    asked = f"{leased.lease.token} {leased.seq} {leased.subject}\n{{}}".encode()
    assert await peer.bus.request(subject, asked, within_s=10.0) == b"taken"
    closing = asyncio.ensure_future(ear.aclose())
    await asyncio.sleep(0)
    late = asked.replace(b" %d " % leased.seq, b" %d " % (leased.seq + 1))
    assert await peer.bus.request(subject, late, within_s=10.0) == b""
    await peer.bus.publish(subject, f"go\n{leased.lease.token}".encode())
    await closing
    assert len(taker.taken) == 1


# --- deadlines -----------------------------------------------------------------------------------------


async def test_what_waited_too_long_expires_and_is_not_run(client: Peer, bench: Bench) -> None:
    for i in range(4):
        await client.caller.submit("bench.work", {"number": i}, AskOptions(within_s=60))
    late = await client.caller.submit("bench.work", {"number": 7}, AskOptions(within_s=60, start_within_s=0.2))
    await asyncio.sleep(0.4)
    bench.go.set()

    outcome = await client.caller.outcome(late)

    assert isinstance(outcome, Expired)
    assert "longer than its 0.2 s" in outcome.reason
    assert 7 not in bench.started


async def test_a_task_whose_caller_stopped_waiting_is_not_started(client: Peer, bench: Bench) -> None:
    past = Payload(content={"number": 7}, constraints=Constraints(deadline=int(client.clock.time() * 1000) - 5))
    reply_to = client.subjects.lite("client", "late")
    message = AgentMessage.new("task", client.ports.identity, payload=past, reply_to=reply_to)
    await client.queue.put(client.subjects.task("bench.work"), message.encode(), msg_id=uuid.uuid4().hex)

    await _empty(client)

    entry = await client.lite.last(reply_to)
    assert entry is not None
    assert AgentMessage.decode(entry.data).payload.content["outcome"] == Expired.kind
    assert bench.started == []


async def test_a_child_gets_no_more_time_than_its_parent_has_left(client: Peer) -> None:
    # A deadline is told in whole milliseconds.
    assert 0 < (await _ask(client, "bench.left", AskOptions(within_s=5))).unwrap() <= 5.001


async def test_the_queue_deadline_does_not_shorten_the_run(client: Peer, bench: Bench) -> None:
    handle = await client.caller.submit("bench.work", {"number": 1}, AskOptions(within_s=60, start_within_s=3))
    await bench.began.wait()
    await asyncio.sleep(3.2)
    bench.go.set()

    assert isinstance(await client.caller.outcome(handle), Result)


@pytest.mark.parametrize("limit", ["within_s", "start_within_s"])
async def test_no_time_at_all_is_rejected_at_the_door(client: Peer, limit: str) -> None:
    outcome = await _ask(client, "bench.mine", AskOptions(**{limit: 0}))

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == limit


# --- retries -------------------------------------------------------------------------------------------


async def test_a_topic_says_how_often_and_how_soon_it_is_tried_again(client: Peer, bench: Bench) -> None:
    outcome = await _ask(client, "bench.patient", error="connection")

    assert (outcome.unwrap(), outcome.attempt) == (4, 4)
    pauses = [after - before for before, after in zip(bench.started, bench.started[1:], strict=False)]
    assert len(pauses) == 3
    assert min(pauses) >= 0.02


@pytest.mark.parametrize("error", ["value", "config"])
async def test_what_another_attempt_can_not_help_fails_at_once(client: Peer, bench: Bench, error: str) -> None:
    outcome = await _ask(client, "bench.patient", error=error)

    assert isinstance(outcome, Failed)
    assert len(bench.started) == 1


async def test_there_is_no_retry_beyond_the_deadline(client: Peer, bench: Bench) -> None:
    outcome = await _ask(client, "bench.late", AskOptions(within_s=10))

    assert isinstance(outcome, DeadLettered)
    assert "no time is left for attempt 2" in outcome.reason


async def test_a_handler_whose_own_wait_was_cancelled_has_failed(client: Peer) -> None:
    outcome = await _ask(client, "bench.broken")

    assert isinstance(outcome, DeadLettered)
    assert "was cancelled" in outcome.reason


async def test_a_handler_that_fails_when_its_time_is_up_has_timed_out(client: Peer) -> None:
    assert isinstance(await _ask(client, "bench.clumsy"), TimedOut)


async def test_what_was_handed_back_unbegun_has_lost_no_attempt(world: World, serve: Serve) -> None:
    """Rolling restarts: the task is delivered again and again, and never begun."""
    peer = await world.join("restarting", agent="bench")
    box = Mailbox("bench", ("bench.patient",), LEASE_S)
    await (await world.join("bridge", bridge=True)).queue.declare(box)
    inbox = Inbox()
    feed = await peer.queue.consume(box, inbox)
    client = await world.join("client")
    message = AgentMessage.new("task", client.ports.identity, {"error": "connection"}, id="often")
    await client.queue.put(client.subjects.task("bench.patient"), message.encode(), msg_id="often")
    for _ in range(8):
        feed.want(1)
        await (await inbox.next()).lease.release()
    await feed.aclose()

    agent = Bench()
    await serve(agent)
    await _empty(client)

    entry = await client.lite.last(client.subjects.lite("outcome", "often"))
    assert entry is not None
    content = AgentMessage.decode(entry.data).payload.content
    assert (content["outcome"], content["attempt"]) == ("result", 4)


# --- bounded mailboxes ---------------------------------------------------------------------------------


class Small(Bench):
    """A mailbox of six."""

    mailbox_limit = 6
    when_full = "reject"


class Waiting(Small):
    """The caller waits for room."""

    when_full = "wait"


async def _flood(peer: Peer, count: int, within_s: float = 60) -> list[Any]:
    ask = AskOptions(within_s=within_s)
    return await asyncio.gather(*(peer.caller.submit("bench.work", {"number": i}, ask) for i in range(count)))


async def test_a_full_mailbox_rejects_with_a_hint(world: World, serve: Serve) -> None:
    agent = Small()
    await serve(agent, slots=2)
    client = await world.join("client")

    handles = await _flood(client, 20)
    rejected = [await client.caller.outcome(each) for each in handles if each.done]
    agent.go.set()
    ended = [await client.caller.outcome(each) for each in handles]

    assert {type(each) for each in rejected} == {Rejected}
    assert {each.details["field"] for each in rejected} == {"mailbox"}
    assert all(each.details["retry_after_s"] > 0 for each in rejected)
    assert sum(isinstance(each, Result) for each in ended) + len(rejected) == 20
    assert 5 <= len(ended) - len(rejected) <= 6


async def test_a_full_mailbox_lets_the_caller_wait(world: World, serve: Serve) -> None:
    agent = Waiting()
    await serve(agent, slots=2)
    client = await world.join("client")

    flooding = asyncio.create_task(_flood(client, 30))

    async def full() -> bool:
        backlog = await client.queue.backlog("waiting")
        return backlog.waiting + backlog.taken >= 6

    await until(full)
    await asyncio.sleep(0.6)  # long enough for two more looks
    backlog = await client.queue.backlog("waiting")
    assert not flooding.done()
    assert backlog.waiting + backlog.taken <= 8
    agent.go.set()

    outcomes = [await client.caller.outcome(each) for each in await flooding]
    assert sorted(each.unwrap() for each in outcomes) == list(range(30))


async def test_who_has_little_time_does_not_wait_behind_who_has_much(world: World, serve: Serve) -> None:
    await serve(Waiting(), slots=2)
    client = await world.join("client")
    await asyncio.wait_for(asyncio.gather(*(_flood(client, 1) for _ in range(6))), SOON_S)
    patient = asyncio.create_task(_flood(client, 1, within_s=60))
    await asyncio.sleep(0.1)

    outcome = await asyncio.wait_for(_ask(client, "bench.work", AskOptions(within_s=0.5), number=7), SOON_S)

    assert "holds its 6 tasks" in outcome.reason
    patient.cancel()


async def test_waiting_for_room_ends_with_the_callers_time(world: World, serve: Serve) -> None:
    await serve(Waiting(), slots=2)
    client = await world.join("client")
    await asyncio.wait_for(asyncio.gather(*(_flood(client, 1) for _ in range(6))), SOON_S)

    outcome = await _ask(client, "bench.work", AskOptions(within_s=0.8), number=7)

    assert isinstance(outcome, Rejected | TimedOut)
    assert "holds its 6 tasks" in outcome.reason


# --- tickets -------------------------------------------------------------------------------------------


async def test_a_ticket_finds_the_outcome_in_another_process(world: World, client: Peer, bench: Bench) -> None:
    handle = await client.caller.submit("bench.work", {"number": 3}, AskOptions(within_s=60))
    ticket = handle.ticket
    await client.caller.aclose()
    other = await world.join("other")

    waiting = asyncio.create_task(other.caller.outcome(other.caller.resume(ticket)))
    await bench.began.wait()
    bench.go.set()

    assert (await asyncio.wait_for(waiting, SOON_S)).unwrap() == 3
    assert (await other.caller.outcome(other.caller.resume(ticket))).unwrap() == 3


_TICKET = '{"task": 1, "topic": "a.b", "replyTo": "agents.test.lite.a.b", "deadline": %s}'


@pytest.mark.parametrize(
    "ticket",
    [
        *(None, 5, "", "{}", "[1]", "[" * 100_000, '{"task": 1, "topic": "a.b", "replyTo": "x", "deadline": 1}'),
        *(_TICKET % deadline for deadline in ("Infinity", "NaN", "null", "-1", "1e300", "9" * 400, "9" * 5000)),
    ],
    ids=lambda ticket: str(ticket)[-30:],
)
async def test_a_bad_ticket_says_so(client: Peer, ticket: Any) -> None:
    with pytest.raises(InvalidMessageError, match="no ticket"):
        client.caller.resume(ticket)


async def test_two_handles_of_one_task_in_one_process_both_hear_of_it(client: Peer, bench: Bench) -> None:
    ask = AskOptions(within_s=60, task_id="mine")
    first, second = await asyncio.gather(
        *(client.caller.submit("bench.work", {"number": 3}, ask) for _ in range(2))
    )
    third = client.caller.resume(first.ticket)
    waiting = asyncio.gather(*(client.caller.outcome(each) for each in (first, third, second)))
    await bench.began.wait()
    bench.go.set()

    outcomes = await asyncio.wait_for(waiting, SOON_S)

    assert [outcome.unwrap() for outcome in outcomes] == [3, 3, 3]
    assert bench.started == [3]


async def test_a_task_under_an_id_of_its_own_is_not_run_again_when_it_was_done_long_ago(
    client: Peer, bench: Bench
) -> None:
    """The queue remembers ids for two minutes; here the same task is put into it under another one."""
    bench.go.set()
    handle = await client.caller.submit("bench.work", {"number": 3}, AskOptions(within_s=60, task_id="mine"))
    await client.caller.outcome(handle)
    again = AgentMessage.new("task", client.ports.identity, {"number": 3}, id="mine", reply_to=handle.reply_to)
    await client.queue.put(client.subjects.task("bench.work"), again.encode(), msg_id="another")

    await _empty(client)

    assert bench.started == [3]


# --- poison --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [{"version": "9.9"}, {"type": "nonsense"}, {"context": 5}])
async def test_the_sender_of_poison_is_told_where_it_can_be(client: Peer, spoil: dict[str, Any]) -> None:
    reply_to = client.subjects.lite("client", "poisoner")
    message = AgentMessage.new("task", client.ports.identity, {}, id="bad", reply_to=reply_to)
    raw = json.loads(message.encode()) | spoil
    await client.queue.put(client.subjects.task("bench.mine"), json.dumps(raw).encode(), msg_id="bad")

    await _empty(client)

    entry = await client.lite.last(reply_to)
    assert entry is not None
    content = AgentMessage.decode(entry.data).payload.content
    assert content["outcome"] == DeadLettered.kind
    assert content["error"]["details"] == {"attempts": 0}


class Reader(Agent):
    """Reads."""

    def __init__(self) -> None:
        self.has_read = asyncio.Event()

    @topic("reader.read")
    async def read(self) -> None:
        self.has_read.set()


class Blind(AgentMessage):
    """What an older release makes of a message of a newer one."""

    @classmethod
    def decode(cls, data: bytes) -> Any:
        raise InvalidMessageError("version 9.9")


async def test_poison_that_somebody_can_read_by_now_is_put_back_and_run(
    world: World, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, operator, reader = await world.join("client"), await world.join("operator"), Reader()
    letters = DeadLetters(operator.ports)
    await serve(reader)

    async def is_buried() -> bool:
        return len(await letters.list()) == 1

    # Who puts it back can't read it either.
    monkeypatch.setattr("squadron.runtime.store.put_back.AgentMessage", Blind)
    with monkeypatch.context() as blind:
        blind.setattr("squadron.runtime.running.turn.AgentMessage", Blind)
        handle = await client.caller.submit("reader.read", {}, AskOptions(within_s=20))
        assert (await handle.outcome()).kind == "dead_lettered"
        await until(is_buried)

    assert await letters.redrive(all=True)

    await asyncio.wait_for(reader.has_read.wait(), SOON_S)


async def test_input_that_does_not_fit_is_rejected_and_kept(world: World, client: Peer) -> None:
    reply_to = client.subjects.lite("client", "misfit")
    message = AgentMessage.new("task", client.ports.identity, {"number": "many"}, id="odd", reply_to=reply_to)
    await client.queue.put(client.subjects.task("bench.work"), message.encode(), msg_id="odd")

    await _empty(client)

    entry = await client.lite.last(reply_to)
    letters = (await world.join("bridge", bridge=True)).dead
    letter = await letters.last(client.subjects.dead("bench", "odd"))
    assert entry is not None
    assert AgentMessage.decode(entry.data).payload.content["outcome"] == Rejected.kind
    assert letter is not None
    assert b"many" in letter.data


# --- a new version of an agent -------------------------------------------------------------------------


class Grows(Agent):
    """As it was."""

    name = "grows"

    @topic("grows.early")
    async def early(self) -> str:
        return "early"


class HasGrown(Grows):
    """As it is deployed over a running one."""

    name = "grows"

    @topic("grows.late")
    async def late(self) -> str:
        return "late"


async def _announced(serve: Serve) -> Replica:
    """A replica of the earlier version, beside the card and the mailbox of the new one."""
    old = await serve(Grows(), name="old")
    new = Replica(old.peer, HasGrown(), bridge=old._bridge)
    await new._bridge.queue.declare(new.mailbox)
    await new._bridge.registry.advertise(new.spec.card())
    return old


def _again(replica: Replica) -> Callable[[], Awaitable[bool]]:
    """Whether it was delivered something that it had handed back."""

    async def is_so() -> bool:
        return max(replica.delivered, default=0) > 1

    return is_so


async def test_a_task_for_a_topic_that_is_new_waits_for_a_replica_that_serves_it(
    client: Peer, serve: Serve
) -> None:
    old = await _announced(serve)
    asking = asyncio.create_task(client.caller.ask("grows.late", {}, AskOptions(within_s=60)))
    await until(_again(old))
    # What it served before it goes on serving.
    assert (await _ask(client, "grows.early")).unwrap() == "early"
    await serve(HasGrown(), name="new")

    assert (await asking).unwrap() == "late"


async def test_a_task_for_a_new_topic_ends_by_its_own_limits_while_it_waits(client: Peer, serve: Serve) -> None:
    old = await _announced(serve)
    handle = await client.caller.submit("grows.late", {}, AskOptions(within_s=60))
    brief = await _ask(client, "grows.late", AskOptions(within_s=60, start_within_s=0.1))
    await until(_again(old))

    assert isinstance(brief, Expired)
    assert isinstance(await asyncio.wait_for(handle.cancel(), SOON_S), Cancelled)


async def test_a_new_topic_that_no_replica_ever_serves_is_undeliverable(
    client: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "NEW_VERSION_WITHIN_S", 0.2)
    await _announced(serve)
    outcome = await _ask(client, "grows.late", AskOptions(within_s=60))

    assert isinstance(outcome, Undeliverable)
    assert "within 0.2 s" in outcome.reason


async def test_a_topic_that_its_agent_gave_up_is_undeliverable_at_once(client: Peer, serve: Serve) -> None:
    old = await _announced(serve)
    asking = asyncio.create_task(client.caller.ask("grows.late", {}, AskOptions(within_s=60)))
    await until(_again(old))
    await old._bridge.registry.advertise(old.spec.card())

    outcome = await asking
    assert isinstance(outcome, Undeliverable)
    assert "any more" in outcome.reason
