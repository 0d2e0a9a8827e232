"""The nearest peer: FastStream over JetStream, at least once as our asks are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub

from benchmarks.processes import CALL_WITHIN_S, TEXT, Call, workers
from squadron import Settings
from squadron.bridge.jetstream.link import embedded

_SUBJECT, _STREAM = "bench.faststream", "FASTSTREAM"


def _broker(settings: Settings) -> NatsBroker:
    server = embedded.find(settings.home)
    assert server is not None
    return NatsBroker(server.url, token=server.token, logger=None)


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
        max_workers=64,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def echo(text: str) -> str:
        return text

    await broker.start()
    yield
    await broker.stop()
