"""The life of a lite topic: it ends when nobody uses it, or when it is closed, and who reads it is told."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.memory import MemoryJournal
from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError
from squadron.runtime.lite.reader import LAPSE_LOOK_S, End, LiteReader
from squadron.runtime.lite.topic import CLOSE_TRIES, RENEW_S, LiteTopic
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.wire.subjects import life_of
from tests.contract.conftest import ON_NATS, SOON_S, Peer, World, until

Topic = Callable[..., LiteTopic]


@pytest.fixture
def topic(peer: Peer) -> Topic:
    return peer.caller.lite_topics.topic


@pytest.fixture
def late_s(world: World) -> float:
    """A topic ends this long after its life at the latest, in seconds.

    By turned time; on a server, which may have to wait for a busy machine, the benchmark measures it.
    """
    return 2.0 if world.kind == "memory" else math.inf


async def _rest(reader: LiteReader) -> tuple[list[object], End | None]:
    async with asyncio.timeout(SOON_S):
        return [message.content async for message in reader], reader.end


async def _orders(peer: Peer, topic: LiteTopic) -> list[Entry]:
    return [entry async for entry in peer.lite.read(life_of(topic.key))]


async def test_a_topic_that_nobody_uses_ends_in_time_and_its_reader_is_told(
    topic: Topic, peer: Peer, late_s: float
) -> None:
    mine = topic("a", ttl_s=1)
    using_at = peer.clock.time()
    seq = await mine.publish("only")
    used_at = peer.clock.time()
    seen, end = await _rest(mine.read())

    assert end is not None
    assert (seen, end.reason, end.missed) == (["only"], "expired", False)
    assert end.seq > seq
    # The server reads its clock before we do.
    assert end.time - using_at >= 1.0 - 0.1
    assert end.time - used_at <= 1.0 + late_s
    assert peer.clock.time() - used_at <= 1.0 + late_s


async def test_who_returns_after_the_end_is_told_that_something_may_be_missed(topic: Topic, peer: Peer) -> None:
    mine = topic("a", ttl_s=3)
    read = await mine.publish("read")
    await mine.publish("unread")
    _, told = await _rest(mine.read())
    assert told is not None

    for live in (True, False):
        assert await _rest(mine.read(read + 1, live=live)) == (
            [],
            End("expired", told.seq, told.time, missed=True),
        )
        assert (await _rest(mine.read(live=live)))[1] is not None
    # Nothing but the end is left, and nothing that would end it again.
    assert [END_HEADER in entry.headers async for entry in peer.lite.read(mine.key)] == [True]
    assert await _orders(peer, mine) == []


async def test_each_publish_makes_it_live_on(topic: Topic, peer: Peer, late_s: float) -> None:
    mine = topic("a", ttl_s=3)
    reader = mine.read()
    for n in range(5):
        using_at = peer.clock.time()
        await mine.publish(n)
        used_at = peer.clock.time()
        await asyncio.sleep(0.9)
    seen, end = await _rest(reader)

    assert seen == [0, 1, 2, 3, 4]
    assert end is not None
    assert end.time - using_at >= 3.0 - 0.1
    assert end.time - used_at <= 3.0 + late_s


async def test_each_reading_makes_it_live_on_for_as_long_as_it_was_given(
    world: World, topic: Topic, peer: Peer, late_s: float
) -> None:
    mine = topic("a", "shared", ttl_s=3)
    await mine.publish("kept")
    # Another process, which does not know how long it lives.
    theirs = (await world.join("other")).caller.lite_topics.topic("a", "shared")
    started = peer.clock.time()
    while peer.clock.time() - started < 4.5:
        using_at = peer.clock.time()
        assert (await _rest(theirs.read(live=False))) == (["kept"], None)
        used_at = peer.clock.time()
        await asyncio.sleep(0.5)
    _, end = await _rest(mine.read("new"))

    assert end is not None
    assert end.time - using_at >= 3.0 - 0.1
    assert end.time - used_at <= 3.0 + late_s


async def test_who_publishes_without_a_life_leaves_the_topic_the_one_it_has(
    world: World, topic: Topic, peer: Peer
) -> None:
    mine = topic("a", "shared", ttl_s=2)
    await mine.publish(1)
    # Another process, which knows that there is room for topics of this owner, and not how long this one lives.
    others = (await world.join("other")).caller.lite_topics
    await others.topic("b", "shared").publish(0)
    await others.topic("a", "shared").publish(2)

    (order,) = await _orders(peer, mine)
    assert json.loads(order.data)["ttlS"] == 2


async def test_a_topic_that_was_given_no_life_has_a_day(topic: Topic, peer: Peer) -> None:
    mine = topic("a")
    await mine.publish(1)

    (order,) = await _orders(peer, mine)
    assert json.loads(order.data)["ttlS"] == 24 * 3600


async def test_topics_that_ended_are_forgotten_by_who_published_on_them(topic: Topic, peer: Peer) -> None:
    topics = peer.caller.lite_topics
    for id in "abcd":
        await topic(id, ttl_s=1).publish(id)
    await asyncio.sleep(1.1)
    topics._prune_at = 4

    last = topic("last", ttl_s=1)
    await last.publish(1)

    assert topics._lives.keys() == {last.key}


async def test_what_could_not_be_published_is_not_taken_for_a_use(topic: Topic, peer: Peer) -> None:
    mine = topic("a", ttl_s=2)
    with pytest.raises(MessageTooLargeError):
        await mine.publish(b"x" * 9_000_000)
    # Whether the order to end it went ahead is the store's affair.
    await peer.lite.erase(life_of(mine.key))

    await mine.publish("small")

    assert len(await _orders(peer, mine)) == 1


async def test_to_follow_is_no_use_so_that_a_topic_that_is_only_followed_ends(
    topic: Topic, peer: Peer, late_s: float
) -> None:
    mine = topic("a", ttl_s=1)
    await mine.publish(1)
    started = peer.clock.time()
    readers = [mine.read("new"), mine.read("first")]

    ends = await asyncio.gather(*(_rest(reader) for reader in readers))

    assert [end.reason for _, end in ends if end] == ["expired", "expired"]
    assert peer.clock.time() - started <= 1.0 + late_s


async def test_who_reads_a_topic_without_a_life_gives_it_none(peer: Peer, topic: Topic) -> None:
    mine = topic("a", ttl_s=1)
    await peer.lite.append(mine.key, b"raw", ttl_s=60)
    reader = mine.read()
    assert (await asyncio.wait_for(anext(reader), SOON_S)).data == b"raw"
    await reader.aclose()
    while peer.caller.lite_topics._background:
        await asyncio.gather(*peer.caller.lite_topics._background)

    assert await _orders(peer, mine) == []


async def test_closing_tells_who_follows_and_who_comes_late_whether_all_was_read(topic: Topic) -> None:
    mine = topic("a")
    read, last = await mine.publish(1), await mine.publish(2)
    reader = mine.read()
    assert [(await asyncio.wait_for(anext(reader), SOON_S)).seq for _ in range(2)] == [read, last]

    await mine.close()

    _, end = await _rest(reader)
    assert end is not None
    assert (end.reason, end.missed) == ("closed", False)
    for start, missed in ((last + 1, False), (last, True), (read + 1, True), ("first", True)):
        seen, late = await _rest(mine.read(start))
        assert (seen, late) == ([], End("closed", end.seq, end.time, missed))


async def test_a_topic_may_be_closed_twice_and_before_its_first_message(topic: Topic, peer: Peer) -> None:
    mine = topic("a", ttl_s=1)
    reader = mine.read()
    waiting = asyncio.create_task(_rest(reader))
    await asyncio.sleep(0.05)
    await mine.close()
    await mine.close()

    seen, end = await waiting
    assert end is not None
    assert (seen, end.reason, end.missed) == ([], "closed", False)
    (marker,) = [entry async for entry in peer.lite.read(mine.key)]
    assert json.loads(marker.data) == {"end": "closed", "last": 0}


async def test_after_its_end_a_topic_may_be_made_anew(topic: Topic) -> None:
    mine = topic("a", ttl_s=3)
    old = await mine.publish("old")
    follower = mine.read()
    assert (await asyncio.wait_for(anext(follower), SOON_S)).seq == old
    await mine.close()
    new = await mine.publish("new")

    # Who was there is told of the end first, and goes on behind it.
    seen, end = await _rest(follower)
    assert end is not None
    assert (seen, end.reason) == ([], "closed")
    again = mine.read(end.seq + 1)
    message = await asyncio.wait_for(anext(again), SOON_S)
    assert (message.seq, message.content, message.missed) == (new, "new", False)
    # Who comes now sees nothing of the topic before.
    seen, end = await _rest(mine.read(live=False))
    assert (seen, end) == (["new"], None)
    # And it has a life, too.
    _, end = await _rest(again)
    assert end is not None
    assert (end.reason, end.missed) == ("expired", False)


async def test_of_a_busy_topic_that_is_closed_no_message_is_lost_unsaid(world: World, topic: Topic) -> None:
    """Each message is read, or its reader is told that some may have ended unread."""
    mine = topic("a", "shared")
    other = (await world.join("other")).caller.lite_topics.topic("a", "shared")
    reader = mine.read()
    published: list[int] = []

    async def publish() -> None:
        published.extend([await other.publish(n) for n in range(300)])

    publishing = asyncio.create_task(publish())
    seen = [(await asyncio.wait_for(anext(reader), SOON_S)).seq]
    await mine.close()
    async with asyncio.timeout(SOON_S):
        seen += [message.seq async for message in reader]
    await publishing

    assert reader.end is not None
    unread = [seq for seq in published if seq < reader.end.seq and seq not in seen]
    assert not unread or reader.end.missed
    assert seen == sorted(seen)


@pytest.mark.parametrize("times", [1, CLOSE_TRIES])
async def test_a_topic_is_closed_though_others_publish_whenever_it_is_about_to_be(
    topic: Topic, peer: Peer, times: int
) -> None:
    mine, lite, left = topic("a"), peer.caller.lite_topics.lite, times
    await mine.publish("first")

    class Busy:
        """A journal where somebody else is always a moment earlier."""

        async def end(self, key: str, *args: Any, **how: Any) -> int:
            nonlocal left
            if left:
                left -= 1
                await lite.append(key, b"earlier")
            return await lite.end(key, *args, **how)

        def __getattr__(self, name: str) -> Any:
            return getattr(lite, name)

    peer.caller.lite_topics.lite = Busy()  # type: ignore[assignment]
    await mine.close()

    (marker,) = [entry async for entry in lite.read(mine.key)]
    # Only who was right behind the last message can say which it was.
    last = {} if times == CLOSE_TRIES else {"last": marker.seq - 1}
    assert json.loads(marker.data) == {"end": "closed", **last}


async def test_a_topic_of_messages_with_lives_of_their_own_is_over_with_the_last(
    peer: Peer, topic: Topic, late_s: float
) -> None:
    mine = topic("raw")
    await peer.lite.append(mine.key, b"one", ttl_s=3)
    reader = mine.read()
    await asyncio.sleep(0.3)
    lapses_at = peer.clock.time() + 3
    await peer.lite.append(mine.key, b"two", ttl_s=3)
    seen, end = [], None
    async with asyncio.timeout(SOON_S):
        seen, end = [message.data async for message in reader], reader.end

    assert end is not None
    assert (seen, end.reason, end.missed) == ([b"one", b"two"], "expired", False)
    assert -0.1 <= peer.clock.time() - lapses_at <= late_s
    # Who comes back for more is told as well.
    for live in (True, False):
        _, end = await _rest(mine.read(5, live=live))
        assert end is not None
        assert (end.reason, end.missed) == ("expired", True)


async def test_who_stops_at_what_is_there_is_told_of_no_end_where_there_was_none(topic: Topic, peer: Peer) -> None:
    assert await _rest(topic("never").read(live=False)) == ([], None)
    mine = topic("a")
    seq = await mine.publish(1)

    # On, and beyond, the newest.
    for start in (seq + 1, seq + 5):
        assert await _rest(mine.read(start, live=False)) == ([], None)


async def test_the_end_of_a_topic_is_told_though_the_server_was_away_when_it_came(
    topic: Topic, peer: Peer
) -> None:
    mine, lite, failures = topic("raw"), peer.lite, list[BusUnavailableError]()
    await lite.append(mine.key, b"one", ttl_s=3)

    class Away:
        """A journal that can't be looked into for a while."""

        async def last(self, key: str) -> Entry | None:
            if key == mine.key and failures:
                raise failures.pop()
            return await lite.last(key)

        def __getattr__(self, name: str) -> Any:
            return getattr(lite, name)

    peer.caller.lite_topics.lite = Away()  # type: ignore[assignment]
    reader = mine.read()
    assert (await asyncio.wait_for(anext(reader), SOON_S)).data == b"one"
    failures += [BusUnavailableError("away"), BusUnavailableError("away")]
    _, end = await _rest(reader)

    assert end is not None
    assert (end.reason, end.missed) == ("expired", False)
    assert not failures


@ON_NATS
async def test_what_may_have_come_and_gone_while_the_connection_was_away_is_told(peer: Peer, topic: Topic) -> None:
    mine = topic("raw")
    await peer.lite.append(mine.key, b"one", ttl_s=3)
    reader = mine.read()
    assert (await anext(reader)).data == b"one"
    assert isinstance(peer.lite, JetStreamJournal)
    await peer.lite._connection.disconnected()

    assert [message async for message in reader] == []

    assert reader.end is not None
    assert (reader.end.reason, reader.end.missed) == ("expired", True)


async def test_end_markers_mean_nothing_to_a_conversation_memory(peer: Peer, topic: Topic) -> None:
    from squadron.runtime.running.context import Context
    from squadron.runtime.running.ledger import Ledger
    from squadron.runtime.wire.envelope import AgentMessage
    from squadron.runtime.wire.limits import Budget, Deadline

    message = AgentMessage.new("task", peer.caller.ports.identity, {}, conversation_id="talk")
    context = Context(
        message,
        agent="clerk",
        topic="a.b",
        attempt=1,
        deadline=Deadline.after(60, peer.clock),
        ledger=Ledger(Budget()),
        caller=peer.caller,
        lite_key=peer.subjects.lite("tester", "task"),
        log=None,  # type: ignore[arg-type]
    )
    await context.remember("before")
    await context.lite("talk", "memory-clerk").close()
    await context.remember("after")

    assert await context.recall() == ["after"]


@ON_NATS
async def test_nobody_of_ours_need_be_alive_for_a_topic_to_end(world: World) -> None:
    left = await world.join("left")
    mine = left.caller.lite_topics.topic("a", "shared", ttl_s=1)
    await mine.publish("orphan")
    for close in world._closers:
        await close()
    world._closers.clear()
    await asyncio.sleep(3.2)

    later = await world.join("later")
    theirs = later.caller.lite_topics.topic("a", "shared")

    async def has_ended() -> bool:
        newest = await later.lite.last(theirs.key)
        return newest is not None and END_HEADER in newest.headers

    # Who looks at the store uses no topic.
    await until(has_ended)
    seen, end = await _rest(theirs.read(live=False))
    assert end is not None
    assert (seen, end.reason) == ([], "expired")


async def test_the_end_is_plain_for_any_client(peer: Peer, topic: Topic) -> None:
    mine = topic("a", ttl_s=1)
    seq = await mine.publish(1)
    (order,) = await _orders(peer, mine)
    assert json.loads(order.data) == {"end": "expired", "ttlS": 1}
    await mine.close()
    marker = await peer.lite.last(mine.key)

    assert marker is not None
    assert (marker.headers[END_HEADER], json.loads(marker.data)) == ("closed", {"end": "closed", "last": seq})
    if not isinstance(peer.lite, MemoryJournal):
        assert marker.headers["Nats-TTL"] == "86400s"


async def test_many_topics_end_by_themselves_at_once(peer: Peer, topic: Topic, late_s: float) -> None:
    heard: list[Entry] = []
    following = await peer.lite.follow(peer.subjects.lite_of("many"), heard.append)
    topics = [topic(f"t{n}", "many", ttl_s=1) for n in range(500)]
    await asyncio.gather(*(each.publish(n) for n, each in enumerate(topics)))
    published_at = peer.clock.time()

    async def ended() -> bool:
        return sum(END_HEADER in entry.headers for entry in heard) == len(topics)

    await until(ended)
    assert max(entry.time for entry in heard) - published_at <= 1.0 + late_s
    await following.aclose()


async def test_who_publishes_right_after_somebody_closed_the_topic_gives_it_a_life_again(
    topic: Topic, world: World, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squadron.runtime.lite.topic.RENEW_S", 2 * RENEW_S)
    mine = topic("a", "shared", ttl_s=3)
    await mine.publish("ended")
    await (await world.join("other")).caller.lite_topics.topic("a", "shared").close()
    await mine.publish("after")
    assert await _orders(peer, mine) == []

    async def ordered() -> bool:
        return len(await _orders(peer, mine)) == 1

    await until(ordered)
    seen, end = await _rest(mine.read())
    assert end is not None
    assert (seen, end.reason) == (["after"], "expired")


async def test_a_topic_that_was_closed_is_given_no_life_by_who_published_before(topic: Topic, peer: Peer) -> None:
    mine = topic("a", ttl_s=2)
    await mine.publish(1)
    await mine.publish(2)
    await mine.close()

    await asyncio.sleep(RENEW_S + 0.3)

    assert await _orders(peer, mine) == []


async def test_a_slow_reader_is_handed_what_it_heard_though_it_lapsed(topic: Topic, peer: Peer) -> None:
    mine = topic("raw")
    await peer.lite.append(mine.key, b"one", ttl_s=3)
    reader = mine.read()
    assert (await anext(reader)).data == b"one"
    coming = asyncio.create_task(anext(reader))
    # It waits for more, and knows when the first lapses.
    await asyncio.sleep(0.1)
    await peer.lite.append(mine.key, b"two", ttl_s=3)
    assert (await coming).data == b"two"
    await peer.lite.append(mine.key, b"three", ttl_s=1)

    async def gone() -> bool:
        return await peer.lite.last(mine.key) is None

    await until(gone)
    await asyncio.sleep(2 * LAPSE_LOOK_S)

    async with asyncio.timeout(SOON_S):
        assert [message.data async for message in reader] == [b"three"]
    assert reader.end is not None
    assert (reader.end.reason, reader.end.missed) == ("expired", False)
