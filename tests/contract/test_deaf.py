"""A connection that is dead without knowing it: it is found, made anew, and what listened before still hears."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from squadron import Settings
from squadron.bridge.jetstream.bus import CoreBus
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.link.dial import connect
from squadron.runtime.errors import BusUnavailableError
from tests.conftest import freeze
from tests.contract.conftest import Inbox, until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("deaf")
    yield embedded.ensure(home), home
    embedded.stop(home)


@pytest.fixture
async def connection(server):
    opened = await connect(Settings(home=server[1]), name="test")
    yield opened
    await opened.aclose()


class Ears:
    """A subscription made before the trouble, and what it hears."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.heard, self.reconnects = connection, asyncio.Event(), 0

    async def open(self) -> None:
        await self.connection.listen("before.>", lambda _: self.heard.set())
        await self.connection.flush()
        self.connection.on_reconnect(self._again)

    async def _again(self) -> None:
        self.reconnects += 1

    async def hear_again(self) -> None:
        """Requests are answered, the old subscription hears, and who asked for it was told."""

        async def answered() -> bool:
            try:
                await self.connection.request("$JS.API.INFO", b"", within_s=1)
            except BusUnavailableError:
                return False
            return True

        await until(answered, within_s=20)
        await self.connection.publish("before.all", b"x")
        await asyncio.wait_for(self.heard.wait(), 30)
        assert self.reconnects == 1
        assert self.connection.is_connected


async def _a_sink_raises_past_our_guard(connection: Connection) -> None:
    def sink(_: Any) -> None:
        # Not an `Exception`: nothing of ours or of nats-py's stops it before the read loop.
        raise asyncio.CancelledError

    await connection.listen("poison", sink)
    await connection.publish("poison", b"")


async def _the_parser_raises(connection: Connection) -> None:
    async def parse(_: bytes) -> None:
        del connection.client._ps.parse
        raise ZeroDivisionError

    connection.client._ps.parse = parse
    await connection.publish("anything", b"")


async def _the_read_loop_is_cancelled(connection: Connection) -> None:
    connection.client._reading_task.cancel()


async def _the_flusher_is_cancelled(connection: Connection) -> None:
    connection.client._flusher_task.cancel()


async def _the_pings_end(connection: Connection) -> None:
    connection.client._ping_interval_task.cancel()


async def _reconnecting_breaks_off(connection: Connection) -> None:
    async def raising() -> None:
        connection.client._process_connect_init = Client._process_connect_init.__get__(connection.client)
        raise ZeroDivisionError

    connection.client._process_connect_init = raising
    await connection.client.force_reconnect()


@pytest.mark.parametrize(
    "break_it",
    [
        _a_sink_raises_past_our_guard,
        _the_parser_raises,
        _the_read_loop_is_cancelled,
        _the_flusher_is_cancelled,
        _the_pings_end,
        _reconnecting_breaks_off,
    ],
)
async def test_a_connection_whose_own_tasks_died_is_made_anew(
    connection: Connection, break_it: Callable[[Connection], Awaitable[None]]
) -> None:
    ears = Ears(connection)
    await ears.open()
    await connection.listen("somebody.silent", lambda _: None)
    waiting = asyncio.create_task(connection.request("somebody.silent", b"", within_s=60))
    await connection.flush()
    before = connection.client.stats["reconnects"]

    await break_it(connection)

    # Long before its own time is up: the answer can't come any more.
    with pytest.raises(BusUnavailableError, match="lost meanwhile"):
        await asyncio.wait_for(waiting, 10)
    await ears.hear_again()
    assert connection.client.stats["reconnects"] == before + 1


async def test_a_connection_that_is_lost_again_while_it_reconnects_reconnects_once(connection: Connection) -> None:
    """Two who reconnect at once would read from one socket, each what is for the other."""
    ears, client = Ears(connection), connection.client
    await ears.open()
    await connection.flush()
    dialled, lost = [], []

    async def dial() -> None:
        dialled.append(asyncio.current_task())
        await Client._select_next_server(client)

    async def flush(timeout: int = 10) -> None:
        # The last step of reconnecting: messages flow already, and its own pong is on its way.
        del client.flush
        lost.append(asyncio.create_task(client._process_op_err(ConnectionResetError())))
        await Client.flush(client, timeout)

    client._select_next_server, client.flush = dial, flush

    await client.force_reconnect()

    await ears.hear_again()
    first, second = dialled
    assert first is not second
    assert lost[0].done()


def _stop(pid: int) -> None:
    """Stop a process, and wait until it is: the signal alone may take a moment in which it still answers."""
    freeze(pid)
    state = Path(f"/proc/{pid}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "Tt":
        time.sleep(0.005)


async def test_a_server_that_hung_is_given_up_and_found_again(server, connection: Connection) -> None:
    endpoint, _ = server
    ears = Ears(connection)
    await ears.open()
    try:
        _stop(endpoint.pid)
        flushing = asyncio.create_task(connection.flush())
        # More than the sockets hold, so that closing them would wait for a server that takes nothing.
        sending = [asyncio.create_task(connection.publish("void", bytes(1_000_000))) for _ in range(16)]

        async def given_up() -> bool:
            return not connection.is_connected

        await until(given_up, within_s=15)
        assert connection.silent_s > 4
        with pytest.raises(Exception, match="stale"):
            await asyncio.wait_for(flushing, 30)
    finally:
        os.kill(endpoint.pid, signal.SIGCONT)
    await ears.hear_again()
    await asyncio.wait(sending, timeout=15)

    async def lively() -> bool:
        return connection.silent_s < 1

    await until(lively)


async def test_a_server_that_hangs_for_a_moment_only_is_waited_for(server, connection: Connection) -> None:
    endpoint, _ = server
    ears = Ears(connection)
    await ears.open()
    try:
        _stop(endpoint.pid)
        # Nobody waits for its pong when it comes.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.flush(), 0.5)
    finally:
        os.kill(endpoint.pid, signal.SIGCONT)
    await connection.flush()
    await connection.publish("before.all", b"x")
    await asyncio.wait_for(ears.heard.wait(), 30)
    assert ears.reconnects == 0


async def test_an_error_of_the_server_is_not_the_end_of_the_connection(connection: Connection) -> None:
    ears = Ears(connection)
    await ears.open()
    # Too long a line: the server says so and closes; nats-py itself would never come back.
    await connection.client.publish("a" * 5000, b"")
    await ears.hear_again()


async def test_an_error_that_the_server_does_not_close_over_changes_nothing(connection: Connection) -> None:
    ears = Ears(connection)
    await ears.open()
    await connection.client.publish("a..b", b"")
    await connection.flush()
    await connection.publish("before.all", b"x")
    await asyncio.wait_for(ears.heard.wait(), 30)
    assert ears.reconnects == 0


async def test_who_gave_up_on_listening_hears_nothing_twice_when_it_tries_again(
    connection: Connection, server: tuple[embedded.Endpoint, Path]
) -> None:
    bus, heard = CoreBus(connection), Inbox()
    _stop(server[0].pid)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await bus.subscribe("again", heard)
    finally:
        os.kill(server[0].pid, signal.SIGCONT)

    await bus.subscribe("again", heard)
    for data in (b"1", b"2"):
        await bus.publish("again", data)

    assert [note.data for note in await heard.take(2)] == [b"1", b"2"]


async def test_a_server_that_dies_with_much_on_its_way_to_it_is_told_as_away(tmp_path: Path) -> None:
    pid = embedded.ensure(tmp_path).pid
    connection = await connect(Settings(home=tmp_path), name="test")
    _stop(pid)

    async def ask() -> None:
        # Each waits until it is sent, or for its answer.
        await connection.request("nobody", b"x" * 1_000_000)

    asking = []
    for _ in range(20):
        asking.append(asyncio.create_task(ask()))
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)

    async with asyncio.timeout(20):
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(error) for error in ended} == {BusUnavailableError}
        await connection.publish("nobody", b"kept")
        await connection.aclose()
