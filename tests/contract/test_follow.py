"""Following many topics over one subscription: what is handed out, when, and that nothing of it is lost."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from squadron import Settings
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.lite import follower as follow
from squadron.runtime.lite.followed import MOST_LIVE, Batch
from squadron.runtime.lite.follower import MOST_READ, Follower
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Entry, Journal
from tests.contract.conftest import ON_NATS, SOON_S, Peer, World, at_last, until


class Leaky:
    """A journal whose live messages can get lost, and whose reader can lose its connection."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.deaf = self.away = False
        self._lost: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def lose(self) -> None:
        """The connection is gone: nothing is heard, and nobody answers."""
        self.deaf = self.away = True
        self._lost()

    async def last(self, key: str) -> Entry | None:
        if self.away:
            raise BusUnavailableError("the server is away")
        return await self._journal.last(key)

    async def follow(
        self, pattern: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        assert lost is not None
        self._lost = lost
        return await self._journal.follow(pattern, lambda entry: None if self.deaf else sink(entry), lost=lost)


class Reader:
    """A handler that keeps what it got, can be held up, and notes what runs at the same time."""

    def __init__(self) -> None:
        self.data: dict[str, list[bytes]] = defaultdict(list)
        self.batches: list[Batch] = []
        self.held: dict[str, asyncio.Event] = {}
        self.begun: set[str] = set()
        self.running: list[str] = []

    async def __call__(self, batch: Batch) -> None:
        assert batch.key not in self.running, "one topic, one at a time"
        self.running.append(batch.key)
        self.begun.add(batch.key)
        try:
            if (held := self.held.get(batch.key)) is not None:
                await held.wait()
            self.batches.append(batch)
            self.data[batch.key] += [entry.data for entry in batch.entries]
        finally:
            self.running.remove(batch.key)

    async def has(self, key: str, *data: bytes) -> None:
        async def arrived() -> bool:
            return len(self.data[key]) >= len(data)

        await until(arrived)
        assert self.data[key] == list(data)

    async def began(self, key: str) -> None:
        async def begun() -> bool:
            return key in self.begun

        await until(begun)


@pytest.fixture
def lite(peer: Peer) -> Leaky:
    return Leaky(peer.lite)


@pytest.fixture
def key(peer: Peer) -> Callable[[str | int], str]:
    return lambda name: peer.subjects.lite("owner", str(name))


Key = Callable[[str | int], str]


@pytest.fixture
async def follower(peer: Peer, lite: Leaky) -> AsyncIterator[Follower]:
    opened = await Follower.open(lite, peer.subjects.lite_of("owner"))
    yield opened
    await opened.aclose()


@pytest.fixture
async def reader(follower: Follower) -> AsyncIterator[Reader]:
    reading = Reader()
    serving = asyncio.create_task(follower.serve(reading))
    yield reading
    for held in reading.held.values():
        held.set()
    await follower.aclose()
    await asyncio.wait_for(serving, SOON_S)


async def _settled(follower: Follower) -> None:
    async def quiet() -> bool:
        now = follower.statistics()
        return not now.ready and not now.running

    await until(quiet)


async def _heard(follower: Follower, seq: int) -> None:
    async def heard() -> bool:
        return follower._heard >= seq

    await until(heard)


async def test_a_topic_is_read_from_its_place_and_then_live(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    seqs = [await lite.append(key("a"), data) for data in (b"0", b"1", b"2")]
    await lite.append(key("b"), b"not followed")

    follower.add(key("a"), after=seqs[0])
    await reader.has(key("a"), b"1", b"2")
    await lite.append(key("a"), b"3")
    await reader.has(key("a"), b"1", b"2", b"3")

    assert set(reader.data) == {key("a")}
    assert follower.statistics().reads == 1, "what is heard live needs no read"


async def test_a_new_topic_begins_with_what_is_stored_from_now_on(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    await _heard(follower, await lite.append(key("a"), b"before"))

    follower.add(key("a"))
    await lite.append(key("a"), b"after")

    await reader.has(key("a"), b"after")
    assert follower.statistics().reads == 0


async def test_what_was_missed_shows_with_the_next_message_and_is_read(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    follower.add(key("a"))
    await lite.append(key("a"), b"0")
    await reader.has(key("a"), b"0")
    lite.deaf = True
    await lite.append(key("a"), b"1")
    await asyncio.sleep(0.05)
    lite.deaf = False

    await lite.append(key("a"), b"2")

    await reader.has(key("a"), b"0", b"1", b"2")


async def test_a_last_message_that_was_missed_is_found_by_looking(
    peer: Peer, lite: Leaky, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "UNHEARD_S", 0.05)
    follower = await Follower.open(lite, peer.subjects.lite_of("owner"))
    reader = Reader()
    serving = asyncio.create_task(follower.serve(reader))
    follower.add(key("a"))
    lite.deaf = True

    await lite.append(key("a"), b"0")

    await reader.has(key("a"), b"0")
    assert follower.statistics().reads == 0, "the look brought it"
    await follower.aclose()
    await serving


async def test_after_a_lost_connection_all_topics_are_looked_after_by_one_read(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    names = range(500)
    for name in names:
        follower.add(key(name))
    await asyncio.gather(*(lite.append(key(name), b"0") for name in names))
    for name in names:
        await reader.has(key(name), b"0")
    lite.lose()
    await asyncio.gather(*(lite.append(key(name), b"1") for name in names))
    await asyncio.sleep(0.05)
    # The first that is heard again must not hide what was missed on the other topics.
    lite.deaf = False
    await _heard(follower, await lite.append(key(0), b"2"))
    lite.away = False
    await lite.append(key(1), b"2")

    await reader.has(key(0), b"0", b"1", b"2")
    await reader.has(key(1), b"0", b"1", b"2")
    for name in names[2:]:
        await reader.has(key(name), b"0", b"1")
    assert follower.statistics().reads <= 2


async def test_a_busy_topic_that_gets_a_thousand_messages_is_one_ready_mark(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    follower.add(key("a"))
    reader.held[key("a")] = asyncio.Event()
    await lite.append(key("a"), b"first")
    await reader.began(key("a"))
    before = follower.statistics()

    for i in range(1_000):
        last = await lite.append(key("a"), b"%d" % i)
    await _heard(follower, last)
    held = follower.statistics()
    reader.held[key("a")].set()
    await reader.has(key("a"), b"first", *(b"%d" % i for i in range(1_000)))

    assert (held.marks, held.ready, held.running) == (before.marks, 0, 1), "while it is busy nothing is marked"
    assert held.held_bytes <= 3 * MOST_LIVE
    assert len(reader.batches) <= 4
    await _settled(follower)
    assert follower.statistics().held_bytes == 0


async def test_a_waiting_topic_that_gets_messages_is_one_ready_mark(
    peer: Peer, lite: Leaky, follower: Follower, key: Key
) -> None:
    follower.add(key("a"))
    for i in range(200):
        last = await lite.append(key("a"), b"%d" % i)
    await _heard(follower, last)

    assert follower.statistics().marks == 1
    batch = await asyncio.wait_for(anext(aiter(follower)), SOON_S)
    assert [entry.data for entry in batch.entries] == [b"%d" % i for i in range(200)]
    assert batch.seq == last


async def test_one_slow_topic_among_a_thousand_delays_no_other(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    names = range(1_000)
    for name in names:
        follower.add(key(name))
    reader.held[key(0)] = asyncio.Event()
    await lite.append(key(0), b"0")
    await reader.began(key(0))

    for data in (b"0", b"1"):
        await asyncio.gather(*(lite.append(key(name), data) for name in names[1:]))
    for name in names[1:]:
        await reader.has(key(name), b"0", b"1")

    assert not reader.data[key(0)]
    reader.held[key(0)].set()
    await reader.has(key(0), b"0")


async def test_more_than_one_batch_of_history_is_read_in_order(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    count = 2 * MOST_READ + 7
    for i in range(count):
        await lite.append(key("a"), b"%d" % i)

    follower.add(key("a"), after=0)

    await reader.has(key("a"), *(b"%d" % i for i in range(count)))
    assert max(len(batch.entries) for batch in reader.batches) == MOST_READ


async def test_a_batch_whose_handler_raised_comes_again_with_what_came_since(
    lite: Leaky, follower: Follower, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RETRY_S", 0.05)
    seen: list[list[bytes]] = []
    enough = asyncio.Event()

    async def handler(batch: Batch) -> None:
        seen.append([entry.data for entry in batch.entries])
        if len(seen) < 3:
            raise RuntimeError("not this time")
        enough.set()

    # The history, and then live messages: neither is lost.
    await lite.append(key("a"), b"0")
    serving = asyncio.create_task(follower.serve(handler))
    follower.add(key("a"), after=0)
    await until(lambda: _is(bool(seen)))
    last = await lite.append(key("a"), b"1")
    await asyncio.wait_for(enough.wait(), SOON_S)

    assert seen[0] == [b"0"]
    assert seen[1][:1] == [b"0"]
    assert seen[-1] in ([b"0", b"1"], [b"0"])
    await until(lambda: _is(follower.cursor(key("a")) == last))
    await follower.aclose()
    await serving


async def test_a_handler_that_raises_is_logged_in_one_line_and_waits_longer_each_time(
    lite: Leaky, follower: Follower, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RETRY_S", 0.01)
    monkeypatch.setattr(follow, "LONGEST_RETRY_S", 0.04)
    runs: list[Batch] = []

    async def handler(batch: Batch) -> None:
        runs.append(batch)
        if len(runs) not in (5, 7):
            raise ValueError("no use")

    async def ran(times: int) -> bool:
        return len(runs) >= times

    follower.add(key("a"))
    with capture_logs() as logs:
        serving = asyncio.create_task(follower.serve(handler))
        await lite.append(key("a"), b"0")
        await until(lambda: ran(5))
        await lite.append(key("a"), b"1")
        await until(lambda: ran(7))
        await follower.aclose()
        await serving

    raised = [log for log in logs if log["event"] == "follow.handler_raised"]
    # What went well in between makes it begin anew.
    assert [log["failures"] for log in raised] == [1, 2, 3, 4, 1]
    assert all(0 < log["again_in_s"] <= 0.04 for log in raised)
    assert raised[0]["key"] == key("a")
    assert raised[0]["error"] == "ValueError: no use"
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ handler", raised[0]["at"])
    assert "exc_info" not in raised[0]


async def _is(so: bool) -> bool:
    return so


async def test_a_topic_that_was_removed_is_heard_no_more_and_no_other_notices(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    for name in "abc":
        follower.add(key(name))
    reader.held[key("a")] = asyncio.Event()
    await lite.append(key("a"), b"0")
    await reader.began(key("a"))
    await lite.append(key("a"), b"1")
    await _heard(follower, await lite.append(key("b"), b"0"))

    follower.remove(key("a"))
    follower.remove(key("unknown"))
    reader.held[key("a")].set()
    await lite.append(key("a"), b"2")
    await lite.append(key("c"), b"0")

    await reader.has(key("b"), b"0")
    await reader.has(key("c"), b"0")
    await reader.has(key("a"), b"0")
    await _settled(follower)
    assert key("a") not in follower
    assert follower.statistics().held_bytes == 0


async def test_a_topic_that_is_added_anew_while_it_is_read_waits_for_its_turn(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    follower.add(key("a"))
    reader.held[key("a")] = asyncio.Event()
    first = await lite.append(key("a"), b"0")
    await reader.began(key("a"))

    follower.add(key("a"), after=first - 1)
    await lite.append(key("a"), b"1")
    reader.held[key("a")].set()

    # The handler itself asserts that it runs once at a time.
    await reader.has(key("a"), b"0", b"0", b"1")


async def test_all_topics_of_an_owner_are_followed_and_forgotten_when_they_are_read(
    peer: Peer, lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    await _heard(follower, await lite.append(key("old"), b"before"))
    follower.add_all()
    follower.remove(key("unwanted"))

    for data in (b"0", b"1"):
        for name in ("old", "new", "unwanted"):
            await lite.append(key(name), data)
        await lite.append(peer.subjects.lite("stranger", "new"), data)
    await reader.has(key("new"), b"0", b"1")
    await reader.has(key("old"), b"0", b"1")
    await _settled(follower)

    assert set(reader.data) == {key("old"), key("new")}
    assert follower.statistics().followed == 0
    lite.lose()
    await lite.append(key("new"), b"2")
    lite.deaf = lite.away = False
    await reader.has(key("new"), b"0", b"1", b"2")


async def test_all_topics_of_an_owner_can_be_read_from_the_first(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    for i in range(3 * MOST_LIVE):
        last = await lite.append(key("large"), b"%d" % i)
    for i in range(100):
        last = await lite.append(key(i), b"0")
    await _heard(follower, last)

    follower.add_all(after=0)
    await lite.append(key(0), b"1")

    await reader.has(key("large"), *(b"%d" % i for i in range(3 * MOST_LIVE)))
    await reader.has(key(0), b"0", b"1")
    for i in range(1, 100):
        await reader.has(key(i), b"0")
    await _settled(follower)
    lite.lose()
    await lite.append(key(0), b"2")
    lite.deaf = lite.away = False
    await reader.has(key(0), b"0", b"1", b"2")
    await reader.has(key(1), b"0")


async def test_who_comes_back_to_a_topic_that_lost_entries_is_told(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    seqs = [await lite.append(key("a"), b"%d" % i) for i in range(4)]
    await lite.erase(key("a"), through_seq=seqs[2])
    await lite.append(key("b"), b"0")
    await lite.append(key("b"), b"1")

    follower.add(key("a"), after=seqs[0], resumed=True)
    follower.add(key("b"), after=seqs[3] + 1, resumed=True)

    await reader.has(key("a"), b"3")
    await reader.has(key("b"), b"1")
    assert {batch.key: batch.lapsed for batch in reader.batches} == {key("a"): True, key("b"): False}


async def test_entries_that_vanish_before_a_slow_reader_comes_to_them_are_told(
    lite: Leaky, follower: Follower, reader: Reader, key: Key
) -> None:
    follower.add(key("a"))
    reader.held[key("a")] = asyncio.Event()
    await lite.append(key("a"), b"first")
    await reader.began(key("a"))
    lite.deaf = True
    await lite.append(key("a"), b"1")
    await asyncio.sleep(0.05)
    lite.deaf = False
    last = await lite.append(key("a"), b"2")
    await _heard(follower, last)
    await lite.erase(key("a"))

    reader.held[key("a")].set()

    # What is at hand is handed out.
    await reader.has(key("a"), b"first", b"2")
    assert [batch.lapsed for batch in reader.batches] == [False, True]
    await lite.append(key("a"), b"3")
    await reader.has(key("a"), b"first", b"2", b"3")


async def test_what_is_too_much_to_hold_stays_in_the_store(
    lite: Leaky, follower: Follower, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MOST_HELD_BYTES", 1_000)
    for name in range(10):
        follower.add(key(name))
        for i in range(10):
            last = await lite.append(key(name), b"%090d" % i)
    await _heard(follower, last)
    assert follower.statistics().held_bytes <= 1_000

    reader = Reader()
    serving = asyncio.create_task(follower.serve(reader))

    for name in range(10):
        await reader.has(key(name), *(b"%090d" % i for i in range(10)))
    await _settled(follower)
    assert follower.statistics().held_bytes == 0
    await follower.aclose()
    await serving


async def test_a_batch_that_was_left_in_the_middle_comes_again(lite: Leaky, follower: Follower, key: Key) -> None:
    follower.add(key("a"))
    for data in (b"0", b"1"):
        await _heard(follower, await lite.append(key("a"), data))

    async for batch in follower:
        assert batch.entries[0].data == b"0"
        break
    seen = []
    async for batch in follower:
        seen += [entry.data for entry in batch.entries]
        if seen[-1] == b"2":
            break
        await lite.append(key("a"), b"2")

    assert seen == [b"0", b"1", b"2"]


async def test_closing_ends_reading(follower: Follower, key: Key) -> None:
    follower.add(key("a"))
    serving = asyncio.create_task(follower.serve(Reader()))
    iterating = asyncio.create_task(anext(aiter(follower), None))

    await follower.aclose()
    await follower.aclose()

    await asyncio.wait_for(serving, SOON_S)
    assert await asyncio.wait_for(iterating, SOON_S) is None


@ON_NATS
async def test_a_follower_is_told_of_a_lost_connection_before_it_hears_what_comes_after_it(
    world: World, wiring: Wiring
) -> None:
    told: list[str] = []
    key = wiring.ports.subjects.lite("owner", "a")
    writer = await world.join("writer")
    ear = await wiring.ports.lite.follow(
        wiring.ports.subjects.lite_of("owner"),
        lambda entry: told.append("entry"),
        lost=lambda: told.append("lost"),
    )

    await wiring.connection.client.force_reconnect()
    await until(lambda: _is(wiring.connection.is_connected))
    await wiring.connection.flush()
    await writer.lite.append(key, b"0")
    await until(lambda: _is("entry" in told))
    await ear.aclose()
    await wiring.connection.client.force_reconnect()
    await until(lambda: _is(wiring.connection.is_connected))
    await wiring.connection.flush()

    assert told == ["lost", "entry"]


def _subscriptions(settings: Settings) -> int:
    """How many subscriptions the server holds, over all clients."""
    endpoint = embedded.find(settings.home)
    assert endpoint is not None
    with urllib.request.urlopen(f"{endpoint.monitor_url}/subsz", timeout=5) as answer:
        return int(json.load(answer)["num_subscriptions"])


@ON_NATS
async def test_ten_thousand_topics_take_one_subscription_and_no_consumer(
    peer: Peer, wiring: Wiring, settings: Settings, key: Key
) -> None:
    keys = [key(i) for i in range(10_000)]
    before = await asyncio.to_thread(_subscriptions, settings)
    follower = await Follower.open(peer.lite, peer.subjects.lite_of("owner"))
    heard: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def handler(batch: Batch) -> None:
        heard[batch.key].set()

    serving = asyncio.create_task(follower.serve(handler))
    for each in keys:
        follower.add(each)
    for some in range(0, len(keys), 1_000):
        # Those that are not acknowledged within their time, on a busy machine, are sent again.
        batch = [partial(peer.lite.append, each, b"0", msg_id=each) for each in keys[some : some + 1_000]]
        await asyncio.gather(*map(at_last, batch))
    for each in keys:
        await asyncio.wait_for(heard[each].wait(), SOON_S)
    after = await asyncio.to_thread(_subscriptions, settings)

    for i in range(300):
        # One more is followed, with its history; it is heard live; it is followed no more.
        late = key(f"late-{i}")
        await peer.lite.append(late, b"0")
        follower.add(late, after=0)
        await heard[late].wait()
        follower.remove(late)
        heard[late].clear()
        await _heard(follower, await peer.lite.append(late, b"1"))
        assert not heard[late].is_set()
    state = (await wiring.connection.api(f"STREAM.INFO.squadron-{settings.env}-lite", {}))["state"]
    await follower.aclose()
    await serving

    assert (after - before, state["consumer_count"]) == (1, 0)
