"""Programs for node: packages of npm, fetched once for all runs, and a program at work."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_cache_path

from squadron.config import Settings

#: The client library that the examples import; a new major version may need new examples.
NATS = "@nats-io/transport-node@3.4.0"
#: MCP's judges need a newer node than many systems have; this package is one.
NODE = "node@22.23.3"
MCP_KIT, MCP_INSPECTOR = (
    "@modelcontextprotocol/conformance@0.2.0-alpha.12",
    "@modelcontextprotocol/inspector@2.12.0",
)
A2A = "@a2a-js/sdk@1.3.0"
#: Node starts in 0.2 s, and is slower on a busy machine; npm fetches what it has to, once: node is 120 MB.
WITHIN_S, INSTALL_WITHIN_S = 120.0, 600.0


def node_packages(*packages: str) -> Path:
    """The folder `node_modules` with these; the test is skipped where they can't be had."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = user_cache_path("squadron-tests") / hashlib.sha256(" ".join(packages).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_WITHIN_S)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm could not get {', '.join(packages)} within {INSTALL_WITHIN_S:g} s")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"npm can't get {', '.join(packages)}: {error.stderr.strip()[-300:]}")
            (folder / "done").touch()
    return folder / "node_modules"


class Node:
    """A program at work, which prints lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> dict[str, Any]:
        """The next one; empty at the end."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            said = await self.process.stdout.readline()
        found: dict[str, Any] = json.loads(said) if said else {}
        return found

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """The next ones."""
        return [await self.line() for _ in range(count)]

    async def rest(self) -> list[dict[str, Any]]:
        """What else it says, when it has ended well."""
        async with asyncio.timeout(WITHIN_S):
            out, err = await self.process.communicate()
        assert self.process.returncode == 0, err.decode()
        return [json.loads(line) for line in out.splitlines()]

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def node(program: Path, settings: Settings, *arguments: str) -> AsyncIterator[Node]:
    """Run a program; killed at the end if it still runs."""
    running = Node(
        await asyncio.create_subprocess_exec(
            *("node", str(program), *arguments),
            env=os.environ | {"SQUADRON_HOME": str(settings.home), "SQUADRON_ENV": settings.env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    )
    try:
        yield running
    finally:
        await running.kill()
