"""MCP servers of others as topics: real servers made with the SDK, on both wires and both transports."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import types
from mcp.client import Client
from mcp.server.lowlevel import Server
from pydantic import BaseModel, ConfigDict

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.actors.operations import Operation
from squadron.actors.remote.mcp_agent import DESTRUCTIVE, McpAgent, look_at
from squadron.actors.remote.mcp_documents import documents_of, fetched
from squadron.actors.remote.mcp_server import McpServer, agent_of, servers_in
from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.control.control import Bridge
from squadron.bridge.memory import MemoryServer
from squadron.bridge.packing.code import Code, pack, unpack
from squadron.bridge.serve.offers import FIRST_PAUSE_S, LONGEST_PAUSE_S, TakenOffers, offer_changes
from squadron.config import Settings
from squadron.runtime.errors import (
    ConfigError,
    InvalidAgentError,
    InvalidInputError,
    ServerUnavailableError,
)
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.deployment import Deployment, Scale
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.spoken import read_value
from squadron.runtime.wire.topics import SemanticTopic
from squadron.testing import MemorySquad, ScriptError, now_s
from squadron.testing.made_data import made_data
from tests.contract.conftest import ON_NATS, NoReplicas, World, until, until_listening
from tests.contract.nats_cluster import free_port

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.mcp_neighbour")
WAYS = ("stdio", "stdio of the older wire", "http")
Neighbour = Callable[[str], Any]
PLANTED = "planted-9f41c7b2a6"


@dataclass(frozen=True)
class Near:
    """A squad with a neighbour's tools, reached in one way, for all tests of that way."""

    squad: MemorySquad
    made: type[McpAgent]
    trace: Path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@contextlib.asynccontextmanager
async def neighbours(trace: Path) -> AsyncIterator[Neighbour]:
    """Gives the server of a way; one that listens is started, and killed at the end."""
    processes: list[asyncio.subprocess.Process] = []

    async def reached(way: str) -> McpServer:
        if way != "http":
            older = ["--older"] if "older" in way else []
            args = [*COMMAND[1:], *older]
            return McpServer.of(
                {
                    "command": COMMAND[0],
                    "args": args,
                    "cwd": str(ROOT),
                    "env": {"NEIGHBOUR_TRACE": str(trace)},
                }
            )
        port = free_port()
        processes.append(await listening(port, trace))
        return McpServer.of({"url": f"http://127.0.0.1:{port}/mcp"})

    yield reached
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
async def neighbour(trace: Path) -> AsyncIterator[Neighbour]:
    async with neighbours(trace) as reached:
        yield reached


@pytest.fixture(scope="module", params=WAYS)
async def near(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Near]:
    trace = tmp_path_factory.mktemp("near") / "trace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEAR_KEY", PLANTED)
        async with neighbours(trace) as reached, MemorySquad(turned=False) as squad:
            server = (await reached(request.param)).to_dict()
            if "url" in server:
                server["headers"] = {"Authorization": "Bearer ${NEAR_KEY}"}
            else:
                server["env"] |= {"NEIGHBOUR_KEY": "env:NEAR_KEY"}
            yield Near(squad, await deployed(squad, McpServer.of(server)), trace)


async def listening(port: int, trace: Path) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--http",
        str(port),
        cwd=ROOT,
        env={**os.environ, "NEIGHBOUR_TRACE": str(trace)},
        stderr=asyncio.subprocess.DEVNULL,
    )

    await until_listening(port)
    return process


async def deployed(squad: MemorySquad, server: McpServer, name: str = "mcp_near") -> type[McpAgent]:
    operations, said = await look_at(server, name, squad._place.ports)
    made = McpAgent.serving(name, server.to_dict(), operations, description=said)
    # As a replica gets it.
    code, blob = pack(made)
    assert blob == b""
    travelled: Any = unpack(code, b"")
    await squad.deploy(travelled)
    return made


def lines_of(trace: Path, word: str) -> list[str]:
    return [each for each in trace.read_text().splitlines() if each.startswith(word)] if trace.exists() else []


async def test_tools_are_topics_with_their_schemas_and_answer_as_any_other(near: Near) -> None:
    squad = near.squad
    topics = {each.topic.name: each.topic for each in squad.topics()}
    assert topics["mcp_near.add"].input_schema["required"] == ["a", "b"]
    assert topics["mcp_near.add"].description == "Add two numbers."
    assert topics["mcp_near.wipe"].approval == DESTRUCTIVE
    assert AgentSpec.of(near.made).description == "Tools of a neighbour."
    assert (await squad.search("add two numbers"))[0].topic.name == "mcp_near.add"

    assert (await squad.ask("mcp_near.add", {"a": 1, "b": 2})).unwrap() == {"result": 3}
    assert (await squad.ask("mcp_near.greet", {"name": "Ann"})).unwrap() == "Hello, Ann!"
    [block] = (await squad.ask("mcp_near.picture", {})).unwrap()["content"]
    assert (block["type"], block["mimeType"]) == ("image", "image/png")
    wrong = await squad.ask("mcp_near.add", {"a": "one", "b": 2})
    assert (wrong.kind, wrong.details["field"]) == ("rejected", "a")


async def test_a_tool_that_fails_and_a_server_that_refuses_end_in_a_reason(near: Near) -> None:
    broken = await near.squad.ask("mcp_near.broken", {})
    refused = await near.squad.ask("mcp_near.refused", {})
    assert (broken.kind, broken.attempt) == ("failed", 1)
    assert "broken" in broken.reason
    assert (refused.kind, refused.reason) == ("failed", "not on Sundays (-32001)")


async def test_progress_comes_as_chunks_and_a_cancelled_call_is_cancelled_there(near: Near) -> None:
    squad, trace = near.squad, near.trace
    told = [chunk async for chunk in squad.stream("mcp_near.count", {"to": 3})]
    assert [each["message"] for each in told] == ["step 1", "step 2", "step 3"]
    assert told[-1] == {"progress": 3, "total": 3, "message": "step 3"}

    handle = await squad.submit("mcp_near.forever", {})
    await until(lambda: seen(trace, "begun"))
    await handle.cancel()
    assert (await handle.outcome()).kind == "cancelled"
    await until(lambda: seen(trace, "cancelled"))

    late = await squad.ask("mcp_near.forever", {}, within_s=3)
    assert late.kind == "timed_out"
    await until(lambda: seen(trace, "cancelled", 2))


async def seen(trace: Path, word: str, times: int = 1) -> bool:
    return len(lines_of(trace, word)) >= times


async def test_what_a_server_asks_reaches_people(near: Near) -> None:
    people = near.squad.people({"size": "XL"})
    assert (await near.squad.ask("mcp_near.shirt", {})).unwrap() == "accept XL"
    assert people.asked[0].question.message == "mcp_near asks: Which size?"
    assert people.asked[0].question.schema["properties"].keys() == {"size"}
    await people.aclose()


async def test_calls_that_ask_at_once_get_each_its_own_answer(near: Near) -> None:
    people = near.squad.people({"size": "S"}, {"size": "L"})
    handles = [await near.squad.submit("mcp_near.shirt", {}) for _ in range(2)]
    answers = {each.task_id: (await each.outcome()).unwrap() for each in handles}
    sizes = dict(zip((each.about for each in people.asked), ("accept S", "accept L"), strict=False))
    if near.made.server.get("args", [""])[-1] == "--older":
        # There nobody can say whose question it is, but if it is the only call: no other gets the answer.
        assert all(said in (sizes.get(id), "cancel None") for id, said in answers.items())
    else:
        assert answers == sizes
    await people.aclose()


async def test_secrets_stay_in_the_process_that_needs_them(near: Near, capfd: pytest.CaptureFixture[str]) -> None:
    said = (await near.squad.ask("mcp_near.whisper", {})).unwrap()
    assert said == {"result": f"{len(PLANTED) if 'command' in near.made.server else 0} characters"}
    card, (code, _) = AgentSpec.of(near.made).card().model_dump_json(), pack(near.made)
    heard = capfd.readouterr()
    assert PLANTED not in card + json.dumps(code.to_dict()) + heard.out + heard.err


@pytest.mark.parametrize("way", ["stdio", pytest.param("stdio of the older wire", marks=pytest.mark.slow)])
async def test_a_killed_server_is_started_anew_and_its_call_made_again(
    neighbour: Neighbour, way: str, trace: Path
) -> None:
    async with MemorySquad(turned=False) as squad:
        await deployed(squad, await neighbour(way))
        handle = await squad.submit("mcp_near.once_slow", {}, within_s=60)
        await until(lambda: seen(trace, "slow"))
        os.kill(int(lines_of(trace, "slow")[0].split()[1]), signal.SIGKILL)
        outcome = await handle.outcome()
        assert (outcome.unwrap(), outcome.attempt) == ({"result": "done at last"}, 2)


@pytest.mark.slow
async def test_a_server_that_listens_is_killed_and_found_again(neighbour: Neighbour, trace: Path) -> None:
    server = await neighbour("http")
    async with MemorySquad(turned=False) as squad:
        await deployed(squad, server)
        os.kill(int(lines_of(trace, "started")[-1].split()[1]), signal.SIGKILL)
        gone = await squad.submit("mcp_near.add", {"a": 1, "b": 2}, within_s=60)
        again = await listening(int(server.url.split(":")[2].partition("/")[0]), trace)
        try:
            assert (await gone.outcome()).unwrap() == {"result": 3}
        finally:
            again.kill()
            await again.wait()


@pytest.mark.slow
async def test_a_replica_that_dies_leaves_its_call_to_the_next(neighbour: Neighbour, trace: Path) -> None:
    server = await neighbour("stdio")
    async with MemorySquad(turned=False, lease_s=1.0) as squad:
        made = await deployed(squad, server)
        handle = await squad.submit("mcp_near.once_slow", {}, within_s=60)
        await until(lambda: seen(trace, "slow"))
        await squad.kill("mcp_near")
        await squad.deploy(made)
        assert (await handle.outcome()).unwrap() == {"result": "done at last"}


#: A replica in small: is in a call until it is killed.
IN_A_CALL = """
import asyncio, json, sys
from squadron.actors.remote.mcp_link import McpLink
from squadron.actors.remote.mcp_server import McpServer

async def main():
    client = await McpLink(McpServer.of(json.loads(sys.argv[1])), None, None).client()
    await client.call_tool("once_slow", {})

asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["stdio", "stdio of the older wire"])
async def test_a_server_in_a_call_does_not_outlive_its_killed_replica(
    neighbour: Neighbour, way: str, trace: Path
) -> None:
    server = (await neighbour(way)).to_dict()
    # As `npx` and `uvx` do, the command has the server as a child of its own.
    shell = f"{server['command']} {' '.join(server['args'])}; exit 3"
    server |= {"command": "sh", "args": ["-c", shell]}
    replica = await asyncio.create_subprocess_exec(
        sys.executable, "-c", IN_A_CALL, json.dumps(server), cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
    )
    await until(lambda: seen(trace, "slow"))
    replica.kill()
    await replica.wait()
    pid = int(lines_of(trace, "slow")[0].split()[1])

    async def is_gone() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Whoever adopts it may take its time to bury it.
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return True

    await until(is_gone)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, ""),
        ({"command": "x", "url": "http://localhost"}, ""),
        ({"url": "ftp://localhost/mcp"}, ""),
        ({"url": "http://ann:secret@localhost/mcp"}, ""),
        ({"url": "http://localhost/sse", "type": "sse"}, "type"),
        ({"command": "x", "env": {"API_KEY": "plain-text-9f41c7"}}, "env.API_KEY"),
        ({"command": "x", "args": ["--key", "sk-abcdefghijklmnop"]}, "args"),
        ({"url": "http://localhost", "headers": {"Authorization": "Bearer abcdef"}}, "headers.Authorization"),
        ({"command": "x", "env": {"LEVEL": 3}}, "env.LEVEL"),
    ],
)
def test_a_server_that_can_not_be_is_refused_where_it_is_wrong(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        McpServer.of(given)
    assert refused.value.field == field
    assert "9f41c7" not in str(refused.value)
    assert "abcdef" not in str(refused.value)


def test_a_secret_beside_a_place_is_one_all_the_same() -> None:
    said = {
        "url": "https://far.example.org/mcp",
        "headers": {"X-Note": "${NEAR} sk-proj-abcdefghijklmnopqrstuvwx"},
    }
    with pytest.raises(InvalidInputError, match="a secret as it is"):
        McpServer.of(said)


def test_a_file_of_a_host_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEAR_KEY", "planted-9f41c7b2a6")
    file = tmp_path / ".mcp.json"
    servers = {
        "near": {"command": "npx", "args": ["-y", "it"], "env": {"KEY": "${NEAR_KEY}", "LEVEL": "${NONE:-info}"}},
        "far": {"type": "http", "url": "https://far.example.org/mcp", "disabled": False},
    }
    file.write_text(json.dumps({"mcpServers": servers}))
    found = servers_in(file)
    assert found["far"].url == "https://far.example.org/mcp"
    assert found["near"].looked_up().env == {"KEY": "planted-9f41c7b2a6", "LEVEL": "info"}
    assert found["near"].env == servers["near"]["env"]

    file.write_text(json.dumps({"mcpServers": {"near": {"command": "x", "env": {"API_KEY": "plain-text"}}}}))
    with pytest.raises(InvalidInputError, match=r"near: env\.API_KEY is a secret"):
        servers_in(file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="no mcpServers"):
        servers_in(file)
    with pytest.raises(InvalidInputError):
        agent_of("a.b")


async def test_a_server_that_knows_no_templates_has_its_resources_and_its_tools() -> None:
    async def listed(_: Any, __: Any) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[])

    async with Client(Server("plain", on_list_resources=listed)) as client:
        assert client.server_capabilities.resources is not None
        assert await documents_of(client, "mcp_plain", McpAgent.topic_for) == []
        assert await fetched(client, "resources/list", {}) == {"resources": []}


async def test_templates_of_resources_come_page_by_page() -> None:
    async def none(_: Any, __: Any) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[])

    async def page(_: Any, asked: types.PaginatedRequestParams | None) -> types.ListResourceTemplatesResult:
        at = int((asked and asked.cursor) or 0)
        template = types.ResourceTemplate(name=f"page{at}", uri_template=f"book://{at}/{{line}}")
        return types.ListResourceTemplatesResult(
            resource_templates=[template], next_cursor=str(at + 1) if at < 2 else None
        )

    server: Server[Any] = Server("book", on_list_resources=none, on_list_resource_templates=page)
    async with Client(server) as client:
        made = await documents_of(client, "mcp_book", McpAgent.topic_for)
        names = [each.topic.name.removeprefix("mcp_book.") for each in made]
        assert names == ["list_resources", "list_resource_templates", "read_resource"]
        found, content = [], {}
        while True:
            told = await fetched(client, "resources/templates/list", content)
            found += [each["name"] for each in told["resourceTemplates"]]
            if "nextCursor" not in told:
                break
            content = {"cursor": told["nextCursor"]}
        assert found == ["page0", "page1", "page2"]


async def test_a_server_that_is_not_there_is_an_error_with_its_name() -> None:
    ports = MemoryServer("test").place(AgentIdentity(id="here", type="test"), Settings.load({})).ports
    with pytest.raises(ServerUnavailableError, match="no-such-program"):
        await look_at(McpServer.of({"command": "no-such-program"}), "mcp_none", ports)
    with pytest.raises(ServerUnavailableError, match=r"127\.0\.0\.1"):
        await look_at(McpServer.of({"url": f"http://127.0.0.1:{free_port()}/mcp"}), "mcp_none", ports)
    with pytest.raises(ConfigError, match="env:NOT_SET"):
        await look_at(McpServer.of({"command": "x", "args": ["${NOT_SET}"]}), "mcp_none", ports)


def test_a_schema_of_others_is_bounded_and_fetches_nothing() -> None:
    from squadron.actors.remote.foreign_schemas import foreign_schema

    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"properties": {"a": deep}}
    for schema, why in (
        ({"$ref": "file:///etc/hostname"}, "another document"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1:9/x.json"}}}, "another document"),
        (deep, "deep"),
        ({"description": "x" * 100_000}, "bytes"),
        ({"type": 7}, "no JSON Schema"),
        ([], "no object"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            foreign_schema(schema, "tool")
    topic = SemanticTopic(name="a.b", input_schema={"$ref": "file:///etc/hostname"})
    with pytest.raises(Exception, match="none is fetched"):
        topic.check({})


class Refers(BaseModel):
    """Of which another document says what it is."""

    model_config = ConfigDict(json_schema_extra={"properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}})


class Lender(Agent):
    """Promises what nobody may look up."""

    @topic("lender.lend")
    async def lend(self) -> Refers:
        """Lend one."""
        return Refers()


@pytest.mark.parametrize("schema", [{"$ref": "URL"}, {"properties": {"a": {"$ref": "URL"}}}])
async def test_nobody_fetches_what_a_schema_of_others_refers_to(schema: dict[str, Any]) -> None:
    asked: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    listening = await asyncio.start_server(hear, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/schema.json"
    schema = json.loads(json.dumps(schema).replace("URL", url))
    assert await asyncio.to_thread(read_value, "3", schema) == 3
    with pytest.raises(ScriptError, match="none is fetched"):
        await asyncio.to_thread(made_data, schema)

    with pytest.raises(InvalidAgentError, match="none is fetched"):
        await asyncio.to_thread(AgentSpec.of, Lender)
    assert asked == []
    listening.close()
    await listening.wait_closed()


# --- tool lists that change ----------------------------------------------------------------------------


@pytest.fixture
async def bridge(world: World) -> AsyncIterator[tuple[Any, Bridge]]:
    peer = await world.join("bridge", bridge=True)

    async def held() -> dict[str, int]:
        return {}

    async def kept() -> list[str]:
        return []

    async def offer(agent: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
        return await offers.take(agent, operations)

    ours = (peer.ports, peer.registry, peer.records, NoReplicas(), held, kept, {})
    made = Bridge(*ours, lease_s=1.5, more={"offer": offer})
    offers = TakenOffers(peer.ports.clock, made.alter)
    await made.start()
    yield peer, made
    await made.aclose()


def as_deployment(agent: type[McpAgent]) -> dict[str, Any]:
    code, _ = pack(agent)
    bounds = Scale(minimum=1, maximum=4)
    card = AgentSpec.of(agent).card()
    return Deployment(card=card, code=code.to_dict(), slots=4, grace_s=1, bounds=bounds, scale=bounds).model_dump(
        mode="json"
    )


@ON_NATS
@pytest.mark.parametrize("way", ["stdio", pytest.param("stdio of the older wire", marks=pytest.mark.slow)])
async def test_a_changed_list_of_tools_is_followed(
    neighbour: Neighbour, bridge: tuple[Any, Bridge], way: str
) -> None:
    peer, made = bridge
    server = await neighbour(way)
    operations, _ = await look_at(server, "mcp_near", peer.ports)
    agent_class = McpAgent.serving("mcp_near", server.to_dict(), operations)
    await made.deploy([as_deployment(agent_class)])
    agent = agent_class()
    agent.ports = peer.ports
    await agent.on_start()
    offering = asyncio.ensure_future(offer_changes(agent, peer.place))
    try:
        client = await agent._link.client()
        await client.call_tool("grow", {})

        async def is_there() -> bool:
            return any(topic.name == "mcp_near.late" for topic, _ in peer.registry.topics())

        await until(is_there)
    finally:
        offering.cancel()
        await agent.on_stop()
        await made.undeploy("mcp_near")


@ON_NATS
async def test_an_agent_offers_nothing_beyond_its_own_domain(bridge: tuple[Any, Bridge]) -> None:
    peer, made = bridge
    control = Control(peer.ports.bus, peer.ports.subjects, peer.ports.guard)
    one = Operation("add", SemanticTopic(name="mcp_near.add"))
    server = {"url": "http://127.0.0.1:9/mcp"}
    await made.deploy([as_deployment(McpAgent.serving("mcp_near", server, [one]))])
    again = await control.call("offer.mcp_near", operations=[one.to_dict()])
    assert again == {"agent": "mcp_near", "changed": False}
    other = Operation("say", SemanticTopic(name="bank.transfer"))
    for wrong in ([other.to_dict()], [], [{"name": "x"}]):
        with pytest.raises(InvalidAgentError):
            await control.call("offer.mcp_near", operations=wrong)
    with pytest.raises(ConfigError, match="no agent"):
        await control.call("offer.mcp_far", operations=[one.to_dict()])
    assert [topic.name for topic, _ in peer.registry.topics()] == ["mcp_near.add"]


@ON_NATS
async def test_of_two_offers_at_once_one_is_taken_and_what_was_deployed_meanwhile_stays(
    bridge: tuple[Any, Bridge],
) -> None:
    peer, made = bridge
    control = Control(peer.ports.bus, peer.ports.subjects, peer.ports.guard)
    one, two, three = (Operation(name, SemanticTopic(name=f"mcp_near.{name}")) for name in ("one", "two", "three"))
    there, elsewhere = ({"url": f"http://127.0.0.1:{port}/mcp"} for port in (9, 10))
    await made.deploy([as_deployment(McpAgent.serving("mcp_near", there, [one]))])
    answers = await asyncio.gather(
        made.deploy([as_deployment(McpAgent.serving("mcp_near", elsewhere, [one]))]),
        *(control.call("offer.mcp_near", operations=[each.to_dict()]) for each in (two, three)),
    )
    assert sorted(each["changed"] for each in answers[1:]) == [False, True]
    assert [each for each in answers[1:] if "again_after_s" in each]
    entry = await peer.records.last(peer.ports.subjects.record("deployment", "mcp_near"))
    code = Code(**Deployment.model_validate_json(entry.data).code)
    kind: Any = unpack(code, b"")
    assert kind.server == elsewhere
    assert [topic.name for topic, _ in peer.registry.topics()] in (["mcp_near.two"], ["mcp_near.three"])


class Restless(McpAgent):
    """Has another tool at each look."""

    looks = 0

    async def on_start(self) -> None: ...

    async def changes(self) -> AsyncIterator[Sequence[Operation]]:
        while True:
            self.looks += 1
            yield [Operation("add", SemanticTopic(name=f"mcp_near.add{self.looks}"))]


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_a_list_that_changes_all_the_time_is_followed_less_and_less(bridge: tuple[Any, Bridge]) -> None:
    """For an hour of turned time."""
    peer, made = bridge
    one = Operation("add", SemanticTopic(name="mcp_near.add"))
    agent_class = Restless.serving("mcp_near", {"url": "http://127.0.0.1:9/mcp"}, [one])
    changed_at: list[float] = []
    await made.deploy([as_deployment(agent_class)])
    peer.registry.on_card(lambda _: changed_at.append(now_s()))
    changed_at.clear()
    offering = asyncio.ensure_future(offer_changes(agent_class(), peer.place))
    await asyncio.sleep(3600)
    offering.cancel()

    pauses = [after - before for before, after in itertools.pairwise(changed_at)]
    assert FIRST_PAUSE_S <= pauses[0] < 2 * FIRST_PAUSE_S
    assert pauses[-1] >= LONGEST_PAUSE_S
    assert len(changed_at) < 15
    # Once it has been quiet, the next change is taken at once.
    await asyncio.sleep(2 * LONGEST_PAUSE_S)
    control = Control(peer.ports.bus, peer.ports.subjects, peer.ports.guard)
    late = Operation("add", SemanticTopic(name="mcp_near.late"))
    assert (await control.call("offer.mcp_near", operations=[late.to_dict()]))["changed"]


async def test_turns_know_nothing_of_each_other(neighbour: Neighbour) -> None:
    """A question that comes outside any call is nobody's, and cancelled."""
    agent = McpAgent.serving(
        "mcp_near", (await neighbour("stdio")).to_dict(), [Operation("add", SemanticTopic(name="mcp_near.add"))]
    )()
    agent._turns = []
    from mcp_types import ElicitRequestFormParams

    form = ElicitRequestFormParams(message="Who?", requested_schema={"type": "object", "properties": {}})
    assert (await agent._elicit(None, form)).action == "cancel"  # type: ignore[union-attr]
    agent._turns = [object.__new__(TurnContext), object.__new__(TurnContext)]
    assert (await agent._elicit(None, form)).action == "cancel"  # type: ignore[union-attr]
