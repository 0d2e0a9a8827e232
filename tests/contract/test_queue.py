"""What every `Queue` keeps: leased work, at least once, no more than was wanted."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.bridge.jetstream.pull_feed import PullFeed
from squadron.bridge.memory import MAX_PAYLOAD_BYTES
from squadron.runtime.errors import InvalidSubjectError, MessageTooLargeError, RouteConflictError
from squadron.runtime.ports.queue import SERIAL_AT_ONCE, Backlog, Delivery, Feed, Mailbox
from squadron.testing import now_s
from tests.contract.conftest import ON_NATS, Inbox, Peer, World, settle_all, until

#: Where none is to lapse, however long nobody here gets a turn.
LEASE_S = 30.0
#: Where one is to lapse, and it is no matter when.
LAPSING_S = 1.0
#: Where it is seen that one does not, or what comes when it does: soon, and what is done meanwhile may be late.
SHORT_S = 4.0
BOX = Mailbox("reader", ("book.read",), lease_s=LEASE_S)
FAMILY = Mailbox("reader", ("book.*",), lease_s=LEASE_S)


async def _put(peer: Peer, text: str, *, topic: str = "book.read", priority: int = 5, msg_id: str = "") -> None:
    subject = peer.subjects.task(topic, priority)
    headers = {"trace": f"of {text}"}
    await peer.queue.put(subject, text.encode(), msg_id=msg_id or uuid.uuid4().hex, headers=headers)


async def _feed(peer: Peer, box: Mailbox = BOX, want: int = 0) -> tuple[Feed, Inbox]:
    await peer.queue.declare(box)
    inbox = Inbox()
    feed = await peer.queue.consume(box, inbox)
    feed.want(want)
    return feed, inbox


async def _holds(peer: Peer, waiting: int, taken: int, name: str = BOX.name) -> None:
    async def as_said() -> bool:
        return await peer.queue.backlog(name) == Backlog(waiting, taken)

    await until(as_said)


async def test_what_was_put_before_anybody_listened_is_delivered_with_its_subject(peer: Peer) -> None:
    await _put(peer, "early")
    feed, inbox = await _feed(peer, want=1)

    delivery: Delivery = await inbox.next()

    assert delivery.data == b"early"
    assert delivery.subject == peer.subjects.task("book.read")
    assert delivery.lease.delivered == 1
    assert delivery.headers["trace"] == "of early"
    await delivery.lease.settle()
    await feed.aclose()


async def test_a_mailbox_of_no_topics_holds_nothing_and_bars_nobody(peer: Peer) -> None:
    await peer.queue.declare(Mailbox("listener", ()))
    feed, inbox = await _feed(peer, want=1)
    await _put(peer, "task")

    assert (await inbox.next()).data == b"task"
    assert await peer.queue.backlog("listener") == Backlog()
    await feed.aclose()
    # One that had topics gives them up.
    await peer.queue.declare(Mailbox(BOX.name, ()))
    await peer.queue.declare(Mailbox("other", BOX.patterns))


async def test_what_is_put_while_somebody_waits_is_delivered_at_once_and_in_order(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=20)
    for i in range(20):
        await _put(peer, str(i))

    assert [d.data for d in await inbox.take(20)] == [str(i).encode() for i in range(20)]
    await feed.aclose()


async def test_never_more_is_delivered_than_was_wanted(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=2)
    for i in range(5):
        await _put(peer, str(i))

    taken = await inbox.take(2)
    await _holds(peer, 3, 2)
    assert inbox.is_empty
    feed.want(1)
    assert (await inbox.next()).data == b"2"
    await _holds(peer, 2, 3)
    assert inbox.is_empty
    assert [d.data for d in taken] == [b"0", b"1"]
    await feed.aclose()


async def test_wants_add_up_over_lanes_and_never_beyond(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    for priority in (1, 5, 9):
        for _ in range(4):
            await _put(peer, f"p{priority}", priority=priority)
    feed, inbox = await _feed(peer, want=3)
    arrived = await inbox.take(3)

    for expected in range(9, 0, -1):
        # Everything that came is settled and replaced by one more wish: at most three are ever with us.
        await arrived.pop(0).lease.settle()
        assert inbox.is_empty
        feed.want(1)
        arrived.append(await inbox.next())
        assert len(arrived) == 3, expected
    await settle_all(arrived)
    await _holds(peer, 0, 0)
    assert inbox.is_empty
    await feed.aclose()


async def test_released_at_once_it_comes_again_as_attempt_two(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=5)
    await _put(peer, "again")
    await (await inbox.next()).lease.release()

    second = await inbox.next()

    assert (second.data, second.lease.delivered) == (b"again", 2)
    await second.lease.settle()
    await feed.aclose()


async def test_two_who_begin_at_once_are_two_beginnings(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=5)
    await _put(peer, "again")
    for _ in range(2):
        await (await inbox.next()).lease.release()
    lease = (await inbox.next()).lease

    both = await asyncio.gather(*(peer.queue.take_over(lease.token).begin() for _ in range(2)))

    assert sorted(both) == [1, 2]
    await feed.aclose()


async def test_released_with_a_delay_it_comes_again_after_it_and_not_before(peer: Peer) -> None:
    feed, inbox = await _feed(peer, replace(BOX, lease_s=1.0), want=5)
    await _put(peer, "later")
    first = await inbox.next()
    started = now_s()
    await first.lease.release(1.5)
    # Whoever extends what it held holds it no more: that would have it come with its lease.
    await first.lease.extend()

    second = await inbox.next()

    assert now_s() - started >= 1.45
    assert second.lease.delivered == 2
    await feed.aclose()


async def test_a_lease_that_nobody_extends_ends_and_another_reader_gets_the_message(world: World) -> None:
    peer, other = await world.join("one"), await world.join("other")
    box = replace(BOX, lease_s=LAPSING_S)
    feed, inbox = await _feed(peer, box, want=1)
    await _put(peer, "orphan")
    await inbox.next()
    _, others = await _feed(other, box, want=1)

    second = await others.next()

    assert (second.data, second.lease.delivered) == (b"orphan", 2)
    await feed.aclose()


async def test_a_settled_message_is_gone_for_good_and_an_extended_lease_holds(peer: Peer) -> None:
    feed, inbox = await _feed(peer, replace(BOX, lease_s=SHORT_S), want=5)
    await _put(peer, "once")
    await _put(peer, "long")
    once, extended = await inbox.take(2)
    await once.lease.settle()
    await _holds(peer, 0, 1)

    for _ in range(10):
        await asyncio.sleep(SHORT_S / 8)
        await extended.lease.extend()

    assert inbox.is_empty
    await extended.lease.settle()
    await _holds(peer, 0, 0)
    await feed.aclose()


async def test_the_backlog_counts_what_waits_and_what_is_taken_in_all_lanes(peer: Peer) -> None:
    assert await peer.queue.backlog("nobody") == Backlog(0, 0)
    feed, inbox = await _feed(peer)
    for priority in (5, 5, 9, 0):
        await _put(peer, "x", priority=priority)
    await _holds(peer, 4, 0)

    feed.want(4)
    arrived = await inbox.take(4)

    await _holds(peer, 0, 4)
    await settle_all(arrived)
    await _holds(peer, 0, 0)
    await feed.aclose()


async def test_the_same_message_id_is_stored_once(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    for text in ("first", "again"):
        await _put(peer, text, msg_id="same")
    await _put(peer, "other", msg_id="different")
    await _holds(peer, 2, 0)

    feed, inbox = await _feed(peer, want=5)

    assert [d.data for d in await inbox.take(2)] == [b"first", b"other"]
    await _holds(peer, 0, 2)
    assert inbox.is_empty
    await feed.aclose()


@ON_NATS
async def test_a_delivery_tells_how_many_wait_behind_it_unless_another_lane_may_come_before_them(
    peer: Peer,
) -> None:
    for text in ("a", "b", "c"):
        await _put(peer, text)
    feed, inbox = await _feed(peer, want=3)
    assert [each.behind for each in await inbox.take(3)] == [2, 1, 0]
    await feed.aclose()

    other = Mailbox("other", ("page.turn",))
    for priority in (5, 5, 9):
        await _put(peer, "x", topic="page.turn", priority=priority)
    feed, inbox = await _feed(peer, other, want=3)
    assert [each.behind for each in await inbox.take(3)] == [0, 0, 0]
    await feed.aclose()


async def test_a_lane_that_is_used_first_while_a_feed_runs_is_served_soon(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=3)
    for priority in (9, 0, 7):
        await _put(peer, f"p{priority}", priority=priority)
        delivery = await inbox.next()
        assert delivery.data == f"p{priority}".encode()
        await delivery.lease.settle()
        feed.want(1)
    await feed.aclose()


async def test_a_lane_that_was_used_before_any_feed_ran_is_served_first(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    for priority in (0, 5, 9, 2):
        await _put(peer, f"p{priority}", priority=priority)
    feed, inbox = await _feed(peer, want=4)

    assert sorted([d.data for d in await inbox.take(4)]) == [b"p0", b"p2", b"p5", b"p9"]
    await _holds(peer, 0, 4)
    await feed.aclose()


async def test_the_normal_lane_may_be_spelled_out(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=3)
    await peer.queue.put(f"{peer.subjects.task('book.read')}.p5", b"spelled", msg_id="1")

    assert (await inbox.next()).data == b"spelled"
    await _holds(peer, 0, 1)
    await feed.aclose()


@pytest.mark.parametrize("tail", [".p10", ".urgent", ".p1.p2", ".x y"])
async def test_a_subject_that_is_no_task_is_refused_and_harms_nobody(peer: Peer, tail: str) -> None:
    subject = f"{peer.subjects.task('book.read')}{tail}"
    with pytest.raises(InvalidSubjectError):
        await peer.queue.put(subject, b"x", msg_id="1")
    if " " not in tail:
        await peer.bus.publish(subject, b"x")  # as any client could

    feed, inbox = await _feed(peer, want=1)
    await _put(peer, "fine")
    assert (await inbox.next()).data == b"fine"
    await _holds(peer, 0, 1)
    await feed.aclose()


async def test_a_burst_into_a_new_lane_opens_it_once(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=1)
    await asyncio.gather(*(_put(peer, str(i), priority=8) for i in range(20)))

    for waiting in range(19, -1, -1):
        delivery = await inbox.next()
        # One slot, so one lease: nothing is held back from other replicas.
        await _holds(peer, waiting, 1)
        await delivery.lease.settle()
        feed.want(1)
    await feed.aclose()


async def test_waiting_messages_are_delivered_by_priority(peer: Peer) -> None:
    feed, inbox = await _feed(peer, want=3)
    for priority in (9, 5, 1):  # all lanes are open from here on
        await _put(peer, "warm", priority=priority)
        delivery = await inbox.next()
        await delivery.lease.settle()
    await _holds(peer, 0, 0)
    for priority in (1, 5, 9, 5, 9, 1):
        await _put(peer, f"p{priority}", priority=priority)

    await asyncio.sleep(0.5)  # what came while all slots were taken is handed back, which nobody announces
    order = []
    for _ in range(6):
        feed.want(1)
        delivery = await inbox.next()
        order.append(delivery.data.decode())
        await delivery.lease.settle()

    assert order == ["p9", "p9", "p5", "p5", "p1", "p1"]
    await feed.aclose()


async def test_a_family_mailbox_gets_every_topic_of_it_and_nothing_else(peer: Peer) -> None:
    feed, inbox = await _feed(peer, FAMILY, want=5)
    await _put(peer, "a", topic="book.read")
    await _put(peer, "no", topic="film.watch")
    await _put(peer, "b", topic="book.burn", priority=7)

    assert sorted([d.data for d in await inbox.take(2)]) == [b"a", b"b"]
    await _holds(peer, 0, 2)
    assert inbox.is_empty
    await feed.aclose()


async def test_a_mailbox_with_a_family_and_a_topic_inside_it_gets_each_message_once(peer: Peer) -> None:
    feed, inbox = await _feed(peer, Mailbox("reader", ("book.*", "book.read"), LEASE_S), want=5)
    await _put(peer, "a")
    await _put(peer, "b", priority=9)

    assert sorted([d.data for d in await inbox.take(2)]) == [b"a", b"b"]
    await _holds(peer, 0, 2)
    await feed.aclose()


@pytest.mark.parametrize("pattern", ["book.read", "book.*", "*.read", "*.*"])
async def test_two_mailboxes_that_overlap_are_a_route_conflict(peer: Peer, pattern: str) -> None:
    await peer.queue.declare(BOX)

    with pytest.raises(RouteConflictError):
        await peer.queue.declare(Mailbox("other", (pattern, "film.watch")))

    await peer.queue.declare(Mailbox("other", ("film.watch",)))


async def test_a_mailbox_may_be_declared_again_with_other_patterns(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    wider = Mailbox("reader", ("book.read", "film.watch"), lease_s=LEASE_S)
    await peer.queue.declare(wider)
    await peer.queue.declare(wider)
    inbox = Inbox()
    feed = await peer.queue.consume(wider, inbox)
    feed.want(5)

    await _put(peer, "film", topic="film.watch")

    assert (await inbox.next()).data == b"film"
    await feed.aclose()


async def test_a_mailbox_that_grows_finds_what_waited_for_its_new_topic(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    for priority in (5, 9):
        await _put(peer, f"film {priority}", topic="film.watch", priority=priority)
        await _put(peer, f"book {priority}", priority=priority)
    feed, inbox = await _feed(peer, want=2)
    await settle_all(await inbox.take(2))
    await feed.aclose()

    wider = Mailbox("reader", ("book.read", "film.watch"), lease_s=LEASE_S)
    feed, inbox = await _feed(peer, wider, want=3)

    assert sorted([d.data for d in await inbox.take(2)]) == [b"film 5", b"film 9"]
    await feed.aclose()


async def test_a_topic_that_one_mailbox_gave_up_another_may_serve_in_all_lanes(peer: Peer) -> None:
    both = Mailbox("reader", ("book.read", "film.watch"), lease_s=LEASE_S)
    feed, inbox = await _feed(peer, both, want=2)
    for priority in (5, 9):
        await _put(peer, "old", topic="film.watch", priority=priority)
        await (await inbox.next()).lease.settle()
    await feed.aclose()

    await peer.queue.declare(BOX)
    films, film_inbox = await _feed(peer, Mailbox("films", ("film.watch",), lease_s=LEASE_S), want=2)
    for priority in (5, 9):
        await _put(peer, f"new {priority}", topic="film.watch", priority=priority)

    assert sorted([d.data for d in await film_inbox.take(2)]) == [b"new 5", b"new 9"]
    await films.aclose()


async def test_a_removed_mailbox_keeps_its_messages_for_a_later_one(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    await _put(peer, "normal")
    await _put(peer, "urgent", priority=9)
    await peer.queue.remove(BOX.name)
    await peer.queue.remove(BOX.name)
    await peer.queue.remove("never-there")
    assert await peer.queue.backlog(BOX.name) == Backlog(0, 0)

    feed, inbox = await _feed(peer, Mailbox("later", ("book.read",), lease_s=LEASE_S), want=5)

    assert sorted([d.data for d in await inbox.take(2)]) == [b"normal", b"urgent"]
    await feed.aclose()


async def test_messages_without_any_mailbox_wait_for_one(peer: Peer) -> None:
    await _put(peer, "lonely", topic="new.thing", priority=3)

    feed, inbox = await _feed(peer, Mailbox("later", ("new.thing",), lease_s=LEASE_S), want=1)

    assert (await inbox.next()).data == b"lonely"
    await feed.aclose()


async def test_a_closed_feed_delivers_nothing_more_and_leaves_all_to_others(world: World) -> None:
    peer, other = await world.join("one"), await world.join("other")
    feed, inbox = await _feed(peer, want=10)
    await feed.aclose()
    await feed.aclose()
    _, others = await _feed(other, want=10)
    for i in range(5):
        await _put(peer, str(i))

    arrived = await others.take(5)

    assert [d.data for d in arrived] == [str(i).encode() for i in range(5)]
    assert {d.lease.delivered for d in arrived} <= {1, 2}
    assert inbox.is_empty


async def test_what_comes_beyond_the_free_slots_is_handed_back_for_others(world: World) -> None:
    peer, other = await world.join("one"), await world.join("other")
    slow = Mailbox("reader", ("book.read",), lease_s=8.0)
    await peer.queue.declare(slow)
    for priority in (1, 5, 9):
        for _ in range(2):
            await _put(peer, f"p{priority}", priority=priority)
    feed, inbox = await _feed(peer, slow, want=1)
    ours = await inbox.next()
    await _holds(peer, 5, 1)
    await feed.aclose()

    later, others = await _feed(other, slow, want=10)
    theirs = await others.take(5)

    assert ours.data == b"p9"
    await settle_all([ours, *theirs])
    await _holds(other, 0, 0)
    await later.aclose()


async def test_with_one_slot_the_order_is_by_level_and_then_by_publish(peer: Peer) -> None:
    """Strictly: 500 queued at random levels."""
    await peer.queue.declare(BOX)
    shuffled = random.Random(7)
    levels = [shuffled.randrange(10) for _ in range(500)]
    for i, level in enumerate(levels):
        await _put(peer, f"{i}", priority=level)
    feed, inbox = await _feed(peer, want=1)

    order = []
    for _ in levels:
        delivery = await inbox.next()
        order.append(int(delivery.data))
        await delivery.lease.settle()
        feed.want(1)

    assert order == sorted(range(500), key=lambda i: -levels[i])
    await feed.aclose()


async def test_an_urgent_message_overtakes_a_backlog(peer: Peer) -> None:
    await peer.queue.declare(BOX)
    for i in range(50):
        await _put(peer, f"{i}", priority=0)
    feed, inbox = await _feed(peer, want=1)
    first = await inbox.next()
    await _put(peer, "urgent", priority=9)
    await _holds(peer, 50, 1)

    await first.lease.settle()
    feed.want(1)

    assert (await inbox.next()).data == b"urgent"
    await feed.aclose()


async def test_a_lane_passed_over_for_too_long_gets_the_next_slot(peer: Peer) -> None:
    impatient = Mailbox("reader", ("book.read",), lease_s=30.0, patience_s=0.5)
    await peer.queue.declare(impatient)
    began = now_s()
    await _put(peer, "humble", priority=0)
    for i in range(100):
        await _put(peer, f"{i}", priority=9)
    feed, inbox = await _feed(peer, impatient, want=1)

    seen = []
    while b"humble" not in seen:
        delivery = await inbox.next()
        seen.append(delivery.data)
        await delivery.lease.settle()
        await asyncio.sleep(0.02)
        feed.want(1)

    assert now_s() - began >= 0.49
    assert len(seen) < 100
    await feed.aclose()


#: Another reads when the one who did was silent for a lease.
SERIAL = Mailbox("reader", ("book.read",), SHORT_S, serial=True)


async def test_a_serial_mailbox_gives_all_to_one_reader_in_the_order_they_were_put(world: World) -> None:
    peers = [await world.join("one"), await world.join("other")]
    await peers[0].queue.declare(SERIAL)
    for i in range(20):
        await _put(peers[0], f"{i}", priority=i % 10)
    inboxes = [Inbox(), Inbox()]
    feeds = [await peer.queue.consume(SERIAL, inbox) for peer, inbox in zip(peers, inboxes, strict=True)]
    feeds[0].want(20)

    given = await inboxes[0].take(20)
    assert [each.data for each in given] == [str(i).encode() for i in range(20)]
    feeds[1].want(20)
    await _put(peers[0], "20")
    # The first reader may take no more, and has earlier ones.
    for each in given[1:]:
        await each.lease.settle(confirmed=True)
    await _holds(peers[0], 1, 1)
    assert inboxes[1].is_empty
    await given[0].lease.settle(confirmed=True)
    assert (await inboxes[1].next()).data == b"20"
    for feed in feeds:
        await feed.aclose()


@pytest.mark.parametrize("how", ["closed", "silent"])
async def test_what_a_reader_of_a_serial_mailbox_leaves_comes_before_all_that_is_later(
    world: World, how: str
) -> None:
    peer, other = await world.join("one"), await world.join("other")
    await peer.queue.declare(SERIAL)
    inboxes = [Inbox(), Inbox()]
    feeds = [await each.queue.consume(SERIAL, inbox) for each, inbox in zip((peer, other), inboxes, strict=True)]
    feeds[0].want(10)
    for i in range(20):
        await _put(peer, f"{i}", priority=i % 10)
    given = await inboxes[0].take(10)
    for i in (2, 5):
        await given[i].lease.settle(confirmed=True)
    if how == "closed":
        await feeds[0].aclose()
    feeds[1].want(SERIAL_AT_ONCE)

    left = [str(i).encode() for i in range(20) if i not in (2, 5)]
    # Those of before come when their leases end, and till then none of the others does.
    for data in left:
        delivery = await inboxes[1].next()
        assert delivery.data == data
        await delivery.lease.settle()
    await _holds(peer, 0, 0)
    for feed in feeds:
        await feed.aclose()


async def test_the_head_is_the_oldest_message_that_is_not_settled(peer: Peer) -> None:
    topic, store = peer.subjects.task("book.read"), peer.queue.store
    assert await store.head(topic) is None
    feed, inbox = await _feed(peer, want=2)
    await _put(peer, "first")
    await _put(peer, "second")
    first, second = await inbox.take(2)

    async def head(pattern: str) -> Any:
        entry = await store.head(pattern)
        assert entry is not None
        return entry.seq, entry.key, entry.data, entry.headers["trace"]

    assert await head(topic) == (first.seq, topic, b"first", "of first")
    await first.lease.settle(confirmed=True)
    assert await head(topic) == (second.seq, topic, b"second", "of second")
    assert await head(peer.subjects.task("*.*")) == (second.seq, topic, b"second", "of second")
    await feed.aclose()


async def test_a_message_may_be_stored_on_condition_that_it_is_alone_among_others(peer: Peer) -> None:
    store, line = peer.queue.store, peer.subjects.line("clerk", "a")
    one, other = (line.replace("*.*", each) for each in ("note.one", "note.two"))
    neighbours = peer.subjects.line("clerk", "b")
    assert not await store.holds(line)

    seq = await store.put_alone(one, b"1", among=line, msg_id="first", headers={"trace": "1"})
    head = await store.head(line)
    assert head is not None
    assert (head.seq, head.data, head.headers["trace"], head.headers["Nats-Msg-Id"]) == (seq, b"1", "1", "first")
    assert await store.holds(line)
    assert await store.count(line) == 1, "who looks leaves nothing"

    assert await store.put_alone(other, b"2", among=line, msg_id="second") == 0
    assert await store.put_alone(neighbours.replace("*.*", "note.one"), b"3", among=neighbours) > seq
    await store.discard(seq)
    assert not await store.holds(line)
    assert await store.put_alone(one, b"1", among=line, msg_id="first") == 0, "its id is known"
    assert await store.put_alone(other, b"2", among=line, msg_id="second") > seq
    assert await store.count(line) == 1


@ON_NATS
@pytest.mark.parametrize("is_full", [False, True])
async def test_of_a_server_that_does_not_say_whether_a_line_is_empty_nothing_is_believed(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """It is full, or takes rollups of any kind, and stores the question."""
    store, line, ask_many = peer.queue.store, peer.subjects.line("clerk", "a"), Connection.ask_many

    def otherwise(
        self: Connection, subject: str, messages: Any, read: Callable[[Heard, str], Any], **how: Any
    ) -> asyncio.Future[Any]:
        if not subject.endswith(".-.-"):
            return ask_many(self, subject, messages, read, **how)
        if not is_full:
            return ask_many(self, subject, [("", b"", None)], read, **how)
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(read(Heard("", "", b'{"error": {"code": 503, "err_code": 10023}}', b""), subject))
        return answer

    monkeypatch.setattr(Connection, "ask_many", otherwise)
    assert await store.holds(line), "the head is to be read"
    assert await store.count(line) == 0, "who asks leaves nothing"


async def test_a_message_is_counted_stored_alone_and_discarded(peer: Peer) -> None:
    topic, store = peer.subjects.task("book.read"), peer.queue.store
    for text in (b"one", b"two"):
        await store.put_alone(topic, text)
    assert await store.count(topic) == await store.count(peer.subjects.task("book.*")) == 1
    head = await store.head(topic)
    assert head is not None
    assert head.data == b"one"

    for _ in range(2):
        await store.discard(head.seq)

    assert await store.count(topic) == 0
    await store.put_alone(topic, b"three")
    feed, inbox = await _feed(peer, want=1)
    assert (await inbox.next()).data == b"three"
    assert await store.knows(BOX.name)
    assert not await store.knows("nobody")
    await feed.aclose()


async def test_two_readers_share_the_work_and_each_message_goes_to_one(world: World) -> None:
    peer, other = await world.join("one"), await world.join("other")
    feed, inbox = await _feed(peer, want=10)
    feed2, inbox2 = await _feed(other, want=10)
    for i in range(20):
        await _put(peer, str(i))

    mine, theirs = await inbox.take(10), await inbox2.take(10)

    assert {d.data for d in mine + theirs} == {str(i).encode() for i in range(20)}
    await settle_all(mine + theirs)
    await _holds(peer, 0, 0)
    await feed.aclose()
    await feed2.aclose()


async def test_a_message_that_the_server_would_not_take_is_too_large(peer: Peer) -> None:
    await _refused_as_too_large(peer, MAX_PAYLOAD_BYTES + 1)


@ON_NATS
async def test_a_message_is_too_large_by_its_headers_as_well(peer: Peer) -> None:
    """nats-py does not count them, and the server would close the connection."""
    await _refused_as_too_large(peer, MAX_PAYLOAD_BYTES - 20)


async def _refused_as_too_large(peer: Peer, size: int) -> None:
    with pytest.raises(MessageTooLargeError):
        await peer.queue.put(peer.subjects.task("book.read"), b"x" * size, msg_id="big")

    # The connection is none the worse for it.
    feed, inbox = await _feed(peer, want=1)
    await _put(peer, "small")
    assert (await inbox.next()).data == b"small"
    await feed.aclose()


@ON_NATS
async def test_what_is_on_its_way_while_pulls_begin_anew_on_a_new_connection_arrives(peer: Peer) -> None:
    # Its lease would end after a minute: what is dropped is missed.
    feed, inbox = await _feed(peer, Mailbox("reader", ("book.read",), lease_s=60.0), want=1000)
    assert isinstance(feed, PullFeed)
    await _put(peer, "first")
    await (await inbox.next()).lease.settle()

    for _ in range(30):
        # As on a connection that came back, whose pulls are alive still.
        await asyncio.gather(feed._reconnected(), *(_put(peer, "on its way") for _ in range(20)))

    for delivery in await inbox.take(600):
        assert await delivery.lease.begin() == 1
        await delivery.lease.settle()
    await feed.aclose()
