"""Dead letters over both worlds: what was given up is kept whole, goes back once, and never blocks a mailbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from squadron import Agent, Context, topic
from squadron.runtime.errors import (
    BusUnavailableError,
    CutLetterError,
    InvalidSubjectError,
    UnknownLetterError,
)
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.queue import Backlog, Delivery, Mailbox
from squadron.runtime.store.dead_letters import DeadLetter, DeadLetters
from squadron.runtime.store.put_back import as_put_back
from squadron.runtime.trust.carried import CARRIED_HEADER
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Constraints, Payload
from squadron.runtime.wire.outcome import DeadLettered
from tests.contract.conftest import SOON_S, Inbox, Peer, World, until
from tests.contract.test_turns import Replica

REPLICA = AgentIdentity(id="desk-1", type="desk")
BOX = Mailbox("desk", ("desk.*",), 5.0)
SENT_AT, NOW = 1_000_000.0, 1_000_060.5
#: As text or in base64 it does not fit into a letter.
TOO_LARGE = b"\xff" * 7_000_000


class HandClock:
    def time(self) -> float:
        return NOW


@pytest.fixture
def letters(peer: Peer) -> DeadLetters:
    return DeadLetters(replace(peer.ports, clock=HandClock()))


class Gravedigger:
    """Buries messages as a replica does, each from a place of its own in the queue."""

    def __init__(self, peer: Peer, letters: DeadLetters) -> None:
        self._peer, self._letters, self._seq = peer, letters, 0

    def delivery(self, data: bytes, topic: str = "desk.double") -> Delivery:
        self._seq += 1
        return Delivery(self._peer.subjects.task(topic), data, None, self._seq)  # type: ignore[arg-type]

    async def task(self, id: str, topic: str = "desk.double", agent: str = "desk", **fields: Any) -> AgentMessage:
        message = AgentMessage.new("task", AgentIdentity(id="me"), {"number": 1}, id=id, **fields)
        message = message.model_copy(update={"timestamp": SENT_AT})
        await self.given_up(self.delivery(message.encode(), topic), id, agent)
        return message

    async def given_up(self, delivery: Delivery, id: str, agent: str = "desk") -> None:
        details = {"attempts": 3, "last_error": "ValueError: no", "traceback_digest": "90f1c2"}
        outcome = DeadLettered(task_id=id, reason="failed in each of 3 attempts", details=details)
        await self._letters.bury(agent, delivery, outcome, source=REPLICA)

    async def poison(self, data: bytes, topic: str = "desk.double") -> DeadLetter:
        delivery = self.delivery(data, topic)
        await self._letters.bury_poison("desk", delivery, ValueError("unreadable"), source=REPLICA)
        return (await self._letters.list(most=1))[0]


@pytest.fixture
def dig(peer: Peer, letters: DeadLetters) -> Gravedigger:
    return Gravedigger(peer, letters)


@pytest.fixture
async def mailbox(peer: Peer) -> AsyncIterator[Inbox]:
    """What comes back into the mailbox."""
    await peer.queue.declare(BOX)
    inbox = Inbox()
    feed = await peer.queue.consume(BOX, inbox)
    feed.want(100)
    yield inbox
    await feed.aclose()


async def _ids(letters: DeadLetters, **narrowed: Any) -> list[str]:
    return [letter.id for letter in await letters.list(**narrowed)]


# --- what a letter holds -----------------------------------------------------------------------------


async def test_a_letter_says_who_why_how_often_and_holds_the_message(
    dig: Gravedigger, letters: DeadLetters
) -> None:
    message = await dig.task("task-1")

    (letter,) = await letters.list()

    assert (letter.id, letter.agent, letter.topic) == ("task-1", "desk", "desk.double")
    assert (letter.attempts, letter.last_error, letter.traceback_digest) == (3, "ValueError: no", "90f1c2")
    assert letter.reason == "failed in each of 3 attempts"
    assert letter.buried_at > 0
    assert (letter.message, letter.complete) == (message.encode(), True)
    assert await letters.show("task-1") == letter


@pytest.mark.parametrize(
    "poison",
    [b"", b"\xff\xfe\x00 not text", b"\xef\xbb\xbf{}", "\0\r\n\u2028 ☃".encode(), bytes(range(256)), b"[]"],
)
async def test_poison_is_kept_byte_for_byte(dig: Gravedigger, letters: DeadLetters, poison: bytes) -> None:
    buried = await dig.poison(poison)

    letter = await letters.show(buried.id)

    assert (letter.message, letter.complete, letter.attempts, letter.reason) == (poison, True, 0, "unreadable")
    shown = json.loads(json.dumps(letter.to_dict()))
    assert ("message" in shown) != ("message_base64" in shown)


async def test_what_is_too_large_for_a_letter_is_cut_and_says_so(dig: Gravedigger, letters: DeadLetters) -> None:
    letter = await dig.poison(TOO_LARGE)

    assert not letter.complete
    assert TOO_LARGE.startswith(letter.message)
    assert len(letter.message) == 100_000
    with pytest.raises(CutLetterError, match="100000 bytes") as caught:
        await letters.redrive(letter.id)
    assert caught.value.hint
    assert await _ids(letters) == [letter.id]


async def test_a_delivery_that_is_buried_twice_is_one_letter(
    peer: Peer, dig: Gravedigger, letters: DeadLetters
) -> None:
    delivery = dig.delivery(b"{}")

    for _ in range(2):
        await dig.given_up(delivery, "task-1")

    assert len([entry async for entry in peer.dead.read(peer.subjects.dead_of())]) == 1


async def test_what_is_no_letter_is_shown_and_can_be_dropped_only(peer: Peer, letters: DeadLetters) -> None:
    odd = AgentMessage.new("event", REPLICA, {"taskId": "a", "subject": 7, "success": False})
    for id, data in (("junk", b"\xff"), ("odd", odd.encode())):
        await peer.dead.append(peer.subjects.dead("desk", id), data)

    assert await _ids(letters) == ["odd", "junk"]
    assert (await letters.show("junk")).message == b"\xff"
    assert "no dead letter" in (await letters.show("odd")).reason
    moved = await letters.redrive(all=True)
    assert moved.ids == ()
    assert sorted(moved.left) == ["junk", "odd"]
    assert await letters.drop(all=True) == 2
    assert await letters.list() == ()


# --- finding it --------------------------------------------------------------------------------------


async def test_the_list_is_newest_first_and_can_be_narrowed(dig: Gravedigger, letters: DeadLetters) -> None:
    for id, name, agent in (("a", "desk.one", "desk"), ("b", "desk.two", "desk"), ("c", "shop.one", "shop")):
        await dig.task(id, name, agent)

    assert await _ids(letters) == ["c", "b", "a"]
    assert await _ids(letters, most=2) == ["c", "b"]
    assert await _ids(letters, topic="desk.two") == ["b"]
    assert await _ids(letters, topic="*.one") == ["c", "a"]
    assert await _ids(letters, agent="desk") == ["b", "a"]
    assert await _ids(letters, agent="nobody") == []
    with pytest.raises(InvalidSubjectError, match=r"domain\.specificity"):
        await letters.list(topic="desk")
    with pytest.raises(InvalidSubjectError, match="mailbox"):
        await letters.list(agent=">")


async def test_a_task_that_is_buried_again_moves_to_the_front(dig: Gravedigger, letters: DeadLetters) -> None:
    for id in ("a", "b", "a"):
        await dig.task(id)

    assert await _ids(letters, most=1) == ["a"]
    assert await _ids(letters) == ["a", "b"]


async def test_an_id_may_be_shortened_while_it_is_clear_which(dig: Gravedigger, letters: DeadLetters) -> None:
    for id in ("3f2a", "3f2a11", "3f99", "an odd id: ÄÖ."):
        await dig.task(id)

    assert (await letters.show("3f9")).id == "3f99"
    assert (await letters.show("3f2a")).id == "3f2a"  # a whole id is no prefix
    assert (await letters.show("an odd id: ÄÖ.")).id == "an odd id: ÄÖ."
    assert (await letters.show("an odd")).id == "an odd id: ÄÖ."
    with pytest.raises(UnknownLetterError, match="any of 3 dead letters") as caught:
        await letters.show("3f")
    assert "3f2a11 of desk" in caught.value.hint
    for unknown in ("4", "3f2a112", ""):
        with pytest.raises(UnknownLetterError):
            await letters.show(unknown)


async def test_the_same_id_in_two_mailboxes_is_told_apart_by_the_agent(
    dig: Gravedigger, letters: DeadLetters
) -> None:
    for agent in ("desk", "shop"):
        await dig.task("a", agent=agent)

    with pytest.raises(UnknownLetterError, match="any of 2"):
        await letters.drop("a")
    assert await letters.drop("a", agent="shop") == 1
    assert (await letters.show("a")).agent == "desk"


# --- putting it back ---------------------------------------------------------------------------------


async def test_a_redriven_task_keeps_its_id_and_gets_its_time_again(
    dig: Gravedigger, letters: DeadLetters, mailbox: Inbox
) -> None:
    limits = Constraints(deadline=1_000_020_000, tokens=5, **{"foreign": 1})  # type: ignore[arg-type]
    await dig.task("task-1", payload=Payload(content={"number": 1.5}, constraints=limits))
    before = json.loads((await letters.show("task-1")).message)

    moved = await letters.redrive("task-1")

    assert (moved.ids, moved.left) == (("task-1",), {})
    delivery = await mailbox.next()
    after = json.loads(delivery.data)
    assert delivery.subject.endswith(".task.desk.double")
    assert await delivery.lease.begin() == 1
    assert after["timestamp"] == NOW
    assert after["payload"]["constraints"]["deadline"] == 1_000_080_500
    assert after["metadata"] == {"redriven": 1}
    after["metadata"], after["timestamp"] = None, SENT_AT
    after["payload"]["constraints"]["deadline"] = 1_000_020_000
    assert after == before | {"metadata": None}
    assert await letters.list() == ()
    await delivery.lease.settle()


async def test_what_fails_again_can_be_redriven_again(
    dig: Gravedigger, letters: DeadLetters, mailbox: Inbox
) -> None:
    await dig.task("task-1")
    for count in (1, 2, 3):
        await letters.redrive("task-1")
        delivery = await mailbox.next()
        assert AgentMessage.decode(delivery.data).metadata == {"redriven": count}
        await delivery.lease.settle(confirmed=True)
        await dig.given_up(
            Delivery(delivery.subject, delivery.data, delivery.lease, 1000 + delivery.seq), "task-1"
        )


@pytest.mark.parametrize("poison", [b"\xff\xfe", b'{"id": "t", "version": "2.0"}'])
async def test_poison_goes_back_as_it_came_as_often_as_one_likes(
    dig: Gravedigger, letters: DeadLetters, mailbox: Inbox, poison: bytes
) -> None:
    letter = await dig.poison(poison)
    for _ in range(2):
        await letters.redrive(letter.id)
        delivery = await mailbox.next()
        assert delivery.data == poison
        await delivery.lease.settle(confirmed=True)
        assert (await dig.poison(poison)).id == letter.id


async def test_poison_goes_by_its_own_id_and_by_its_token_where_that_is_not_clear(
    dig: Gravedigger, letters: DeadLetters
) -> None:
    first = await dig.poison(b'{"id": "t-9", "version": "2.0"}')
    second = await dig.poison(b'{"id": "t-9"}')
    await dig.poison(b'{"id": "t-99"}')
    assert await _ids(letters) == ["t-99", "t-9", "t-9"]
    with pytest.raises(UnknownLetterError, match="any of 2") as caught:
        await letters.redrive("t-9")
    assert first.token in caught.value.hint

    await letters.drop(first.token)

    assert await letters.show("t-9") == second
    await dig.task("t-9")
    assert (await letters.show("t-9")).attempts == 3  # the task itself comes first


@pytest.mark.parametrize(
    "poison",
    [
        b'{"id": "\\ud800", "replyTo": "\\ud800"}',
        b'{"id": 7, "replyTo": 7}',
        b'{"id": "", "replyTo": ""}',
        b'{"id": ["a"]}',
        b'"id"',
        b'{"id": "' + b"x" * 300 + b'"}',
        b"[" * 100_000,
    ],
)
async def test_poison_without_an_id_to_speak_of_goes_by_a_digest(
    peer: Peer, letters: DeadLetters, till: Till, poison: bytes
) -> None:
    await peer.queue.put(peer.subjects.task("till.pay"), poison, msg_id="p")

    (letter,) = await _buried(letters, 1)

    assert letter.id == letter.token
    assert letter.message == poison

    async def settled() -> bool:
        return await peer.queue.backlog("till") == Backlog(0, 0)

    await until(settled)


async def test_a_timestamp_beyond_all_numbers_goes_back_as_it_is(
    dig: Gravedigger, letters: DeadLetters, mailbox: Inbox
) -> None:
    message = await dig.task("t", payload=Payload(constraints=Constraints(deadline=5)))
    odd = message.encode().replace(b'"timestamp":1000000.0', b'"timestamp":-1e999')
    await dig.given_up(dig.delivery(odd), "t")

    await letters.redrive("t")

    delivery = await mailbox.next()
    assert delivery.data == odd
    await delivery.lease.settle()


async def test_all_that_fit_go_back_in_the_order_they_were_buried(
    dig: Gravedigger, letters: DeadLetters, mailbox: Inbox
) -> None:
    for number in range(20):
        await dig.task(f"t{number}", "desk.even" if number % 2 == 0 else "desk.odd")
    cut = await dig.poison(TOO_LARGE, "desk.even")
    told: list[tuple[int, int]] = []

    moved = await letters.redrive(all=True, topic="desk.even", on_progress=lambda *at: told.append(at))

    assert moved.ids == tuple(f"t{number}" for number in range(0, 20, 2))
    assert list(moved.left) == [cut.id]
    assert told == [(number, 11) for number in range(1, 12)]
    deliveries = await mailbox.take(10)
    assert [AgentMessage.decode(each.data).id for each in deliveries] == list(moved.ids)
    assert len(await letters.list()) == 11
    for each in deliveries:
        await each.lease.settle()


async def test_one_id_that_a_stranger_sent_to_two_topics_goes_back_to_both(
    dig: Gravedigger, letters: DeadLetters, mailbox: Inbox
) -> None:
    for agent, name in (("desk", "desk.one"), ("shop", "desk.two")):
        await dig.task("order-17", name, agent)

    await letters.redrive(all=True)

    deliveries = await mailbox.take(2)
    assert [each.subject.rpartition(".")[2] for each in deliveries] == ["one", "two"]
    for each in deliveries:
        await each.lease.settle()


async def test_nothing_moves_if_one_of_the_ids_is_wrong(
    dig: Gravedigger, peer: Peer, letters: DeadLetters
) -> None:
    await peer.queue.declare(BOX)
    await dig.task("good")
    cut = await dig.poison(TOO_LARGE)

    with pytest.raises(UnknownLetterError):
        await letters.redrive("good", "wrong")
    with pytest.raises(CutLetterError):
        await letters.redrive("good", cut.id)
    with pytest.raises(UnknownLetterError):
        await letters.drop("good", "wrong")
    assert (await letters.redrive()).ids == ()
    assert await letters.drop() == 0

    assert await _ids(letters) == [cut.id, "good"]
    assert await peer.queue.backlog("desk") == Backlog(0, 0)


@pytest.mark.parametrize("subject", ["agents.elsewhere.task.desk.double", "$JS.API.STREAM.DELETE.x", "", "a b"])
async def test_a_letter_leads_nowhere_but_into_its_own_environment(
    letters: DeadLetters, peer: Peer, subject: str
) -> None:
    outcome = DeadLettered(task_id="t", reason="no")
    await letters.bury("desk", Delivery(subject, b"{}", None, 1), outcome, source=REPLICA)  # type: ignore[arg-type]

    with pytest.raises(InvalidSubjectError):
        await letters.redrive("t")
    assert list((await letters.redrive(all=True)).left) == ["t"]
    assert await _ids(letters) == ["t"]


# --- dying in the middle -----------------------------------------------------------------------------


class Interrupted:
    """A journal of dead letters where something happens just before a letter is erased."""

    def __init__(self, journal: Journal, happens: Callable[[], Awaitable[None]]) -> None:
        self._journal, self._happens = journal, happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def erase(self, key: str, **options: Any) -> None:
        await self._happens()
        await self._journal.erase(key, **options)


async def test_a_redrive_that_dies_before_it_erases_neither_loses_nor_doubles(
    dig: Gravedigger, peer: Peer, letters: DeadLetters, mailbox: Inbox
) -> None:
    async def die() -> None:
        raise BusUnavailableError("pulled the plug")

    await dig.task("task-1")
    poison = await dig.poison(b"\xff")
    dying: Any = Interrupted(peer.dead, die)
    for id in ("task-1", poison.id):
        with pytest.raises(BusUnavailableError):
            await DeadLetters(replace(peer.ports, dead=dying)).redrive(id)
    assert await _ids(letters) == [poison.id, "task-1"]

    moved = await letters.redrive(all=True)

    assert moved.ids == ("task-1", poison.id)
    first, second = await mailbox.take(2)
    assert AgentMessage.decode(first.data).id == "task-1"
    assert second.data == b"\xff"
    assert await peer.queue.backlog("desk") == Backlog(0, 2)
    assert await letters.list() == ()
    await first.lease.settle()
    await second.lease.settle()


async def test_what_is_given_up_again_before_its_old_letter_is_erased_stays(
    dig: Gravedigger, peer: Peer, letters: DeadLetters, mailbox: Inbox
) -> None:
    async def fail_again() -> None:
        delivery = await mailbox.next()
        await dig.given_up(
            Delivery(delivery.subject, delivery.data, delivery.lease, delivery.seq + 1000), "task-1"
        )
        await delivery.lease.settle()

    await dig.task("task-1")
    quick: Any = Interrupted(peer.dead, fail_again)

    await DeadLetters(replace(peer.ports, dead=quick)).redrive("task-1")

    letter = await letters.show("task-1")
    assert AgentMessage.decode(letter.message).metadata == {"redriven": 1}


# --- with a real agent -------------------------------------------------------------------------------


class Till(Agent):
    """Has no change, until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.attempts: list[int] = []

    @topic("till.pay", max_attempts=1)
    async def pay(self, amount: int, context: Context) -> int:
        self.attempts.append(context.attempt)
        if not self.mended:
            raise ValueError("no change")
        return amount


@pytest.fixture
async def till(world: World) -> AsyncIterator[Till]:
    agent = Till()
    replica = Replica(await world.join("till-1"), agent)
    await replica.start()
    yield agent
    await replica.pump.aclose()


async def _buried(letters: DeadLetters, count: int) -> tuple[DeadLetter, ...]:
    async def so_many() -> bool:
        return len(await letters.list()) == count

    await until(so_many)
    return await letters.list()


async def test_a_redriven_task_is_served_as_attempt_1_and_its_outcome_is_heard(
    world: World, peer: Peer, letters: DeadLetters, till: Till
) -> None:
    reply_to, heard = peer.subjects.lite(peer.ports.identity.id, "t"), Inbox()
    listening = await peer.bus.subscribe(reply_to, lambda note: heard(AgentMessage.decode(note.data)))
    sent = AgentMessage.new("task", peer.ports.identity, {"amount": 5}, id="task-1", reply_to=reply_to)
    await peer.queue.put(peer.subjects.task("till.pay"), sent.encode(), msg_id="task-1")
    assert (await heard.next()).payload.content["outcome"] == "dead_lettered"
    (letter,) = await _buried(letters, 1)
    assert (letter.id, letter.agent, letter.attempts) == ("task-1", "till", 1)
    assert letter.last_error == "ValueError: no change"
    assert len(letter.traceback_digest) == 16
    assert letter.message == sent.encode()

    till.mended = True
    await DeadLetters((await world.join("operator")).ports).redrive("task-1")

    content = (await heard.next()).payload.content
    assert (content["outcome"], content["data"], content["attempt"]) == ("result", 5, 1)
    assert till.attempts == [1, 1]

    # A bare listener hears what is on its way to the store.
    async def is_stored() -> bool:
        stored = await peer.lite.last(reply_to)
        return stored is not None and AgentMessage.decode(stored.data).payload.content == content

    await until(is_stored)
    assert await letters.list() == ()
    await listening.aclose()


async def test_poison_of_each_kind_is_buried_and_the_mailbox_moves_on(
    peer: Peer, letters: DeadLetters, till: Till
) -> None:
    whole = json.loads(AgentMessage.new("task", AgentIdentity(id="me"), {"amount": 5}).encode())
    newer, unfit = json.dumps(whole | {"version": "2.0"}), json.dumps(whole | {"routing": {"priority": 10}})
    sent = [b"\xff\xfe", b"{", newer.encode(), unfit.encode()]
    for number, poison in enumerate(sent):
        await peer.queue.put(peer.subjects.task("till.pay"), poison, msg_id=f"poison{number}")

    buried = await _buried(letters, 4)

    till.mended = True
    assert (await asyncio.wait_for(peer.caller.ask("till.pay", {"amount": 7}), SOON_S)).unwrap() == 7
    assert {letter.message for letter in buried} == set(sent)
    reasons = {letter.message: letter.reason for letter in buried}
    assert "'version'" in reasons[newer.encode()]
    assert "'routing.priority'" in reasons[unfit.encode()]
    assert {letter.agent for letter in buried} == {"till"}
    assert till.attempts == [1]

    # What nobody can read still comes back as the same letter.
    moved = await letters.redrive(all=True)
    assert len(moved.ids) == 4
    again = await _buried(letters, 4)
    assert {letter.id for letter in again} == {letter.id for letter in buried}
    assert {letter.seq for letter in again}.isdisjoint({letter.seq for letter in buried})


async def test_input_that_does_not_fit_its_topic_is_kept_and_may_fit_later(
    world: World, peer: Peer, letters: DeadLetters, till: Till
) -> None:
    sent = AgentMessage.new("task", peer.ports.identity, {"amount": "five"}, id="task-1")
    await peer.queue.put(peer.subjects.task("till.pay"), sent.encode(), msg_id="task-1")

    (letter,) = await _buried(letters, 1)

    assert (letter.id, letter.topic, letter.message) == ("task-1", "till.pay", sent.encode())
    assert "amount" in letter.reason
    assert till.attempts == []
    await DeadLetters((await world.join("operator")).ports).redrive("task-1")
    (again,) = await _buried(letters, 1)
    # What is signed stays as it is, and says beside it how often it was put back.
    again_as_put = as_put_back(AgentMessage.decode(again.message), {CARRIED_HEADER: again.carried})
    assert (again.id, again_as_put.redriven) == ("task-1", 1)


# --- dropping it -------------------------------------------------------------------------------------


async def test_dropping_takes_what_was_named_and_nothing_else(dig: Gravedigger, letters: DeadLetters) -> None:
    for id, name in (("a1", "desk.one"), ("a2", "desk.one"), ("b1", "desk.two"), ("c1", "desk.two")):
        await dig.task(id, name)
    told: list[tuple[int, int]] = []

    assert await letters.drop("c", "a1", on_progress=lambda *at: told.append(at)) == 2
    assert told == [(1, 2), (2, 2)]
    assert await _ids(letters) == ["b1", "a2"]
    assert await letters.drop(all=True, topic="desk.two") == 1
    assert await _ids(letters) == ["a2"]
    assert await letters.drop(all=True, agent="desk") == 1
    assert await letters.drop(all=True) == 0
