"""Readers that lose their connection in the middle of bursts, and are killed and go on as another process.

One writer is in full flow all the time. Nothing may be lost, repeated or out of order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from squadron import Settings
from squadron.bridge.jetstream import journal
from squadron.bridge.jetstream.link import dial, embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.lite.followed import Batch
from squadron.runtime.lite.follower import Follower
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.conftest import at_last

#: A connection is cut after between so many bytes that the server sent over it: some hundred messages.
CUT_AFTER_BYTES = (20_000, 200_000)
#: What the writer sends each second at most, over all topics.
MESSAGES_PER_S = 3_000
#: The writer waits while readers are behind by more, in messages and in messages of each topic. How fast they
#: catch up depends on the machine and the topics: to read one, the server passes over the messages of all others.
MOST_BEHIND, MOST_BEHIND_EACH = 2_000, 30
#: Readers that were handed nothing for so long are stalled, in seconds; those that are slow never are, nor is a
#: process that only starts, on a machine that many others use.
STALLED_S = 240.0
#: Only a hang takes so long, in seconds.
HANG_S = 240.0
#: The share of what was written that was read while it was.
READ_IN_THE_FLOW = 0.2


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
    count: int = 0

    async def until(self, is_so: Callable[[], bool], written: Callable[[], int]) -> None:
        """Wait for that, however long it takes, as long as something is read."""
        loop = asyncio.get_running_loop()
        count, at = self.count, loop.time()
        while not is_so():
            if self.count != count:
                count, at = self.count, loop.time()
            if loop.time() - at > STALLED_S:
                behind = {key: seq for key, seq in self.cursors.items() if self.read_of(key) < written()}
                some = dict(list(behind.items())[:5])
                raise AssertionError(f"{len(behind)} topics are stalled, {count} messages were read; at {some}")
            await asyncio.sleep(0.001)

    def read_of(self, key: str) -> int:
        """How many messages of a topic were read."""
        return len(self.numbers.get(key, ()))

    def take(self, line: bytes) -> None:
        topic, seq, number = line.split()
        self.cursors[topic.decode()] = int(seq)
        self.numbers.setdefault(topic.decode(), []).append(int(number))
        self.count += 1


def _tell(key: str, seq: int, data: bytes) -> None:
    # Each by itself, so that the process may be killed between any two.
    os.write(1, b"%s %d %s\n" % (key.encode(), seq, data))


async def _follow_all(wiring: Wiring, cursors: dict[str, int]) -> None:
    """Read many topics over one subscription."""
    follower = await at_last(lambda: Follower.open(wiring.ports.lite, wiring.ports.subjects.lite_of("owner")))
    for key, seq in cursors.items():
        follower.add(key, after=seq, resumed=seq > 0)

    async def handler(batch: Batch) -> None:
        assert not batch.lapsed
        for entry in batch.entries:
            _tell(batch.key, entry.seq, entry.data)

    await follower.serve(handler)


async def _read_one(wiring: Wiring, cursors: dict[str, int]) -> None:
    """Read one topic, as its users do; who can't be served for the moment comes again."""
    ((key, seq),) = cursors.items()
    topic = wiring.caller.lite_topics.topic(key.rsplit(".", 1)[-1], "owner")
    while True:
        with contextlib.suppress(BusUnavailableError):
            async for message in topic.read(seq + 1):
                assert not message.missed
                seq = message.seq
                _tell(key, seq, message.data)


async def read_in_a_process() -> None:
    """Runs in a process of its own: goes on from the cursors it is given, and tells all that it is handed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    dial.RECONNECT_WAIT_S = journal.RECONNECT_WAIT_S = 0.02
    given = json.loads(await asyncio.to_thread(sys.stdin.readline) or "null")
    if given is None:
        return
    settings = Settings(nats_url=given["url"], env=given["environment"])
    wiring = await at_last(lambda: Wiring.open(settings, AgentIdentity(id="reader", type="test")))
    read = _follow_all if len(given["cursors"]) > 1 else _read_one
    await read(wiring, given["cursors"])


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

    async def until_cut(self, proxy: CuttingProxy, cuts: int, flow: Flow) -> None:
        """Let the reader read until its connections were cut so often."""

        def cut_so_often() -> bool:
            assert self._telling is not None
            assert not self._telling.done(), "the reader ended by itself"
            return proxy.cuts >= cuts

        await self._log.until(cut_so_often, lambda: flow.written)

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
    """One writer that pauses only for readers that are far behind, on many topics at once.

    Each message is its number on its topic.
    """

    def __init__(self, wiring: Wiring, topics: list[str], log: Log) -> None:
        self._wiring, self._topics, self._log = wiring, topics, log
        self._most_behind = max(MOST_BEHIND, MOST_BEHIND_EACH * len(topics))
        self.written = 0
        self._stopping = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            begun = loop.time()
            if self.written * len(self._topics) - self._log.count > self._most_behind:
                await asyncio.sleep(0.01)
                continue
            data = b"%d" % self.written
            await asyncio.gather(*(self._append(topic, data) for topic in self._topics))
            self.written += 1
            await asyncio.sleep(begun + len(self._topics) / MESSAGES_PER_S - loop.time())

    async def _append(self, topic: str, data: bytes) -> None:
        # With an id it is stored once, however often a busy server does not answer in time.
        id = f"{topic} {data.decode()}"
        await at_last(lambda: self._wiring.ports.lite.append(topic, data, msg_id=id))

    def stop(self) -> None:
        self._stopping = True


async def _proxied(nats_home: Path, seed: int) -> tuple[CuttingProxy, str]:
    endpoint = embedded.find(nats_home)
    assert endpoint is not None
    host, port = endpoint.url.removeprefix("nats://").split(":")
    proxy = CuttingProxy(host, int(port), seed)
    return proxy, f"nats://{endpoint.token}@127.0.0.1:{await proxy.open()}"


async def test_a_read_that_is_cut_off_goes_on_at_once_where_it_was(
    wiring: Wiring, settings: Settings, nats_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "RECONNECT_WAIT_S", 0.02)
    monkeypatch.setattr(journal, "RECONNECT_WAIT_S", 0.02)
    key, count = wiring.ports.subjects.lite("owner", "a"), 4_000
    for begin in range(0, count, 500):
        await asyncio.gather(*(wiring.ports.lite.append(key, b"%0500d" % i) for i in range(begin, begin + 500)))
    proxy, url = await _proxied(nats_home, seed=1)
    reader = await Wiring.open(Settings(nats_url=url, env=settings.env), AgentIdentity(id="reader", type="test"))

    # A batch of 512 is larger than anything that passes between two cuts.
    async with asyncio.timeout(HANG_S):
        read = [int(entry.data) async for entry in reader.ports.lite.read(key)]

    assert read == list(range(count))
    assert proxy.cuts > 8
    await reader.aclose()
    await proxy.aclose()


async def test_topics_with_one_message_each_are_all_heard_though_no_other_message_tells_of_a_gap(
    wiring: Wiring, settings: Settings, nats_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "RECONNECT_WAIT_S", 0.02)
    monkeypatch.setattr(journal, "RECONNECT_WAIT_S", 0.02)
    proxy, url = await _proxied(nats_home, seed=2)
    reader = await Wiring.open(Settings(nats_url=url, env=settings.env), AgentIdentity(id="reader", type="test"))
    follower = await at_last(lambda: Follower.open(reader.ports.lite, reader.ports.subjects.lite_of("owner")))
    follower.add_all()
    heard: list[str] = []

    async def handler(batch: Batch) -> None:
        heard.extend([batch.key] * len(batch.entries))

    serving = asyncio.create_task(follower.serve(handler))
    keys: list[str] = []
    while proxy.cuts < 25:
        fresh = [wiring.ports.subjects.lite("owner", f"t{len(keys) + i}") for i in range(50)]
        await asyncio.gather(*(wiring.ports.lite.append(key, bytes(200)) for key in fresh))
        keys += fresh
        await asyncio.sleep(len(fresh) / MESSAGES_PER_S)
    async with asyncio.timeout(HANG_S):
        while len(heard) < len(keys):
            await asyncio.sleep(0.01)

    assert sorted(heard) == sorted(keys)
    assert follower.statistics().reads < len(keys) / 10, "they are looked after together, not one by one"
    await follower.aclose()
    await serving
    await reader.aclose()
    await proxy.aclose()


@pytest.mark.parametrize(
    ("topics", "cuts", "kills"),
    [
        pytest.param(50, 110, 8, marks=pytest.mark.slow),
        (1, 40, 3),
        pytest.param(1_000, 300, 20, marks=[pytest.mark.slow, pytest.mark.timeout(3_000)]),
    ],
)
async def test_readers_that_are_cut_off_and_killed_lose_nothing_and_repeat_nothing(
    wiring: Wiring, settings: Settings, nats_home: Path, topics: int, cuts: int, kills: int
) -> None:
    proxy, url = await _proxied(nats_home, seed=topics)
    keys = [wiring.ports.subjects.lite("owner", f"t{i}") for i in range(topics)]
    log = Log(cursors=dict.fromkeys(keys, 0))
    readers, flow = Readers(url, settings.env, log), Flow(wiring, keys, log)

    try:
        await readers.start()
        writing = asyncio.create_task(flow.run())
        for killed in range(1, kills + 1):
            await readers.until_cut(proxy, cuts * killed // (kills + 1), flow)
            await readers.kill()
            await readers.start()
        await readers.until_cut(proxy, cuts, flow)
        # It is read while connections are cut, not after.
        await log.until(lambda: log.count > READ_IN_THE_FLOW * topics * flow.written, lambda: flow.written)
        flow.stop()
        await writing
        in_the_flow = log.count
        proxy.cutting = False
        await log.until(lambda: log.count >= flow.written * topics, lambda: flow.written)
        await readers.kill()
    finally:
        flow.stop()
        await readers.aclose()
        await proxy.aclose()

    share = in_the_flow / topics / flow.written
    print(  # noqa: T201
        f"{topics} topics x {flow.written} messages, {proxy.cuts} cuts, {kills} kills; {share:.0%} in the flow"
    )
    assert proxy.cuts >= cuts
    assert proxy.connections > cuts
    for key in keys:
        assert log.numbers[key] == list(range(flow.written))
