"""What flows stand on: messages as large, with the same headers, on the bare connection, of which nothing is read.

A chunk goes in a fast batch, and is told of once it is stored; a lite topic is an order to end it and a message.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque

from squadron.bridge.jetstream.fast_batches import FastBatches
from squadron.bridge.jetstream.journal import order_headers
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.background import spawn
from squadron.runtime.streams.writer import AT_ONCE, WINDOW
from squadron.runtime.wire.subjects import life_of, live_of

#: Where a process is asked for bare chunks.
_ASKED = "bench.bare"
_HEADERS = {"Nats-TTL": "3600s"}
_numbers = itertools.count()


async def serve_bare(place: Wiring, text: str) -> None:
    """Publish as many chunks as somebody asks for on the lite topic that it names."""

    def hear(msg: Heard) -> None:
        key, count = msg.data.decode().split()
        spawn(_publish(place, key, int(count), text), "bare chunks")

    await place.connection.listen(_ASKED, hear)


async def _publish(place: Wiring, key: str, count: int, text: str) -> None:
    run, batches, under_way = os.urandom(12).hex(), FastBatches(place.connection), deque[asyncio.Future[int]]()
    payload = {
        "sequenceNumber": count,
        "isFirst": False,
        "isFinal": False,
        "chunk": text,
        "attempt": 1,
        "epoch": 1,
    }
    data = place.ports.pack("stream", {**payload, "run": run[:16]}, correlation_id=os.urandom(16).hex())
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, count))
        under_way.append(batches.append(key, [(data, f"{run}{number:08}") for number in numbers], _HEADERS))
        if len(under_way) == WINDOW // AT_ONCE:
            await under_way.popleft()
    await asyncio.gather(*under_way)


async def bare_chunks(place: Wiring, count: int) -> None:
    """Have another process publish so many, and hear all of them."""
    key, heard = place.ports.subjects.lite("bench-bare", os.urandom(8).hex()), itertools.count(1)
    all_heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(_: Heard) -> None:
        if next(heard) == count:
            all_heard.set_result(None)

    subscription = await place.connection.listen(live_of(key), hear)
    await place.connection.publish(_ASKED, f"{key} {count}".encode())
    await all_heard
    await subscription.unsubscribe()


async def bare_topics(place: Wiring, count: int, at_once: int, text: str) -> None:
    """Publish on so many new topics, `at_once` under way."""
    client, data = place.connection.client, place.ports.pack("event", {"content": text})
    inbox, left = client.new_inbox(), itertools.repeat(None, count)
    all_stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stored = itertools.count(1)

    def create() -> None:
        key = place.ports.subjects.lite("bench-bare", f"t-{next(_numbers)}")
        order = b'{"end": "expired", "ttlS": 600.0}'
        client.post(life_of(key), order, headers=order_headers(key, time.time() + 601, 24 * 3600.0))
        client.post(key, data, reply=inbox)

    def hear(_: Heard) -> None:
        if next(stored) == count:
            all_stored.set_result(None)
        for _one in itertools.islice(left, 1):
            create()

    subscription = await place.connection.listen(inbox, hear)
    for _ in itertools.islice(left, at_once):
        create()
    await all_stored
    await subscription.unsubscribe()
