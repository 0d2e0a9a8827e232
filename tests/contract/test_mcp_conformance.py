"""MCP's own kit judges the server, on both wires: all scenarios that it requires have to pass.

It takes node 22 and the kit: `npm i node@22 @modelcontextprotocol/conformance@0.2.0-alpha.12` in a folder that
`MCP_CONFORMANCE` names. Without them it is skipped.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.contract.conftest import ON_NATS, Serve, World
from tests.contract.gateway_process import opened_gateway
from tests.mcp_fixture import Conformance

KIT = "0.2.0-alpha.12"
FOLDER = Path(os.environ.get("MCP_CONFORMANCE", "/nonexistent")) / "node_modules" / ".bin"

pytestmark = [
    ON_NATS,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not (FOLDER / "conformance").exists(),
        reason=f"MCP_CONFORMANCE names no folder with the kit {KIT} and node 22",
    ),
]


@pytest.mark.parametrize("requirements", ["2025-11-25", "2026-07-28"])
async def test_all_required_scenarios_of_the_kit_pass(world: World, serve: Serve, requirements: str) -> None:
    await serve(Conformance())
    door = await world.join("gateway")
    await door.registry.refresh(float("inf"))
    async with opened_gateway(door.place, "mcp") as url:
        process = await asyncio.create_subprocess_exec(
            str(FOLDER / "conformance"),
            *("server", "--url", f"{url.replace('127.0.0.1', 'localhost')}/mcp", "--requirements", requirements),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PATH": f"{FOLDER}:{os.environ['PATH']}"},
        )
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-6000:]
