"""Agents with `ordered_by="conversation"`: each conversation in order, and never two of its tasks at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from squadron import Agent, Context, Retry, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.memory import MAX_PAYLOAD_BYTES
from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError
from squadron.runtime.ports.queue import Backlog, Delivery, Feed, Lease, Mailbox, Queue
from squadron.runtime.running.ordered import OrderedQueue
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.subjects import OrderedSubject
from tests.contract.conftest import ON_NATS, SIGNED, Inbox, Peer, World, until

#: Of who lives, and of who dies and is to be missed soon.
LEASE_S, DYING_S = 10.0, 1.0
#: For what takes many steps on a machine that does other things as well.
LATER_S = 60.0


@dataclass
class Ledger:
    """What all replicas did, in one list: (step, conversation, number, attempt)."""

    steps: list[tuple[str, str, int, int]] = field(default_factory=list)
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    most_at_once: int = 0
    #: So many wait for each other once, however slow the machine is.
    meet: int = 0
    _running: int = 0

    def enter(self, conversation: str, number: int, attempt: int) -> None:
        self.steps.append(("start", conversation, number, attempt))
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)

    def leave(self, step: str, conversation: str, number: int, attempt: int) -> None:
        self.steps.append((step, conversation, number, attempt))
        self._running -= 1
        self.grown.set()

    def ended(self) -> dict[str, list[int]]:
        """The numbers of the tasks that ended, by conversation, in order."""
        done: dict[str, list[int]] = defaultdict(list)
        for step, conversation, number, _ in self.steps:
            if step == "end":
                done[conversation].append(number)
        return done

    async def until_ended(self, count: int, within_s: float = LATER_S) -> None:
        async with asyncio.timeout(within_s):
            while sum(map(len, self.ended().values())) < count:
                self.grown.clear()
                await self.grown.wait()

    def check_no_two_at_once(self) -> None:
        inside: dict[str, int] = {}
        for step, conversation, number, _ in self.steps:
            if step == "start":
                # The same task may start anew after its replica died; another may not.
                assert inside.get(conversation, number) == number, f"{conversation}: two at once"
                inside[conversation] = number
            else:
                assert inside.pop(conversation) == number


class Clerk(Agent):
    """Writes down what it does."""

    ordered_by = "conversation"

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.gates: dict[str, asyncio.Event] = {}
        self.is_dead: Callable[[], bool] = lambda: False

    @topic("clerk.note")
    async def note(self, number: int, context: Context) -> int:
        """Take a note; the conversation's gate holds it up."""
        return await self._work(number, context)

    @topic("clerk.once", max_attempts=1)
    async def once(self, number: int, context: Context) -> int:
        """Take a note, in one attempt."""
        return await self._work(number, context)

    async def _work(self, number: int, context: Context) -> int:
        conversation = context.message.context.conversation_id
        self.ledger.enter(conversation, number, context.attempt)
        while self.ledger.most_at_once < self.ledger.meet:
            await asyncio.sleep(0.01)
        if conversation in self.gates:
            await self.gates[conversation].wait()
        await asyncio.sleep(random.uniform(0, 0.005))
        if self.is_dead():
            # Nobody hears of what a dead process does.
            self.ledger.leave("died", conversation, number, context.attempt)
            await asyncio.Event().wait()
        self.ledger.leave("end", conversation, number, context.attempt)
        return number

    @topic("clerk.retry")
    async def retry(self, number: int, context: Context) -> int:
        """Take a note at the second attempt."""
        conversation = context.message.context.conversation_id
        self.ledger.enter(conversation, number, context.attempt)
        if context.attempt == 1:
            self.ledger.leave("failed", conversation, number, 1)
            raise Retry("not yet", after_s=3.0)
        self.ledger.leave("end", conversation, number, context.attempt)
        return number


PATTERNS = tuple(spec.topic.name for spec in AgentSpec.of(Clerk).topics)
ORDERED = Mailbox("clerk", PATTERNS, LEASE_S, ordered=True)
DYING = replace(ORDERED, lease_s=DYING_S)
PLAIN = Mailbox("clerk", PATTERNS, LEASE_S)

Serve = Callable[..., Awaitable[Clerk]]


@pytest.fixture
async def serve(world: World) -> AsyncIterator[Serve]:
    """Run a replica of its own, on a queue of its own if one is given."""
    pumps: list[Pump] = []

    async def start(
        ledger: Ledger, *, slots: int = 4, box: Mailbox = ORDERED, queue: Queue | None = None
    ) -> Clerk:
        peer = await world.join(f"replica-{len(pumps)}")
        clerk = Clerk(ledger)
        turns = Turns("clerk", AgentSpec.of(Clerk).handlers(clerk), peer.caller)
        pump = Pump(queue or peer.queue, box, turns.run, slots=slots)
        await peer.queue.declare(box)
        await pump.start()
        pumps.append(pump)
        return clerk

    yield start
    for pump in pumps:
        with contextlib.suppress(BusUnavailableError):
            await pump.aclose()


async def _send(
    peer: Peer, conversation: str, number: int, *, topic: str = "clerk.note", priority: int = 5
) -> None:
    said, now = {"number": number}, peer.ports.clock.time()
    message = AgentMessage.new("task", peer.ports.identity, said, conversation_id=conversation, timestamp=now)
    await peer.queue.put(peer.subjects.task(topic, priority), message.encode(), msg_id=message.id)


async def _empty(peer: Peer) -> None:
    async def nothing_is_left() -> bool:
        return await peer.queue.backlog("clerk") == Backlog(0, 0)

    await until(nothing_is_left)


async def test_each_conversation_runs_in_order_one_at_a_time_and_many_at_once(peer: Peer, serve: Serve) -> None:
    ledger = Ledger(meet=3)
    for _ in range(3):
        await serve(ledger)
    conversations = [f"c-{i}" for i in range(20)]

    for number in range(20):
        for conversation in conversations:
            # Order beats priority.
            await _send(peer, conversation, number, priority=random.randrange(10))
    await ledger.until_ended(400)

    assert ledger.ended() == {conversation: list(range(20)) for conversation in conversations}
    ledger.check_no_two_at_once()
    assert ledger.most_at_once >= 3
    await _empty(peer)


async def test_a_task_without_a_conversation_of_its_own_waits_for_nobody(peer: Peer, serve: Serve) -> None:
    ledger = Ledger()
    clerk = await serve(ledger, slots=4)
    messages = [AgentMessage.new("task", peer.ports.identity, {"number": i}) for i in range(4)]
    gate = asyncio.Event()
    clerk.gates = {each.context.conversation_id: gate for each in messages}

    for each in messages:
        await peer.queue.put(peer.subjects.task("clerk.note"), each.encode(), msg_id=each.id)

    async def all_run() -> bool:
        return ledger.most_at_once == 4

    await until(all_run)
    gate.set()
    await ledger.until_ended(4)


async def test_a_long_line_of_one_conversation_holds_up_no_other(peer: Peer, serve: Serve) -> None:
    ledger = Ledger()
    clerk = await serve(ledger, slots=2)
    clerk.gates["long"] = asyncio.Event()
    for number in range(100):
        await _send(peer, "long", number)
    await _send(peer, "short", 0)

    await ledger.until_ended(1)

    assert ledger.ended() == {"short": [0]}

    async def all_are_in_line() -> bool:
        return await peer.queue.backlog("clerk") == Backlog(99, 1)

    await until(all_are_in_line)
    clerk.gates.pop("long").set()
    await ledger.until_ended(101)
    assert ledger.ended()["long"] == list(range(100))
    await _empty(peer)


async def test_a_head_that_is_tried_again_later_holds_up_its_own_conversation_only(
    peer: Peer, serve: Serve
) -> None:
    ledger = Ledger()
    for _ in range(2):
        await serve(ledger)
    await _send(peer, "a", 0, topic="clerk.retry")
    for number in (1, 2):
        await _send(peer, "a", number)
    for number in range(5):
        await _send(peer, "b", number)

    await ledger.until_ended(8)

    assert [step for step in ledger.steps if step[1] == "a"][:3] == [
        ("start", "a", 0, 1),
        ("failed", "a", 0, 1),
        ("start", "a", 0, 2),
    ]
    assert ledger.ended() == {"a": [0, 1, 2], "b": [0, 1, 2, 3, 4]}
    # It comes again after three seconds, which may not be enough for all of the other.
    assert ledger.steps.index(("end", "b", 0, 1)) < ledger.steps.index(("start", "a", 0, 2))
    ledger.check_no_two_at_once()


async def test_the_tasks_behind_a_dead_replicas_head_wait_for_it_and_lose_no_attempt(
    world: World, serve: Serve
) -> None:
    peer = await world.join("publisher")
    dying = await world.join("dying")
    await dying.queue.declare(DYING)
    taken = Inbox()
    feed = await dying.queue.consume(DYING, taken)
    feed.want(1)
    for number in range(6):
        await _send(peer, "a", number, topic="clerk.once" if number else "clerk.note")
    head: Delivery = await taken.next()
    assert await head.lease.begin() == 1

    # It neither extends nor settles from here on.
    ledger = Ledger()
    await serve(ledger, box=DYING)
    await ledger.until_ended(6)

    starts = [(number, attempt) for step, _, number, attempt in ledger.steps if step == "start"]
    assert starts == [(0, 2), *((number, 1) for number in range(1, 6))]
    ledger.check_no_two_at_once()
    await feed.aclose()
    await _empty(peer)


class _Dying:
    """A store, and leases, that do no more after so many steps: a process that died then."""

    def __init__(self, store: Any, steps_left: int) -> None:
        self.store, self.steps_left = store, steps_left
        self._feeds: list[Feed] = []

    @property
    def is_dead(self) -> bool:
        return self.steps_left <= 0

    def __getattr__(self, name: str) -> Any:
        return self.step(getattr(self.store, name))

    def step(self, do: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def stepped(*args: Any, **more: Any) -> Any:
            if self.is_dead:
                raise BusUnavailableError("dead")
            self.steps_left -= 1
            done = await do(*args, **more)
            if self.is_dead:
                # Its pulls die with it.
                for feed in self._feeds:
                    await feed.aclose()
            return done

        return stepped

    async def consume(self, mailbox: Mailbox, sink: Callable[[Delivery], None]) -> Feed:
        if self.is_dead:
            raise BusUnavailableError("dead")

        def hear(delivery: Delivery) -> None:
            if not self.is_dead:
                lease = _DyingLease(self, delivery.lease)
                sink(replace(delivery, lease=lease))

        feed: Feed = await self.store.consume(mailbox, hear)
        self._feeds.append(feed)
        return feed


class _DyingLease:
    def __init__(self, dying: _Dying, lease: Lease) -> None:
        self.delivered, self.begin = lease.delivered, dying.step(lease.begin)
        self.first, self.sure_from = lease.first, lease.sure_from
        self.settle, self.extend, self.release = map(dying.step, (lease.settle, lease.extend, lease.release))


#: Of messages that say they are from somebody else.
BY_HAND = pytest.mark.skipif(SIGNED, reason="nobody has a credential of that name")


@pytest.fixture
def for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads does so for long, so that what comes is known to come for the first time."""
    monkeypatch.setattr("squadron.runtime.running.ordered.CLOCKS_S", -60.0)
    monkeypatch.setattr("squadron.bridge.jetstream.lease.CLOCKS_S", -60.0)


async def test_nobody_looks_for_what_came_of_a_task_that_comes_for_the_first_time(
    peer: Peer, serve: Serve, for_long: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for, last = list[str](), type(peer.ports.lite).last

    async def looking(journal: Any, key: str) -> Any:
        # Who signed it is looked up once.
        if ".registry." not in key:
            looked_for.append(key)
        return await last(journal, key)

    monkeypatch.setattr(type(peer.ports.lite), "last", looking)
    ledger = Ledger()
    await serve(ledger)
    for number in range(3):
        await _send(peer, "a", number)
    await ledger.until_ended(3)

    assert ledger.ended() == {"a": [0, 1, 2]}
    assert looked_for == []
    message = AgentMessage.new("task", peer.ports.identity, {"number": 3}, conversation_id="a")
    # It came without its own id, so that it may have come before.
    await peer.queue.put(peer.subjects.task("clerk.note"), message.encode(), msg_id="another")
    await ledger.until_ended(4)
    assert any(message.id in key or "outcome" in key for key in looked_for)


async def test_a_task_that_finds_its_line_empty_is_run_and_leaves_it_without_a_look_at_who_is_first(
    peer: Peer, serve: Serve, for_long: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, looks, head = Ledger(), list[str](), type(peer.queue.store).head

    async def looking(store: Any, pattern: str) -> Any:
        looks.append(pattern)
        return await head(store, pattern)

    await serve(ledger)
    monkeypatch.setattr(type(peer.queue.store), "head", looking)
    for number in range(3):
        await _send(peer, "a", number)
        await ledger.until_ended(number + 1)
        await _empty(peer)

    assert ledger.ended() == {"a": [0, 1, 2]}
    assert looks == []


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_head_that_is_called_late_when_it_has_left_its_line_does_not_run_again(
    peer: Peer, serve: Serve, for_long: None, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    ledger, calls, put = Ledger(), list[Any](), type(peer.queue.store).put_alone

    async def noting(store: Any, subject: str, data: bytes, **how: Any) -> int:
        if ".ticket." in subject and data:
            calls.append((store, subject, data, how))
        return await put(store, subject, data, **how)

    await serve(ledger)
    monkeypatch.setattr(type(peer.queue.store), "put_alone", noting)
    await _send(peer, "a", 0)
    await ledger.until_ended(1)
    await _empty(peer)
    [(store, subject, data, how)] = calls

    async def ticket_is_settled() -> bool:
        # The line is empty a moment before.
        return await store.head(subject) is None

    await until(ticket_is_settled)
    if is_late:
        # So late that its id is forgotten.
        monkeypatch.setattr("squadron.runtime.running.ordered.CALLED_WITHIN_S", 0.0)
        how["msg_id"] = ""
    assert bool(await put(store, subject, data, **how)) is is_late
    await _send(peer, "b", 1)
    await ledger.until_ended(2)
    await _empty(peer)

    assert ledger.ended() == {"a": [0], "b": [1]}


@pytest.mark.parametrize("steps", [*range(1, 13), 20, 40])
async def test_a_replica_may_die_between_any_two_steps(
    world: World, serve: Serve, for_long: None, steps: int
) -> None:
    peer, ledger = await world.join("publisher"), Ledger()
    dying = await _serve_dying(world, serve, ledger, steps)
    for number in range(5):
        for conversation in ("a", "b"):
            await _send(peer, conversation, number)

    async def dead() -> bool:
        return dying.is_dead

    await until(dead)
    await serve(ledger, box=DYING)
    await ledger.until_ended(10)

    assert ledger.ended() == {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3, 4]}
    ledger.check_no_two_at_once()
    await _empty(peer)


@pytest.mark.parametrize("steps", range(1, 12))
async def test_a_replica_may_die_between_any_two_steps_when_nobody_comes_to_the_line_any_more(
    world: World, serve: Serve, for_long: None, steps: int
) -> None:
    peer, ledger = await world.join("publisher"), Ledger()
    await _stand_in_line(peer, world, 4)
    dying = await _serve_dying(world, serve, ledger, steps)

    async def dead() -> bool:
        return dying.is_dead

    await until(dead)
    for _ in range(2):
        await serve(ledger, box=DYING)
    await ledger.until_ended(4)

    assert ledger.ended() == {"a": [0, 1, 2, 3]}
    ledger.check_no_two_at_once()
    await _empty(peer)


async def _serve_dying(world: World, serve: Serve, ledger: Ledger, steps: int) -> _Dying:
    mortal = await world.join("mortal")
    dying = _Dying(mortal.queue.store, steps)
    queue = OrderedQueue(dying, mortal.subjects, mortal.ports.clock)  # type: ignore[arg-type]
    clerk = await serve(ledger, slots=2, box=DYING, queue=queue)
    clerk.is_dead = lambda: dying.is_dead
    return dying


async def test_what_nobody_can_read_is_buried_and_holds_up_nothing(peer: Peer, serve: Serve) -> None:
    await peer.queue.declare(ORDERED)
    for junk in (b"", b"\xff\xfe", b'{"id": 1}'):
        await peer.queue.put(peer.subjects.task("clerk.note"), junk, msg_id=uuid.uuid4().hex)
    await _send(peer, "a", 0)
    ledger = Ledger()
    await serve(ledger, slots=1)

    await ledger.until_ended(1)
    await _empty(peer)

    letters = await peer.dead.latest(peer.subjects.dead("clerk", "*").rsplit(".", 1)[0] + ".*")
    assert len(letters) == 3
    content = AgentMessage.decode(letters[0].data).payload.content
    assert content["subject"] == peer.subjects.task("clerk.note")


@ON_NATS
@BY_HAND
async def test_messages_of_any_client_are_ordered(peer: Peer, serve: Serve) -> None:
    ledger = Ledger()
    for _ in range(2):
        await serve(ledger)
    for number in range(10):
        for conversation in ("shop order 7: ärger!", "b"):
            message = {
                "id": f"{conversation}/{number}",
                "timestamp": 1795219200.5,
                "version": "1.0",
                "type": "task",
                "source": {"id": "me"},
                "context": {"conversationId": conversation},
                "payload": {"content": {"number": number}},
            }
            kind = "task" if number % 2 else "query"
            subject = f"agents.{peer.subjects.environment}.{kind}.clerk.note"
            # A core publish, without any header, is stored as well.
            await peer.bus.publish(subject, json.dumps(message).encode())

    await ledger.until_ended(20)

    assert ledger.ended() == {"shop order 7: ärger!": list(range(10)), "b": list(range(10))}
    ledger.check_no_two_at_once()


@BY_HAND
async def test_the_largest_message_goes_through(peer: Peer, serve: Serve) -> None:
    ledger = Ledger()
    await serve(ledger)
    identity = AgentIdentity(id="x" * (MAX_PAYLOAD_BYTES - 2_000))
    message = AgentMessage.new("task", identity, {"number": 0}, conversation_id="large")
    await peer.queue.put(peer.subjects.task("clerk.note"), message.encode(), msg_id=message.id)
    await _send(peer, "large", 1)

    await ledger.until_ended(2)

    assert ledger.ended() == {"large": [0, 1]}
    await _empty(peer)


async def test_a_message_that_leaves_room_for_some_headers_keeps_those(
    peer: Peer, serve: Serve, for_long: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, in_line, store = Ledger(), list[dict[str, str]](), type(peer.queue.store)
    put, put_alone = store.put, store.put_alone

    async def noting(self: Any, subject: str, data: bytes, **how: Any) -> None:
        if ".ordered." in subject:
            in_line.append(how["headers"])
        await put(self, subject, data, **how)

    async def short_of_room(self: Any, subject: str, data: bytes, **how: Any) -> int:
        if data:
            raise MessageTooLargeError("no room for what is added here")
        return await put_alone(self, subject, data, **how)

    monkeypatch.setattr(store, "put", noting)
    monkeypatch.setattr(store, "put_alone", short_of_room)
    await serve(ledger)
    for number in range(2):
        await _send(peer, "large", number)
    await ledger.until_ended(2)
    await _empty(peer)

    assert ledger.ended() == {"large": [0, 1]}
    assert len(in_line) == 2
    assert all("Squadron-Fresh" in headers for headers in in_line)


@ON_NATS
@BY_HAND
async def test_a_message_that_leaves_no_room_for_a_header_holds_up_nothing(peer: Peer, serve: Serve) -> None:
    ledger = Ledger()
    await serve(ledger)
    empty = AgentMessage.new("task", AgentIdentity(id=""), {"number": 0}, conversation_id="large").encode()
    room = MAX_PAYLOAD_BYTES - len(empty)
    await peer.bus.publish(
        peer.subjects.task("clerk.note"), empty.replace(b'"id":""', b'"id":"%s"' % (b"x" * room))
    )
    await _send(peer, "large", 1)

    await ledger.until_ended(2)

    assert ledger.ended() == {"large": [0, 1]}
    await _empty(peer)


@ON_NATS
@BY_HAND
@pytest.mark.parametrize("specificity", ["x" * 950, "*", "a>"], ids=["long", "star", "no token"])
async def test_a_topic_that_is_none_holds_up_nothing_and_is_buried(
    peer: Peer, serve: Serve, specificity: str
) -> None:
    ledger, task = Ledger(), b'{"id": "a", "context": {"conversationId": "%s"}}' % (b"c" * 64)
    await serve(ledger, box=replace(ORDERED, patterns=("clerk.*",)))
    await peer.bus.publish(peer.subjects.task("clerk.note").replace("note", specificity), task)
    await _send(peer, "a", 0)

    await ledger.until_ended(1)

    async def is_buried() -> bool:
        letters = await peer.place.dead_letters.list(agent="clerk")
        return [letter.message for letter in letters] == [task]

    await until(is_buried)
    await _empty(peer)


async def test_what_a_server_takes_no_more_holds_up_nothing_and_is_there_when_it_does(
    peer: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, inbox, put = Ledger(), Inbox(), type(peer.queue.store).put

    async def takes_less(self: Any, subject: str, data: bytes, **how: Any) -> None:
        if ".ordered." in subject and b"large" in data:
            raise MessageTooLargeError("its max_payload was lowered")
        await put(self, subject, data, **how)

    monkeypatch.setattr(type(peer.queue.store), "put", takes_less)
    await peer.queue.declare(ORDERED)
    feed = await peer.queue.consume(ORDERED, inbox)
    feed.want(8)
    for number in range(2):
        await _send(peer, "large", number)
        await _send(peer, "b", number)
    for _ in range(2):
        delivery = await inbox.next()
        assert b"large" not in delivery.data
        await delivery.lease.settle()
    await feed.aclose()

    monkeypatch.undo()
    # Whoever reads next.
    await serve(ledger)
    await ledger.until_ended(2)
    assert ledger.ended() == {"large": [0, 1]}


async def test_the_backlog_counts_those_in_line_and_those_not_yet(peer: Peer, serve: Serve) -> None:
    await peer.queue.declare(ORDERED)
    for number in range(3):
        await _send(peer, "a", number, priority=number)
    assert await peer.queue.backlog("clerk") == Backlog(3, 0)
    ledger = Ledger()
    clerk = await serve(ledger)
    clerk.gates["b"] = asyncio.Event()
    for number in range(3):
        await _send(peer, "b", number)

    async def one_runs() -> bool:
        return await peer.queue.backlog("clerk") == Backlog(2, 1)

    await until(one_runs)
    clerk.gates["b"].set()
    await _empty(peer)


async def test_an_agent_that_comes_back_goes_on_in_line(world: World, serve: Serve) -> None:
    peer = await world.join("publisher")
    await _stand_in_line(peer, world, 4)
    await peer.queue.remove("clerk")
    for number in (4, 5):
        await _send(peer, "a", number)

    ledger = Ledger()
    await serve(ledger)
    await ledger.until_ended(6)

    assert ledger.ended() == {"a": [0, 1, 2, 3, 4, 5]}
    await _empty(peer)


async def _stand_in_line(peer: Peer, world: World, count: int) -> None:
    """Some tasks of one conversation, taken in by a replica that ran none of them and is gone."""
    reader = await world.join("gone")
    await reader.queue.declare(ORDERED)
    feed = await reader.queue.consume(ORDERED, Inbox())
    for number in range(count):
        await _send(peer, "a", number)
    store = peer.queue.store

    async def all_in_line() -> bool:
        in_line = await store.count(peer.subjects.line("clerk", "a"))
        return in_line == count and await store.backlog("clerk") == Backlog(0, 0)

    await until(all_in_line)
    await feed.aclose()


async def test_order_may_be_switched_on_with_tasks_waiting_in_all_lanes(peer: Peer, serve: Serve) -> None:
    await peer.queue.declare(PLAIN)
    inbox = Inbox()
    feed = await peer.queue.consume(PLAIN, inbox)
    feed.want(3)
    for priority in (9, 5, 1):
        # Makes a consumer for each lane.
        await _send(peer, "warm", 0, priority=priority)
        await (await inbox.next()).lease.settle()
    await feed.aclose()
    for number in range(6):
        await _send(peer, "a", number, priority=(9, 5, 1)[number % 3])

    ledger = Ledger()
    await serve(ledger)
    await ledger.until_ended(6)

    assert ledger.ended() == {"a": [0, 1, 2, 3, 4, 5]}
    ledger.check_no_two_at_once()
    await _empty(peer)


@pytest.mark.parametrize("removed_between", [False, True])
async def test_order_may_be_switched_off_and_who_stands_in_line_is_served(
    world: World, serve: Serve, removed_between: bool
) -> None:
    peer = await world.join("publisher")
    await _stand_in_line(peer, world, 4)
    if removed_between:
        await peer.queue.remove("clerk")
    ledger = Ledger()
    clerk = await serve(ledger, box=PLAIN)
    clerk.gates["b"] = asyncio.Event()
    await ledger.until_ended(4)
    for number in range(3):
        await _send(peer, "b", number, priority=number + 4)

    async def all_at_once() -> bool:
        return ledger.most_at_once == 3

    await until(all_at_once)
    clerk.gates["b"].set()
    await ledger.until_ended(7)
    assert ledger.ended()["a"] == [0, 1, 2, 3]
    await _empty(peer)


async def test_what_an_old_replica_puts_in_line_after_the_switch_is_served(world: World, serve: Serve) -> None:
    peer, old = await world.join("publisher"), await world.join("old")
    await old.queue.declare(ORDERED)
    feed = await old.queue.consume(ORDERED, Inbox())
    ledger = Ledger()
    await serve(ledger, box=PLAIN, slots=1)

    for number in range(20):
        await _send(peer, f"c-{number}", number)
    await ledger.until_ended(20)

    await feed.aclose()
    await _empty(peer)


async def test_who_could_not_turn_from_the_line_to_the_rest_and_finds_it_filled_again_serves_it(
    world: World, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await world.join("publisher")
    await _stand_in_line(peer, world, 1)
    consume, failed = type(peer.queue.store).consume, asyncio.Event()

    async def fails_once(store: Any, mailbox: Mailbox, sink: Any) -> Feed:
        if mailbox.name == "clerk" and not failed.is_set():
            # A replica of the old code puts another there.
            lines = peer.queue._lines(ORDERED)
            place = str(OrderedSubject(peer.subjects.environment, "clerk", "a", "clerk.note"))
            message = AgentMessage.new("task", peer.ports.identity, {"number": 1}, conversation_id="a")
            await lines.store.put(place, message.encode(), msg_id=message.id)
            await lines.call("a")
            failed.set()
            raise BusUnavailableError("away for a moment")
        return await consume(store, mailbox, sink)

    monkeypatch.setattr(type(peer.queue.store), "consume", fails_once)
    ledger = Ledger()
    await serve(ledger, box=PLAIN)
    await failed.wait()
    await ledger.until_ended(2)
    assert ledger.ended() == {"a": [0, 1]}
    await _empty(peer)
