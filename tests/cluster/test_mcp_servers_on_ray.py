"""An MCP server of somebody else on a real Ray: added by the command line, killed, grown, taken away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from squadron import Squad
from tests.cluster.conftest import until

ROOT = Path(__file__).parents[2]


async def squadron(squad: Squad, *arguments: str) -> dict[str, Any]:
    """The command line, with what it prints."""
    where = ("--home", str(squad.settings.home), "--env", squad.settings.env)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    arguments = (*arguments[:at], "--json", *arguments[at:])
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("squadron")), *where, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told: dict[str, Any] = json.loads(out)
    return told


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_tools_of_a_server_are_topics_that_survive_kills_and_grow(squad: Squad, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command = (sys.executable, "-m", "tests.mcp_neighbour")
    options = ("--cwd", str(ROOT), "--env", f"NEIGHBOUR_TRACE={trace}")
    added = await squadron(squad, "mcp", "add", "near", *options, "--", *command)
    assert "mcp_near.add" in added["added"][0]["topics"]
    listed = await squadron(squad, "mcp", "list")
    assert [each["name"] for each in listed["servers"]] == ["near"]
    assert (await squadron(squad, "mcp", "show", "near"))["descriptions"]["mcp_near.add"] == "Add two numbers."
    assert (await squad.ask("mcp_near.add", {"a": 1, "b": 2})).unwrap() == {"result": 3}

    def lines(word: str) -> list[str]:
        return [each for each in trace.read_text().splitlines() if each.startswith(word)]

    # The server dies in a call, then the replica that spoke to it.
    for victim in ("server", "replica"):
        before = trace.read_text()
        trace.write_text("\n".join(each for each in before.splitlines() if not each.startswith("slow")) + "\n")
        handle = await squad.submit("mcp_near.once_slow", {}, within_s=120)

        async def begun() -> list[str]:
            return lines("slow")

        [line] = await until(begun)
        [replica] = squad._place.registry.replicas("mcp_near").values()
        os.kill(int(line.split()[1] if victim == "server" else replica.pid), signal.SIGKILL)
        assert (await handle.outcome()).unwrap() == {"result": "done at last"}, victim

    assert (await squad.ask("mcp_near.grow", {}, within_s=60)).ok

    async def grown() -> bool:
        return any(each.topic.name == "mcp_near.late" for each in squad.topics())

    await until(grown)
    # Asked at once, whether or not the replicas that know it are there yet.
    assert (await squad.ask("mcp_near.late", {}, within_s=120)).unwrap() == {"result": "late"}
    status = await squadron(squad, "status")
    assert [each["agent"] for each in status["agents"]] == ["mcp_near"]
    assert (await squadron(squad, "mcp", "remove", "near"))["agent"] == "mcp_near"
    assert (await squadron(squad, "mcp", "list"))["servers"] == []
