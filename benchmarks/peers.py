"""The nearest peers: FastStream and taskiq over JetStream, at least once as we are; Synadia agents, at most once.

Temporal and Dapr are not among them: they need a server of their own, which no package of Python's index brings.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from synadia_ai.agent_service import AgentService
from synadia_ai.agents import Agents, ResponseChunk
from taskiq.api import run_receiver_task
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from benchmarks.floors import connection
from benchmarks.processes import CALL_WITHIN_S, REPLICAS, TEXT, Call, workers
from squadron import Settings
from squadron.bridge.jetstream.link import embedded

_SUBJECT, _STREAM = "bench.faststream", "FASTSTREAM"
#: Tasks that a worker has under way.
_AT_ONCE = 64
#: How often a client of taskiq looks whether its result is there, in seconds; by default it is every 0.2.
_LOOK_S = 0.01


def _server(settings: Settings) -> tuple[str, str]:
    server = embedded.find(settings.home)
    assert server is not None
    return server.url, server.token


def _broker(settings: Settings) -> NatsBroker:
    url, token = _server(settings)
    return NatsBroker(url, token=token, logger=None)


@asynccontextmanager
async def faststream(settings: Settings) -> AsyncIterator[Call]:
    """A request through a stream, pulled by two processes of 64 workers; the reply is not stored."""
    async with workers(_echo, settings), _broker(settings) as broker:

        async def call() -> object:
            message = await broker.request(TEXT, _SUBJECT, stream=_STREAM, timeout=CALL_WITHIN_S)
            return await message.decode()

        yield call


@asynccontextmanager
async def _echo(settings: Settings) -> AsyncIterator[None]:
    broker = _broker(settings)

    @broker.subscriber(
        _SUBJECT,
        stream=JStream(name=_STREAM, subjects=[_SUBJECT]),
        pull_sub=PullSub(batch_size=1),
        durable="workers",
        max_workers=_AT_ONCE,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def echo(text: str) -> str:
        return text

    await broker.start()
    yield
    await broker.stop()


def _taskiq(settings: Settings) -> tuple[PullBasedJetStreamBroker, Any]:
    url, token = _server(settings)
    results: Any = NATSObjectStoreResultBackend(url, keep_results=False, token=token)
    broker = PullBasedJetStreamBroker(
        url, subject="bench.taskiq", stream_name="TASKIQ", token=token
    ).with_result_backend(results)

    @broker.task(task_name="echo")
    async def echo(text: str) -> str:
        return text

    return broker, echo


@asynccontextmanager
async def taskiq(settings: Settings) -> AsyncIterator[Call]:
    """A task of taskiq through a stream, and its result in an object store, which the client looks for."""
    async with workers(_taskiq_worker, settings):
        broker, echo = _taskiq(settings)
        await broker.startup()

        async def call() -> object:
            task = await echo.kiq(TEXT)
            return (await task.wait_result(check_interval=_LOOK_S, timeout=CALL_WITHIN_S)).return_value

        yield call
        await broker.shutdown()


@asynccontextmanager
async def _taskiq_worker(settings: Settings) -> AsyncIterator[None]:
    broker, _ = _taskiq(settings)
    broker.is_worker_process = True
    await broker.startup()
    receiver = asyncio.create_task(run_receiver_task(broker, max_async_tasks=_AT_ONCE))
    yield
    receiver.cancel()
    await broker.shutdown()


@asynccontextmanager
async def synadia(settings: Settings) -> AsyncIterator[Call]:
    """Prompts of two agents of the Synadia Agent Protocol, in turn, by its own SDKs; at most once."""
    async with workers(_prompted, settings), connection(settings) as client:
        found: list[Any] = []
        while len(found) < REPLICAS:
            found = [each for each in await Agents(nc=client).discover() if each.session_name == "bench"]
        turns = itertools.cycle(found)

        async def call() -> object:
            return [each.text async for each in next(turns).prompt(TEXT) if isinstance(each, ResponseChunk)]

        yield call


@asynccontextmanager
async def _prompted(settings: Settings) -> AsyncIterator[None]:
    async with connection(settings) as client:
        service = AgentService(
            agent="sample", owner="sdk", session_name="bench", nc=client, max_concurrent_prompts=_AT_ONCE
        )

        async def say(envelope: Any, stream: Any) -> None:
            await stream.send(envelope.prompt)

        service.on_prompt(say)
        await service.start()
        yield
