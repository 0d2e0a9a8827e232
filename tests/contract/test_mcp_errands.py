"""Calls of which MCP servers make tasks: of our own gateway, and of servers that end them in other ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import mcp_types as types
import pytest
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from squadron import Agent, Context, topic
from squadron.actors.remote.errand_notes import ErrandNote
from squadron.actors.remote.mcp_agent import McpAgent, look_at
from squadron.actors.remote.mcp_bus import served_on_bus
from squadron.actors.remote.mcp_errand import EXTENSION
from squadron.actors.remote.mcp_server import McpServer
from squadron.testing import MemorySquad
from tests.contract.conftest import until
from tests.contract.gateway_process import opened_gateway


class Worker(Agent):
    """Does what takes its time, and counts how often."""

    name = "worker"

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.begun, self.cancelled = 0, 0

    @topic("work.slow", description="Take a while.", run_timeout_s=60)
    async def slow(self) -> str:
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "slept"

    @topic("work.paint", description="Tell how far it is.", run_timeout_s=60)
    async def paint(self, ctx: Context) -> str:
        await ctx.emit("primed")
        await self.go_on.wait()
        self.go_on.clear()
        await ctx.emit("painted")
        await self.go_on.wait()
        return "dry"

    @topic("work.choose", description="Ask which size.", run_timeout_s=60)
    async def choose(self, ctx: Context) -> str:
        schema = {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]}
        reply = await ctx.ask_person("Which size?", schema=schema, within_s=60)
        return f"size {reply.content['size']}" if reply.accepted else reply.action

    @topic("work.fail", description="Fail for good.", max_attempts=1)
    async def fail(self) -> str:
        # Late enough to be a task.
        await asyncio.sleep(0.2)
        raise ValueError("the oven is cold")


@asynccontextmanager
async def neighbours(worker: Worker, **options: Any) -> AsyncIterator[tuple[MemorySquad, type[McpAgent]]]:
    """A squad that has a worker's topics through the worker's gateway."""
    async with MemorySquad(turned=False) as there, MemorySquad(turned=False, **options) as here:
        await there.deploy(worker)
        async with opened_gateway(there._place, "mcp") as url:
            server = McpServer.of({"url": f"{url}/mcp"})
            operations, _ = await look_at(server, "mcp_there", here._place.ports)
            made = McpAgent.serving("mcp_there", server.to_dict(), operations)
            await here.deploy(made)
            yield here, made


async def test_an_agent_for_a_gateway_of_its_own_squad_is_no_tool_of_itself() -> None:
    """Its tools would be topics, those tools, and so on without an end."""
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Worker())
        async with opened_gateway(squad._place, "mcp") as url:
            server = McpServer(url=f"{url}/mcp")
            operations, _ = await look_at(server, "mcp_self", squad._place.ports)
            made = McpAgent.serving("mcp_self", server.to_dict(), operations)
            await squad.deploy(made)
            for agent, seen in (("mcp_self", False), ("mcp_other", True)):
                again, _ = await look_at(server, agent, squad._place.ports)
                assert any("mcp_self" in each.name for each in again) is seen
                assert f"{agent}.work__slow" in [each.topic.name for each in again]


async def test_two_squads_that_have_each_others_tools_come_to_an_end_of_them() -> None:
    async with MemorySquad(turned=False) as here, MemorySquad(turned=False) as there:
        await there.deploy(Worker())
        async with opened_gateway(here._place, "mcp") as near, opened_gateway(there._place, "mcp") as far:
            sides, found = ((here, "mcp_far", far), (there, "mcp_near", near)), list[list[int]]()
            while len(found) < 2 or found[-1] != found[-2]:
                found.append([])
                for squad, name, url in sides:
                    server = McpServer(url=f"{url}/mcp")
                    operations, _ = await look_at(server, name, squad._place.ports)
                    await squad.deploy(McpAgent.serving(name, server.to_dict(), operations))
                    found[-1].append(len(operations))
        assert found[-1][0] > found[0][0]  # for some rounds they do grow


async def test_what_becomes_of_a_task_is_what_becomes_of_the_call() -> None:
    worker = Worker()
    async with neighbours(worker) as (here, _):
        handle = await here.submit("mcp_there.work__slow", {})
        await until(lambda: _is(worker.begun == 1))
        worker.go_on.set()
        assert (await handle.outcome()).unwrap() == "slept"
        failed = await here.ask("mcp_there.work__fail", {})
        assert failed.kind == "failed"
        assert "the oven is cold" in failed.reason


async def test_what_a_task_tells_meanwhile_comes_as_chunks() -> None:
    worker = Worker()
    async with neighbours(worker) as (here, _):
        handle, told = await here.submit("mcp_there.work__paint", {}), list[Any]()
        async with handle.chunks() as chunks:
            async for chunk in chunks:
                told.append(chunk)
                # On with it, as soon as the last of it was heard.
                worker.go_on.set()
        assert told == [{"message": "primed"}, {"message": "painted"}]
        assert (await handle.outcome()).unwrap() == "dry"


async def test_what_a_task_asks_reaches_people_here() -> None:
    async with neighbours(Worker()) as (here, _):
        people = here.people({"size": "XL"})
        assert (await here.ask("mcp_there.work__choose", {})).unwrap() == "size XL"
        assert people.asked[0].question.message.startswith("mcp_there asks: ")
        await people.aclose()


async def test_a_cancelled_call_cancels_the_task_there() -> None:
    worker = Worker()
    async with neighbours(worker) as (here, _):
        handle = await here.submit("mcp_there.work__slow", {})
        await until(lambda: _is(worker.begun == 1))
        await handle.cancel()
        assert (await handle.outcome()).kind == "cancelled"
        await until(lambda: _is(worker.cancelled == 1))


async def test_a_replica_that_dies_leaves_the_task_to_the_next_which_does_not_call_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, noted, write = Worker(), asyncio.Event(), ErrandNote.write

    async def written(self: ErrandNote, said: Any) -> None:
        await write(self, said)
        noted.set()

    monkeypatch.setattr(ErrandNote, "write", written)
    async with neighbours(worker, lease_s=1.0) as (here, made):
        handle = await here.submit("mcp_there.work__slow", {}, within_s=120)
        await noted.wait()
        await here.kill("mcp_there")
        await here.deploy(made)
        worker.go_on.set()
        outcome = await handle.outcome()
        assert outcome.unwrap() == "slept"
        assert outcome.attempt > 1
        assert worker.begun == 1


async def _is(fact: bool) -> bool:
    return fact


# --- servers that end tasks in other ways --------------------------------------------------------------


class Created(types.Result):
    """The answer to a call that became a task."""

    result_type: Literal["task"] = "task"
    task_id: str


class Which(types.RequestParams):
    """Which task."""

    task_id: str


@asynccontextmanager
async def made_by_hand(told: dict[str, Any] | MCPError) -> AsyncIterator[MemorySquad]:
    """A squad with the only tool of a server whose tasks are all in this state."""

    async def tools(*_: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="work", input_schema={"type": "object"})])

    async def call(*_: Any) -> Created:
        return Created(task_id="t-1")

    async def get(_: Any, which: Which) -> dict[str, Any]:
        assert which.task_id == "t-1"
        if isinstance(told, MCPError):
            raise told
        return {"taskId": "t-1", **told}

    server: Server[Any] = Server("by-hand", on_list_tools=tools, on_call_tool=call)  # type: ignore[arg-type]
    server.extensions[EXTENSION] = {}
    server.add_request_handler("tasks/get", Which, get)
    async with MemorySquad(turned=False) as squad, served_on_bus(squad._place.ports, "by-hand", server):
        there = McpServer.of({"bus": "by-hand"})
        operations, _ = await look_at(there, "mcp_hand", squad._place.ports)
        await squad.deploy(McpAgent.serving("mcp_hand", there.to_dict(), operations))
        yield squad


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"status": "failed", "error": {"code": -32050, "message": "no paper"}}, "no paper (-32050)"),
        ({"status": "failed", "statusMessage": "no ink"}, "failed there: no ink"),
        ({"status": "cancelled"}, "cancelled there: it says no more"),
        ({"status": "completed"}, "completed there: it says no more"),
        ({"status": "asleep"}, "answers with what it does not promise"),
        (MCPError(types.INVALID_PARAMS, "who?"), "who? (-32602)"),
    ],
    ids=["error", "failed", "cancelled", "no result", "unknown", "forgotten"],
)
async def test_a_task_that_comes_to_nothing_says_why(told: dict[str, Any] | MCPError, reason: str) -> None:
    async with made_by_hand(told) as squad:
        outcome = await squad.ask("mcp_hand.work", {})
        assert outcome.kind == "failed"
        assert reason in outcome.reason
