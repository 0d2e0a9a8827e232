"""Many lite topics at once: messages, ends and starting places, and readers who exclude each other."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from squadron import Agent, Settings, Squad
from squadron import topic as topic_mark
from squadron.bridge.jetstream.wiring import Wiring
from squadron.client.opening import Opening
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import FencedError, InvalidInputError, InvalidSubjectError, SquadronError
from squadron.runtime.lite import exclusive
from squadron.runtime.lite.feed import LiteFeed, LiteItems
from squadron.runtime.lite.reader import End, LiteMessage
from squadron.runtime.lite.topic import LiteTopic
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.start import LiteStart, Tail
from tests.contract.conftest import SOON_S, Peer, Serve, World, until

Topic = Callable[[str], LiteTopic]


@pytest.fixture
def topic(peer: Peer) -> Topic:
    return lambda id: peer.caller.lite_topics.topic(id, "owner")


@pytest.fixture
async def feed(world: World) -> AsyncIterator[LiteFeed]:
    other = await world.join("reader")
    async with other.caller.lite_topics.follow("owner") as opened:
        yield opened


class Seen:
    """What a handler got, by topic: contents, and how a topic ended."""

    def __init__(self) -> None:
        self.items: dict[str, list[LiteMessage | End]] = defaultdict(list)

    async def __call__(self, id: str, items: LiteItems) -> None:
        self.items[id] += items

    async def has(self, id: str, *wanted: Any) -> None:
        async def arrived() -> bool:
            return len(self.items[id]) >= len(wanted)

        await until(arrived)
        assert [each.reason if isinstance(each, End) else each.content for each in self.items[id]] == list(wanted)


@pytest.fixture
async def seen(feed: LiteFeed) -> AsyncIterator[Seen]:
    handler = Seen()
    serving = asyncio.create_task(feed.serve(handler))
    yield handler
    await feed.aclose()
    await asyncio.wait_for(serving, SOON_S)


async def test_a_feed_hands_out_what_comes_on_the_topics_it_follows(
    feed: LiteFeed, seen: Seen, topic: Topic
) -> None:
    for id in ("a", "b"):
        await feed.add(id)
    for n in range(3):
        for id in ("a", "b", "c"):
            await topic(id).publish({"n": n})

    for id in ("a", "b"):
        await seen.has(id, {"n": 0}, {"n": 1}, {"n": 2})
    assert "a" in feed
    feed.remove("a")
    assert "a" not in feed
    await topic("a").publish("unheard")
    await topic("b").publish("heard")
    await seen.has("b", {"n": 0}, {"n": 1}, {"n": 2}, "heard")
    assert set(seen.items) == {"a", "b"}
    assert len(seen.items["a"]) == 3


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        ("first", [0, 1, 2, 3]),
        ("last", [3]),
        ("new", []),
        (Tail(2), [2, 3]),
        (Tail(9), [0, 1, 2, 3]),
        (Tail(0), []),
    ],
)
async def test_a_topic_is_read_from_where_one_says(
    feed: LiteFeed, seen: Seen, topic: Topic, start: LiteStart, wanted: list[int]
) -> None:
    for n in range(4):
        await topic("a").publish(n)
    # All that was stored before is heard.
    await feed.add("b", "first")
    await topic("b").publish("ready")
    await seen.has("b", "ready")

    await feed.add("a", start)
    await topic("a").publish("live")

    await seen.has("a", *wanted, "live")


async def test_a_topic_is_read_from_a_sequence_or_a_time(
    feed: LiteFeed, seen: Seen, topic: Topic, peer: Peer
) -> None:
    first = await topic("a").publish(0)
    await asyncio.sleep(0.05)
    since = peer.clock.time()
    for n in (1, 2):
        await topic("a").publish(n)

    await feed.add("a", first + 1)
    await seen.has("a", 1, 2)
    await feed.add("a", since)
    await seen.has("a", 1, 2, 1, 2)
    await feed.add("b", since + 3600)
    await topic("b").publish("live")
    await seen.has("b", "live")
    assert not any(each.missed for each in seen.items["a"])


async def test_the_end_of_a_topic_is_told_and_then_the_topic_that_comes_after_it(
    feed: LiteFeed, seen: Seen, topic: Topic
) -> None:
    await feed.add("a")
    await topic("a").publish(0)
    await seen.has("a", 0)
    await topic("a").close()
    await seen.has("a", 0, "closed")
    await topic("a").publish(1)
    await seen.has("a", 0, "closed", 1)

    assert not any(each.missed for each in seen.items["a"])


async def test_the_end_of_an_earlier_life_is_not_told_to_who_begins(
    feed: LiteFeed, seen: Seen, topic: Topic
) -> None:
    for id in ("a", "b"):
        await topic(id).publish(0)
        await topic(id).close()
    await topic("a").publish(1)

    for id in ("a", "b"):
        await feed.add(id, "first")

    await seen.has("a", 1)
    await seen.has("b", "closed")


async def test_who_comes_back_too_late_is_told_that_something_is_missed(
    feed: LiteFeed, seen: Seen, topic: Topic
) -> None:
    seqs = [await topic("a").publish(n) for n in range(3)]
    await topic("a").close()

    await feed.add("a", seqs[0] + 1)

    await seen.has("a", "closed")
    assert seen.items["a"][0].missed


async def test_who_comes_back_when_all_has_lapsed_is_told_with_the_next_message(
    feed: LiteFeed, seen: Seen, topic: Topic, peer: Peer
) -> None:
    mine = topic("a")
    read = await peer.lite.append(mine.key, b"read", ttl_s=1)
    await peer.lite.append(mine.key, b"unread", ttl_s=1)

    async def lapsed() -> bool:
        return await peer.lite.last(mine.key) is None

    await until(lapsed)
    await feed.add("a", read + 1)
    # Its turn comes before the next message.
    await feed.add("b", "first")
    await topic("b").publish("ready")
    await seen.has("b", "ready")
    await mine.publish("next")

    await seen.has("a", "next")
    assert seen.items["a"][0].missed


async def test_a_feed_of_all_topics_is_told_of_each_and_of_its_end(
    feed: LiteFeed, seen: Seen, topic: Topic
) -> None:
    await topic("old").publish("before")
    feed.add_all("first")
    for id in ("old", "new"):
        await topic(id).publish(0)
    await topic("new").close()

    await seen.has("old", "before", 0)
    await seen.has("new", 0, "closed")


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        (lambda _: "first", ["older", "old", "new"]),
        (lambda second: second, ["old", "new"]),
        (lambda _: "new", ["new"]),
    ],
)
async def test_all_topics_are_followed_from_where_one_says(
    world: World, topic: Topic, start: Callable[[int], Any], wanted: list[str]
) -> None:
    await topic("a").publish("older")
    second = await topic("b").publish("old")
    got: list[Any] = []
    async with (await world.join("late")).caller.lite_topics.follow("owner") as feed:
        feed.add_all(start(second))
        await topic("c").publish("new")
        async with asyncio.timeout(SOON_S), aclosing(aiter(feed)) as ready:
            async for _, items in ready:
                got += [item.content for item in items if isinstance(item, LiteMessage)]
                if len(got) >= len(wanted):
                    break

    assert sorted(got) == sorted(wanted)


async def test_a_feed_can_be_iterated_over(feed: LiteFeed, topic: Topic) -> None:
    await feed.add("a")
    for n in range(3):
        await topic("a").publish(n)

    contents: list[Any] = []
    async with aclosing(aiter(feed)) as ready:
        async for id, items in ready:
            assert id == "a"
            contents += [item.content for item in items if isinstance(item, LiteMessage)]
            if len(contents) == 3:
                break

    assert contents == [0, 1, 2]


async def test_what_can_not_be_followed_is_refused(peer: Peer, feed: LiteFeed) -> None:
    with pytest.raises(InvalidSubjectError):
        peer.caller.lite_topics.follow("no token")
    with pytest.raises(InvalidSubjectError):
        await feed.add("no.token")
    with pytest.raises(InvalidInputError):
        await feed.add("a", "sometime")  # type: ignore[arg-type]
    for start in ("last", "sometime", 0, 1.0, True):
        with pytest.raises(InvalidInputError):
            feed.add_all(start)  # type: ignore[arg-type]
    with pytest.raises(InvalidSubjectError):
        peer.caller.lite_topics.follow("")
    slots: list[Any] = [0, -1, "x", True]
    for each in slots:
        with pytest.raises(InvalidInputError) as caught:
            await feed.serve(lambda id, items: None, slots=each)
        assert caught.value.field == "slots"
    with pytest.raises(SquadronError, match="not open"):
        await peer.caller.lite_topics.follow("owner").add("a")


async def test_a_plain_function_handles_in_a_thread(feed: LiteFeed, topic: Topic) -> None:
    seen: list[Any] = []

    def handler(id: str, items: LiteItems) -> None:
        seen.append((id, len(items), threading.current_thread() is threading.main_thread()))

    async def handled() -> bool:
        return bool(seen)

    serving = asyncio.create_task(feed.serve(handler))
    await feed.add("a")
    await topic("a").publish(1)
    await until(handled)
    await feed.aclose()
    await asyncio.wait_for(serving, SOON_S)

    assert seen == [("a", 1, False)]


async def test_of_exclusive_readers_the_one_that_came_last_goes_on(
    world: World, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "TAKEOVER_S", exclusive.FRESH_S)
    for n in range(4):
        await topic("a").publish(n)
    one = topic("a").read(exclusive="clerk")
    assert [(await anext(one)).content for _ in range(2)] == [0, 1]
    other = (await world.join("other")).caller.lite_topics.topic("a", "owner").read(exclusive="clerk")

    # It may be that the first one died over the message it had.
    assert (await anext(other)).content == 1
    with pytest.raises(FencedError, match=r"another reader has taken over 'clerk' of owner/a .*read again"):
        await anext(one)
    assert (await anext(other)).content == 2
    await other.aclose()

    third = topic("a").read(exclusive="clerk", live=False)
    assert [message.content async for message in third] == [2, 3]
    # The third one came to the end, so that nothing comes twice; other readers don't matter.
    assert [message.content async for message in topic("a").read(exclusive="clerk", live=False)] == []
    assert [message.content async for message in topic("a").read(live=False)] == [0, 1, 2, 3]


async def test_a_plain_script_follows_topics_too(settings: Settings, wiring: Wiring) -> None:
    async def open_squad() -> Squad:
        return Squad(await Wiring.open(settings, AgentIdentity(id="script", type="test")), settings)

    def script() -> list[Any]:
        squad = Opening(open_squad).__enter__()
        try:
            with squad.follow("owner") as feed:
                feed.add_all()
                feed.remove("b")
                feed.add("a")
                squad.lite("b", "owner").publish("unheard")
                squad.lite("a", "owner").publish("heard")
                for id, items in feed:
                    return [id, *(item.content for item in items if isinstance(item, LiteMessage))]
            return []
        finally:
            squad.close()

    assert await asyncio.to_thread(script) == ["a", "heard"]


class Doubler(Agent):
    """Answers, and emits while it works."""

    @topic_mark("double.number")
    async def double(self, number: int) -> AsyncIterator[int]:
        """Twice a number."""
        yield 2 * number


async def test_who_follows_all_of_its_own_hears_no_answers_to_what_it_asks(serve: Serve, peer: Peer) -> None:
    await serve(Doubler())
    own = peer.caller.lite_topics
    async with own.follow() as feed:
        feed.add_all("first")
        seen: list[Any] = []

        async def handler(id: str, items: LiteItems) -> None:
            seen.extend((id, item.content) for item in items if isinstance(item, LiteMessage))

        serving = asyncio.create_task(feed.serve(handler))
        for number, ask in enumerate((AskOptions(), AskOptions(task_id="of-my-own"), AskOptions(nested=True))):
            handle = await peer.caller.submit("double.number", {"number": number}, ask)
            assert [chunk async for chunk in handle.chunks()] == [2 * number]
            assert (await handle.outcome()).ok
        await own.topic("mine").publish("heard")

        async def heard() -> bool:
            return bool(seen)

        await until(heard)
        assert seen == [("mine", "heard")]
    await asyncio.wait_for(serving, SOON_S)
