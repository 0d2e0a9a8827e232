"""`squadron console`: a process that is found by its home, seen in the status, and ended with all else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.gateways.running_gateways import running_gateways, stop_gateways
from tests.contract import command
from tests.contract.conftest import ON_NATS, Peer, Serve


class Clerk(Agent):
    """Stamps."""

    @topic("clerk.stamp")
    async def stamp(self, paper: str) -> str:
        """Stamp a paper."""
        return f"{paper}, stamped"


@ON_NATS
async def test_a_console_lets_in_who_has_its_link_and_ends_with_all_else(peer: Peer, serve: Serve) -> None:
    await serve(Clerk())
    wiring: Any = peer.place
    process = await command.start(wiring, "console", "--port", "0", "--json")
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            told = json.loads(await process.stdout.readline())
        (running,) = running_gateways(wiring.settings.home, wiring.settings.env)
        assert (running.doors, running.url) == (("console",), told["console"])
        async with httpx.AsyncClient(base_url=told["console"], follow_redirects=True) as browser:
            assert (await browser.get("/api/board")).status_code in (401, 403, 404)
            token = await asyncio.to_thread(Path(told["token_file"]).read_text)
            page = await browser.get("/login", params={"token": token.strip()})
            assert page.status_code == 200
            assert "script-src" in page.headers["content-security-policy"]
        # Who opens a second one is told of the first, not of a socket.
        code, _, said = await command.run(wiring, "console", "--port", told["console"].rpartition(":")[2])
        assert code == 2
        assert f"can't be used: Address already in use (a console runs already, at {told['console']};" in said
        # In a thread: it waits for the process, which this loop has to see end.
        (ended,) = await asyncio.to_thread(stop_gateways, wiring.settings.home, wiring.settings.env)
        assert ended.kind == "console"
        async with asyncio.timeout(20):
            await process.wait()
        assert not running_gateways(wiring.settings.home, wiring.settings.env)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
