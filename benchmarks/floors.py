"""What a durable ask stands on: bare NATS, bare JetStream, a bare Ray actor, a Serve handle.

Ray is imported where it is used, after the process has what it must have in its environment to join.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, RePublish, RetentionPolicy, StreamConfig

from benchmarks.processes import CALL_WITHIN_S, REPLICAS, TEXT, Call, workers
from squadron import Settings
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.serve import cluster

DATA = TEXT.encode()

#: A pull asks for so many messages; the next one goes out when half of them have come.
_PULL = 256
_PULL_REQUEST = json.dumps({"batch": _PULL // 2, "expires": 3600 * 10**9}).encode()


@asynccontextmanager
async def connection(settings: Settings) -> AsyncIterator[Nats]:
    """A bare connection to the server that Squadron uses."""
    server = embedded.find(settings.home)
    assert server is not None
    client = await nats.connect(server.url, token=server.token)
    yield client
    await client.close()


@asynccontextmanager
async def nats_request(settings: Settings) -> AsyncIterator[Call]:
    """A request and its reply over nats-py; at most once."""
    async with connection(settings) as client, workers(_reply, settings):
        yield lambda: client.request("bench.request", DATA, timeout=CALL_WITHIN_S)


@asynccontextmanager
async def _reply(settings: Settings) -> AsyncIterator[None]:
    async with connection(settings) as client:

        async def reply(msg: Msg) -> None:
            await client.publish(msg.reply, msg.data)

        await client.subscribe("bench.request", "workers", cb=reply)
        await client.flush()
        yield


@asynccontextmanager
async def jetstream(settings: Settings) -> AsyncIterator[Call]:
    """Publish, acknowledged; pull; reply over core NATS; ack: the task is durable, its answer is not."""
    async with connection(settings) as client:
        js = client.jetstream()
        await js.add_stream(
            StreamConfig(name="FLOOR", subjects=["bench.floor"], retention=RetentionPolicy.WORK_QUEUE)
        )
        await js.add_consumer("FLOOR", ConsumerConfig(durable_name="floor", max_ack_pending=10_000))
        inbox, numbers = client.new_inbox(), itertools.count()
        waiting: dict[str, asyncio.Future[object]] = {}

        async def hear(msg: Msg) -> None:
            waiting.pop(msg.subject).set_result(msg.data)

        async def call() -> object:
            reply_to = f"{inbox}.{next(numbers)}"
            answer = waiting[reply_to] = asyncio.get_running_loop().create_future()
            await js.publish("bench.floor", DATA, headers={"Reply-To": reply_to})
            return await answer

        await client.subscribe(f"{inbox}.*", cb=hear)
        async with workers(_pull_and_ack, settings):
            yield call


async def _pull(client: Nats, consumer: str, work: Callable[[Msg], Awaitable[None]]) -> None:
    """Hand what a consumer has to `work`, with more asked for than it works on."""
    inbox, come = client.new_inbox(), itertools.count(1)

    async def ask() -> None:
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{consumer}", _PULL_REQUEST, reply=inbox)

    async def take(msg: Msg) -> None:
        await work(msg)
        if next(come) % (_PULL // 2) == 0:
            await ask()

    await client.subscribe(inbox, cb=take)
    await ask()
    await ask()
    await client.flush()


@asynccontextmanager
async def _pull_and_ack(settings: Settings) -> AsyncIterator[None]:
    async with connection(settings) as client:

        async def work(msg: Msg) -> None:
            await client.publish((msg.headers or {})["Reply-To"], msg.data)
            await client.publish(msg.reply, b"+ACK")

        await _pull(client, "FLOOR.floor", work)
        yield


@asynccontextmanager
async def jetstream_twice(settings: Settings) -> AsyncIterator[Call]:
    """As `jetstream`, but the outcome is stored, too, acknowledged, and heard once it is: what an ask promises."""
    async with connection(settings) as client:
        js = client.jetstream()
        await js.add_stream(
            StreamConfig(name="TWICE", subjects=["bench.twice"], retention=RetentionPolicy.WORK_QUEUE)
        )
        heard = RePublish(src="bench.outcome.>", dest="bench.heard.>")
        await js.add_stream(StreamConfig(name="OUTCOMES", subjects=["bench.outcome.>"], republish=heard))
        await js.add_consumer("TWICE", ConsumerConfig(durable_name="twice", max_ack_pending=10_000))
        waiting: dict[str, asyncio.Future[object]] = {}
        numbers = itertools.count()

        async def hear(msg: Msg) -> None:
            waiting.pop(msg.subject.rpartition(".")[2]).set_result(msg.data)

        async def call() -> object:
            number = str(next(numbers))
            answer = waiting[number] = asyncio.get_running_loop().create_future()
            await js.publish("bench.twice", DATA, headers={"Reply-To": f"bench.outcome.{number}"})
            return await answer

        await client.subscribe("bench.heard.*", cb=hear)
        async with workers(_pull_and_store, settings):
            yield call


@asynccontextmanager
async def _pull_and_store(settings: Settings) -> AsyncIterator[None]:
    async with connection(settings) as client:
        js, storing = client.jetstream(), set()

        async def store(msg: Msg) -> None:
            await js.publish((msg.headers or {})["Reply-To"], msg.data)
            await client.publish(msg.reply, b"+ACK")

        async def work(msg: Msg) -> None:
            # Beside each other, as a server that stores slowly would hold up the rest.
            task = asyncio.create_task(store(msg))
            storing.add(task)
            task.add_done_callback(storing.discard)

        await _pull(client, "TWICE.twice", work)
        yield


@asynccontextmanager
async def ray_actor(settings: Settings) -> AsyncIterator[Call]:
    """Calls of bare async Ray actors, in turn."""
    cluster.join(settings)
    import ray

    class Echo:
        async def say(self, text: str) -> str:
            return text

    make: Any = ray.remote(num_cpus=0)(Echo)
    actors = [make.remote() for _ in range(REPLICAS)]
    turns = itertools.cycle(actors)

    async def call() -> Any:
        return await next(turns).say.remote(TEXT)

    for _ in actors:
        await call()
    yield call


@asynccontextmanager
async def serve_handle(settings: Settings) -> AsyncIterator[Call]:
    """Calls through a Serve handle, as Ray ships it."""
    async with _serve(settings, SERVE_APPLICATION, {}) as call:
        yield call


@asynccontextmanager
async def serve_optimised(settings: Settings) -> AsyncIterator[Call]:
    """Calls through a Serve handle with `RAY_SERVE_THROUGHPUT_OPTIMIZED`.

    Caller and replicas read it, each from its own environment when Serve is imported; what the controller
    reads of it is for HTTP. So both modes live on one cluster and are measured in the same rounds.
    """
    flag = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    os.environ.update(flag)
    async with _serve(settings, "bench-optimised", flag) as call:
        yield call


#: The name that `memory` finds the bare replicas by.
SERVE_APPLICATION = "bench-default"


@asynccontextmanager
async def _serve(settings: Settings, application: str, environment: dict[str, str]) -> AsyncIterator[Call]:
    cluster.join(settings)
    from ray import serve

    # After the import, which sets it: it would write into the table.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)

    class Echo:
        async def __call__(self, text: str) -> str:
            return text

    options: dict[str, Any] = {"num_cpus": 0}
    if environment:
        options["runtime_env"] = {"env_vars": environment}
    # More slots than calls under way: its router backs off when a replica is full.
    make: Any = serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=256, ray_actor_options=options)
    bound = make(Echo).bind()
    handle = await asyncio.to_thread(serve.run, bound, name=application, route_prefix=None)

    async def call() -> Any:
        return await handle.remote(TEXT)

    yield call
