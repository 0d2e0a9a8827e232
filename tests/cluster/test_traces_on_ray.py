"""One trace goes from a client over replicas on a real Ray, of which one dies, to the outcome."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from squadron.bridge.jetstream.link import embedded
from squadron.bridge.serve import local
from tests.otlp import http_receiver

PROGRAM = """
import asyncio, json, os, signal
from squadron import Agent, Context, Squad, topic

class Frail(Agent):
    min_replicas = max_replicas = 1

    @topic("frail.first")
    async def first(self, ctx: Context) -> str:
        if ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return (await ctx.ask("frail.second")).unwrap()

    @topic("frail.second")
    async def second(self, ctx: Context) -> str:
        return "here"

async def main():
    async with Squad.up() as squad:
        await squad.deploy(Frail)
        outcome = await squad.ask("frail.first", within_s=100)
        print(json.dumps([outcome.kind, outcome.attempt, outcome.task_id]), flush=True)
        await squad.drain(60)

asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sq-tests-") as folder:
        yield Path(folder) / "home"
        local.stop(Path(folder) / "home")
        embedded.stop(Path(folder) / "home")


@pytest.mark.slow
async def test_one_trace_goes_over_a_replica_that_is_killed_to_the_outcome(home: Path) -> None:
    path = home.parent / "program.py"
    path.write_text(PROGRAM)
    with http_receiver() as received:
        # A cluster of its own: what a shell says of traces reaches the replicas when the cluster starts.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(path)),
            env=os.environ | received.environ | {"SQUADRON_HOME": str(home)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    kind, attempt, task = json.loads(out.decode().splitlines()[-1])
    assert (kind, attempt) == ("result", 2)

    (ask,) = received.named("ask frail.first")
    ours = {span.name: span for _, span in received.spans if span.trace_id == ask.trace_id}
    work = ours["process frail.first"]
    assert work.parent_span_id == ours["publish frail.first"].span_id
    assert ours["publish frail.first"].parent_span_id == ask.span_id
    assert ours["ask frail.second"].parent_span_id == work.span_id
    assert ours["process frail.second"].parent_span_id == ours["publish frail.second"].span_id
    told = {each.key: each.value for each in work.attributes}
    assert told["squadron.attempt"].int_value == 2
    assert told["messaging.message.id"].string_value == task
    # That the first attempt died nobody could send; that there was one shows.
    assert [each.attributes[0].value.string_value for each in work.links] == ["redelivery"]
    of = {span.name: service for service, span in received.spans}
    assert of["process frail.first"]["service.name"] == "frail"
    assert of["ask frail.first"]["service.name"] == "client"
    assert of["process frail.first"]["deployment.environment.name"] == "dev"
