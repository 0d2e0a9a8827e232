"""The connection itself: refusals are said at once, and odd messages of others do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from pathlib import Path

import pytest

from squadron import Settings
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.dial import connect
from squadron.bridge.jetstream.stream_configs import StreamNames, ensure_streams
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime import background
from squadron.runtime.errors import BusUnavailableError, ConfigError
from squadron.runtime.ports.queue import Delivery, Mailbox
from squadron.runtime.wire.envelope import AgentIdentity
from tests.conftest import freeze
from tests.contract.conftest import SOON_S
from tests.contract.own_server import OwnServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("connect")
    yield embedded.ensure(home), home
    embedded.stop(home)


async def test_wrong_credentials_are_said_at_once(server):
    endpoint, home = server
    url = endpoint.url.replace("nats://", "nats://somebody:wrong@")
    with pytest.raises(ConfigError, match="refused the credentials") as caught:
        await connect(Settings(home=home, nats_url=url), name="test")
    assert "wrong" not in str(caught.value)


async def test_a_server_that_is_not_there_is_said_at_once_with_the_reason(server):
    _, home = server
    with pytest.raises(BusUnavailableError, match=r"127\.0\.0\.1:1 can't be reached: .*refused|failed"):
        await connect(Settings(home=home, nats_url="nats://127.0.0.1:1"), name="test")


async def test_one_server_of_several_is_enough(server):
    endpoint, home = server
    url = f"nats://127.0.0.1:1,{endpoint.url.replace('nats://', f'nats://{endpoint.token}@')}"
    connection = await connect(Settings(home=home, nats_url=url), name="test")
    assert connection.is_connected
    await connection.aclose()


async def test_what_an_operator_set_on_a_stream_stays_over_the_next_start(server):
    _, home = server
    connection = await connect(Settings(home=home), name="test")
    names = StreamNames("kept")
    await ensure_streams(connection, names)
    config = (await connection.api(f"STREAM.INFO.{names.tasks}", {}))["config"]
    await connection.api(f"STREAM.UPDATE.{names.tasks}", config | {"max_bytes": 10**9, "description": "mine"})
    await ensure_streams(connection, names)
    config = (await connection.api(f"STREAM.INFO.{names.tasks}", {}))["config"]
    assert (config["max_bytes"], config["description"]) == (10**9, "mine")
    await connection.aclose()


#: In a loop of its own: what another test left connected may be opening a connection meanwhile.
alone = pytest.mark.asyncio(loop_scope="function")


class _Unfinished(Wiring):
    async def start(self):
        await super().start()
        raise BusUnavailableError("gone meanwhile")


@alone
async def test_what_had_begun_when_an_opening_failed_is_ended(server):
    _, home = server
    before = asyncio.all_tasks()
    with pytest.raises(BusUnavailableError, match="gone meanwhile"):
        await _Unfinished.open(Settings(home=home, env="half"), AgentIdentity(id="x"), create=True)
    # What was cancelled ends in the next steps of the loop.
    async with asyncio.timeout(SOON_S):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)


@alone
async def test_an_opening_that_is_cancelled_at_whatever_moment_leaves_nothing_and_says_nothing(server, caplog):
    _, home = server
    began = time.perf_counter()
    await (await connect(Settings(home=home), name="test")).aclose()
    took, cancelled = time.perf_counter() - began, 0
    for part in range(20):
        before = asyncio.all_tasks()
        opening = asyncio.create_task(connect(Settings(home=home), name="test"))
        await asyncio.sleep(took * part / 20)
        cancelled += not opening.done()
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await opening).aclose()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - before <= {opening}
    gc.collect()
    assert cancelled
    assert not caplog.records


async def test_a_header_named_status_and_an_odd_token_do_not_stop_a_mailbox(server):
    _, home = server
    settings = Settings(home=home, env="odd")
    wiring = await Wiring.open(settings, AgentIdentity(id="reader"), create=True)
    mailbox = Mailbox("reader", ("book.*",))
    await wiring.ports.queue.declare(mailbox)
    await wiring.connection.publish("agents.odd.task.book.b@d.p3", b"1")
    await wiring.connection.publish("agents.odd.task.book.read", b"2", headers={"Status": "408"})
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    feed = await wiring.ports.queue.consume(mailbox, arrived.put_nowait)
    feed.want(2)
    got = [await asyncio.wait_for(arrived.get(), 30) for _ in range(2)]
    assert {delivery.data for delivery in got} == {b"1", b"2"}
    assert (await wiring.ports.queue.backlog("reader")).taken == 2
    await feed.aclose()
    await wiring.aclose()


async def test_a_reconnect_ends_the_wait_for_answers_that_went_to_the_old_connection(server):
    _, home = server
    connection = await connect(Settings(home=home), name="test")
    silent = await connection.listen("somebody.slow", lambda _: None)
    waiting = asyncio.create_task(connection.request("somebody.slow", b"", within_s=30))
    await connection.flush()
    await connection.reconnected()
    with pytest.raises(BusUnavailableError, match="lost meanwhile"):
        await asyncio.wait_for(waiting, 30)
    await silent.unsubscribe()
    await connection.aclose()


async def test_a_flush_that_is_cancelled_as_its_pong_comes_is_cancelled(server, monkeypatch):
    """A reader that was stopped at this moment went on for ever, and whoever closed it waited for that."""
    _, home = server
    connection = await connect(Settings(home=home), name="test")
    hear_pong = connection.client._process_pong

    async def hear_both() -> None:
        # Nobody waits for the pongs of pings that the client sends by itself.
        if connection.client._pongs[0]._callbacks:
            flushing.cancel()
        await hear_pong()

    monkeypatch.setattr(connection.client, "_process_pong", hear_both)
    flushing = asyncio.create_task(connection.flush())
    await asyncio.wait([flushing], timeout=SOON_S)
    assert flushing.cancelled()
    await connection.aclose()


async def test_what_is_closed_as_an_attempt_to_reconnect_fails_stays_closed(server, monkeypatch):
    _, home = server
    monkeypatch.setattr(background, "CANCEL_AGAIN_S", 0.01)
    connection = await connect(Settings(home=home), name="test")
    trying = asyncio.Event()

    async def refused() -> None:
        trying.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            # `wait_for` of CPython 3.11 forgets the cancel if the attempt fails at the same moment.
            if not forgotten:
                forgotten.append(True)
                raise ConnectionRefusedError from None
            raise

    forgotten: list[bool] = []
    monkeypatch.setattr(connection.client, "_select_next_server", refused)
    await connection.client.reconnect()
    await trying.wait()
    await connection.aclose()
    assert forgotten
    assert connection.client.is_closed
    assert connection.client._reconnection_task.done()


async def test_an_entry_with_a_header_named_status_is_read_as_any_other(server):
    _, home = server
    wiring = await Wiring.open(Settings(home=home, env="odd"), AgentIdentity(id="reader"), create=True)
    key = wiring.ports.subjects.lite("reader", "odd")
    await wiring.connection.request(key, b"1", headers={"Status": "503"})
    entry = await wiring.ports.lite.last(key)
    assert entry is not None
    assert entry.data == b"1"
    await wiring.aclose()


async def test_a_flush_follows_what_was_sent_before_it(wiring: Wiring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its answer would come before a subscription is active, and the first message after it be lost."""
    transport = wiring.connection.client._transport
    assert transport is not None
    written: list[bytes] = []
    write, writelines = transport.write, transport.writelines
    monkeypatch.setattr(transport, "write", lambda data: (written.append(data), write(data)))
    monkeypatch.setattr(transport, "writelines", lambda lines: (written.extend(lines), writelines(lines)))

    subscription = await wiring.connection.listen("some.subject", lambda _: None)
    await wiring.connection.flush()
    await subscription.unsubscribe()
    await wiring.connection.flush()

    assert [line.split()[0] for line in written] == [b"SUB", b"PING", b"UNSUB", b"PING"]


async def test_messages_of_successive_turns_are_sent_together_and_none_waits_long(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = wiring.connection.client
    transport = client._transport
    assert transport is not None
    writes: list[list[bytes]] = []
    writelines = transport.writelines
    monkeypatch.setattr(transport, "writelines", lambda lines: (writes.append(lines), writelines(lines)))
    monkeypatch.setattr("squadron.bridge.jetstream.link.lasting_client.GATHER_S", 60.0)

    for _ in range(20):
        client.post("some.subject", b"")
        client.post("some.subject", b"")
        await asyncio.sleep(0)
    assert not writes
    for _ in range(3):
        await asyncio.sleep(0)
    assert [len(lines) for lines in writes] == [40]

    monkeypatch.setattr("squadron.bridge.jetstream.link.lasting_client.GATHER_S", 0.001)
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        client.post("some.subject", b"")
        client.post("some.subject", b"")
        await asyncio.sleep(0)
    assert len(writes) > 2, "however much more comes, what waits is sent"


async def test_what_is_sent_on_a_connection_that_is_gone_is_kept_and_logged_by_nobody(server, caplog):
    _, home = server
    sender, reader = await connect(Settings(home=home), name="s"), await connect(Settings(home=home), name="r")
    heard: list[str] = []
    await reader.listen("kept.*", lambda msg: heard.append(msg.subject))
    await reader.client.flush()

    sender.client._transport._io_writer.transport.abort()
    assert sender.client.is_connected, "the client does not know yet"
    for number in range(100):
        sender.client.post(f"kept.{number}", b"")
        sender.client.flush_now()

    async with asyncio.timeout(30):
        while len(heard) < 100:
            await asyncio.sleep(0.01)
    assert heard == [f"kept.{number}" for number in range(100)]
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    await sender.aclose()
    await reader.aclose()


async def test_a_connection_that_is_lost_while_it_closes_is_closed(tmp_path: Path) -> None:
    server = OwnServer(tmp_path, jetstream="off")
    server.start()
    connection = await connect(Settings(home=tmp_path, nats_url=server.url), name="test")
    freeze(server.pid)
    closing = asyncio.create_task(connection.aclose())
    # It waits for the server to take what is left.
    await asyncio.sleep(0.1)
    server.stop()
    await closing
    assert connection.client.is_closed
