"""Streams where each entry has three copies: what is under way when their leader dies is not lost, nor doubled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.streams.chunks import StreamReader
from squadron.runtime.streams.writer import Chunk, StreamWriter
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import Result
from tests.contract.conftest import until
from tests.contract.nats_cluster import Cluster


@pytest.mark.slow
async def test_a_stream_survives_the_death_of_the_leader_of_three_copies(tmp_path: Path) -> None:
    count, seen, half = 6_000, list[object](), asyncio.Event()
    with Cluster(tmp_path) as cluster:
        settings = Settings(home=tmp_path, env="three", nats_url=",".join(cluster.urls), stream_replicas=3)
        write, read = [await opened_at_last(settings, name) for name in ("write", "read")]
        key = write.ports.subjects.lite("reader", "one")
        task = AgentMessage.new("task", write.ports.identity, id="task")
        writer = StreamWriter(write.ports, key, task, 1)

        async def follow() -> None:
            async for event in StreamReader(read.ports.lite, read.ports.claims, key).events():
                assert isinstance(event, Chunk)
                seen.append(event.value)
                if len(seen) == count // 6:
                    half.set()

        async def emit() -> None:
            for number in range(count):
                await writer.write(number)
            await writer.finish("result")
            result = AgentMessage.new("result", write.ports.identity, Result().to_content())
            await write.ports.lite.append(key, result.encode(), msg_id="result")

        async with asyncio.timeout(90), asyncio.TaskGroup() as together:
            together.create_task(follow())
            emitting = together.create_task(emit())
            await half.wait()
            assert not emitting.done()
            cluster.kill(await cluster.server_of(read, StreamNames("three").lite))
        stored = [entry async for entry in read.ports.lite.read(key)]
        await write.aclose()
        await read.aclose()

    assert seen == list(range(count))
    # Chunks, the final message and the result: none was stored twice.
    assert len(stored) == count + 2


async def opened_at_last(settings: Settings, name: str) -> Wiring:
    """A cluster that has a leader may need a moment yet."""
    opened = list[Wiring]()

    async def is_ready() -> bool:
        opened.append(await Wiring.open(settings, AgentIdentity(id=name, type="test"), create=True))
        return True

    await until(is_ready, within_s=60.0)
    return opened[0]
