"""A client in JavaScript on one side, and ours on the other: the example of the docs, run as it stands."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.link import embedded
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from tests.contract.conftest import ON_NATS, SOON_S, Peer, Serve, World
from tests.contract.node_packages import NATS, Node, node, node_packages
from tests.docs import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "lite_topics.mjs"
Run = Callable[..., Awaitable[Node]]


@pytest.fixture
async def run(settings: Settings, tmp_path: Path) -> AsyncIterator[Run]:
    """Run the example: what it follows, where it answers, and from which sequence."""
    program = tmp_path / EXAMPLE.name
    shutil.copy(EXAMPLE, program)
    (tmp_path / "node_modules").symlink_to(node_packages(NATS))
    assert embedded.find(settings.home) is not None
    async with contextlib.AsyncExitStack() as rest:

        async def start(*arguments: str) -> Node:
            return await rest.enter_async_context(node(program, settings, *arguments))

        yield start


async def _answer(peer: Peer, id: str) -> Any:
    async with asyncio.timeout(SOON_S):
        message = await anext(peer.caller.lite_topics.topic(id, "js").read())
    return message.content["texts"]


def _texts(lines: list[dict[str, Any]]) -> list[str]:
    return [line["text"] for line in lines]


@ON_NATS
async def test_a_client_in_javascript_reads_a_topic_from_the_store_and_live_and_answers(
    peer: Peer, run: Run
) -> None:
    chat = peer.caller.lite_topics.topic("chat", "js", ttl_s=60)
    # More than it asks for at once.
    wanted = [f"message {n}" for n in range(300)]
    for text in wanted[:270]:
        await chat.publish({"text": text})
    reader = await run("js.chat", "js.answer")
    read = await reader.lines(270)
    for text in wanted[270:]:
        await chat.publish({"text": text})
    read += await reader.lines(30)
    # It ends all that is stored, read or not.
    await chat.close()

    assert await reader.rest() == []
    assert _texts(read) == wanted
    assert await _answer(peer, "answer") == wanted


@ON_NATS
async def test_one_that_was_killed_goes_on_behind_its_last_message(peer: Peer, run: Run) -> None:
    chat = peer.caller.lite_topics.topic("chat", "js", ttl_s=60)
    wanted = [f"message {n}" for n in range(60)]
    reader = await run("js.chat", "js.answer")
    publishing = asyncio.create_task(_publish_slowly(chat, wanted))
    read = await reader.lines(20)
    await reader.kill()
    again = await run("js.chat", "js.answer", str(read[-1]["seq"] + 1))
    await publishing
    rest = await again.lines(40)
    await chat.close()

    assert await again.rest() == []
    assert _texts(read + rest) == wanted
    assert await _answer(peer, "answer") == _texts(rest)


async def _publish_slowly(chat: Any, texts: list[str]) -> None:
    for text in texts:
        await chat.publish({"text": text})
        # So that some are there and some come while the reader starts.
        await asyncio.sleep(0.01)


class Poet(Agent):
    """Streams."""

    name = "poet"

    @topic("js.poem")
    async def write(self, lines: int, ctx: Context) -> str:
        """Emit so many lines."""
        for number in range(lines):
            await ctx.emit(f"line {number}")
        return "done"


@ON_NATS
async def test_it_follows_what_a_task_emits_to_the_end(world: World, peer: Peer, serve: Serve, run: Run) -> None:
    await serve(Poet())
    # A task with an id of its caller's own has a lite topic that is known before it is sent.
    reader = await run("poem.poem", "js.answer")
    handle = await peer.caller.submit("js.poem", {"lines": 40}, AskOptions(within_s=SOON_S, task_id="poem"))
    assert handle.reply_to.endswith(".poem.poem")
    await handle.outcome()
    read = await reader.rest()

    wanted = [f"line {n}" for n in range(40)]
    assert _texts(read) == wanted
    assert await _answer(peer, "answer") == wanted
