"""MCP's own kit judges server and client, on both wires, and its inspector the server; npm brings them, once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.conftest import ON_NATS, Serve, World
from tests.contract.gateway_process import opened_gateway
from tests.contract.node_packages import MCP_INSPECTOR, MCP_KIT, NODE, node_packages
from tests.mcp_fixture import Conformance

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
#: What the kit allows each scenario, in milliseconds; in most of its half minute a client may only start.
ALLOWED = ("--timeout", "300000")


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the judges are, and their node."""
    return node_packages(NODE, MCP_KIT, MCP_INSPECTOR) / ".bin"


async def judge(programs: Path, *command: str) -> str:
    """What a judge says; it has to be content."""
    process = await asyncio.create_subprocess_exec(
        str(programs / command[0]),
        *command[1:],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-6000:]
    return said.decode()


@pytest.fixture
async def url(world: World, serve: Serve) -> AsyncIterator[str]:
    await serve(Conformance())
    door = await world.join("gateway")
    await door.registry.refresh(float("inf"))
    async with opened_gateway(door.place, "mcp") as url:
        yield f"{url.replace('127.0.0.1', 'localhost')}/mcp"


@ON_NATS
@pytest.mark.parametrize(("requirements", "scenarios"), [("2025-11-25", 30), ("2026-07-28", 37)])
async def test_all_required_scenarios_of_the_kit_pass(
    url: str, programs: Path, requirements: str, scenarios: int
) -> None:
    said = await judge(programs, "conformance", "server", "--url", url, "--requirements", requirements, *ALLOWED)
    assert said.count("\n✓ ") >= scenarios


@pytest.mark.parametrize(
    ("wire", "scenario"),
    [
        ("2025-11-25", "initialize"),
        ("2025-11-25", "tools_call"),
        ("2025-11-25", "elicitation-sep1034-client-defaults"),
        ("2025-11-25", "sse-retry"),
        ("2026-07-28", "tools_call"),
        ("2026-07-28", "request-metadata"),
        ("2026-07-28", "sep-2322-client-request-state"),
        ("2026-07-28", "http-standard-headers"),
        ("2026-07-28", "http-custom-headers"),
        ("2026-07-28", "http-invalid-tool-headers"),
        ("2026-07-28", "json-schema-ref-no-deref"),
        ("2026-07-28", "json-schema-2020-12-preservation"),
        ("2026-07-28", "auth/client-credentials-basic"),
    ],
)
async def test_our_client_passes_what_the_kit_has_for_clients(programs: Path, wire: str, scenario: str) -> None:
    client = f"{sys.executable} -m tests.mcp_kit_client"
    which = ("--scenario", scenario, "--spec-version", wire)
    await judge(programs, "conformance", "client", "--command", client, *which, *ALLOWED)


@ON_NATS
async def test_the_inspector_lists_tools_and_calls_one(url: str, programs: Path) -> None:
    inspect = ("mcp-inspector", "--cli", url, "--transport", "http", "--method")
    assert "test_simple_text" in await judge(programs, *inspect, "tools/list")
    assert "Hello, Ann!" in await judge(
        programs, *inspect, "tools/call", "--tool-name", "greet", "--tool-arg", "name=Ann"
    )
