"""What every `Journal` keeps: an ordered, keyed log that can be read again and followed live."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from squadron.bridge.memory import MAX_PAYLOAD_BYTES
from squadron.runtime.errors import FencedError, InvalidSubjectError, MessageTooLargeError
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.wire.subjects import live_of
from tests.contract.conftest import ON_NATS, SOON_S, Inbox, Peer, World, until


@pytest.fixture
def lite(peer: Peer) -> Journal:
    return peer.lite


@pytest.fixture
def key(peer: Peer) -> str:
    return peer.subjects.lite("owner", "one")


@pytest.fixture
def other_key(peer: Peer) -> str:
    return peer.subjects.lite("owner", "two")


async def _all(lite: Journal, pattern: str, from_seq: int = 1) -> list[bytes]:
    return [entry.data async for entry in lite.read(pattern, from_seq=from_seq)]


async def test_the_last_entry_of_a_key_is_the_one_appended_last(lite: Journal, key: str, other_key: str) -> None:
    assert await lite.last(key) is None
    first = await lite.append(key, b"one")
    second = await lite.append(key, b"two")
    await lite.append(other_key, b"other")

    last = await lite.last(key)

    assert last is not None
    assert (last.key, last.data, last.seq) == (key, b"two", second)
    assert first < second


async def test_an_entry_may_be_empty_or_any_bytes(lite: Journal, key: str, other_key: str) -> None:
    everything = bytes(range(256))
    await lite.append(key, b"")
    await lite.append(other_key, everything)

    assert await _all(lite, key) == [b""]
    assert await _all(lite, other_key) == [everything]


async def test_latest_gives_the_newest_of_each_key_oldest_first(peer: Peer, lite: Journal) -> None:
    keys = [peer.subjects.lite("owner", name) for name in "abc"]
    for key in (*keys, keys[0]):
        await lite.append(key, f"{key}!".encode())
    await lite.append(peer.subjects.lite("stranger", "a"), b"no")

    newest = await lite.latest(peer.subjects.lite_of("owner"))

    assert [entry.key for entry in newest] == [keys[1], keys[2], keys[0]]
    assert await lite.latest(peer.subjects.lite_of("nobody")) == []


async def test_reading_starts_where_it_is_told_to(lite: Journal, key: str) -> None:
    seqs = [await lite.append(key, str(i).encode()) for i in range(5)]

    assert await _all(lite, key) == [b"0", b"1", b"2", b"3", b"4"]
    assert await _all(lite, key, from_seq=seqs[3]) == [b"3", b"4"]
    assert await _all(lite, key, from_seq=seqs[4] + 1) == []


async def test_more_entries_than_fit_one_batch_are_all_read(lite: Journal, key: str) -> None:
    await asyncio.gather(*(lite.append(key, str(i).encode()) for i in range(1100)))

    assert sorted(int(data) for data in await _all(lite, key)) == list(range(1100))


async def test_entries_of_many_megabytes_are_all_read(lite: Journal, key: str) -> None:
    """A server ends an answer past 64 MB; the rest has to be asked for."""
    for i in range(11):
        await lite.append(key, bytes([i]) * 7_000_000)

    assert [data[0] for data in await _all(lite, key)] == list(range(11))


async def test_an_entry_is_gone_after_its_time_to_live(lite: Journal, key: str, other_key: str) -> None:
    await lite.append(key, b"short", ttl_s=0.2)  # rounded up to a second
    await lite.append(other_key, b"long", ttl_s=60)
    assert await lite.last(key) is not None

    async def gone() -> bool:
        return await lite.last(key) is None

    await until(gone)
    assert await _all(lite, key) == []
    assert await _all(lite, other_key) == [b"long"]


async def test_the_same_message_id_is_stored_once_and_gives_the_same_sequence(lite: Journal, key: str) -> None:
    first = await lite.append(key, b"one", msg_id="same")
    await lite.append(key, b"between")

    assert await lite.append(key, b"two", msg_id="same") == first
    assert await _all(lite, key) == [b"one", b"between"]


async def test_what_is_there_under_an_id_and_does_not_count_keeps_nothing_away(lite: Journal, key: str) -> None:
    async def counts(entry: Entry) -> bool:
        return entry.data == b"right"

    await lite.append(key, b"wrong", msg_id="same")
    first = await lite.append(key, b"right", msg_id="same", counts=counts)
    assert await lite.append(key, b"right", msg_id="same", counts=counts) == first
    assert await lite.append(key, b"late", msg_id="same", counts=counts) == first
    assert await _all(lite, key) == [b"wrong", b"right"]


async def test_a_fenced_append_that_is_tried_again_is_fenced_by_itself(lite: Journal, key: str) -> None:
    """The server looks at the sequence first: a writer whose acknowledgement was lost reads `last` to know."""
    await lite.append(key, b"one", msg_id="same", expect_seq=0)

    with pytest.raises(FencedError):
        await lite.append(key, b"one", msg_id="same", expect_seq=0)


async def test_who_expects_a_stale_sequence_is_fenced(lite: Journal, key: str, other_key: str) -> None:
    first = await lite.append(key, b"one", expect_seq=0)
    await lite.append(other_key, b"does not matter")
    second = await lite.append(key, b"two", expect_seq=first)

    for stale in (0, first, second + 10):
        with pytest.raises(FencedError):
            await lite.append(key, b"zombie", expect_seq=stale)

    assert await _all(lite, key) == [b"one", b"two"]


async def test_of_two_writers_at_once_one_is_fenced(world: World) -> None:
    peers = [await world.join("one"), await world.join("other")]
    key = peers[0].subjects.lite("owner", "race")

    ended = await asyncio.gather(
        *(peer.lite.append(key, b"mine", expect_seq=0) for peer in peers), return_exceptions=True
    )

    assert sorted(type(end).__name__ for end in ended) == ["FencedError", "int"]


async def test_an_erased_key_is_empty_and_may_be_used_again(lite: Journal, key: str, other_key: str) -> None:
    await lite.append(key, b"one")
    await lite.append(key, b"two")
    await lite.append(other_key, b"stays")

    await lite.erase(key)
    await lite.erase(key)

    assert await lite.last(key) is None
    assert await _all(lite, key) == []
    assert await _all(lite, other_key) == [b"stays"]
    await lite.append(key, b"three", expect_seq=0)
    assert await _all(lite, key) == [b"three"]


async def test_entries_of_a_key_may_be_erased_up_to_one_of_them(lite: Journal, key: str, other_key: str) -> None:
    first = await lite.append(key, b"one")
    await lite.append(other_key, b"stays")
    second = await lite.append(key, b"two")
    await lite.append(key, b"three")

    await lite.erase(key, through_seq=first - 1)
    assert await _all(lite, key) == [b"one", b"two", b"three"]
    await lite.erase(key, through_seq=second)

    assert await _all(lite, key) == [b"three"]
    assert await _all(lite, other_key) == [b"stays"]


async def test_an_entry_that_is_too_large_is_refused(lite: Journal, key: str) -> None:
    with pytest.raises(MessageTooLargeError):
        await lite.append(key, b"x" * (MAX_PAYLOAD_BYTES + 1))

    assert await lite.last(key) is None


async def test_appends_are_heard_on_the_bus(peer: Peer, lite: Journal, key: str) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    ear = await peer.bus.subscribe(peer.subjects.lite_of("owner"), lambda note: heard.put_nowait(note.data))

    await lite.append(key, b"hello")

    assert await asyncio.wait_for(heard.get(), SOON_S) == b"hello"
    await ear.aclose()


async def test_the_registry_keeps_only_the_newest_entry_of_a_key(peer: Peer) -> None:
    key = peer.subjects.card("analyst")
    for i in range(3):
        await peer.records.append(key, str(i).encode())

    assert (await peer.records.latest(peer.subjects.registry("card")))[0].data == b"2"


async def test_who_follows_hears_each_entry_with_its_place_and_the_one_before(
    peer: Peer, lite: Journal, key: str, other_key: str
) -> None:
    before = await lite.append(key, b"before")
    heard = Inbox()
    following = await lite.follow(peer.subjects.lite_of("owner"), heard)
    one = await lite.append(key, b"one")
    other = await lite.append(other_key, b"other")
    await lite.append(peer.subjects.lite("stranger", "a"), b"no")
    two = await lite.append(key, b"two")

    entries = await heard.take(3)

    assert [(e.seq, e.previous) for e in entries] == [(one, before), (other, 0), (two, one)]
    assert [(e.key, e.data) for e in entries] == [(key, b"one"), (other_key, b"other"), (key, b"two")]
    assert all(abs(entry.time - peer.clock.time()) < SOON_S for entry in entries)
    await following.aclose()
    await following.aclose()
    await lite.append(key, b"after")
    assert heard.is_empty


async def test_who_follows_hears_nothing_that_was_not_stored(lite: Journal, key: str) -> None:
    heard = Inbox()
    following = await lite.follow(key, heard)
    first = await lite.append(key, b"one", msg_id="same")
    await lite.append(key, b"again", msg_id="same")
    with pytest.raises(FencedError):
        await lite.append(key, b"zombie", expect_seq=0)
    last = await lite.append(key, b"two")

    assert [entry.seq for entry in await heard.take(2)] == [first, last]
    await following.aclose()


async def test_what_was_erased_does_not_come_before_the_next_entry(lite: Journal, key: str) -> None:
    heard = Inbox()
    following = await lite.follow(key, heard)
    await lite.append(key, b"one")
    await lite.erase(key)
    await lite.append(key, b"two")

    assert [entry.previous for entry in await heard.take(2)] == [0, 0]
    await following.aclose()


@ON_NATS
async def test_what_a_follower_raises_is_logged(lite: Journal, key: str) -> None:
    heard = asyncio.Event()

    def hear(_: Entry) -> None:
        heard.set()
        raise LookupError("of the follower's own")

    following = await lite.follow(key, hear)
    with structlog.testing.capture_logs() as logged:
        await lite.append(key, b"one")
        await asyncio.wait_for(heard.wait(), SOON_S)
    assert [entry["event"] for entry in logged] == ["nats.sink_raised"]
    await following.aclose()


@ON_NATS
async def test_what_the_server_tells_of_an_entry_counts_and_not_what_its_sender_wrote_nor_what_comes_behind(
    peer: Peer, lite: Journal, key: str, other_key: str
) -> None:
    heard = Inbox()
    following = await lite.follow(peer.subjects.lite_of("owner"), heard)
    said = {"Nats-Subject": other_key, "Nats-Sequence": "900", "Nats-Time-Stamp": "2026-01-01T00:00:00Z"}
    said["Nats-Last-Sequence"] = "899"
    seq = await lite.append(key, b"one", headers=said)
    # As of a server that tells something more.
    await peer.bus.publish(live_of(key), b"two", headers=said | {"Nats-Subject": key, "Nats-Msg-Size": "3"})

    one, two = await heard.take(2)

    assert (one.key, one.seq, one.previous) == (key, seq, 0)
    assert (two.key, two.seq, two.previous, two.data) == (key, 900, 899, b"two")
    await following.aclose()


async def test_only_lite_topics_and_the_registry_can_be_followed(peer: Peer) -> None:
    with pytest.raises(InvalidSubjectError):
        await peer.dead.follow(peer.subjects.dead_of(), lambda _: None)


async def test_who_follows_the_registry_hears_each_entry_with_its_place(peer: Peer) -> None:
    heard, card = Inbox(), peer.subjects.card("analyst")
    following = await peer.records.follow(peer.subjects.registry("card"), heard)
    for number in range(3):
        await peer.records.append(card, b"%d" % number)
    await peer.records.append(peer.subjects.presence("analyst", "a-1"), b"{}")

    stored = [await heard.next() for _ in range(3)]
    assert [entry.data for entry in stored] == [b"0", b"1", b"2"]
    assert [entry.previous for entry in stored] == [0, stored[0].seq, stored[1].seq]
    last = await peer.records.last(card)
    assert last is not None
    assert (last.seq, last.time) == (stored[2].seq, stored[2].time)
    assert heard.is_empty
    await following.aclose()


async def test_reading_starts_at_the_time_it_is_told(lite: Journal, key: str) -> None:
    await lite.append(key, b"old")
    await asyncio.sleep(0.01)
    await lite.append(key, b"one")
    await lite.append(key, b"two")
    old, one, two = [entry async for entry in lite.read(key)]
    assert old.time < one.time <= two.time

    # Between the two: a time of the server's is more exact than a float.
    between = (old.time + one.time) / 2
    assert [entry.seq async for entry in lite.read(key, from_time=between)] == [one.seq, two.seq]
    assert [entry.seq async for entry in lite.read(key, from_time=two.time + 60)] == []
