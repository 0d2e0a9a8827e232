"""Lite topics: published on and read by anybody, from anywhere in them, while they live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats.aio.client import Client

from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.client.opening import Opening
from squadron.client.squad import Squad
from squadron.config import Settings
from squadron.runtime.errors import InvalidInputError, InvalidSubjectError, MessageTooLargeError
from squadron.runtime.lite import followed
from squadron.runtime.lite.reader import LiteMessage, LiteReader, seconds_of
from squadron.runtime.lite.topic import LiteTopic
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.start import Tail
from tests.contract.conftest import ON_NATS, SIGNED, SOON_S, Peer, World, until

Topic = Callable[..., LiteTopic]


@pytest.fixture
def topic(peer: Peer) -> Topic:
    return peer.caller.lite_topics.topic


async def _next(reader: LiteReader) -> LiteMessage:
    return await asyncio.wait_for(anext(reader), SOON_S)


async def _stored(topic: LiteTopic, start: Any = "first") -> list[Any]:
    return [message.content async for message in topic.read(start, live=False)]


async def test_what_is_published_is_read_in_order_from_the_start_and_then_live(
    world: World, topic: Topic, peer: Peer
) -> None:
    mine = topic("chat", "session")
    seqs = [await mine.publish({"n": n}) for n in range(3)]
    other = (await world.join("other")).caller.lite_topics.topic("chat", "session")
    reader = other.read()
    seen = [await _next(reader) for _ in range(3)]
    seqs.append(await mine.publish("live"))
    seen.append(await _next(reader))
    await reader.aclose()

    assert [message.content for message in seen] == [{"n": 0}, {"n": 1}, {"n": 2}, "live"]
    assert [message.seq for message in seen] == seqs
    assert not any(message.missed for message in seen)
    assert all(abs(message.time - peer.clock.time()) < SOON_S for message in seen)
    first = seen[0].message
    assert first is not None
    assert (first.type, first.source.id) == ("event", "tester")


async def test_each_reader_has_a_place_of_its_own(topic: Topic) -> None:
    mine = topic("a")
    readers = [mine.read() for _ in range(3)]
    for n in range(5):
        await mine.publish(n)

    for reader in readers:
        assert [(await _next(reader)).content for _ in range(5)] == list(range(5))
        await reader.aclose()


async def test_a_reader_starts_where_it_is_told(topic: Topic) -> None:
    mine = topic("a")
    seqs = []
    for n in range(5):
        seqs.append(await mine.publish(n))
        await asyncio.sleep(0.002)
    times = [message.time async for message in mine.read(live=False)]
    between = (times[1] + times[2]) / 2

    assert await _stored(mine, "first") == [0, 1, 2, 3, 4]
    assert await _stored(mine, "last") == [4]
    assert await _stored(mine, "new") == []
    assert await _stored(mine, seqs[3]) == [3, 4]
    assert await _stored(mine, seqs[4] + 1) == []
    assert await _stored(mine, 1) == [0, 1, 2, 3, 4]
    assert await _stored(mine, between) == [2, 3, 4]
    assert await _stored(mine, datetime.fromtimestamp(between, UTC)) == [2, 3, 4]
    assert await _stored(mine, Tail(2)) == [3, 4]
    assert await _stored(mine, Tail(99)) == [0, 1, 2, 3, 4]
    assert await _stored(mine, Tail(0)) == []


@pytest.mark.parametrize("start", ["last", "new", "first", Tail(3), 1, 0.0])
async def test_a_topic_that_is_not_there_yet_can_be_waited_for(topic: Topic, start: Any) -> None:
    mine = topic("a")
    reader = mine.read(start)
    waiting = asyncio.create_task(_next(reader))
    await asyncio.sleep(0.05)
    await mine.publish("here")

    assert (await waiting).content == "here"
    assert await _stored(topic("nobody"), start) == []
    await reader.aclose()


@pytest.mark.parametrize("start", ["newest", 0, -1, True, -0.5, 1e12, datetime(2026, 1, 1), None])
async def test_what_is_no_place_in_a_topic_is_refused(topic: Topic, start: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        topic("a").read(start)
    assert caught.value.field == "start"


@pytest.mark.parametrize("count", [-1, "x", True, None])
def test_a_tail_of_no_count_is_refused(count: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Tail(count)
    assert caught.value.field == "start"


async def test_a_time_without_a_zone_is_told_so(topic: Topic) -> None:
    with pytest.raises(InvalidInputError, match="has no time zone"):
        topic("a").read(datetime(2026, 1, 1))


@pytest.mark.parametrize("exclusive", ["", "x" * 65, 5, True])
async def test_what_is_no_name_of_a_reader_is_refused(topic: Topic, exclusive: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        topic("a").read(exclusive=exclusive)
    assert caught.value.field == "exclusive"


async def test_names_and_lives_are_checked_before_anything_is_sent(peer: Peer, topic: Topic) -> None:
    for wrong in (
        {"id": "a.b"},
        {"id": "*"},
        {"id": "a", "owner": "x y"},
        {"id": "x" * 65},
        {"id": ""},
        {"owner": ""},
    ):
        with pytest.raises(InvalidSubjectError):
            topic(**wrong)
    wrong_lives: list[Any] = [0, 0.5, -1, 30 * 24 * 3600 + 1, float("nan"), float("inf"), "60", True, timedelta(0)]
    for ttl_s in wrong_lives:
        with pytest.raises(InvalidInputError) as caught:
            topic("a", ttl_s=ttl_s)
        assert caught.value.field == "ttl_s"
    assert topic("a", ttl_s=timedelta(minutes=2)).ttl_s == 120
    assert topic("a", ttl_s=timedelta(days=30)).ttl_s == 30 * 24 * 3600
    one, other = topic(), topic()
    assert one.id != other.id
    assert (one.owner, one.key) == ("tester", peer.subjects.lite("tester", one.id))


async def test_bytes_and_json_are_read_as_they_were_published(topic: Topic) -> None:
    mine = topic("a")
    await mine.publish(b"\x00\xff")
    await mine.publish({"text": "hü", "n": [1, None]})
    await mine.publish(None)
    raw, json_, none = [message async for message in mine.read(live=False)]

    assert (raw.data, raw.message, raw.content) == (b"\x00\xff", None, None)
    assert json_.content == {"text": "hü", "n": [1, None]}
    assert none.content is None
    assert none.message is not None
    assert repr(json_) == f"LiteMessage(seq={json_.seq}, time={json_.time}, content={json_.content})"
    assert "content=b'\\x00\\xff'" in repr(raw)
    with pytest.raises(MessageTooLargeError):
        await mine.publish(b"x" * 9_000_000)


async def test_what_is_not_json_is_refused(topic: Topic) -> None:
    circular: list[Any] = []
    circular.append(circular)
    for content in (object(), {"a": [object()]}, circular):
        with pytest.raises(InvalidInputError, match="not JSON") as caught:
            await topic("a").publish(content)
        assert caught.value.field == "content"
    assert await _stored(topic("a")) == []


async def test_half_a_surrogate_pair_is_published_as_u_fffd(topic: Topic) -> None:
    await topic("a").publish({"text": "\ud83d", "\ude42": "\ud83d\ude42"})

    assert await _stored(topic("a")) == [{"text": "\ufffd", "\ufffd": "🙂"}]


async def test_under_one_message_id_it_is_published_once(topic: Topic) -> None:
    mine = topic("a")

    assert await mine.publish(1, msg_id="same") == await mine.publish(1, msg_id="same")
    assert await _stored(mine) == [1]


async def test_one_message_id_on_two_topics_is_two_messages(topic: Topic) -> None:
    for id in ("a", "b"):
        await topic(id).publish(id, msg_id="1")

    for id in ("a", "b"):
        assert await _stored(topic(id)) == [id]


async def test_a_message_id_may_be_any_text(topic: Topic) -> None:
    mine = topic("a")
    await mine.publish(1)

    await mine.publish(2, msg_id="\r\nNats-Rollup: sub")
    await mine.publish(3, msg_id="\udc80")

    assert await _stored(mine) == [1, 2, 3]


async def test_a_slow_reader_gets_all_of_more_than_is_held_for_it(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "MOST_LIVE", 16)
    mine = topic("a")
    reader = mine.read()
    await mine.publish(0)
    seen = [await _next(reader)]
    await asyncio.gather(*(mine.publish(n) for n in range(1, 1000)))
    seen += [await _next(reader) for _ in range(999)]
    await reader.aclose()

    assert sorted(message.content for message in seen) == list(range(1000))
    assert [message.seq for message in seen] == sorted(message.seq for message in seen)
    assert not any(message.missed for message in seen)


async def test_a_reader_that_was_cancelled_goes_on_in_another_process(world: World, topic: Topic) -> None:
    mine = topic("a", "shared")
    for n in range(10):
        await mine.publish(n)
    seen: list[int] = []
    seq = 0
    for turn in range(10):
        again = (await world.join(f"turn{turn}")).caller.lite_topics.topic("a", "shared")
        reader = again.read(seq + 1 if seq else "first")
        message = await _next(reader)
        await reader.aclose()
        assert not message.missed
        seen, seq = [*seen, message.content], message.seq

    assert seen == list(range(10))


async def test_messages_that_lapsed_unread_are_told(peer: Peer, topic: Topic) -> None:
    """Who goes on behind a message that is gone can't know whether more of them are."""
    mine = topic("a")
    read = await peer.lite.append(mine.key, b"read", ttl_s=3)
    await peer.lite.append(mine.key, b"unread", ttl_s=3)
    kept = await peer.lite.append(mine.key, b"kept", ttl_s=60)

    async def lapsed() -> bool:
        return len([entry async for entry in peer.lite.read(mine.key)]) == 1

    assert [message.missed async for message in mine.read(read + 1, live=False)] == [False, False]
    await until(lapsed)
    for live in (True, False):
        reader = mine.read(read + 1, live=live)
        message = await _next(reader)
        assert (message.data, message.missed) == (b"kept", True)
        await reader.aclose()
    assert [message.missed async for message in mine.read(kept, live=False)] == [False]
    assert [message.missed async for message in mine.read(live=False)] == [False]


@pytest.mark.skipif(SIGNED, reason="that client signs nothing")
@ON_NATS
async def test_any_client_makes_a_topic_by_publishing_and_reads_it_as_well(topic: Topic, bare: Client) -> None:
    mine = topic("raw", "anybody")
    reader = mine.read()
    heard = await bare.subscribe(mine.key)
    await bare.flush()
    waiting = asyncio.create_task(_next(reader))
    await bare.publish(mine.key, b'{"text": "hi"}', headers={"X-Mine": "yes"})
    await mine.publish({"text": "hello"})

    message = await waiting
    assert (message.data, message.headers["X-Mine"]) == (b'{"text": "hi"}', "yes")
    assert (await _next(reader)).content == {"text": "hello"}
    bodies = [json.loads((await heard.next_msg(SOON_S)).data) for _ in range(2)]
    assert bodies[0] == {"text": "hi"}
    assert bodies[1]["payload"]["content"] == {"text": "hello"}
    await reader.aclose()


@ON_NATS
async def test_a_thousand_topics_have_no_consumer(world: World, topic: Topic, bare: Client) -> None:
    assert world.settings is not None
    topics = [topic(f"t{n}", "many", ttl_s=60) for n in range(1000)]
    for some in range(0, len(topics), 100):
        # All at once would be more than a busy machine answers in time.
        await asyncio.gather(*(topics[n].publish({"n": n}) for n in range(some, some + 100)))
    readers = [each.read() for each in topics[:100]]
    for n, reader in enumerate(readers):
        assert (await _next(reader)).content == {"n": n}

    name = StreamNames(world.settings.env).lite
    state = json.loads((await bare.request(f"$JS.API.STREAM.INFO.{name}", b"{}")).data)["state"]
    # Each topic is its message, and the order to end it.
    assert (state["consumer_count"], state["num_subjects"], state["messages"]) == (0, 2000, 2000)
    for reader in readers:
        await reader.aclose()


def test_a_plain_script_publishes_reads_and_closes(settings: Settings) -> None:
    async def open_squad() -> Squad:
        return Squad(await Wiring.open(settings, AgentIdentity(id="script", type="test"), create=True), settings)

    squad = Opening(open_squad).__enter__()
    mine = squad.lite("chat", "session", ttl_s=60)
    seqs = [mine.publish({"n": n}) for n in range(3)]
    reader = mine.read(seqs[1])
    assert [next(reader).content for _ in range(2)] == [{"n": 1}, {"n": 2}]
    mine.close()
    assert reader.end is None
    assert list(reader) == []
    assert reader.end is not None
    assert (reader.end.reason, reader.end.missed) == ("closed", False)
    with pytest.raises(InvalidInputError):
        mine.read(0)
    left = squad.lite("other").read("new")
    left.close()
    assert list(left) == []
    assert mine.key in repr(mine)
    assert (mine.key, mine.ttl_s) == (f"agents.{settings.env}.lite.session.chat", 60)
    squad.close()


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        ("1m30s", 90),
        ("1h", 3600),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("never", None),
        ("", None),
    ],
)
def test_a_time_to_live_is_read_as_the_server_reads_it(ttl: str, seconds: float | None) -> None:
    assert seconds_of(ttl) == (float("inf") if seconds is None else seconds)
