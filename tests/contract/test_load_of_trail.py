"""What passed by in a window of the trail is put to another environment as load, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from squadron import Agent, Context, Terminal, topic
from squadron.bridge.jetstream.wiring import Wiring
from squadron.replay.load import tasks_of
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ConfigError
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.audit_worlds import archiving, audited, recorded
from tests.contract.command import run
from tests.contract.conftest import ON_NATS, Replica, Serve, World, peer_of


class Bell(Agent):
    """Rings, and has others ring."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, float]] = []

    @topic("bell.ring")
    async def ring(self, text: str) -> str:
        """Ring."""
        self.rung.append((text, time.time()))
        if text == "three":
            raise Terminal("it has a crack")
        return text

    @topic("bell.chime")
    async def chime(self, ctx: Context, text: str) -> str:
        """Have it ring."""
        return str((await ctx.ask("bell.ring", {"text": text})).unwrap())


@contextlib.asynccontextmanager
async def elsewhere(wiring: Wiring, *agents: Agent) -> AsyncIterator[str]:
    """Another environment on the same server, with agents that serve there."""
    settings = dataclasses.replace(wiring.settings, env=f"{wiring.settings.env[:40]}-stage")
    place = await Wiring.open(settings, AgentIdentity(id="stage", type="test"), create=True)
    replicas = [Replica(peer_of(place), agent) for agent in agents]
    try:
        for replica in replicas:
            await replica.start()
        yield settings.env
    finally:
        for replica in replicas:
            await replica.aclose()
        await place.aclose()


async def load(wiring: Wiring, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the report if there is one, and standard error."""
    code, out, err = await run(wiring, "replay", "--load", "--json", *arguments)
    return code, json.loads(out) if code == 0 else None, err


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


@ON_NATS
async def test_a_window_of_the_trail_is_put_to_another_environment(world: World, serve: Serve) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    # Given a trail, with tasks before, in and after a window
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):

        async def ask(name: str, text: str) -> None:
            options = AskOptions(priority=6, conversation_id="tower")
            assert (await wiring.caller.ask(name, {"text": text}, options)).ok

        await ask("bell.ring", "before")
        began = time.time()
        await ask("bell.ring", "one")
        await asyncio.sleep(0.5)
        await ask("bell.chime", "two")
        # What failed had an outcome, too.
        assert (await wiring.caller.ask("bell.ring", {"text": "three"})).kind == "failed"
        ended = time.time()
        await ask("bell.ring", "after")
        await recorded(trail, 6, kind="result")
    stage = Bell()
    async with elsewhere(wiring, stage) as env:
        # When it is put to another environment, twice as fast
        window = ("--since", iso(began), "--until", iso(ended))
        code, report, err = await load(wiring, *window, "--to", env, "--speed", "2")
        assert code == 0, err
        # Then those of the window come there, those that agents ask by themselves, with their gaps
        texts = [text for text, _ in stage.rung]
        assert texts[0] == "one"
        assert sorted(texts) == ["one", "three", "two"]
        assert stage.rung[1][1] - stage.rung[0][1] >= 0.05
        # And the report has both sides, by topic and in all
        then, now = report["recorded"], report["now"]
        assert (then[""]["tasks"], now[""]["tasks"]) == (3, 3)
        assert then["bell.chime"]["outcomes"] == now["bell.chime"]["outcomes"] == {"result": 1}
        assert then["bell.ring"]["outcomes"] == now["bell.ring"]["outcomes"] == {"result": 1, "failed": 1}
        assert 0 < now["bell.chime"]["p50"] <= now["bell.chime"]["p99"]
        assert then["bell.chime"]["p50"] > 0
        assert report["late_s"] >= 0
        # The environment itself is spared, and what is asked of nobody is told
        code, _, err = await load(wiring, *window)
        assert (code, "recorded in" in err) == (2, True)
        for wrong in ((), ("--since", iso(began), "run.jsonl"), ("--since", "soon")):
            code, _, err = await load(wiring, *wrong, "--to", env)
            assert code == 2, err
    with pytest.raises(ConfigError, match="holds no task"):
        await tasks_of(trail, since=ended + 3600, until=ended + 7200)


@ON_NATS
async def test_a_trail_without_contents_is_no_load(world: World, serve: Serve) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "trail")
    async with archiving(wiring.settings):
        assert (await wiring.caller.ask("bell.ring", {"text": "bare"})).ok
        await recorded(trail, 1, kind="result")
    with pytest.raises(ConfigError, match="without contents"):
        await tasks_of(trail, since=0, until=time.time())


@ON_NATS
async def test_what_a_strict_sender_stored_twice_is_sent_once(world: World, serve: Serve) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    strict = dataclasses.replace(wiring.settings, audit_strict="yes")
    place = await Wiring.open(strict, AgentIdentity(id="strict", type="test"))
    try:
        async with archiving(wiring.settings):
            assert (await place.caller.ask("bell.ring", {"text": "ding"})).ok
            await recorded(trail, 1, kind="result")
            assert len(await recorded(trail, 1, kind="sent")) == len(await recorded(trail, 1, kind="task")) == 1
    finally:
        await place.aclose()
    (task,) = await tasks_of(trail, since=0, until=time.time())
    assert (task.message.payload.content, task.outcome) == ({"text": "ding"}, "result")


@ON_NATS
async def test_whoever_reads_a_long_trail_lets_others_have_the_loop(world: World, serve: Serve) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    trail, turns = await audited(wiring, "full"), 0
    async with archiving(wiring.settings):
        # Given batches that come in one answer of the server
        for number in range(1, 4):
            assert (await wiring.caller.ask("bell.ring", {"text": "ding"})).ok
            await recorded(trail, number, kind="result")

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    try:
        # When they are read, then others had a turn between any two
        seen = [turns async for _ in trail._batches()]
    finally:
        turning.cancel()
    assert len(seen) == len(set(seen)) >= 3
