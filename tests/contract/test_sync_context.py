"""A plain handler, in its thread: it asks, emits and remembers by `ctx.sync`, and yields as it goes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator
from typing import Any

from squadron import Agent, Context, topic
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.wire.outcome import Cancelled, Failed
from tests.contract.conftest import SOON_S, Peer, Serve


class Plain(Agent):
    """Has plain handlers."""

    def __init__(self) -> None:
        self.waits, self.woken, self.closed = threading.Event(), threading.Event(), threading.Event()

    @topic("plain.double")
    def double(self, n: int) -> int:
        return 2 * n

    @topic("plain.asks")
    def asks(self, n: int, ctx: Context) -> list[Any]:
        handle = ctx.sync.submit("plain.double", {"n": n})
        ctx.sync.emit("asked")
        ctx.sync.remember(n)
        return [
            handle.outcome().unwrap(),
            ctx.sync.ask("plain.double", {"n": n + 1}).unwrap(),
            *ctx.sync.recall(),
        ]

    @topic("plain.wrong")
    def wrong(self, ctx: Context) -> int:
        answer: int = asyncio.run(ctx.ask("plain.double", {"n": 1})).unwrap()
        return answer

    @topic("plain.blocks")
    async def blocks(self, ctx: Context) -> int:
        answer: int = ctx.sync.ask("plain.double", {"n": 1}).unwrap()
        return answer

    @topic("plain.never")
    async def never(self) -> None:
        self.waits.set()
        await asyncio.Event().wait()

    @topic("plain.waits")
    def wait(self, ctx: Context) -> None:
        try:
            ctx.sync.ask("plain.never")
        except concurrent.futures.CancelledError:
            self.woken.set()
            raise

    @topic("plain.counts")
    def count(self) -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            self.closed.set()


async def test_a_plain_handler_asks_emits_and_remembers(serve: Serve, peer: Peer) -> None:
    await serve(Plain())
    handle = await peer.caller.submit("plain.asks", {"n": 3}, AskOptions(within_s=SOON_S))

    assert [chunk async for chunk in handle.chunks()] == ["asked"]
    assert (await handle.outcome()).unwrap() == [6, 8, 3]


async def test_asking_on_the_wrong_loop_says_how_to(serve: Serve, peer: Peer) -> None:
    await serve(Plain())

    for name, said in (("wrong", "ctx.sync.ask"), ("blocks", "await")):
        handle = await peer.caller.submit(f"plain.{name}", {}, AskOptions(within_s=SOON_S))
        outcome = await handle.outcome()
        assert isinstance(outcome, Failed), outcome
        assert said in outcome.reason


async def test_a_cancel_wakes_a_plain_handler_that_waits(serve: Serve, peer: Peer) -> None:
    agent = Plain()
    await serve(agent)
    handle = await peer.caller.submit("plain.waits", {}, AskOptions(within_s=SOON_S))
    await asyncio.to_thread(agent.waits.wait, SOON_S)

    assert isinstance(await handle.cancel(), Cancelled)
    assert await asyncio.to_thread(agent.woken.wait, SOON_S)


async def test_a_cancel_closes_a_plain_generator(serve: Serve, peer: Peer) -> None:
    agent = Plain()
    await serve(agent)
    handle = await peer.caller.submit("plain.counts", {}, AskOptions(within_s=SOON_S))
    async for _ in handle.chunks():
        break

    assert isinstance(await handle.cancel(), Cancelled)
    assert await asyncio.to_thread(agent.closed.wait, SOON_S)
