"""A server whose storage is full stores nothing more; what frees storage, or only ends something, works still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squadron import Settings
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import ClaimLostError, StorageFullError
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.conftest import Inbox
from tests.contract.own_server import OwnServer


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A server with room for little."""
    server = OwnServer(tmp_path, jetstream="max_file: 1MB")
    server.start()
    yield tmp_path, server.url
    server.stop()


@pytest.fixture
async def wiring(small: tuple[Path, str]) -> AsyncIterator[Wiring]:
    home, url = small
    settings = Settings(home=home, nats_url=url, env="full", lease_s=30.0)
    opened = await Wiring.open(settings, AgentIdentity(id="test"), create=True)
    yield opened
    await opened.aclose()


async def _fill(wiring: Wiring) -> None:
    """Until not one more byte is stored."""
    for size in (100_000, 1_000, 10, 0):
        try:
            while True:
                await wiring.ports.dead.append(wiring.ports.subjects.dead("filler", "x"), b"x" * size)
        except StorageFullError:
            continue


async def test_a_lite_topic_can_be_closed_and_its_reader_is_told(wiring: Wiring) -> None:
    topic = wiring.caller.lite_topics.topic("one", "reader")
    for content in ("first", "second"):
        await topic.publish(content)
    reader = topic.read()
    assert (await anext(reader)).content == "first"
    await _fill(wiring)

    await topic.close()

    assert await wiring.ports.lite.last(topic.key) is None
    with pytest.raises(StorageFullError, match="give it more storage"):
        await topic.publish("more")
    await wiring.ports.dead.erase(wiring.ports.subjects.dead("filler", "x"))
    assert [message.content async for message in reader] in ([], ["second"])
    assert reader.end is not None
    assert reader.end.reason == "closed"
    late = topic.read(live=False)
    assert [message.content async for message in late] == []
    assert late.end is not None
    assert late.end.missed


async def test_what_a_replica_can_not_run_goes_back_at_once_all_the_same(wiring: Wiring) -> None:
    mailbox = Mailbox("reader", ("book.read",), lease_s=600.0)
    await wiring.ports.queue.declare(mailbox)
    await wiring.ports.queue.put(wiring.ports.subjects.task("book.read"), b"x", msg_id="")
    arrived = Inbox()
    feed = await wiring.ports.queue.consume(mailbox, arrived)
    feed.want(1)
    delivery = await arrived.next()
    await _fill(wiring)

    await delivery.lease.release()

    feed.want(1)
    again = await arrived.next()
    assert again.data == b"x"
    await again.lease.settle(confirmed=True)
    await feed.aclose()


async def test_agents_leave_and_what_is_kept_can_be_erased(wiring: Wiring) -> None:
    name = await wiring.ports.claims.vault.store(b"x" * 50_000, keep_s=600.0)
    await wiring.ports.queue.declare(Mailbox("leaver", ("book.burn",)))
    await _fill(wiring)

    await wiring.ports.claims.vault.drop(name)
    await wiring.ports.queue.remove("leaver")
    await wiring.ports.dead.erase(wiring.ports.subjects.dead("filler", "x"))

    with pytest.raises(ClaimLostError):
        await wiring.ports.claims.vault.fetch(name)
    assert not await wiring.ports.queue.store.knows("leaver")
    letters = wiring.ports.subjects.dead("filler", "x")
    await wiring.ports.dead.append(letters, b"there is room again")
    assert [entry.data async for entry in wiring.ports.dead.read(letters)] == [b"there is room again"]
