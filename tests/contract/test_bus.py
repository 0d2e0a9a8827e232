"""What every `UnreliableBus` does: who listens now hears it, and nobody else ever does."""

from __future__ import annotations

import asyncio

import pytest

from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.bus import Note
from squadron.runtime.wire.subjects import subject_matches
from tests.contract.conftest import Inbox, Peer, World


async def test_who_listens_hears_it_and_who_came_later_does_not(world: World) -> None:
    one, other = await world.join("one"), await world.join("other")
    subject = one.subjects.event("status.online")
    early, late = Inbox(), Inbox()
    await other.bus.subscribe(subject, early)

    await one.bus.publish(subject, b"first")
    assert await early.next() == Note(subject, b"first")
    await other.bus.subscribe(subject, late)
    await one.bus.publish(subject, b"second")

    assert (await early.next()).data == b"second"
    assert (await late.next()).data == b"second"
    assert late.is_empty


@pytest.mark.parametrize(
    ("pattern", "heard"),
    [
        ("a.*", ["a.b"]),
        ("a.>", ["a.b", "a.b.c"]),
        (">", ["a", "a.b", "a.b.c", "b.c"]),
        ("*.c", ["b.c"]),
        ("a", ["a"]),
    ],
)
async def test_patterns_match_as_in_nats(peer: Peer, pattern: str, heard: list[str]) -> None:
    root = peer.subjects.environment  # a namespace of this test's own
    inbox = Inbox()
    await peer.bus.subscribe(f"{root}.{pattern}", inbox)

    for subject in ("a", "a.b", "a.b.c", "b.c"):
        await peer.bus.publish(f"{root}.{subject}", b"")
    await peer.bus.publish(f"{root}.{pattern.replace('*', 'end').replace('>', 'end')}", b"end")

    seen = []
    while (note := await inbox.next()).data != b"end":
        seen.append(note.subject.removeprefix(f"{root}."))
    assert seen == heard


def test_a_last_greater_sign_needs_at_least_one_token() -> None:
    assert not subject_matches("a.>", "a")
    assert not subject_matches("a.*", "a")
    assert not subject_matches("a.*", "a.b.c")


async def test_in_a_group_each_message_reaches_one_member_and_outside_everybody(world: World) -> None:
    one, other = await world.join("one"), await world.join("other")
    subject = one.subjects.event("work.done")
    heard: asyncio.Queue[str] = asyncio.Queue()
    for peer, name in ((one, "m1"), (other, "m2")):
        await peer.bus.subscribe(subject, lambda note, n=name: heard.put_nowait(n), group="team")
    await other.bus.subscribe(subject, lambda note: heard.put_nowait("loner"))

    for _ in range(40):
        await one.bus.publish(subject, b"")

    names = [await asyncio.wait_for(heard.get(), 30) for _ in range(80)]
    assert names.count("loner") == 40
    assert names.count("m1") + names.count("m2") == 40
    assert min(names.count("m1"), names.count("m2")) > 0
    assert heard.empty()


async def test_a_closed_subscription_hears_nothing(peer: Peer) -> None:
    subject = peer.subjects.event("status.online")
    closed, open_ = Inbox(), Inbox()
    ear = await peer.bus.subscribe(subject, closed)
    await peer.bus.subscribe(subject, open_)
    await ear.aclose()
    await ear.aclose()

    await peer.bus.publish(subject, b"x")

    await open_.next()
    assert closed.is_empty


async def test_who_publishes_says_where_answers_are_wanted(peer: Peer) -> None:
    subject, inbox = peer.subjects.event("status.online"), Inbox()
    await peer.bus.subscribe(subject, inbox)
    await peer.bus.publish(subject, b"x", reply="_INBOX.mine", headers={"A": "b"})
    note = await inbox.next()
    assert (note.reply, note.headers["A"]) == ("_INBOX.mine", "b")


async def test_a_request_gets_one_answer(world: World) -> None:
    one, other = await world.join("one"), await world.join("other")
    tasks = set()

    def answer(note: Note) -> None:
        tasks.add(asyncio.create_task(other.bus.publish(note.reply, note.data.upper())))

    await other.bus.subscribe(one.subjects.control("ping"), answer)

    answers = await asyncio.gather(
        *(one.bus.request(one.subjects.control("ping"), f"a{i}".encode(), within_s=30) for i in range(20))
    )

    assert answers == [f"A{i}".encode() for i in range(20)]


async def test_a_request_that_nobody_listens_to_fails_at_once(peer: Peer) -> None:
    with pytest.raises(BusUnavailableError):
        await peer.bus.request(peer.subjects.control("ping"), b"", within_s=5)


async def test_a_request_that_nobody_answers_fails_in_time(peer: Peer) -> None:
    await peer.bus.subscribe(peer.subjects.control("ping"), lambda note: None)
    with pytest.raises(BusUnavailableError, match="within"):
        await peer.bus.request(peer.subjects.control("ping"), b"", within_s=0.05)


async def test_ten_thousand_messages_arrive_in_order(peer: Peer) -> None:
    subject = peer.subjects.event("count.up")
    inbox = Inbox()
    await peer.bus.subscribe(subject, inbox)

    for i in range(10_000):
        await peer.bus.publish(subject, str(i).encode())

    assert [int(note.data) for note in await inbox.take(10_000)] == list(range(10_000))


async def test_a_sink_that_raises_does_not_make_the_others_deaf(peer: Peer) -> None:
    subject = peer.subjects.event("status.online")
    inbox = Inbox()

    def broken(note: Note) -> None:
        inbox(note)
        raise ValueError("planned")

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)
    try:
        await peer.bus.subscribe(subject, broken)
        await peer.bus.publish(subject, b"1")
        await peer.bus.publish(subject, b"2")
        assert [note.data for note in await inbox.take(2)] == [b"1", b"2"]
    finally:
        loop.set_exception_handler(before)
