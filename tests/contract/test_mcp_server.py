"""The MCP server over real topics, with the official client: both wires, a real nats-server, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import mcp_types as types
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.extension import ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.gateways.http_guard import GuardRules
from squadron.bridge.gateways.running_gateways import running_gateways
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.running.context import Context
from tests.contract.conftest import ON_NATS, SOON_S, Peer, Serve, World, until
from tests.contract.gateway_process import gateway_command, opened_gateway
from tests.contract.nats_cluster import free_port

pytestmark = ON_NATS

MODERN, LEGACY = "2026-07-28", "legacy"
WIRES = pytest.mark.parametrize("wire", [MODERN, LEGACY])
TASKS = "io.modelcontextprotocol/tasks"


class Worker(Agent):
    """Does what the tests ask for."""

    name = "worker"

    @topic("work.double", description="Double a number.")
    async def double(self, n: int) -> int:
        return 2 * n

    @topic("work.describe", description="Describe a thing.", tags=["mcp:tool=describe"])
    async def describe(self, what: str) -> dict[str, str]:
        return {"what": what}

    @topic("work.count", description="Count aloud.")
    async def count(self, to: int, ctx: Context) -> str:
        for n in range(1, to + 1):
            await ctx.emit(f"{n}")
        return "done"

    @topic("work.fail", description="Fail for good.", max_attempts=1)
    async def fail(self) -> str:
        raise ValueError("the oven is cold")

    @topic("work.wait", description="Wait until cancelled.", run_timeout_s=60)
    async def wait(self, mark: str) -> str:
        STARTED.add(mark)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            CANCELLED.add(mark)
            raise
        return "never"

    @topic("work.slow", description="Take a while.")
    async def slow(self, seconds: float, mark: str = "") -> str:
        STARTED.add(mark)
        await asyncio.sleep(seconds)
        return "slept"

    @topic("work.choose", description="Ask which size.", run_timeout_s=60)
    async def choose(self, ctx: Context) -> str:
        schema = {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]}
        reply = await ctx.ask_person("Which size?", schema=schema, within_s=30)
        return f"size {reply.content['size']}" if reply.accepted else reply.action

    @topic("goal.tidy", description="Tidy a room.", tags=["house"])
    async def tidy(self, goal: str) -> str:
        return goal

    @topic("docs.page", description="A page.", tags=["mcp:resource=docs://{page}", "mcp:mime=text/markdown"])
    async def page(self, page: str) -> str:
        return f"# {page}"

    @topic("docs.review", description="How to review.", tags=["mcp:prompt=review"])
    async def review(self, file: str) -> str:
        return f"Review {file}."


STARTED: set[str] = set()
CANCELLED: set[str] = set()


@pytest.fixture
async def url(world: World, serve: Serve) -> AsyncIterator[str]:
    await serve(Worker())
    door = await world.join("gateway")
    await door.registry.refresh(float("inf"))
    async with opened_gateway(door.place, "mcp") as url:
        yield f"{url}/mcp"


@WIRES
async def test_topics_are_tools_with_names_that_hosts_take(url: str, wire: str) -> None:
    async with Client(url, mode=wire) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"work__double", "describe", "work__count", "goal__tidy"} <= tools.keys()
        assert "docs__page" not in tools
        assert tools["work__double"].description == "Double a number."
        assert (tools["work__double"].meta or {})["squadron/topic"] == "work.double"
        assert tools["work__double"].input_schema["required"] == ["n"]


@WIRES
async def test_a_result_is_structured_and_wrapped_where_the_wire_wants_objects(url: str, wire: str) -> None:
    async with Client(url, mode=wire) as client:
        await client.list_tools()
        number = await client.call_tool("work__double", {"n": 21})
        assert number.structured_content == (42 if wire == MODERN else {"result": 42})
        assert [block.text for block in number.content if block.type == "text"] == ["42"]
        thing = await client.call_tool("describe", {"what": "tea"})
        assert thing.structured_content == {"what": "tea"}


@WIRES
async def test_what_goes_wrong_is_an_error_of_the_tool_that_its_model_can_read(url: str, wire: str) -> None:
    async with Client(url, mode=wire) as client:
        wrong = await client.call_tool("work__double", {"n": "many"})
        assert wrong.is_error
        assert "rejected" in wrong.content[0].text
        failed = await client.call_tool("work__fail", {})
        assert failed.is_error
        assert "the oven is cold" in failed.content[0].text
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("work__nothing", {})


@WIRES
async def test_chunks_are_progress(url: str, wire: str) -> None:
    heard: list[tuple[float, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async with Client(url, mode=wire) as client:
        result = await client.call_tool("work__count", {"to": 3}, progress_callback=hear)
        assert not result.is_error
        assert heard == [(1, "1"), (2, "2"), (3, "3")]


async def test_a_closed_response_cancels_the_task(url: str) -> None:
    async with Client(url, mode=MODERN) as client:
        calling = asyncio.create_task(client.call_tool("work__wait", {"mark": "closed"}))
        await until(lambda: _in(STARTED, "closed"))
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
    await until(lambda: _in(CANCELLED, "closed"))


async def _in(marks: set[str], mark: str) -> bool:
    return mark in marks


@WIRES
async def test_a_question_reaches_who_calls(url: str, wire: str) -> None:
    asked: list[str] = []

    async def answer(_: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"size": "M"})

    async with Client(url, mode=wire, elicitation_callback=answer) as client:
        result = await client.call_tool("work__choose", {})
        assert [block.text for block in result.content] == ["size M"]
        assert asked == ["Which size?"]


async def test_a_state_that_was_changed_is_refused(url: str) -> None:
    async with Client(url, mode=MODERN) as client:
        with pytest.raises(MCPError):
            await client.session.send_request(
                types.CallToolRequest(
                    params=types.CallToolRequestParams(
                        name="work__choose", arguments={}, request_state="forged", input_responses={}
                    )
                ),
                types.CallToolResult,
            )


@WIRES
async def test_documents_and_prompts_are_read_from_agents(url: str, wire: str) -> None:
    async with Client(url, mode=wire) as client:
        templates = (await client.list_resource_templates()).resource_templates
        assert [each.uri_template for each in templates] == ["docs://{page}"]
        page = await client.read_resource("docs://intro")
        assert page.contents[0].text == "# intro"
        assert page.contents[0].mime_type == "text/markdown"
        prompts = {each.name for each in (await client.list_prompts()).prompts}
        assert prompts == {"goal__tidy", "review"}
        review = await client.get_prompt("review", {"file": "a.py"})
        assert review.messages[0].content.text == "Review a.py."
        tidy = await client.get_prompt("goal__tidy", {"goal": "the attic"})
        assert "the attic" in tidy.messages[0].content.text
        with pytest.raises(MCPError, match="not found"):
            await client.read_resource("docs://a/b")


class Created(types.Result):
    result_type: Literal["task"] = "task"
    task_id: str
    status: str


class Polling(ClientExtension):
    """A client that knows tasks, and hands out what it is given."""

    identifier = TASKS

    def __init__(self) -> None:
        self.created: asyncio.Queue[str] = asyncio.Queue()

    def claims(self) -> list[ResultClaim[Any]]:
        async def resolve(created: Created, ctx: Any) -> types.CallToolResult:
            self.created.put_nowait(created.task_id)
            return types.CallToolResult(content=[types.TextContent(text=created.task_id)])

        return [ResultClaim(result_type="task", model=Created, resolve=resolve)]


async def raw(
    url: str, method: str, params: dict[str, Any], *, token: str = "", tasks: bool = True
) -> dict[str, Any]:
    """One request of the modern wire, by hand."""
    extensions = {TASKS: {}} if tasks else {}
    meta: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions, "elicitation": {"form": {}}},
        "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
    }
    headers = {
        "MCP-Protocol-Version": MODERN,
        "Mcp-Method": method,
        "Accept": "application/json, text/event-stream",
    }
    if key := params.get("key"):
        meta["squadron/idempotencyKey"] = key
    params = {name: each for name, each in params.items() if name != "key"}
    if name := params.get("taskId") or params.get("name"):
        headers["Mcp-Name"] = name
    if token:
        headers["Authorization"] = f"Bearer {token}"
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    async with httpx2.AsyncClient(timeout=30) as client:
        answer = await client.post(url, json=body, headers=headers)
    found: dict[str, Any] = answer.json()
    return found


async def ended(url: str, task: str, **how: Any) -> dict[str, Any]:
    """A task, as soon as it has ended."""
    found: dict[str, Any] = {}

    async def is_over() -> bool:
        found.update((await raw(url, "tasks/get", {"taskId": task}, **how))["result"])
        return found["status"] not in ("working", "input_required")

    await until(is_over)
    return found


async def test_a_call_of_a_client_that_knows_tasks_is_a_task(url: str) -> None:
    made = await raw(url, "tools/call", {"name": "work__slow", "arguments": {"seconds": 0.3}})
    created = made["result"]
    assert created["resultType"] == "task"
    assert created["status"] == "working"
    over = await ended(url, created["taskId"])
    assert over["status"] == "completed"
    assert over["result"]["structuredContent"] == "slept"
    at_once = await raw(url, "tools/call", {"name": "work__double", "arguments": {"n": 1}})
    assert at_once["result"]["resultType"] in ("complete", "task")


async def test_a_task_that_asks_is_answered_by_an_update(url: str) -> None:
    made = await raw(url, "tools/call", {"name": "work__choose", "arguments": {}})
    task, asked = made["result"]["taskId"], dict[str, Any]()

    async def is_asking() -> bool:
        got = (await raw(url, "tasks/get", {"taskId": task}))["result"]
        asked.update(got.get("inputRequests") or {})
        return bool(got["status"] == "input_required")

    await until(is_asking)
    ((key, request),) = asked.items()
    assert request["method"] == "elicitation/create"
    responses = {key: {"action": "accept", "content": {"size": "S"}}}
    await raw(url, "tasks/update", {"taskId": task, "inputResponses": responses})
    assert (await ended(url, task))["result"]["structuredContent"] == "size S"


async def test_a_task_is_cancelled_and_its_agent_stops(url: str) -> None:
    made = await raw(url, "tools/call", {"name": "work__wait", "arguments": {"mark": "task"}})
    await until(lambda: _in(STARTED, "task"))
    await raw(url, "tasks/cancel", {"taskId": made["result"]["taskId"]})
    assert (await ended(url, made["result"]["taskId"]))["status"] == "cancelled"
    await until(lambda: _in(CANCELLED, "task"))


async def test_who_does_not_know_tasks_is_told_to_say_so(url: str) -> None:
    refused = await raw(url, "tasks/get", {"taskId": "x"}, tasks=False)
    assert refused["error"]["code"] == types.MISSING_REQUIRED_CLIENT_CAPABILITY


class Two:
    """Two visitors."""

    async def visitor(self, token: str) -> Visitor | None:
        return {"a": Visitor("client:ann"), "b": Visitor("client:bob")}.get(token)


async def test_nobody_sees_the_task_of_somebody_else(world: World, serve: Serve) -> None:
    await serve(Worker())
    door = await world.join("gateway")
    await door.registry.refresh(float("inf"))
    async with opened_gateway(door.place, "mcp", rules=GuardRules(verifier=Two())) as base:
        url = f"{base}/mcp"
        slow = {"name": "work__slow", "arguments": {"seconds": 0.2}}
        task = (await raw(url, "tools/call", slow, token="a"))["result"]["taskId"]
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            params = {"taskId": task, **({"inputResponses": {}} if method.endswith("update") else {})}
            refused = await raw(url, method, params, token="b")
            assert refused["error"]["code"] == types.INVALID_PARAMS
        assert (await ended(url, task, token="a"))["status"] == "completed"


async def test_lists_are_told_anew_when_agents_come_and_go(world: World, serve: Serve) -> None:
    await serve(Worker())
    door = await world.join("gateway")
    async with opened_gateway(door.place, "mcp") as base:
        changed = asyncio.Event()

        async def hear(message: Any) -> None:
            if isinstance(message, types.ToolListChangedNotification):
                changed.set()

        async with Client(f"{base}/mcp", mode=LEGACY, message_handler=hear) as client:
            await client.list_tools()
            await door.registry.depart("worker", "replica")
            async with asyncio.timeout(SOON_S):
                await changed.wait()
            assert (await client.list_tools()).tools == []


async def test_only_lite_topics_of_named_owners_are_read(world: World, peer: Peer) -> None:
    async with (
        opened_gateway(peer.place, "mcp", lite=("news",)) as base,
        Client(f"{base}/mcp", mode=MODERN) as client,
    ):
        await peer.caller.lite_topics.topic("today", "news").publish({"title": "Rain"})
        await peer.caller.lite_topics.topic("today", "diary").publish({"title": "Secret"})
        listed = [each.uri for each in (await client.list_resources()).resources]
        assert listed == ["squadron://lite/news/today"]
        assert "Rain" in (await client.read_resource(listed[0])).contents[0].text
        with pytest.raises(MCPError, match="not found"):
            await client.read_resource("squadron://lite/diary/today")


async def test_a_task_survives_a_kill_of_the_gateway(world: World, serve: Serve) -> None:
    await serve(Worker())
    assert world.settings is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    slow = {"name": "work__slow", "arguments": {"seconds": 1.0}}
    async with gateway_command(world.settings, port, "--mcp") as first:
        task = (await raw(url, "tools/call", slow))["result"]["taskId"]
        first.kill()
        await first.wait()
    async with gateway_command(world.settings, port, "--mcp"):
        assert (await ended(url, task))["result"]["structuredContent"] == "slept"


async def test_a_host_starts_it_on_the_standard_streams_as_the_printed_configuration_says(
    world: World, serve: Serve
) -> None:
    await serve(Worker())
    assert world.settings is not None
    command = [str(Path(sys.executable).with_name("squadron")), "--home", str(world.settings.home)]
    command += ["--env", world.settings.env, "gateway", "--stdio", "--topic", "work.*", "--print-config"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    (told,) = json.loads(printed)["mcpServers"].values()
    started = StdioServerParameters(command=command[0], args=told["args"], env=told["env"])
    for wire in (MODERN, LEGACY):
        async with Client(started, mode=wire) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert "work__double" in names
            assert "goal__tidy" not in names
            result = await client.call_tool("work__double", {"n": 4})
            assert [block.text for block in result.content] == ["8"]


async def test_a_call_is_one_task_under_one_key_and_goes_on_when_the_gateway_is_killed(
    world: World, serve: Serve
) -> None:
    await serve(Worker())
    assert world.settings is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    call = {"name": "work__slow", "arguments": {"seconds": 1.0, "mark": "keyed"}, "key": "order-7"}
    async with gateway_command(world.settings, port, "--mcp") as first:
        calling = asyncio.create_task(raw(url, "tools/call", call, tasks=False))
        joined = asyncio.create_task(raw(url, "tools/call", call, tasks=False))
        await until(lambda: _in(STARTED, "keyed"))
        first.kill()
        await first.wait()
        for broken in (calling, joined):
            with pytest.raises(httpx2.TransportError):
                await broken
    async with gateway_command(world.settings, port, "--mcp"):
        again = await raw(url, "tools/call", call, tasks=False)
        assert again["result"]["structuredContent"] == "slept"


async def test_what_is_no_gateway_is_said_in_a_line(world: World) -> None:
    assert world.settings is not None
    command = [str(Path(sys.executable).with_name("squadron")), "--home", str(world.settings.home), "gateway"]
    for options, says in (
        ([], "no door was named"),
        (["--mcp", "--host", "0.0.0.0"], "can be reached by others"),
        (["--mcp", "--token", "ann=letmein"], "was given as it is"),
        (["--stdio", "--a2a"], "one MCP client"),
    ):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert "letmein" not in done.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_ctrl_c_ends_a_gateway_in_silence_and_nothing_is_left_of_it(
    world: World, sent: signal.Signals, code: int
) -> None:
    assert world.settings is not None
    await world.join("somebody")
    home, env = world.settings.home, world.settings.env
    async with gateway_command(world.settings, free_port(), "--mcp") as process:
        assert [each.pid for each in running_gateways(home, env)] == [process.pid]
        process.send_signal(sent)
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        assert await process.wait() == code
        assert said.count("\n") == 1
    assert running_gateways(home, env) == []
