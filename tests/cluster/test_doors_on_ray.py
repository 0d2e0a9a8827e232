"""A call that comes through a gateway survives a kill of the replica that runs it, on a real Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
from a2a.client import ClientConfig, create_client
from a2a.helpers.proto_helpers import new_data_part
from a2a.types import a2a_pb2 as pb
from mcp import Client

from squadron import Agent, Context, Squad, topic
from tests.contract.gateway_process import gateway_command
from tests.contract.nats_cluster import free_port


class Digger(Agent):
    """Digs."""

    max_replicas = 2

    @topic("dig.deep")
    async def deep(self, ctx: Context) -> int:
        """Tell the process id, dig for a while if this is the first try, and tell it again."""
        await ctx.emit(os.getpid())
        if ctx.attempt == 1:
            await asyncio.sleep(60)
        return os.getpid()


@pytest.fixture
async def url(squad: Squad) -> AsyncIterator[str]:
    """A gateway in a process of its own, in front of an agent."""
    await squad.deploy(Digger)
    port = free_port()
    async with gateway_command(squad.settings, port, "--mcp", "--a2a"):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_an_mcp_call_whose_replica_is_killed_has_a_result(url: str, mode: str) -> None:
    pids: list[int] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        if (message or "").isdigit():
            pids.append(int(message or 0))
            if len(pids) == 1:
                os.kill(pids[0], signal.SIGKILL)

    async with Client(f"{url}/mcp", mode=mode, read_timeout_seconds=100) as client:  # type: ignore[arg-type]
        done = await client.call_tool("dig__deep", {}, progress_callback=hear)
    assert not done.is_error
    assert pids[-1] != pids[0]
    assert str(pids[-1]) in str(done.content)


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
async def test_an_a2a_stream_whose_replica_is_killed_begins_anew_and_ends_in_a_result(
    url: str, binding: str
) -> None:
    message = pb.Message(message_id=uuid.uuid4().hex, role=pb.Role.ROLE_USER, parts=[new_data_part({})])
    pids: list[int] = []
    appended: list[bool] = []
    state = pb.TaskState.TASK_STATE_UNSPECIFIED
    async with httpx.AsyncClient(timeout=100) as http:
        config = ClientConfig(httpx_client=http, streaming=True, supported_protocol_bindings=[binding])
        client = await create_client(f"{url}/a2a/digger", config)
        async for told in client.send_message(pb.SendMessageRequest(message=message)):
            if told.HasField("artifact_update"):
                pids.append(int(told.artifact_update.artifact.parts[0].data.number_value))
                appended.append(told.artifact_update.append)
                if len(pids) == 1:
                    os.kill(pids[0], signal.SIGKILL)
            if told.HasField("status_update"):
                state = told.status_update.status.state
    assert state == pb.TaskState.TASK_STATE_COMPLETED
    # What the first attempt emitted is taken back by the second; then comes the result.
    assert appended == [False, False, False]
    assert pids[0] != pids[1] == pids[2]
