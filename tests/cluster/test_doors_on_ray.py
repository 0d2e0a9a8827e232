"""A call survives a kill of the replica that runs it, whichever door it came through: on a real Ray."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import nats
import psutil
import pytest
from mcp import Client
from synadia_ai.agent_service import AgentService

from squadron import Agent, Context, Squad, topic
from squadron.bridge.gateways.fronting import GatewayOptions
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.serve.gateway_agent import GatewayAgent
from squadron.runtime.asking.caller import Caller
from squadron.runtime.store.own_journal import memory_owner
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.subjects import token_of
from tests.cluster.conftest import until
from tests.contract.gateway_process import gateway_command
from tests.contract.nats_cluster import free_port
from tests.contract.node_packages import NATS, node_packages
from tests.contract.ways import WAYS, Entrance
from tests.docs import ROOT


class Digger(Agent):
    """Digs."""

    max_replicas = 2

    @topic("dig.deep")
    async def deep(self, ctx: Context) -> dict[str, int]:
        """Tell the process id, dig for a while if this is the first try, and tell it again."""
        await ctx.emit(os.getpid())
        if ctx.attempt == 1:
            await asyncio.sleep(60)
        return {"pid": os.getpid()}

    @topic("dig.shallow")
    async def shallow(self) -> int:
        """Dig for no time."""
        return os.getpid()

    @topic("dig.long", run_timeout_s=200)
    async def long(self, folder: str) -> str:
        """Leave a line in the folder's `begun`, and dig until there is a file `enough`."""
        with (Path(folder) / "begun").open("a") as file:
            file.write(f"{os.getpid()}\n")
        while not (Path(folder) / "enough").exists():
            await asyncio.sleep(0.1)
        return "gold"


@pytest.fixture
async def url(squad: Squad) -> AsyncIterator[str]:
    """A gateway in a process of its own, in front of an agent."""
    await squad.deploy(Digger)
    port = free_port()
    async with gateway_command(squad.settings, port, "--mcp", "--a2a", "--synadia"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def caller(squad: Squad) -> AsyncIterator[Caller]:
    place = await Wiring.open(squad.settings, AgentIdentity(id="tester", type="test"))
    yield place.caller
    await place.aclose()


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_whose_replica_is_killed_has_a_result_through_every_door(
    url: str, squad: Squad, caller: Caller, way: str, tmp_path: Path
) -> None:
    program = None
    if way == "javascript":
        (tmp_path / "node_modules").symlink_to(node_packages(NATS))
        program = Path(shutil.copy(ROOT / "docs" / "examples" / "squadron.mjs", tmp_path))
    pids: list[int] = []

    def kill_the_first(chunk: Any) -> None:
        # As text, as a float, or as it is; Synadia's last one is the result.
        if str(chunk).startswith("{"):
            return
        pids.append(int(float(chunk)))
        if len(pids) == 1:
            os.kill(pids[0], signal.SIGKILL)

    asked = WAYS[way](Entrance(squad.settings, "digger", url, caller, program))
    told = await asked.ask("dig.deep", {}, on_chunk=kill_the_first)
    assert told.kind == "result"
    assert pids[0] != pids[1] == int(told.data["pid"])
    # Where a protocol can take back what the first attempt emitted, it does.
    assert [int(float(each)) for each in told.chunks] in (pids, pids[1:])


async def test_agents_of_the_synadia_agent_protocol_are_topics_that_survive_a_kill(
    squad: Squad, caller: Caller
) -> None:
    prompts: list[str] = []

    async def answer(envelope: Any, stream: Any) -> None:
        prompts.append(envelope.prompt)
        if len(prompts) == 1:
            await asyncio.sleep(60)
        await stream.send(f"attempt {len(prompts)}")

    endpoint = embedded.ensure(squad.settings.home)
    client = await nats.connect(endpoint.url, token=endpoint.token)
    named = {"agent": "echo", "owner": "others", "heartbeat_interval_s": 1, "max_concurrent_prompts": 4}
    host = AgentService(**named, session_name="first", nc=client)
    host.on_prompt(answer)
    await host.start()
    try:
        assert await squad.synadia(owner="others") == ["synadia.echo-others-first"]
        asking = asyncio.create_task(squad.ask("synadia.echo-others-first", {"prompt": "slow"}, within_s=100))
        await until(lambda: _is(len(prompts) == 1))
        for presence in caller.registry.replicas("synadia").values():
            if presence.pid:
                os.kill(presence.pid, signal.SIGKILL)
        assert (await asking).unwrap()["text"] == "attempt 2"
    finally:
        with contextlib.suppress(Exception):
            await host.stop()
        await client.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_task_of_an_mcp_server_survives_the_replica_that_waits_for_it(
    url: str, squad: Squad, tmp_path: Path
) -> None:
    """The server, a gateway of ours, made a task of the call; the next replica takes that up, and calls nobody."""
    assert "mcp_far.dig__long" in await squad.mcp("far", url=f"{url}/mcp", within_s=240)
    handle = await squad.submit("mcp_far.dig__long", {"folder": str(tmp_path)}, within_s=200)
    ports = squad._place.ports
    note = ports.subjects.lite(memory_owner("mcp_far"), token_of(f"mcp-{handle.task_id}"))

    async def noted() -> bool:
        return await ports.lite.last(note) is not None

    await until(noted)
    [killed] = [each.pid for each in squad._place.registry.replicas("mcp_far").values()]
    os.kill(killed, signal.SIGKILL)
    await until(lambda: _is(not psutil.pid_exists(killed)))
    (tmp_path / "enough").touch()
    outcome = await handle.outcome()
    assert outcome.unwrap() == "gold"
    assert outcome.attempt > 1
    assert len((tmp_path / "begun").read_text().splitlines()) == 1


async def _is(so: bool) -> bool:
    return so


@pytest.mark.timeout(300)
async def test_a_gateway_on_the_cluster_survives_a_kill_of_one_of_its_replicas(squad: Squad) -> None:
    """Any replica answers for any task, and a client whose replica died asks the others."""
    await squad.deploy(Digger)
    port = free_port()
    made = GatewayAgent.opening(GatewayOptions(doors=("mcp",), port=port), 2)
    await squad.deploy(made)
    url = f"http://127.0.0.1:{port}/mcp"
    assert (await squad.ask("gateway.doors")).unwrap()["url"] == f"http://127.0.0.1:{port}"
    pids = {each.pid for each in squad._place.registry.replicas("gateway").values()}
    assert len(pids) == 2

    async def call(key: str) -> str:
        async with Client(url, mode="2026-07-28", read_timeout_seconds=100) as client:
            done = await client.call_tool("dig__shallow", {}, meta={"squadron/idempotencyKey": key})
        assert not done.is_error
        return str((done.meta or {})["squadron/task"])

    # The same call, again and again over new connections: whoever answers, it is the same task.
    assert len({await call("once") for _ in range(12)}) == 1
    killed = pids.pop()
    os.kill(killed, signal.SIGKILL)
    # Until it is gone, the system hands it connections.
    await until(lambda: _is(not psutil.pid_exists(killed)))
    [left] = pids
    again = {await call("once") for _ in range(12)}
    assert len(again) == 1

    async def healed() -> bool:
        now = {each.pid for each in squad._place.registry.replicas("gateway").values()}
        return len(now) == 2 and left in now

    await until(healed)
    assert await call("once") in again
    agents = {each["agent"] for each in (await squad.status())["agents"]}
    assert "gateway" in agents
    await squad.undeploy("gateway")

    async def closed() -> bool:
        try:
            async with httpx.AsyncClient() as client:
                await client.get(f"http://127.0.0.1:{port}/livez")
        except httpx.TransportError:
            return True
        return False

    await until(closed)
