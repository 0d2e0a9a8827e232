"""A client in JavaScript on one side, and ours on the other: the example of the docs, run as it stands."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_cache_path

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.link import embedded
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from tests.contract.conftest import ON_NATS, SOON_S, Peer, Serve, World
from tests.docs import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "lite_topics.mjs"
#: The client library that the example imports; a new major version may need a new example.
PACKAGE = "@nats-io/transport-node@3.4.0"
#: Node starts in 0.2 s, and is slower on a busy machine; npm fetches a few small packages, once.
WITHIN_S, INSTALL_WITHIN_S = 30.0, 90.0


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder `node_modules` with the NATS client, fetched once for all runs."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = user_cache_path("squadron-tests") / PACKAGE.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_WITHIN_S)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm could not get {PACKAGE} within {INSTALL_WITHIN_S:g} s")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"npm can't get {PACKAGE}: {error.stderr.strip()[-300:]}")
            (folder / "done").touch()
    return folder / "node_modules"


class Node:
    """The example at work."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """The next entries that it read."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            return [json.loads(await self._process.stdout.readline()) for _ in range(count)]

    async def rest(self) -> list[dict[str, Any]]:
        """What else it read, when it has ended well."""
        async with asyncio.timeout(WITHIN_S):
            out, err = await self._process.communicate()
        assert self._process.returncode == 0, err.decode()
        return [json.loads(line) for line in out.splitlines()]

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


Run = Callable[..., Awaitable[Node]]


@pytest.fixture
async def run(packages: Path, settings: Settings, tmp_path: Path) -> AsyncIterator[Run]:
    """Run the example: what it follows, where it answers, and from which sequence."""
    program = tmp_path / EXAMPLE.name
    shutil.copy(EXAMPLE, program)
    (tmp_path / "node_modules").symlink_to(packages)
    assert embedded.find(settings.home) is not None
    started: list[Node] = []

    async def start(*arguments: str) -> Node:
        process = await asyncio.create_subprocess_exec(
            *("node", str(program), *arguments),
            env=os.environ | {"SQUADRON_HOME": str(settings.home), "SQUADRON_ENV": settings.env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(Node(process))
        return started[-1]

    yield start
    for node in started:
        await node.kill()


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
    node = await run("js.chat", "js.answer")
    read = await node.lines(270)
    for text in wanted[270:]:
        await chat.publish({"text": text})
    read += await node.lines(30)
    # It ends all that is stored, read or not.
    await chat.close()

    assert await node.rest() == []
    assert _texts(read) == wanted
    assert await _answer(peer, "answer") == wanted


@ON_NATS
async def test_one_that_was_killed_goes_on_behind_its_last_message(peer: Peer, run: Run) -> None:
    chat = peer.caller.lite_topics.topic("chat", "js", ttl_s=60)
    wanted = [f"message {n}" for n in range(60)]
    node = await run("js.chat", "js.answer")
    publishing = asyncio.create_task(_publish_slowly(chat, wanted))
    read = await node.lines(20)
    await node.kill()
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
    node = await run("poem.poem", "js.answer")
    handle = await peer.caller.submit("js.poem", {"lines": 40}, AskOptions(within_s=SOON_S, task_id="poem"))
    assert handle.reply_to.endswith(".poem.poem")
    await handle.outcome()
    read = await node.rest()

    wanted = [f"line {n}" for n in range(40)]
    assert _texts(read) == wanted
    assert await _answer(peer, "answer") == wanted
