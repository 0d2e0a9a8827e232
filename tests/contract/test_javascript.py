"""The typed example in JavaScript: checked by the TypeScript compiler, and at work against agents of ours."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.jetstream.link import embedded
from squadron.config import Settings
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from squadron.runtime.streams.writer import Chunk
from tests.contract.conftest import ON_NATS, SOON_S, Peer, Serve, World, until
from tests.contract.node_packages import NATS, Node, node, node_packages
from tests.docs import ROOT

EXAMPLE, SCHEMAS = ROOT / "docs" / "examples" / "squadron.mjs", ROOT / "docs" / "schema"
#: What checks the types, and what makes them of our schemas.
CHECKERS = ("typescript@5.9.3", "json-schema-to-typescript@15.0.4", "@types/node@20.19.0")
VALIDATORS = ("@asyncapi/parser@3.6.0", "ajv@8.20.0")
VALIDATE = """
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";
import Ajv from "ajv/dist/2020.js";
const [folder, ...names] = process.argv.slice(2);
const ajv = new Ajv.default();
for (const name of names) ajv.compile(JSON.parse(readFileSync(`${folder}/${name}.json`, "utf8")));
const source = `${folder}/asyncapi.json`;
const told = await new Parser().validate(readFileSync(source, "utf8"), { source });
for (const { severity, message, path } of told) if (severity < 2) throw new Error(`${message} at ${path}`);
console.log(`${names.length} schemas, 1 document`);
"""
STRICT = {"strict": True, "allowJs": True, "checkJs": True, "noEmit": True, "target": "es2022"}
STRICT |= {"module": "nodenext", "skipLibCheck": True, "types": ["node"]}

Run = Callable[..., AbstractAsyncContextManager[Node]]


class Speaker(Agent):
    """Answers a program in JavaScript."""

    name = "speaker"

    def __init__(self) -> None:
        self.began = self.stopped = 0

    @topic("talk.spell", description="Spell a text.")
    async def spell(self, text: str, ctx: Context) -> str:
        for letter in text:
            await ctx.emit(letter)
        return text.upper()

    @topic("talk.wait", run_timeout_s=60)
    async def wait(self) -> str:
        self.began += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return "never"


@pytest.fixture
async def speaker(serve: Serve) -> Speaker:
    agent = Speaker()
    await serve(agent)
    return agent


@pytest.fixture
def run(settings: Settings, tmp_path: Path) -> Run:
    """Run the example with a command."""
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "node_modules").symlink_to(node_packages(NATS))
    embedded.ensure(settings.home)
    return partial(node, tmp_path / EXAMPLE.name, settings)


@pytest.mark.slow
def test_its_types_are_those_of_the_schemas(tmp_path: Path) -> None:
    packages = node_packages(NATS, *CHECKERS)
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "node_modules").symlink_to(packages)
    (tmp_path / "types").mkdir()
    for name in ("agent-message", "agent-card", "outcome"):
        schema = str(SCHEMAS / f"{name}.json")
        made = subprocess.run(
            ["node", packages / ".bin/json2ts", schema], check=True, capture_output=True, timeout=60
        )
        (tmp_path / "types" / f"{name}.d.ts").write_bytes(made.stdout)
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": STRICT, "files": [EXAMPLE.name]}))
    checked = subprocess.run(
        ["node", packages / ".bin/tsc", "-p", tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_schemas_and_subjects_are_valid_by_the_tools_of_others(tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_packages(*VALIDATORS))
    (tmp_path / "check.mjs").write_text(VALIDATE)
    names = ("agent-message", "agent-card", "outcome", "presence")
    checked = subprocess.run(
        ["node", tmp_path / "check.mjs", SCHEMAS, *names], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "4 schemas, 1 document\n"), checked.stderr


@ON_NATS
async def test_a_task_goes_on_without_it_and_another_process_follows_and_cancels_it(
    speaker: Speaker, run: Run
) -> None:
    async with run("ask", "talk.wait", "{}") as program:
        task = (await program.line())["task"]
        await until(lambda: _is(lambda: speaker.began == 1))
        await program.kill()
    async with run("follow", task) as follower, run("cancel", task) as canceller:
        await canceller.rest()
        assert (await follower.line())["outcome"]["outcome"] == "cancelled"
    await until(lambda: _is(lambda: speaker.stopped == 1))


async def _is(said: Callable[[], bool]) -> bool:
    return said()


@ON_NATS
async def test_it_finds_what_is_served(speaker: Speaker, run: Run) -> None:
    async with run("topics") as program:
        found = {each["name"]: each for each in await program.rest()}
    assert found["talk.spell"] == {"name": "talk.spell", "agent": "speaker", "description": "Spell a text."}


@ON_NATS
async def test_what_it_publishes_on_a_lite_topic_is_read_by_both(peer: Peer, run: Run) -> None:
    for number in (1, 2):
        async with run("publish", "ann.chat", json.dumps({"text": f"hello {number}"})) as program:
            await program.rest()
    chat = peer.caller.lite_topics.topic("chat", "ann")
    async with run("read", "ann.chat") as reader:
        assert await reader.lines(2) == [{"text": "hello 1"}, {"text": "hello 2"}]
        await chat.publish({"text": "hello 3"})
        assert await reader.line() == {"text": "hello 3"}
        await chat.close()
        assert await reader.rest() == []


@pytest.fixture
async def reverser(world: World, run: Run) -> AsyncIterator[Node]:
    # Whoever has joined has made the streams.
    await world.join("bridge", bridge=True)
    async with run("serve") as program:
        yield program


@ON_NATS
async def test_it_serves_a_topic_that_is_asked_like_any_other(world: World, reverser: Node) -> None:
    peer = await world.join("tester")
    await until(lambda: _is(lambda: peer.registry.find("js.reverse") is not None))
    options = AskOptions(within_s=SOON_S)
    handle = await peer.caller.submit("js.reverse", {"text": "käse"}, options)
    chunks = [each.value async for each in handle.events() if isinstance(each, Chunk)]
    outcome = await handle.outcome()
    assert (chunks, outcome.unwrap()) == ([*"esäk"], "esäk")
    failed = await peer.caller.ask("js.reverse", {"text": ""}, options)
    assert (failed.kind, failed.reason) == ("failed", "there is nothing to turn around")
    rejected = await peer.caller.ask("js.reverse", {"words": ""}, options)
    assert rejected.kind == "rejected"


@ON_NATS
async def test_a_task_whose_server_was_killed_is_run_by_the_next(world: World, run: Run) -> None:
    peer = await world.join("bridge", bridge=True)
    async with run("serve") as first:
        await until(lambda: _is(lambda: peer.registry.find("js.reverse") is not None))
        await first.kill()
    handle = await peer.caller.submit("js.reverse", {"text": "later"}, AskOptions(within_s=30))
    async with run("serve"):
        assert (await handle.outcome()).unwrap() == "retal"
