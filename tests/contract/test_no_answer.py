"""What JetStream refuses to say is not "nothing": only its definite "not found" counts as absence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from squadron import Settings
from squadron.bridge.jetstream.events import JetStreamEventLog
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.queue import JetStreamQueue, subjects_held
from squadron.bridge.jetstream.stream_configs import StreamNames, Streams, ensure_streams, streams_exist
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.queue import Backlog, Mailbox
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.subjects import Subjects
from tests.contract.conftest import ON_NATS, Inbox, Peer, World
from tests.contract.own_server import OwnServer

#: An account for which the server refuses every call of JetStream, with an error code of its own.
_REFUSED = """
accounts {
  HAS { jetstream: enabled, users: [{user: has, password: x}] }
  HAS_NOT { users: [{user: not, password: x}] }
}
"""

_BOX = Mailbox("reader", ("book.read",))


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A server that answers all calls of JetStream with an error."""
    home = tmp_path_factory.mktemp("refusing")
    server = OwnServer(home, _REFUSED)
    server.start()
    yield Settings(home=home, nats_url=server.url.replace("//", "//not:x@"), env="refused")
    server.stop()


_NAMES = StreamNames("refused")

Look = Callable[[Any, JetStreamQueue, JetStreamEventLog], Awaitable[Any]]


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(lambda c, q, e: q.backlog("reader"), id="backlog"),
        pytest.param(lambda c, q, e: q.knows("reader"), id="knows"),
        pytest.param(lambda c, q, e: q.count("agents.refused.task.>"), id="count"),
        pytest.param(lambda c, q, e: q.head("agents.refused.task.>"), id="head"),
        pytest.param(lambda c, q, e: q.remove("reader"), id="remove"),
        pytest.param(lambda c, q, e: q.declare(_BOX), id="declare"),
        pytest.param(lambda c, q, e: e.forget("group"), id="forget"),
        pytest.param(lambda c, q, e: subjects_held(c, _NAMES.tasks, ["agents.refused.task.>"]), id="held"),
        pytest.param(lambda c, q, e: streams_exist(c, _NAMES), id="exist"),
        pytest.param(lambda c, q, e: ensure_streams(c, _NAMES), id="ensure"),
        pytest.param(lambda c, q, e: Streams(c, _NAMES).keep(), id="keep"),
    ],
)
async def test_an_error_of_jetstream_is_raised_and_is_not_emptiness(refusing: Settings, look: Look) -> None:
    connection = await connect(refusing, name="test")
    subjects = Subjects("refused")
    try:
        with pytest.raises(BusUnavailableError, match="not enabled"):
            await look(connection, JetStreamQueue(connection, subjects), JetStreamEventLog(connection, subjects))
    finally:
        await connection.aclose()


async def test_an_environment_that_can_not_be_seen_is_not_one_that_was_never_started(
    refusing: Settings,
) -> None:
    with pytest.raises(BusUnavailableError):
        await Wiring.open(refusing, AgentIdentity(id="test"))


@ON_NATS
async def test_a_stream_that_is_gone_is_an_error_and_a_mailbox_that_is_not_there_is_none(
    world: World, peer: Peer, wiring_of: Callable[[], Awaitable[Wiring]]
) -> None:
    assert await peer.queue.backlog("nobody") == Backlog()
    assert not await peer.queue.store.knows("nobody")
    await peer.queue.remove("nobody")
    await peer.events.forget("nobody")
    wiring = await wiring_of()
    await wiring.connection.api(f"STREAM.DELETE.{StreamNames(wiring.settings.env).tasks}", {})
    with pytest.raises(BusUnavailableError, match="stream not found"):
        await peer.queue.backlog("nobody")


@pytest.fixture
async def wiring_of(world: World) -> Any:
    """Another connection to the world's server."""
    opened: list[Wiring] = []

    async def open_one() -> Wiring:
        assert world.settings is not None
        opened.append(await Wiring.open(world.settings, AgentIdentity(id="other"), create=True))
        return opened[-1]

    yield open_one
    for each in opened:
        await each.aclose()


#: More subjects than the server tells at once.
_MANY = 100_050


@ON_NATS
async def test_a_backlog_over_more_subjects_than_the_server_tells_at_once_is_counted_whole(
    world: World, wiring_of: Callable[[], Awaitable[Wiring]]
) -> None:
    wiring = await wiring_of()
    env = wiring.settings.env
    await wiring.ports.queue.declare(Mailbox("reader", ("book.*",)))
    for number in range(_MANY):
        await wiring.connection.publish(f"agents.{env}.task.book.t{number}", b"")
        if number % 2_000 == 0:
            # No faster than it is stored: the server drops what it can't hold.
            await wiring.ports.queue.put(f"agents.{env}.task.book.t{number}", b"", msg_id="")
    extra = len(range(0, _MANY, 2_000))
    await wiring.ports.queue.put(f"agents.{env}.task.book.last", b"", msg_id="")

    held = await subjects_held(wiring.connection, StreamNames(env).tasks, [f"agents.{env}.task.>"])

    assert len(held) == _MANY + 1
    assert await wiring.ports.queue.backlog("reader") == Backlog(_MANY + 1 + extra, 0)
    arrived = Inbox()
    feed = await wiring.ports.queue.consume(Mailbox("reader", ("book.*",)), arrived)
    feed.want(1)
    await arrived.next()
    await feed.aclose()
