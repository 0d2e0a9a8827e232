"""Readers that lose their connection in the middle of bursts, and are killed and go on as another process.

One writer is in full flow all the time. Nothing may be lost, repeated or out of order.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from squadron import Settings
from squadron.bridge.jetstream import dial, embedded, journal
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.streams import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.envelope import AgentIdentity
from squadron.runtime.follow import Follower
from squadron.runtime.followed import Batch

#: A connection is cut after between so many bytes that the server sent over it: some hundred messages.
CUT_AFTER_BYTES = (10_000, 70_000)
#: Longest wait for all that was written, after the last cut, in seconds.
CATCH_UP_S = 20.0


class CuttingProxy:
    """Stands between a reader and the server, and cuts connections, wherever in a message that is."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self._host, self._port = host, port
        self._random = random.Random(seed)
        self.cuts = self.connections = 0
        self.cutting = True
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for pump in self._pumps:
            pump.cancel()

    async def _join(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        server, to_server = await asyncio.open_connection(self._host, self._port)
        for source, target, most in (
            (client, to_server, None),
            (server, to_client, self._random.randint(*CUT_AFTER_BYTES)),
        ):
            pump = asyncio.create_task(self._pump(source, target, most, (to_client, to_server)))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        most: int | None,
        both: tuple[asyncio.StreamWriter, ...],
    ) -> None:
        passed = 0
        try:
            while data := await source.read(65_536):
                cut = most is not None and self.cutting and passed + len(data) > most
                if cut:
                    data = data[: max(0, (most or 0) - passed)]
                passed += len(data)
                target.write(data)
                await target.drain()
                if cut:
                    self.cuts += 1
                    break
        except OSError:
            pass
        for writer in both:
            # What the proxy wrote arrives; it is the end of it that comes at any place.
            writer.close()


@dataclass
class Log:
    """What all readers together were handed, in their order, as `(topic, seq, number)`."""

    cursors: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)

    def take(self, line: bytes) -> None:
        topic, seq, number = line.split()
        self.cursors[topic.decode()] = int(seq)
        self.numbers.setdefault(topic.decode(), []).append(int(number))


async def read_in_a_process() -> None:
    """Runs in a process of its own: goes on from the cursors it is given, and tells all that it is handed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    dial.RECONNECT_WAIT_S = journal.RECONNECT_WAIT_S = 0.02
    given = json.loads(await asyncio.to_thread(sys.stdin.readline))
    settings = Settings(nats_url=given["url"], env=given["environment"])
    wiring = await Wiring.open(settings, AgentIdentity(id="reader", type="test"))
    # Of a batch that is cut nothing counts, so that it must be smaller than what passes between two cuts.
    lite = JetStreamJournal(wiring.connection, StreamNames(settings.env).lite, batch=32)
    follower = await Follower.open(lite, wiring.subjects.lite_of("owner"))
    for key, seq in given["cursors"].items():
        follower.add(key, after=seq, resumed=seq > 0)

    async def handler(batch: Batch) -> None:
        assert not batch.lapsed
        for entry in batch.entries:
            # Each by itself, so that the process may be killed between any two.
            os.write(1, b"%s %d %s\n" % (batch.key.encode(), entry.seq, entry.data))

    await follower.serve(handler)


class Readers:
    """Reader processes, one after the other; the next one is warm when its turn comes."""

    def __init__(self, url: str, environment: str, log: Log) -> None:
        self._url, self._environment, self._log = url, environment, log
        self._next: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._now: asyncio.subprocess.Process | None = None
        self._telling: asyncio.Task[None] | None = None
        self.killed = 0

    async def _spawn(self) -> asyncio.subprocess.Process:
        code = "import asyncio; from tests.contract.test_resume import *; asyncio.run(read_in_a_process())"
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=pipe, stdout=pipe)

    async def start(self) -> None:
        """The next reader goes on where the log ends."""
        self._now = await (self._next or asyncio.create_task(self._spawn()))
        given = {"url": self._url, "environment": self._environment, "cursors": self._log.cursors}
        assert self._now.stdin is not None
        self._now.stdin.write(json.dumps(given).encode() + b"\n")
        self._telling = asyncio.create_task(self._tell(self._now))
        self._next = asyncio.create_task(self._spawn())

    async def _tell(self, reader: asyncio.subprocess.Process) -> None:
        assert reader.stdout is not None
        async for line in reader.stdout:
            if line.endswith(b"\n"):
                self._log.take(line)

    async def kill(self) -> None:
        """End the reader, and hear out what it had been handed."""
        assert self._now is not None
        assert self._telling is not None
        os.kill(self._now.pid, signal.SIGKILL)
        await self._telling
        assert await self._now.wait() == -signal.SIGKILL, "it had ended by itself"
        self.killed += 1

    async def aclose(self) -> None:
        """Leave no process behind."""
        assert self._next is not None
        for reader in (self._now, await self._next):
            if reader is not None and reader.returncode is None:
                reader.kill()
                await reader.wait()


class Flow:
    """One writer in full flow on many topics at once; each message is the number of it on its topic."""

    def __init__(self, wiring: Wiring, topics: list[str]) -> None:
        self._wiring, self._topics = wiring, topics
        self.written = 0
        self._stopping = False

    async def run(self) -> None:
        while not self._stopping:
            data = b"%d" % self.written
            # On one connection they are stored in this order.
            await asyncio.gather(*(self._wiring.lite.append(topic, data) for topic in self._topics))
            self.written += 1

    def stop(self) -> None:
        self._stopping = True


@pytest.mark.parametrize(
    ("topics", "cuts", "kills"),
    [
        (50, 110, 8),
        (1, 20, 2),
        pytest.param(1_000, 300, 20, marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
    ],
)
async def test_readers_that_are_cut_off_and_killed_lose_nothing_and_repeat_nothing(
    wiring: Wiring, settings: Settings, nats_home: Path, topics: int, cuts: int, kills: int
) -> None:
    endpoint = embedded.find(nats_home)
    assert endpoint is not None
    host, port = endpoint.url.removeprefix("nats://").split(":")
    proxy = CuttingProxy(host, int(port), seed=topics)
    url = f"nats://{endpoint.token}@127.0.0.1:{await proxy.open()}"
    keys = [wiring.subjects.lite("owner", f"t{i}") for i in range(topics)]
    log = Log(cursors=dict.fromkeys(keys, 0))
    readers, flow = Readers(url, settings.env, log), Flow(wiring, keys)

    try:
        await readers.start()
        writing = asyncio.create_task(flow.run())
        for killed in range(1, kills + 1):
            while proxy.cuts < cuts * killed // (kills + 1):
                await asyncio.sleep(0.001)
            await readers.kill()
            await readers.start()
        while proxy.cuts < cuts:
            await asyncio.sleep(0.001)
        flow.stop()
        await writing
        proxy.cutting = False
        async with asyncio.timeout(CATCH_UP_S):
            while any(len(log.numbers.get(key, ())) < flow.written for key in keys):
                await asyncio.sleep(0.01)
        await readers.kill()
    finally:
        flow.stop()
        await readers.aclose()
        await proxy.aclose()

    print(f"{topics} topics x {flow.written} messages, {proxy.cuts} cuts, {kills} kills")  # noqa: T201
    assert proxy.cuts >= cuts
    assert proxy.connections > cuts
    for key in keys:
        assert log.numbers[key] == list(range(flow.written))
