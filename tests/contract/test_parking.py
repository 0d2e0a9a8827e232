"""Parked tasks: what only waits for people holds no slot and costs no attempt, and comes again by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.asking.answering import OpenQuestion, People
from squadron.runtime.asking.cancel import request_cancel
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.asking.people import Asked, park_for, put_question
from squadron.runtime.asking.question_records import read_question
from squadron.runtime.errors import BusUnavailableError, InvalidMessageError, Park, QuestionClosedError
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.ports.queue import Backlog, Lease, Mailbox
from squadron.runtime.running.context import Context, TurnContext
from squadron.runtime.running.parking import PARKED, Parking, Waker
from squadron.runtime.streams.writer import Chunk
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.path import Parent
from squadron.runtime.wire.question import Question
from squadron.testing import now_s
from tests.contract.conftest import (
    LEASE_S,
    SOON_S,
    Inbox,
    Peer,
    Replica,
    Serve,
    World,
    first_stored,
    peer_of,
    until,
)
from tests.contract.own_server import OwnServer

BOX = Mailbox("reader", ("book.read",), lease_s=30.0)


# --- the queue ---------------------------------------------------------------------------------------


async def _delivered(peer: Peer, box: Mailbox = BOX) -> tuple[Any, Inbox]:
    await peer.queue.declare(box)
    inbox = Inbox()
    feed = await peer.queue.consume(box, inbox)
    feed.want(8)
    message = peer.ports.pack("task", {"content": 1}, conversation_id="c-1")
    await peer.queue.put(peer.subjects.task("book.read"), message, msg_id="a")
    return await inbox.next(), inbox


async def _is_settled(peer: Peer, name: str) -> None:
    async def holds_nothing() -> bool:
        return await peer.queue.backlog(name) == Backlog()

    await until(holds_nothing)


async def test_a_parked_message_comes_again_after_its_time_and_its_beginning_does_not_count(peer: Peer) -> None:
    delivery, inbox = await _delivered(peer, replace(BOX, lease_s=2.0))
    for _ in range(2):
        assert await delivery.lease.begin() == 1
        parked_at = now_s()
        await delivery.lease.park(2.5)
        # Whoever extends what it held holds it no more: that would have it come with its lease.
        await delivery.lease.extend()
        delivery = await inbox.next()
        assert now_s() >= parked_at + 2.49
    # A beginning that is handed back as ever counts.
    assert await delivery.lease.begin() == 1
    await delivery.lease.release()
    assert await (await inbox.next()).lease.begin() == 2


async def test_a_parked_message_is_woken_by_anybody_who_has_its_token(world: World, peer: Peer) -> None:
    delivery, inbox = await _delivered(peer)
    await delivery.lease.begin()
    await delivery.lease.park(3600)
    other = await world.join("another")
    await other.queue.wake(delivery.lease.wake_token)
    again = await inbox.next()
    assert (again.data, again.lease.delivered, await again.lease.begin()) == (delivery.data, 2, 1)
    await again.lease.settle(confirmed=True)
    # One that is gone stays so.
    await other.queue.wake(again.lease.wake_token)
    await _is_settled(peer, BOX.name)


async def test_what_is_woken_by_the_token_of_an_earlier_delivery_is_taken_from_who_has_it(peer: Peer) -> None:
    delivery, inbox = await _delivered(peer, replace(BOX, lease_s=3600.0))
    await delivery.lease.park(3600)
    for delivered in (2, 3):
        await peer.queue.wake(delivery.lease.wake_token)
        again = await inbox.next()
        assert again.lease.delivered == delivered
    await again.lease.settle(confirmed=True)


async def test_one_in_line_is_parked_with_its_conversation_and_woken(peer: Peer) -> None:
    delivery, inbox = await _delivered(peer, replace(BOX, ordered=True))
    behind = peer.ports.pack("task", {"content": 2}, conversation_id="c-1")
    await peer.queue.put(peer.subjects.task("book.read"), behind, msg_id="b")
    await delivery.lease.begin()
    await delivery.lease.park(3600)
    await peer.queue.wake(delivery.lease.wake_token)
    again = await inbox.next()
    assert (again.data, await again.lease.begin()) == (delivery.data, 1)
    await again.lease.settle()
    assert (await inbox.next()).data == behind


@pytest.mark.parametrize("token", ["", "x", "$JS.API.STREAM.DELETE.x", "$JS.ACK.other.x.1.1.1.1.0"])
async def test_what_is_no_token_wakes_nothing(peer: Peer, token: str) -> None:
    with pytest.raises(InvalidMessageError):
        await peer.queue.wake(token)


@pytest.mark.parametrize("odd", [" x", "\tx", "\r\nPUB x 0\r\n", "*", ">", "x" * 1000], ids=repr)
async def test_a_token_that_was_tampered_with_is_none_and_costs_no_connection(peer: Peer, odd: str) -> None:
    delivery, _ = await _delivered(peer)
    await delivery.lease.park(3600)
    parts = delivery.lease.wake_token.split(".")
    # Of a consumer's name anything may be made.
    parts[min(3, len(parts) - 2)] += odd
    with pytest.raises(InvalidMessageError):
        await peer.queue.wake(".".join(parts))
    assert await peer.queue.backlog(BOX.name) == Backlog(0, 1)


# --- tasks -------------------------------------------------------------------------------------------


class Buyer(Agent):
    """Parks until people answer."""

    name = "buyer"

    def __init__(self) -> None:
        self.attempts: list[int] = []

    @topic("park.buy", max_attempts=2)
    async def buy(self, ctx: Context, within_s: float = 300.0) -> Any:
        """Ask two questions, one after the other."""
        self.attempts.append(ctx.attempt)
        await ctx.emit(f"run {len(self.attempts)}")
        size = await ctx.ask_person("Which size?", park=True, within_s=within_s)
        colour = await ctx.ask_person("Which colour?", park=True, within_s=within_s, default="red")
        return [size.value, colour.value, colour.by]

    @topic("park.approve", max_attempts=1)
    def approve(self, ctx: Context) -> Any:
        """Ask from a thread."""
        self.attempts.append(ctx.attempt)
        return ctx.sync.ask_approval("park.buy", {"within_s": 1}, park=True).action

    @topic("park.both")
    async def both(self, ctx: TurnContext) -> Any:
        """Go on with whichever answer comes first."""
        self.attempts.append(ctx.attempt)
        asked = [await self._put(ctx, each) for each in ("q-1", "q-2")]
        for each in asked:
            with contextlib.suppress(Park):
                return (await each.answer_or_park()).value
        raise park_for(asked)

    @topic("park.late")
    async def late(self, ctx: TurnContext) -> Any:
        """Park for what is answered already, as if the answer had come in that moment."""
        self.attempts.append(ctx.attempt)
        asked = await self._put(ctx, "q-1")
        if len(self.attempts) == 1:
            while not (await read_question(ctx.caller.ports, "q-1")).results:
                await asyncio.sleep(0.01)
            raise park_for([asked])
        return (await asked.answer()).value

    async def _put(self, ctx: TurnContext, query_id: str) -> Asked:
        question = Question(message=f"{query_id}?", deadline_ms=Deadline.after(300, ctx.caller.ports.clock).at_ms)
        return await put_question(ctx.caller, question, query_id, about=ctx.message.id)

    @topic("park.rest")
    async def rest(self) -> str:
        """Needs a slot."""
        return "rested"


@contextlib.asynccontextmanager
async def _awake(world: World, name: str = "bridge") -> AsyncIterator[Waker]:
    peer = await world.join(name, bridge=True)
    waker = Waker(peer.ports, peer.caller.lite_topics)
    await waker.start()
    try:
        yield waker
    finally:
        await waker.aclose()


def _people(peer: Peer) -> People:
    return People(peer.ports, peer.caller.lite_topics)


async def _parked(peer: Peer) -> OpenQuestion:
    """The question that a parked task waits for, as soon as it is parked."""
    found: list[OpenQuestion] = []

    async def is_parked() -> bool:
        notes = await peer.lite.latest(peer.subjects.lite_of(PARKED))
        asked = {each.query_id: each for each in await _people(peer).questions()}
        found[:] = [asked[each] for each in asked if any(each.encode() in note.data for note in notes)]
        return bool(found)

    await until(is_parked)
    return found[0]


async def test_a_task_that_waits_for_people_holds_no_slot_and_costs_no_attempt(
    world: World, peer: Peer, serve: Serve
) -> None:
    buyer = Buyer()
    await serve(buyer, slots=1)
    async with _awake(world):
        handle = await peer.caller.submit("park.buy", {}, AskOptions(within_s=600))
        for text in ("M", "blue"):
            asked = await _parked(peer)
            # The only slot is free.
            assert (await peer.caller.ask("park.rest", None, AskOptions(within_s=SOON_S))).unwrap() == "rested"
            await _people(peer).answer(asked.query_id, text, by="ana")
        assert (await handle.outcome()).unwrap() == ["M", "blue", "ana"]
    # Three runs, with two attempts allowed.
    assert buyer.attempts == [1, 1, 1]
    await _is_settled(peer, "buyer")


async def test_a_plain_handler_is_parked_from_its_thread(world: World, peer: Peer, serve: Serve) -> None:
    buyer = Buyer()
    await serve(buyer)
    async with _awake(world):
        handle = await peer.caller.submit("park.approve", None, AskOptions(within_s=600))
        await _people(peer).answer((await _parked(peer)).query_id, "no", action="decline", by="ana")
        assert (await handle.outcome()).unwrap() == "decline"
    assert buyer.attempts == [1, 1]


async def test_who_follows_a_task_that_was_parked_sees_the_run_that_ended_it(
    world: World, peer: Peer, serve: Serve
) -> None:
    await serve(Buyer())
    async with _awake(world):
        handle = await peer.caller.submit("park.buy", {}, AskOptions(within_s=600))
        for text in ("M", "blue"):
            await _people(peer).answer((await _parked(peer)).query_id, text, by="ana")
        outcome = await handle.outcome()
        events = [event async for event in handle.events()]
    assert [each.value for each in events if isinstance(each, Chunk)][-1] == "run 3"
    assert outcome.ok


async def test_at_the_deadline_it_comes_again_though_nobody_wakes_it(peer: Peer, serve: Serve) -> None:
    buyer = Buyer()
    await serve(buyer)
    outcome = await peer.caller.ask("park.buy", {"within_s": 1.0}, AskOptions(within_s=600))
    assert (outcome.kind, outcome.details["type"], set(buyer.attempts)) == ("failed", "UnansweredError", {1})
    # It was parked, and so run twice.
    assert len(buyer.attempts) >= 2


async def test_an_answer_that_came_while_no_bridge_was_there_is_found_by_the_next(
    world: World, peer: Peer, serve: Serve
) -> None:
    await serve(Buyer())
    handle = await peer.caller.submit("park.buy", {}, AskOptions(within_s=600))
    for name, text in (("first", "M"), ("second", "blue")):
        await _people(peer).answer((await _parked(peer)).query_id, text, by="ana")
        async with _awake(world, name):
            if text == "blue":
                assert (await handle.outcome()).unwrap() == ["M", "blue", "ana"]
            else:
                await _until_asked(peer, "Which colour?")


async def _until_asked(peer: Peer, message: str) -> None:
    async def is_asked() -> bool:
        return any(each.question.message == message for each in await _people(peer).questions())

    await until(is_asked)


@pytest.mark.parametrize("first", ["q-1", "q-2"])
async def test_the_first_of_several_answers_wakes_it(world: World, peer: Peer, serve: Serve, first: str) -> None:
    buyer = Buyer()
    await serve(buyer)
    async with _awake(world):
        handle = await peer.caller.submit("park.both", None, AskOptions(within_s=600))
        await _parked(peer)
        await _people(peer).answer(first, first, by="ana")
        assert (await handle.outcome()).unwrap() == first
    assert buyer.attempts == [1, 1]


async def test_an_answer_that_comes_while_a_task_is_being_parked_wakes_it(
    world: World, peer: Peer, serve: Serve
) -> None:
    buyer = Buyer()
    await serve(buyer)
    async with _awake(world):
        handle = await peer.caller.submit("park.late", None, AskOptions(within_s=600))
        await _until_asked(peer, "q-1?")
        await _people(peer).answer("q-1", "in time", by="ana")
        assert (await handle.outcome()).unwrap() == "in time"
    assert buyer.attempts == [1, 1]


class _DyingLease:
    """The lease of a replica that dies when it has written its note, and parks nothing."""

    def __init__(self, lease: Lease) -> None:
        self.wake_token = lease.wake_token

    async def park(self, after_s: float) -> None:
        raise BusUnavailableError("dead")


async def test_one_whose_replica_dies_between_note_and_parking_comes_again_with_its_lease(
    world: World, peer: Peer, serve: Serve
) -> None:
    dying = await world.join("dying", agent="buyer")
    mailbox = Mailbox("buyer", ("park.buy", "park.approve", "park.both", "park.late", "park.rest"), LEASE_S)
    await (await world.join("declares", bridge=True)).queue.declare(mailbox)
    inbox = Inbox()
    feed = await dying.queue.consume(mailbox, inbox)
    feed.want(1)
    question = Question(message="?", deadline_ms=Deadline.after(3600, peer.clock).at_ms)
    asked = await put_question(peer.caller, question, "q-0")
    async with _awake(world):
        message = AgentMessage.new("task", AgentIdentity(id="x"), None, timestamp=peer.clock.time())
        await peer.queue.put(peer.subjects.task("park.rest"), message.encode(), msg_id=message.id)
        delivery = await inbox.next()
        await feed.aclose()
        lease: Any = _DyingLease(delivery.lease)
        with pytest.raises(BusUnavailableError):
            await Parking(dying.ports, "buyer").park(replace(delivery, lease=lease), message, park_for([asked]))
        await serve(Buyer())
        ended = await first_stored(peer.lite, peer.subjects.lite("outcome", message.id))
    assert ended.payload.content["data"] == "rested"
    notes = await peer.lite.latest(peer.subjects.lite_of(PARKED))
    assert all(END_HEADER in note.headers for note in notes)


async def test_cancelling_a_parked_task_ends_it_and_withdraws_its_question(
    world: World, peer: Peer, serve: Serve
) -> None:
    await serve(Buyer())
    async with _awake(world):
        handle = await peer.caller.submit("park.buy", {}, AskOptions(within_s=600))
        await _parked(peer)
        # As a parent does for its children: nobody here waits for the end, or would store it.
        await request_cancel(peer.ports, handle.task_id, deadline_at_s=peer.clock.time() + 600)
        assert (await handle.outcome()).kind == "cancelled"
        assert await _people(peer).questions() == []


async def test_a_parked_task_is_cancelled_with_the_run_that_asked_for_it_though_nobody_runs_that(
    world: World, peer: Peer, serve: Serve
) -> None:
    await serve(Buyer(), slots=1)
    run = Parent("run-task", (), source=peer.ports.identity.id)
    async with _awake(world):
        ask = AskOptions(task_id="run-7-1", within_s=600)
        handle = await peer.caller.submit("park.buy", {}, ask, parent=run, owner="run-7", once=True)
        await _parked(peer)
        # The only slot is free: nobody who runs it is there to hear.
        assert (await peer.caller.ask("park.rest", None, AskOptions(within_s=SOON_S))).unwrap() == "rested"
        await request_cancel(peer.ports, run.id, deadline_at_s=peer.clock.time() + 600)
        await until(lambda: _has_ended(handle))
        assert (await handle.outcome()).kind == "cancelled"
        assert await _people(peer).questions() == []


async def _has_ended(handle: Handle) -> bool:
    await handle._look()
    return handle.done


async def test_a_task_that_an_older_release_parked_is_cancelled_as_ever(
    world: World, peer: Peer, serve: Serve
) -> None:
    await serve(Buyer())
    handle = await peer.caller.submit("park.buy", {}, AskOptions(within_s=600))
    await _parked(peer)
    [note] = await peer.lite.latest(peer.subjects.lite_of(PARKED))
    told = json.loads(note.data)
    del told["cancelledWith"]
    await (await world.join("replica-2", agent="buyer")).lite.append(note.key, json.dumps(told).encode())
    async with _awake(world):
        await request_cancel(peer.ports, handle.task_id, deadline_at_s=peer.clock.time() + 600)
        assert (await handle.outcome()).kind == "cancelled"


async def test_a_parked_task_needs_no_replica_until_it_is_woken(world: World, peer: Peer, serve: Serve) -> None:
    replica = await serve(Buyer())
    async with _awake(world) as waker:
        await peer.caller.submit("park.buy", {}, AskOptions(within_s=600))
        asked = await _parked(peer)

        async def counts(wanted: int) -> bool:
            return waker.parked()["buyer"] == wanted

        await until(lambda: counts(1))
        await replica.pump.aclose()
        await _people(peer).answer(asked.query_id, "M", by="ana")
        await until(lambda: counts(0))


async def test_a_task_that_was_parked_is_not_expired_for_having_waited(
    world: World, peer: Peer, serve: Serve
) -> None:
    await serve(Buyer())
    async with _awake(world):
        handle = await peer.caller.submit("park.approve", None, AskOptions(within_s=600, start_within_s=4))
        asked = await _parked(peer)
        await asyncio.sleep(4.2)
        await _people(peer).answer(asked.query_id, by="ana")
        assert (await handle.outcome()).unwrap() == "accept"


async def _noted(peer: Peer, waker: Waker, until_s: float) -> str:
    """The note of a task that waits for what was withdrawn meanwhile."""
    note = {"token": "t", "queries": ["q-1", "q-2"], "agent": "buyer", "until": until_s, "cancelledWith": []}
    await peer.lite.append(peer.subjects.lite(PARKED, "waits"), json.dumps(note).encode())

    async def is_known() -> bool:
        return "waits" in waker._parked

    await until(is_known)
    return "waits"


class _Woken:
    """Whom a queue was to wake, in the place of its `wake`."""

    def __init__(self, *errors: Exception) -> None:
        self.tokens: list[str] = []
        self._errors = [*errors]

    async def __call__(self, _: Any, token: str) -> None:
        self.tokens.append(token)
        await asyncio.sleep(0)
        if self._errors:
            raise self._errors.pop()


@pytest.mark.parametrize("left_s", [600.0, 0.0])
async def test_a_task_is_woken_once_and_not_when_it_comes_by_itself(
    world: World, peer: Peer, monkeypatch: pytest.MonkeyPatch, left_s: float
) -> None:
    woken = _Woken()
    monkeypatch.setattr(type(peer.queue), "wake", lambda *args: woken(*args))
    async with _awake(world) as waker:
        task = await _noted(peer, waker, peer.clock.time() + left_s)
        await asyncio.gather(*(waker._consider(task) for _ in range(3)))
        assert woken.tokens == ["t"] * (left_s > 0)


async def test_a_task_that_could_not_be_woken_is_woken_again(
    world: World, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = _Woken(BusUnavailableError("away"))
    monkeypatch.setattr(type(peer.queue), "wake", lambda *args: woken(*args))
    async with _awake(world) as waker:
        await _noted(peer, waker, peer.clock.time() + 600)

        async def is_tried_again() -> bool:
            return len(woken.tokens) > 1

        await until(is_tried_again)
        assert (woken.tokens, waker.parked()["buyer"]) == (["t", "t"], 0)


async def test_rubbish_among_the_notes_wakes_nothing_and_stops_nobody(
    world: World, peer: Peer, serve: Serve
) -> None:
    note = b'{"token": "x", "queries": ["%s"], "agent": "a", "until": 1e999}'
    for number, data in enumerate((b"", b"{}", note % b"q", note % b"no.token")):
        await peer.lite.append(peer.subjects.lite(PARKED, f"t{number}"), data)
    await serve(Buyer())
    async with _awake(world) as waker:
        handle = await peer.caller.submit("park.approve", None, AskOptions(within_s=600))
        await _people(peer).answer((await _parked(peer)).query_id, by="ana")
        assert (await handle.outcome()).unwrap() == "accept"
        assert waker.parked()["buyer"] == 0
        # One that is none would end the look at all that wait for a question of that note.
        assert "t3" not in waker._parked


async def test_a_parked_task_outlives_the_server(tmp_path: Path) -> None:
    server = OwnServer(tmp_path)
    server.start()
    settings = Settings(home=tmp_path, nats_url=server.url)
    buyer = Buyer()
    async with contextlib.AsyncExitStack() as rest:
        rest.callback(server.stop)
        wirings = [
            await Wiring.open(settings, AgentIdentity(id=name), create=True) for name in ("buyer-1", "tester")
        ]
        for wiring in wirings:
            rest.push_async_callback(wiring.aclose)
        replica, peer = Replica(peer_of(wirings[0]), buyer), peer_of(wirings[1])
        await replica.start()
        rest.push_async_callback(replica.turns.aclose)
        rest.push_async_callback(replica.pump.aclose)
        rest.push_async_callback(replica.handovers.aclose)
        waker = Waker(peer.ports, peer.caller.lite_topics)
        await waker.start()
        rest.push_async_callback(waker.aclose)
        handle = await peer.caller.submit("park.buy", {}, AskOptions(within_s=600))
        asked = await _parked(peer)

        async def beginning_does_not_count() -> bool:
            # Noted a moment later: a server that is killed before costs an attempt.
            return bool(await peer.lite.latest(peer.subjects.lite_of("begun")))

        await until(beginning_does_not_count)
        server.stop()
        server.start()
        async with asyncio.timeout(60):
            await _answer_when_back(peer, asked.query_id, "M")
            await _until_asked(peer, "Which colour?")
            await _answer_when_back(peer, (await _parked(peer)).query_id, "blue")
            assert (await handle.outcome()).unwrap() == ["M", "blue", "ana"]
    assert set(buyer.attempts) == {1}


async def _answer_when_back(peer: Peer, query_id: str, text: str) -> None:
    async def is_answered() -> bool:
        with contextlib.suppress(QuestionClosedError):
            await _people(peer).answer(query_id, text, by="ana")
        return True

    await until(is_answered)
