"""The same call through every door is the same thing: one table, asked of one agent in every way there is."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import Context
from tests.contract.conftest import ON_NATS, Peer, Serve, World, until
from tests.contract.gateway_process import gateway_command, opened_gateway
from tests.contract.nats_cluster import free_port
from tests.contract.node_packages import NATS, node_packages
from tests.contract.ways import WAYS, Entrance, Told, Way
from tests.docs import ROOT

pytestmark = ON_NATS


class Everyone(Agent):
    """Is asked in every way."""

    name = "everyone"

    def __init__(self) -> None:
        self.began, self.stopped = 0, 0
        self.ran: list[str] = []
        self.go_on = asyncio.Event()

    @topic("every.add")
    async def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @topic("every.thing")
    async def thing(self, text: str) -> dict[str, Any]:
        """Something with structure."""
        return {**THING, "text": text}

    @topic("every.spell")
    async def spell(self, word: str, ctx: Context) -> str:
        """Spell a word."""
        for letter in word:
            await ctx.emit(letter)
        return f"{word}!"

    @topic("every.fail")
    async def fail(self) -> str:
        """Say that no attempt can help."""
        raise Terminal("the oven is cold")

    @topic("every.break", max_attempts=1)
    async def break_down(self) -> str:
        """Break in each attempt."""
        raise ValueError("the oven is gone")

    @topic("every.late", run_timeout_s=0.2, max_attempts=1)
    async def late(self) -> str:
        """Take longer than it may."""
        await asyncio.sleep(60)
        return "never"

    @topic("every.choose", run_timeout_s=60)
    async def choose(self, ctx: Context) -> str:
        """Ask a person."""
        schema = {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]}
        return f"size {(await ctx.ask_person('Which size?', schema=schema, within_s=30)).content['size']}"

    @topic("every.wait", run_timeout_s=60)
    async def wait(self) -> str:
        """Wait until it is cancelled."""
        self.began += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return "never"

    @topic("every.once", run_timeout_s=60)
    async def once(self, name: str) -> str:
        """Wait for the test."""
        self.ran.append(name)
        await self.go_on.wait()
        return name


THING = {"text": "ä", "more": [1, None, {"deep": True}]}
#: Topic, input, the answer to what it asks; and what everybody hears: kind, data or part of the reason, chunks.
TABLE: dict[str, tuple[str, Any, str, str, Any, list[str]]] = {
    "a result": ("every.add", {"a": 2, "b": 3}, "", "result", 5, []),
    "a structure": ("every.thing", {"text": "ä"}, "", "result", THING, []),
    "a stream": ("every.spell", {"word": "käse"}, "", "result", "käse!", [*"käse"]),
    "an input that does not fit": ("every.add", {"a": "many", "b": 3}, "", "rejected", "'a'", []),
    "a handler that gives up": ("every.fail", {}, "", "failed", "the oven is cold", []),
    "a handler that breaks": ("every.break", {}, "", "dead_lettered", "the oven is gone", []),
    "a handler that is late": ("every.late", {}, "", "timed_out", "0.2 s", []),
    "a question": ("every.choose", {}, "M", "result", "size M", []),
}


@pytest.fixture
async def everyone(serve: Serve) -> Everyone:
    agent = Everyone()
    await serve(agent)
    return agent


def _program(way: str, folder: Path) -> Path | None:
    if way != "javascript":
        return None
    (folder / "node_modules").symlink_to(node_packages(NATS))
    return Path(shutil.copy(ROOT / "docs" / "examples" / "squadron.mjs", folder))


@pytest.fixture
async def way(
    request: pytest.FixtureRequest, world: World, peer: Peer, everyone: Everyone, tmp_path: Path
) -> AsyncIterator[Way]:
    assert world.settings is not None
    program = _program(request.param, tmp_path)
    door = await world.join("gateway")
    await door.registry.refresh(float("inf"))
    async with opened_gateway(door.place, "mcp", "a2a", "synadia") as url:
        yield WAYS[request.param](Entrance(world.settings, "everyone", url, peer.caller, program))


@pytest.mark.parametrize("way", WAYS, indirect=True)
async def test_the_same_call_is_the_same_thing_through_every_door(way: Way) -> None:
    async def told(row: str) -> Told:
        topic, content, answer, *_ = TABLE[row]
        return await way.ask(topic, content, answer=answer)

    heard = dict(zip(TABLE, await asyncio.gather(*map(told, TABLE)), strict=True))
    wanted: dict[str, Any] = {}
    for row, (_, _, _, kind, said, chunks) in TABLE.items():
        # Of an end that is no result each way has words of its own before and behind the reason.
        is_told = kind == "result" or said in heard[row].reason
        wanted[row] = (kind, said if kind == "result" else None, "" if is_told else said, chunks)
    assert {row: (each.kind, each.data, "", each.chunks) for row, each in heard.items()} == wanted


@pytest.mark.parametrize("way", [name for name, each in WAYS.items() if each.cancels is not None], indirect=True)
async def test_a_task_is_cancelled_through_every_door_that_can(way: Way, everyone: Everyone) -> None:
    async def began() -> None:
        await until(lambda: _is(everyone.began == 1))

    assert await way.cancelled("every.wait", began) == way.cancels
    await until(lambda: _is(everyone.stopped == 1))


async def _is(so: bool) -> bool:
    return so


@pytest.mark.slow
async def test_who_asked_through_a_gateway_that_is_killed_finds_the_task_again_at_the_next(
    world: World, peer: Peer, everyone: Everyone
) -> None:
    assert world.settings is not None
    port = free_port()
    entrance = Entrance(world.settings, "everyone", f"http://127.0.0.1:{port}", peer.caller)
    ways = {name: each(entrance) for name, each in WAYS.items() if each.comes_back}
    keys = {name: uuid.uuid4().hex for name in ways}

    def ask_all() -> list[asyncio.Task[Told]]:
        asked = [way.ask("every.once", {"name": name}, key=keys[name]) for name, way in ways.items()]
        return [asyncio.create_task(each) for each in asked]

    async with gateway_command(world.settings, port, "--mcp", "--a2a", "--synadia") as first:
        asking = ask_all()
        await until(lambda: _is(sorted(everyone.ran) == sorted(ways)))
        first.kill()
        await first.wait()
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    async with gateway_command(world.settings, port, "--mcp", "--a2a", "--synadia"):
        asking = ask_all()
        everyone.go_on.set()
        told = await asyncio.gather(*asking)
    assert {name: each.data for name, each in zip(ways, told, strict=True)} == {name: name for name in ways}
    assert sorted(everyone.ran) == sorted(ways), "each ran once"
