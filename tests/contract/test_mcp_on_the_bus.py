"""MCP over NATS: the SDK's client and server, each on a connection of its own, and bytes that anybody may send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitResult

from squadron.actors.agent import AgentSpec
from squadron.actors.remote.mcp_agent import McpAgent, look_at
from squadron.actors.remote.mcp_bus import BusTransport, served_on_bus
from squadron.actors.remote.mcp_server import McpServer
from squadron.bridge.host import Host
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import InvalidSubjectError
from squadron.runtime.wire.outcome import Failed
from tests import mcp_neighbour
from tests.contract.conftest import ON_NATS, Inbox, Peer, World, until

pytestmark = ON_NATS


@pytest.fixture
async def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mcp_neighbour, "TRACE", str(tmp_path / "trace"))
    return tmp_path / "trace"


@pytest.fixture
async def here(world: World) -> AsyncIterator[Peer]:
    """A client; a server is on another connection."""
    there, here = await world.join("there"), await world.join("here")
    leave, ready = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        # In a task of its own: fixtures begin and end in different ones, which cancel scopes of anyio must not.
        async with served_on_bus(there.ports, "near", mcp_neighbour.server._lowlevel_server):
            ready.set()
            await leave.wait()

    serving = asyncio.create_task(serve())
    await ready.wait()
    yield here
    leave.set()
    await serving


def client_of(peer: Peer, **options: Any) -> Client:
    return Client(BusTransport(peer.ports, "near"), mode="2026-07-28", read_timeout_seconds=20, **options)


async def test_the_clients_of_the_sdk_list_and_call(here: Peer) -> None:
    async with client_of(here) as client:
        assert "add" in [tool.name for tool in (await client.list_tools()).tools]
        done = await asyncio.gather(*(client.call_tool("add", {"a": n, "b": 1}) for n in range(20)))
        assert [each.structured_content for each in done] == [{"result": n + 1} for n in range(20)]
        assert (await client.call_tool("broken", {})).is_error
        with pytest.raises(MCPError, match="not on Sundays"):
            await client.call_tool("refused", {})


async def test_two_clients_with_the_same_ids_are_not_mixed_up(here: Peer) -> None:
    async with client_of(here) as one, client_of(here) as other:
        for n in range(5):
            first, second = await asyncio.gather(
                one.call_tool("greet", {"name": f"one {n}"}), other.call_tool("greet", {"name": f"other {n}"})
            )
            assert f"one {n}" in str(first.content)
            assert f"other {n}" in str(second.content)


async def test_progress_and_questions_go_along(here: Peer) -> None:
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async def answer(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"size": "M"})

    async with client_of(here, elicitation_callback=answer) as client:
        await client.call_tool("count", {"to": 3}, progress_callback=hear)
        assert told == [1, 2, 3]
        assert "accept M" in str((await client.call_tool("shirt", {})).content)


async def test_a_call_that_is_given_up_is_cancelled_there(here: Peer, trace: Path) -> None:
    async with client_of(here) as client:
        calling = asyncio.create_task(client.call_tool("forever", {}))
        await until(lambda: _seen(trace, "begun"))
        calling.cancel()
        await until(lambda: _seen(trace, "cancelled"))


async def test_a_client_that_leaves_takes_its_calls_along(here: Peer, trace: Path) -> None:
    async with client_of(here) as client:
        calling = asyncio.create_task(client.call_tool("forever", {}))
        await until(lambda: _seen(trace, "begun"))
    await asyncio.wait([calling])
    await until(lambda: _seen(trace, "cancelled"))


async def _seen(trace: Path, word: str) -> bool:
    return word in _text_of(trace)


def _text_of(trace: Path) -> str:
    return trace.read_text() if trace.exists() else ""


async def test_news_of_tools_are_heard(here: Peer) -> None:
    async with client_of(here) as client, client.listen(tools_list_changed=True) as news:
        await client.call_tool("grow", {})
        async with asyncio.timeout(10):
            assert type(await anext(news)).__name__ == "ToolsListChanged"


async def test_where_no_server_is_a_call_fails_at_once(here: Peer) -> None:
    async with Client(BusTransport(here.ports, "far"), mode="2026-07-28") as client:
        with pytest.raises(MCPError, match="nobody serves it"):
            await client.call_tool("add", {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32600),
        (b"[]", -32600),
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}', -32600),
        (json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}).encode(), -32022),
        (json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode(), None),
    ],
    ids=["nothing", "a list", "a notification", "a handshake", "no envelope"],
)
async def test_what_is_no_request_of_this_wire_is_answered_with_an_error(
    here: Peer, body: bytes, code: int | None
) -> None:
    answers = Inbox()
    await here.ports.bus.subscribe("_INBOX.test.of.bytes", answers)
    await here.ports.bus.publish(here.subjects.mcp("near"), body, reply="_INBOX.test.of.bytes")
    said = json.loads((await answers.next()).data)["error"]
    assert code is None or said["code"] == code


async def test_a_server_on_one_node_is_an_agent_on_another(here: Peer) -> None:
    server = McpServer.of({"bus": "near"})
    operations, said = await look_at(server, "mcp_near", here.ports)
    assert said == "Tools of a neighbour."
    agent = McpAgent.serving("mcp_near", server.to_dict(), operations)
    spec = AgentSpec.of(agent)
    host = Host(here.place, agent(), spec, slots=4)
    await here.queue.declare(host.mailbox)
    await here.registry.advertise(spec.card())
    await host.start()
    try:
        outcome = await here.caller.ask("mcp_near.add", {"a": 1, "b": 2}, AskOptions(within_s=20))
        assert outcome.unwrap() == {"result": 3}
    finally:
        await host.stop(1)


async def test_an_id_that_is_no_token_is_refused(here: Peer) -> None:
    with pytest.raises(InvalidSubjectError):
        BusTransport(here.ports, "a.b")


async def test_resources_and_prompts_of_a_server_are_topics(world: World) -> None:
    library = MCPServer("library", log_level="ERROR")

    @library.resource("book://one")
    def one() -> str:
        return "Once upon a time."

    @library.resource("book://page/{number}")
    def page(number: str) -> str:
        return f"page {number}"

    @library.prompt()
    def review(book: str) -> str:
        return f"Review {book}."

    there, here = await world.join("there"), await world.join("here")
    async with served_on_bus(there.ports, "library", library._lowlevel_server):
        operations, _ = await look_at(McpServer(bus="library"), "mcp_library", here.ports)
        names = ["get_prompt", "list_prompts", "list_resource_templates", "list_resources", "read_resource"]
        assert [each.topic.name for each in operations] == [f"mcp_library.{name}" for name in names]
        agent = McpAgent.serving("mcp_library", {"bus": "library"}, operations)
        host = Host(there.place, agent(), AgentSpec.of(agent), slots=4)
        await there.queue.declare(host.mailbox)
        await there.registry.advertise(host.spec.card())
        await host.start()

        async def ask(topic: str, **content: Any) -> Any:
            return (await here.caller.ask(f"mcp_library.{topic}", content, AskOptions(within_s=20))).unwrap()

        try:
            listed = await ask("list_resources")
            assert [each["uri"] for each in listed["resources"]] == ["book://one"]
            templates = (await ask("list_resource_templates"))["resourceTemplates"]
            assert [each["uriTemplate"] for each in templates] == ["book://page/{number}"]
            read = await ask("read_resource", uri="book://page/7")
            assert [each["text"] for each in read["contents"]] == ["page 7"]
            assert [each["name"] for each in (await ask("list_prompts"))["prompts"]] == ["review"]
            filled = await ask("get_prompt", name="review", arguments={"book": "Emma"})
            assert filled["messages"][0]["content"]["text"] == "Review Emma."
            unknown = await here.caller.ask(
                "mcp_library.read_resource", {"uri": "book://two"}, AskOptions(within_s=20)
            )
            assert isinstance(unknown, Failed)
        finally:
            await host.stop(1)
