"""One task from the call to its one outcome: caller, mailbox, pump, turn and a real agent, over both worlds."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from nats.aio.client import Client

from squadron import Agent, Answer, Context, Retry, Terminal, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.asking.options import MAX_WITHIN_S, AskOptions
from squadron.runtime.ports.queue import Backlog, Feed, Mailbox
from squadron.runtime.running.arrival import STALE_S
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Routing
from squadron.runtime.wire.limits import Budget
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
from squadron.runtime.wire.subjects import token_of
from squadron.testing import now_s
from tests.conftest import kill
from tests.contract.conftest import ON_NATS, SOON_S, Peer, Replica, Serve, World, first_stored, peer_of, until

#: A lapse would be seen soon, and an extension may be late.
LEASE_S = 4.0


class Desk(Agent):
    """A little of everything."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.running = 0
        self.most = 0
        self.blocked, self.free = threading.Event(), threading.Event()
        self.go = asyncio.Event()
        self.entered = asyncio.Event()
        self.turn: asyncio.Task[Any] | None = None

    @topic("desk.double")
    async def double(self, number: int) -> int:
        """Twice a number."""
        self.ran.append(number)
        return 2 * number

    @topic("desk.terminal")
    async def terminal(self) -> None:
        raise Terminal("no such customer")

    @topic("desk.shaky")
    async def shaky(self, failures: int, context: Context) -> int:
        """Asks for another try, so many times."""
        self.ran.append(now_s())
        if context.attempt <= failures:
            raise Retry("not yet", after_s=0.3)
        return context.attempt

    @topic("desk.broken", max_attempts=2)
    async def broken(self) -> None:
        self.ran.append("broken")
        raise ZeroDivisionError("as always")

    @topic("desk.slow", run_timeout_s=0.1)
    async def slow(self) -> None:
        self.ran.append("slow")
        await asyncio.sleep(30)

    @topic("desk.stubborn", run_timeout_s=1)
    async def stubborn(self) -> None:
        """Stays, when it is cancelled, until its time is up, too."""
        self.turn = asyncio.current_task()
        self.entered.set()
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)

    @topic("desk.gate")
    async def gate(self, number: int) -> int:
        """Waits until it may go on."""
        self.ran.append(number)
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.set()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return number

    @topic("desk.thread")
    def thread(self) -> str:
        """Blocks its thread until the loop lets it go."""
        self.blocked.set()
        assert self.free.wait(SOON_S)
        return threading.current_thread().name

    @topic("desk.stop", max_attempts=1)
    def stop(self) -> int:
        return next(iter([]))

    @topic("desk.stream")
    async def stream(self, count: int) -> AsyncIterator[str]:
        """Counts."""
        for i in range(count):
            yield f"{i},"

    @topic("desk.sure")
    async def sure(self) -> Answer:
        return Answer({"n": 1}, confidence=0.9, reasoning="counted")

    @topic("desk.lying")
    async def lying(self) -> int:
        return "not a number"  # type: ignore[return-value]

    @topic("desk.memory")
    async def memory(self, word: str, context: Context) -> list[Any]:
        await context.remember({"word": word})
        return [item["word"] for item in await context.recall(most=2)]

    @topic("family.*")
    async def family(self, context: Context, **anything: Any) -> Any:
        return [context.topic, anything]

    @topic("family.special")
    async def special(self) -> str:
        return "special"


@pytest.fixture
async def desk(serve: Serve) -> Desk:
    agent = Desk()
    await serve(agent, lease_s=LEASE_S)
    return agent


@pytest.fixture
async def client(world: World, desk: Desk) -> Peer:
    """Somebody who asks; `desk` is being served."""
    return await world.join("client")


async def _ask(peer: Peer, topic: str, _ask: AskOptions | None = None, **content: Any) -> Outcome:
    return await asyncio.wait_for(peer.caller.ask(topic, content, _ask or AskOptions(within_s=20)), 25)


async def _empty(peer: Peer) -> None:
    async def nothing_left() -> bool:
        return await peer.queue.backlog("desk") == Backlog(0, 0)

    await until(nothing_left)


async def _letters(peer: Peer) -> list[dict[str, Any]]:
    pattern = f"agents.{peer.subjects.environment}.dead.>"
    return [AgentMessage.decode(entry.data).payload.content async for entry in peer.letters.read(pattern)]


async def _put_raw(peer: Peer, topic: str, content: Any, **fields: Any) -> AgentMessage:
    message = AgentMessage.new("task", AgentIdentity(id="stranger"), content, **fields)
    await peer.queue.put(peer.subjects.task(topic), message.encode(), msg_id=token_of(message.id))
    return message


async def _next_result(peer: Peer, reply_to: str) -> AgentMessage:
    return await first_stored(peer.lite, reply_to, lambda message: message.type == "result")


# --- how it ends ---------------------------------------------------------------------------------------


async def test_a_result_comes_back_with_its_data_source_and_attempt(client: Peer) -> None:
    outcome = await _ask(client, "desk.double", number=21)

    assert isinstance(outcome, Result)
    assert outcome.unwrap() == 42
    assert (outcome.topic, outcome.source, outcome.attempt) == ("desk.double", "replica", 1)
    assert outcome.latency_ms >= 0
    await _empty(client)


async def test_an_answer_carries_confidence_and_reasoning(client: Peer) -> None:
    outcome = await _ask(client, "desk.sure")

    assert isinstance(outcome, Result)
    assert (outcome.data, outcome.confidence, outcome.reasoning) == ({"n": 1}, 0.9, "counted")


async def test_a_hundred_asks_at_once_each_get_their_own_result(client: Peer) -> None:
    outcomes = await asyncio.gather(*(_ask(client, "desk.double", number=i) for i in range(100)))

    assert [outcome.unwrap() for outcome in outcomes] == [2 * i for i in range(100)]


async def test_every_priority_is_served(client: Peer) -> None:
    asks = [_ask(client, "desk.double", AskOptions(within_s=20, priority=p), number=p) for p in range(10)]

    assert [outcome.unwrap() for outcome in await asyncio.gather(*asks)] == [2 * p for p in range(10)]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "number"),
        ({"number": "many"}, "number"),
        ({"number": 1, "extra": 2}, ""),
        ({"number": None}, "number"),
    ],
)
async def test_input_that_does_not_fit_is_rejected_at_the_door(
    client: Peer, desk: Desk, content: dict[str, Any], field: str
) -> None:
    outcome = await _ask(client, "desk.double", **content)

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == field
    assert "takes number: integer" in outcome.reason
    assert desk.ran == []
    assert await client.queue.backlog("desk") == Backlog(0, 0)


@pytest.mark.parametrize("content", [{}, {"number": "many"}, [1, 2], {"number": 1, "extra": 2}, None])
async def test_input_that_does_not_fit_is_rejected_at_the_replica_too(
    client: Peer, desk: Desk, content: Any
) -> None:
    reply_to = client.subjects.lite("stranger", uuid.uuid4().hex)
    await _put_raw(client, "desk.double", content, reply_to=reply_to)

    result = await asyncio.wait_for(_next_result(client, reply_to), SOON_S)

    assert result.payload.content["outcome"] == "rejected"
    assert result.payload.content["success"] is False
    assert "number" in result.payload.content["error"]["message"]
    assert desk.ran == []
    await _empty(client)


async def test_a_bare_value_goes_to_the_only_parameter(client: Peer) -> None:
    reply_to = client.subjects.lite("stranger", "bare")
    await _put_raw(client, "desk.double", 4, reply_to=reply_to)

    result = await asyncio.wait_for(_next_result(client, reply_to), SOON_S)

    assert result.payload.content["data"] == 8


async def test_content_in_python_types_is_taken_as_its_json(client: Peer) -> None:
    outcome = await _ask(client, "family.any", path=Path("/tmp"), pair=(1, 2), names={"a"})

    assert outcome.unwrap() == ["family.any", {"path": "/tmp", "pair": [1, 2], "names": ["a"]}]


@pytest.mark.parametrize("thing", [object(), lambda: 0, [object(), "\ud800"]])
async def test_content_that_is_not_json_is_rejected(client: Peer, thing: Any) -> None:
    outcome = await _ask(client, "family.any", thing=thing)

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == "content"


async def test_half_a_surrogate_pair_in_content_is_u_fffd(client: Peer) -> None:
    assert (await _ask(client, "family.any", thing="\ud83d")).unwrap() == ["family.any", {"thing": "\ufffd"}]


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (AskOptions(within_s=0), "within_s"),
        (AskOptions(within_s=-MAX_WITHIN_S), "within_s"),
        (AskOptions(budget=Budget(tokens=0)), "tokens"),
        (AskOptions(budget=Budget(hops=-1)), "hops"),
    ],
)
async def test_a_call_that_can_not_be_is_rejected_with_the_field(
    client: Peer, ask: AskOptions, field: str
) -> None:
    outcome = await _ask(client, "desk.double", ask, number=1)

    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == field


async def test_a_topic_that_breaks_the_grammar_is_rejected(client: Peer) -> None:
    for bad in ("desk", "desk.double.twice", "desk.*", "desk.d ouble", "", "desk."):
        outcome = await _ask(client, bad)
        assert isinstance(outcome, Rejected), bad
        assert outcome.details["field"] == "topic"


async def test_a_call_with_hardly_any_time_ends_all_the_same(client: Peer) -> None:
    outcome = await _ask(client, "desk.double", AskOptions(within_s=0.0002), number=1)

    assert isinstance(outcome, TimedOut | Expired | Result)


async def test_a_topic_that_nobody_serves_is_undeliverable_and_names_the_nearest(client: Peer) -> None:
    outcome = await _ask(client, "desk.doubel", number=1)

    assert isinstance(outcome, Undeliverable)
    assert outcome.details["nearest"][0] == "desk.double"
    assert "desk.double" in outcome.reason
    assert outcome.retryable


async def test_a_topic_that_appears_within_the_grace_is_served(world: World, serve: Serve) -> None:
    early = await world.join("early")
    early.registry.grace_s = SOON_S  # a slow machine is no failure
    # A bare value: which field it is for is known only when the topic is.
    asking = asyncio.create_task(early.caller.ask("desk.double", 1, AskOptions(within_s=20)))
    await asyncio.sleep(0)
    await serve(Desk())

    assert (await asking).unwrap() == 2


async def test_terminal_is_failed_at_the_first_attempt(client: Peer) -> None:
    outcome = await _ask(client, "desk.terminal")

    assert isinstance(outcome, Failed)
    assert outcome.reason == "no such customer"
    assert outcome.attempt == 1
    assert await _letters(client) == []


async def test_output_that_breaks_its_annotation_is_failed(client: Peer) -> None:
    outcome = await _ask(client, "desk.lying")

    assert isinstance(outcome, Failed)
    assert "does not promise" in outcome.reason


async def test_retry_is_tried_again_after_its_pause_and_may_succeed(client: Peer, desk: Desk) -> None:
    outcome = await _ask(client, "desk.shaky", failures=1)

    assert (outcome.unwrap(), outcome.attempt) == (2, 2)
    assert desk.ran[1] - desk.ran[0] >= 0.29


async def test_an_exception_each_time_is_dead_lettered_with_a_letter(client: Peer, desk: Desk) -> None:
    outcome = await _ask(client, "desk.broken")

    assert isinstance(outcome, DeadLettered)
    assert desk.ran == ["broken", "broken"]
    assert outcome.details["last_error"] == "ZeroDivisionError: as always"
    assert outcome.details["attempts"] == 2
    (letter,) = await _letters(client)
    assert letter["taskId"] == outcome.task_id
    assert letter["subject"] == client.subjects.task("desk.broken")
    assert AgentMessage.decode(letter["message"].encode()).id == outcome.task_id
    await _empty(client)


async def test_stop_iteration_in_a_thread_is_an_error_like_any_other(client: Peer) -> None:
    outcome = await _ask(client, "desk.stop")

    assert isinstance(outcome, DeadLettered)
    assert "StopIteration" in outcome.reason


async def test_a_handler_that_runs_too_long_is_timed_out_and_not_tried_again(client: Peer, desk: Desk) -> None:
    outcome = await _ask(client, "desk.slow")

    assert isinstance(outcome, TimedOut)
    assert outcome.reason == "ran longer than its 0.1 s"
    assert desk.ran == ["slow"]


async def test_the_time_that_a_turn_took_is_told_by_the_clock_of_its_loop(client: Peer, desk: Desk) -> None:
    began = now_s()
    outcome = await _ask(client, "desk.slow")

    assert outcome.latency_ms is not None
    assert 99 <= outcome.latency_ms <= (now_s() - began) * 1000


async def test_a_turn_that_is_cancelled_and_late_too_ends_with_no_cancel_left_over(
    client: Peer, desk: Desk
) -> None:
    handle = await client.caller.submit("desk.stubborn", {}, AskOptions(within_s=20))
    await asyncio.wait_for(desk.entered.wait(), SOON_S)
    assert desk.turn is not None
    await handle.cancel()
    await asyncio.wait([desk.turn], timeout=SOON_S)

    assert isinstance(await handle.outcome(), Cancelled)
    assert desk.turn.done()
    assert desk.turn.cancelling() == 0


async def test_a_caller_hears_at_its_deadline_that_nothing_came(world: World, client: Peer, desk: Desk) -> None:
    started = now_s()
    outcome = await _ask(client, "desk.gate", AskOptions(within_s=0.3), number=1)

    assert isinstance(outcome, TimedOut)
    assert now_s() - started >= 0.29


async def test_a_task_that_waited_too_long_is_expired_and_never_run(client: Peer, desk: Desk) -> None:
    reply_to = client.subjects.lite("stranger", "old")
    message = AgentMessage.new(
        "task", AgentIdentity(id="stranger"), {"number": 1}, reply_to=reply_to, routing=Routing(timeout=1000)
    )
    old = message.model_copy(update={"timestamp": time.time() - 2})
    await client.queue.put(client.subjects.task("desk.double"), old.encode(), msg_id="old")

    result = await asyncio.wait_for(_next_result(client, reply_to), SOON_S)

    assert result.payload.content["outcome"] == Expired.kind
    assert desk.ran == []


async def test_a_task_that_excludes_its_only_agent_is_undeliverable(client: Peer, desk: Desk) -> None:
    reply_to = client.subjects.lite("stranger", "excluded")
    await _put_raw(
        client, "desk.double", {"number": 1}, reply_to=reply_to, routing=Routing(exclusions=["other", "desk"])
    )

    result = await asyncio.wait_for(_next_result(client, reply_to), SOON_S)

    assert result.payload.content["outcome"] == Undeliverable.kind
    assert desk.ran == []


#: It is the client that serves here, which no role may.
@pytest.mark.parametrize("world", ["memory", "jetstream"], indirect=True)
async def test_a_task_whose_replica_died_in_each_attempt_is_dead_lettered(client: Peer, desk: Desk) -> None:
    """Here the lease is simply handed back as often as a topic allows."""
    box = Mailbox("elsewhere", ("lost.cause",), 5.0)

    class Lost(Agent):
        @topic("lost.cause", max_attempts=3)
        async def lost(self) -> str:
            raise AssertionError("not a fourth time")

    spec = AgentSpec.of(Lost)
    turns = Turns("lost", spec.handlers(Lost()), client.caller)
    await client.queue.declare(box)
    reply_to = client.subjects.lite("stranger", "lost")
    ended: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
    tasks = set()

    async def take(delivery: Any) -> None:
        if delivery.lease.delivered <= 3:
            await delivery.lease.begin()
            await delivery.lease.release()
        else:
            ended.set_result(await turns.run(delivery))

    feed = await client.queue.consume(box, lambda delivery: tasks.add(asyncio.create_task(take(delivery))))
    feed.want(5)
    await _put_raw(client, "lost.cause", {}, reply_to=reply_to)

    outcome = await asyncio.wait_for(ended, SOON_S)

    assert isinstance(outcome, DeadLettered)
    assert "in each of 3 attempts" in outcome.reason
    assert (outcome.attempt, outcome.details["attempts"]) == (3, 3)
    assert len(await _letters(client)) == 1
    await feed.aclose()


# --- once ------------------------------------------------------------------------------------------------


async def _delivered_one(peer: Peer, desk: Desk) -> tuple[Turns, Feed, asyncio.Queue[Any]]:
    """A task is put; what comes of its mailbox goes to nobody but the queue."""
    box = Mailbox("desk", ("desk.double",), 5.0)
    await peer.queue.declare(box)
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    feed = await peer.queue.consume(box, arrived.put_nowait)
    feed.want(2)
    await _put_raw(peer, "desk.double", {"number": 1}, reply_to=peer.subjects.lite("stranger", "one"))
    return Turns("desk", AgentSpec.of(Desk).handlers(desk), peer.caller), feed, arrived


async def test_a_redelivered_task_whose_outcome_is_stored_is_not_run_again(world: World) -> None:
    peer, desk = await world.join("replica"), Desk()
    turns, feed, arrived = await _delivered_one(peer, desk)
    first = await arrived.get()

    class Unsettled:
        """The replica dies between storing the outcome and settling the task."""

        delivered, first = 1, True

        async def begin(self) -> int:
            return await first.lease.begin()

        async def settle(self) -> None:
            await first.lease.release()

    class Dying:
        subject, data, lease, seq, headers = first.subject, first.data, Unsettled(), first.seq, first.headers

    assert isinstance(await turns.run(Dying()), Result)  # type: ignore[arg-type]
    second = await asyncio.wait_for(arrived.get(), SOON_S)

    assert second.lease.delivered == 2
    assert await turns.run(second) is None
    assert desk.ran == [1]
    await _empty(peer)
    await feed.aclose()


@pytest.mark.parametrize("waits_in", ["take_up", "begin"])
async def test_a_task_that_was_ended_elsewhere_before_it_begins_here_is_not_run_again(
    world: World, monkeypatch: pytest.MonkeyPatch, waits_in: str
) -> None:
    peer, desk = await world.join("replica"), Desk()
    turns, feed, arrived = await _delivered_one(peer, desk)
    first = await arrived.get()
    await first.lease.release()
    second = await asyncio.wait_for(arrived.get(), SOON_S)
    where = type(turns._parking) if waits_in == "take_up" else type(second.lease)
    at_once = getattr(where, waits_in)

    async def slowly(*args: Any) -> Any:
        # It has looked, and found nothing; until it begins, the attempt that had fallen silent ends the task.
        monkeypatch.undo()
        assert isinstance(await turns.run(first), Result)
        await asyncio.sleep(STALE_S)
        return await at_once(*args)

    monkeypatch.setattr(where, waits_in, slowly)
    assert await turns.run(second) is None
    assert desk.ran == [1]
    await _empty(peer)
    await feed.aclose()


async def test_the_outcome_is_stored_when_the_task_is_settled(world: World) -> None:
    peer = await world.join("replica")
    turns = Turns("desk", AgentSpec.of(Desk).handlers(Desk()), peer.caller)
    reply_to = peer.subjects.lite("stranger", "one")
    message = AgentMessage.new("task", AgentIdentity(id="stranger"), {"number": 1}, reply_to=reply_to)
    stored_at_settling = []

    class Lease:
        delivered, first = 1, True

        async def begin(self) -> int:
            return 1

        async def settle(self) -> None:
            stored_at_settling.append(await peer.lite.last(reply_to))

    class Handed:
        subject, data, lease, seq = peer.subjects.task("desk.double"), message.encode(), Lease(), 1
        headers: ClassVar = {"Nats-Msg-Id": message.id}

    await turns.run(Handed())  # type: ignore[arg-type]

    (entry,) = stored_at_settling
    assert AgentMessage.decode(entry.data).payload.content["data"] == 2


async def test_a_task_sent_twice_under_one_id_is_run_once(client: Peer, desk: Desk) -> None:
    asks = [_ask(client, "desk.double", AskOptions(within_s=20, task_id="same"), number=3) for _ in range(2)]

    outcomes = [(await ask).unwrap() for ask in asks]

    assert outcomes == [6, 6]
    assert desk.ran == [3]


async def test_whoever_takes_over_under_the_same_owner_finds_the_outcome(world: World, client: Peer) -> None:
    options = AskOptions(within_s=20, task_id="run-7-1")
    first = await client.caller.submit("desk.double", {"number": 5}, options, owner="run-7")
    assert (await first.outcome()).unwrap() == 10
    heir = await world.join("heir")

    again = await heir.caller.submit("desk.double", {"number": 5}, options, owner="run-7")

    assert (await again.outcome()).unwrap() == 10


@pytest.mark.parametrize("id", ["two words", "line\r\nNats-TTL: 1s", "größer als ASCII ✓", "a.b.*.>", "x" * 500])
async def test_any_id_that_somebody_else_chose_is_fine(client: Peer, id: str) -> None:
    reply_to = client.subjects.lite("stranger", "odd")
    await _put_raw(client, "desk.double", {"number": 1}, reply_to=reply_to, id=id, conversation_id=id)

    result = await asyncio.wait_for(_next_result(client, reply_to), SOON_S)

    assert result.correlation_id == id
    assert result.payload.content["data"] == 2
    assert (await _ask(client, "desk.double", AskOptions(within_s=20, task_id=id), number=2)).unwrap() == 4


# --- streams and memory ------------------------------------------------------------------------------------


async def test_chunks_come_in_order_and_end_with_the_result(client: Peer) -> None:
    handle = await client.caller.submit("desk.stream", {"count": 20})

    chunks = [chunk async for chunk in handle.chunks()]

    assert chunks == [f"{i}," for i in range(20)]
    assert (await handle.outcome()).unwrap() == "".join(chunks)


async def test_a_late_reader_sees_all_chunks_from_the_start(client: Peer) -> None:
    handle = await client.caller.submit("desk.stream", {"count": 5})
    await handle.outcome()

    for _ in range(2):
        assert [chunk async for chunk in handle.chunks()] == [f"{i}," for i in range(5)]


async def test_a_refused_task_has_no_chunks(client: Peer) -> None:
    handle = await client.caller.submit("desk.stream", {"count": "many"})

    assert [chunk async for chunk in handle.chunks()] == []


async def test_a_reader_that_is_slower_than_the_deadline_is_not_cancelled(client: Peer) -> None:
    handle = await client.caller.submit("desk.stream", {"count": 3}, AskOptions(within_s=2))
    seen = []
    async for chunk in handle.chunks():
        seen.append(chunk)
        await asyncio.sleep(2.2 if len(seen) == 1 else 0)

    assert seen[0] == "0,"


async def test_a_silent_stream_ends_at_the_deadline(client: Peer) -> None:
    handle = await client.caller.submit("desk.gate", {"number": 1}, AskOptions(within_s=0.3))

    assert [chunk async for chunk in handle.chunks()] == []
    assert isinstance(await handle.outcome(), TimedOut)


async def test_what_is_remembered_of_a_conversation_is_recalled_by_any_replica(world: World, serve: Serve) -> None:
    await serve(Desk(), name="one")
    await serve(Desk(), name="two")
    client = await world.join("client")

    async def say(word: str, conversation: str = "talk/7") -> Any:
        ask = AskOptions(within_s=20, conversation_id=conversation)
        return (await _ask(client, "desk.memory", ask, word=word)).unwrap()

    assert await say("a") == ["a"]
    assert await say("b") == ["a", "b"]
    assert await say("c") == ["b", "c"]  # the newest two
    assert await say("z", "other talk") == ["z"]


# --- many at once ----------------------------------------------------------------------------------------


async def test_a_sync_handler_runs_in_a_thread_and_does_not_block_the_loop(client: Peer, desk: Desk) -> None:
    asking = asyncio.create_task(_ask(client, "desk.thread"))

    async def blocked() -> bool:
        return desk.blocked.is_set()

    await until(blocked)
    assert (await _ask(client, "desk.double", number=1)).unwrap() == 2  # meanwhile
    desk.free.set()

    assert (await asking).unwrap() != threading.main_thread().name


async def test_no_more_turns_run_at_once_than_there_are_slots(world: World, serve: Serve) -> None:
    desk = Desk()
    replica = await serve(desk, slots=3)
    client = await world.join("client")
    asking = [asyncio.create_task(_ask(client, "desk.gate", number=i)) for i in range(10)]

    async def full() -> bool:
        return await client.queue.backlog("desk") == Backlog(7, 3)

    await until(full)
    assert desk.running == 3
    assert replica.pump.statistics().in_flight == 3
    desk.go.set()
    assert sorted([(await ask).unwrap() for ask in asking]) == list(range(10))
    assert desk.most == 3

    async def counted() -> bool:
        # Who asked hears of it a moment before the replica knows that it is stored.
        return replica.pump.statistics().outcomes == {"result": 10}

    await until(counted)


async def test_a_long_turn_keeps_its_lease(client: Peer, desk: Desk) -> None:
    asking = asyncio.create_task(_ask(client, "desk.gate", number=1))
    await desk.entered.wait()
    await asyncio.sleep(1.2 * LEASE_S)
    desk.go.set()

    assert (await asking).attempt == 1
    assert desk.ran == [1]


async def test_a_family_serves_any_topic_of_it_but_the_exact_handler_wins(client: Peer) -> None:
    assert (await _ask(client, "family.uncle", age=50)).unwrap() == ["family.uncle", {"age": 50}]
    assert (await _ask(client, "family.special")).unwrap() == "special"


async def test_bytes_that_nobody_can_read_are_buried_and_the_mailbox_goes_on(client: Peer) -> None:
    for i, poison in enumerate((b"\xff\xfe not json", b"", b"[]", b'{"id": "x"}', b"null")):
        await client.queue.put(client.subjects.task("desk.double"), poison, msg_id=f"poison{i}")

    assert (await _ask(client, "desk.double", number=1)).unwrap() == 2
    await _empty(client)
    letters = await _letters(client)
    assert letters[0]["messageBase64"] == base64.b64encode(b"\xff\xfe not json").decode()
    assert [letter["message"] for letter in letters[1:]] == ["", "[]", '{"id": "x"}', "null"]
    assert all(letter["error"]["message"] for letter in letters)


async def test_megabytes_that_nobody_can_read_are_buried_too(client: Peer) -> None:
    """In base64 they do not fit into a letter."""
    await client.queue.put(client.subjects.task("desk.double"), b"\xff" * 7_000_000, msg_id="big")

    async def buried() -> bool:
        return bool(await _letters(client))

    await until(buried)
    await _empty(client)
    (letter,) = await _letters(client)
    assert letter["messageBytes"] == 7_000_000


async def test_a_drain_lets_running_turns_finish_and_hands_back_the_rest(world: World, serve: Serve) -> None:
    leaving = Desk()
    old = await serve(leaving, name="old", slots=2)
    client = await world.join("client")
    asking = [asyncio.create_task(_ask(client, "desk.gate", number=i)) for i in range(4)]

    async def full() -> bool:
        return await client.queue.backlog("desk") == Backlog(2, 2)

    await until(full)
    draining = asyncio.create_task(old.pump.drain(10.0))
    await asyncio.sleep(0)
    leaving.go.set()
    await draining
    assert len(leaving.ran) == 2  # and nothing new was begun
    heir = Desk()
    heir.go.set()
    await serve(heir, name="new")

    outcomes = [await ask for ask in asking]

    assert sorted(outcome.unwrap() for outcome in outcomes) == [0, 1, 2, 3]
    assert sorted(outcome.source for outcome in outcomes) == ["new", "new", "old", "old"]
    assert sorted(leaving.ran + heir.ran) == [0, 1, 2, 3]


async def test_a_drain_past_its_time_hands_back_what_still_runs(world: World, serve: Serve) -> None:
    stuck = Desk()
    old = await serve(stuck, name="old")
    client = await world.join("client")
    asking = asyncio.create_task(_ask(client, "desk.gate", number=1))
    await stuck.entered.wait()
    await old.pump.drain(0.05)
    await old.pump.aclose()
    heir = Desk()
    heir.go.set()
    await serve(heir, name="new")

    outcome = await asking

    assert (outcome.source, outcome.attempt) == ("new", 2)


# --- children --------------------------------------------------------------------------------------------


class Child(Agent):
    """Shows what a child of another task is given."""

    @topic("child.look")
    async def look(self, context: Context) -> dict[str, Any]:
        message, limits = context.message, context.message.payload.constraints
        return {
            "deadline": limits.deadline if limits else None,
            "conversation": message.context.conversation_id,
            "parent": message.context.parent_message_id,
            "priority": message.routing.priority,
            "tokens": context.budget.tokens,
            "hops": context.budget.hops,
            "model": message.payload.model,
            "parameters": message.payload.parameters,
        }


class Parent(Agent):
    """Asks a child for more time than it has itself."""

    @topic("parent.look")
    async def look(self, within_s: float, context: Context) -> dict[str, Any]:
        context.charge(30)
        seen = (await context.ask("child.look", within_s=within_s)).unwrap()
        return {"child": seen, "deadline": context.deadline.at_ms, "id": context.message.id}


@pytest.mark.parametrize("within_s", [3600.0, 1.0])
async def test_a_child_gets_conversation_budget_and_no_more_time_than_there_is(
    world: World, serve: Serve, within_s: float
) -> None:
    await serve(Child(), name="c")
    await serve(Parent(), name="p")
    client = await world.join("client")
    ask = AskOptions(
        within_s=20,
        priority=7,
        conversation_id="talk",
        model="scripted:x",
        parameters={"temperature": 0},
        budget=Budget(tokens=100, hops=2),
    )

    outcome = await _ask(client, "parent.look", ask, within_s=within_s)

    seen = outcome.unwrap()
    child = seen["child"]
    if within_s > 20:
        # What is left is counted from the moment in which the child is asked, a little later.
        assert abs(child["deadline"] - seen["deadline"]) < 1000
    else:
        assert child["deadline"] < seen["deadline"] - 10_000
    assert (child["conversation"], child["parent"], child["priority"]) == ("talk", seen["id"], 7)
    assert (child["tokens"], child["hops"]) == (35, 1)
    assert (child["model"], child["parameters"]) == ("scripted:x", {"temperature": 0})
    assert outcome.tokens == 30


async def test_hops_run_out(world: World, serve: Serve) -> None:
    await serve(Child(), name="c")
    await serve(Parent(), name="p")
    client = await world.join("client")

    outcome = await _ask(client, "parent.look", AskOptions(within_s=20, budget=Budget(hops=0)), within_s=5)

    # What no attempt can change for the child is not tried again for the parent.
    assert isinstance(outcome, Failed)
    assert outcome.attempt == 1
    assert "budget of hops" in outcome.reason


# --- any NATS client in any language ---------------------------------------------------------------------


def _by_hand(content: Any, **fields: Any) -> bytes:
    """What a program that knows only the protocol's page would send."""
    message = {
        "id": "hand-1",
        "timestamp": time.time(),
        "version": "1.0",
        "type": "task",
        "source": {"id": "curl", "type": "human"},
        "context": {"conversationId": "c1", "metadata": {}},
        "payload": {"content": content},
        "routing": {"priority": 5},
    }
    return json.dumps(message | fields).encode()


async def _ask_by_hand(bare: Client, subject: str, **fields: Any) -> dict[str, Any]:
    inbox = bare.new_inbox()
    answers = await bare.subscribe(inbox)
    await bare.publish(subject, _by_hand({"number": 8}, replyTo=inbox, **fields))
    return json.loads((await answers.next_msg(timeout=SOON_S)).data)


@ON_NATS
async def test_a_task_written_by_hand_gets_its_result_where_it_wants_it(client: Peer, bare: Client) -> None:
    answer = await _ask_by_hand(bare, client.subjects.task("desk.double"), correlationId="my-7")

    assert answer["type"] == "result"
    assert answer["version"] == "1.0"
    assert answer["correlationId"] == "my-7"
    assert answer["context"]["conversationId"] == "c1"
    assert answer["context"]["parentMessageId"] == "hand-1"
    assert answer["source"] == {"id": "replica", "type": "test"}
    content = answer["payload"]["content"]
    assert (content["success"], content["data"], content["outcome"]) == (True, 16, "result")
    assert content["latency"] > 0
    assert "tokens" in content


@ON_NATS
async def test_a_task_written_by_hand_without_reply_to_is_announced_on_the_result_subject(
    client: Peer, bare: Client
) -> None:
    answers = await bare.subscribe(f"agents.{client.subjects.environment}.result.desk.double")
    await bare.flush()
    await bare.publish(client.subjects.task("desk.double"), _by_hand({"number": 1}))

    answer = json.loads((await answers.next_msg(timeout=SOON_S)).data)

    assert answer["correlationId"] == "hand-1"
    assert answer["payload"]["content"]["data"] == 2


@ON_NATS
@pytest.mark.parametrize("lane", ["", ".p8"])
async def test_a_query_is_served_like_a_task(client: Peer, bare: Client, lane: str) -> None:
    subject = client.subjects.task("desk.double").replace(".task.", ".query.") + lane

    answer = await _ask_by_hand(bare, subject, type="query")

    assert answer["payload"]["content"]["data"] == 16


@ON_NATS
async def test_a_reply_to_that_nobody_may_publish_to_does_no_harm(client: Peer, bare: Client) -> None:
    stream = f"squadron-{client.subjects.environment}-tasks"
    js = bare.jetstream()
    result = client.subjects.result("x")
    injected = f"{result} 0\r\n\r\nPUB {client.subjects.control('undeploy')} 2\r\n{{}}\r\n"
    evil = (injected, f"{result} b c", f"$JS.API.STREAM.PURGE.{stream}", "a b", "a.>", "*", "", "x" * 3000)
    evil += ("agents.t.lite.a", "\r\n")
    for i, reply_to in enumerate(evil):
        await bare.publish(
            client.subjects.task("desk.double"), _by_hand({"number": 1}, id=f"e{i}", replyTo=reply_to)
        )

    assert (await _ask(client, "desk.double", number=1)).unwrap() == 2
    await _empty(client)
    assert (await js.stream_info(stream)).state.last_seq == len(evil) + 1


# --- the server dies ---------------------------------------------------------------------------------------


async def test_asks_under_way_survive_a_killed_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = Settings(home=home, env="kill", heartbeat_s=0.5, lease_s=1.5)
    first = embedded.ensure(home)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(embedded.stop, home)
        peers = []
        for name in ("replica", "client"):
            w = await Wiring.open(settings, AgentIdentity(id=name), create=True)
            stack.push_async_callback(w.aclose)
            peers.append(peer_of(w))
        desk = Desk()
        replica = Replica(peers[0], desk)
        await replica.start()
        stack.push_async_callback(replica.pump.aclose)
        asking = [
            asyncio.create_task(
                _ask(peers[1], "desk.gate", AskOptions(within_s=SOON_S, priority=5 + i % 2), number=i)
            )
            for i in range(50)
        ]
        await desk.entered.wait()

        kill(first.pid)
        desk.go.set()
        second = await asyncio.to_thread(embedded.ensure, home)

        assert second.pid != first.pid
        outcomes = [await ask for ask in asking]
        assert [outcome.kind for outcome in outcomes] == ["result"] * 50
        assert sorted(outcome.unwrap() for outcome in outcomes) == list(range(50))
