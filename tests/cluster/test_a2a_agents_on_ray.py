"""An A2A agent of somebody else on a real Ray: added by the command line, its replica killed, taken away."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from squadron import Squad
from tests.cluster.conftest import until
from tests.cluster.test_mcp_servers_on_ray import squadron
from tests.contract.test_a2a_agents import lines_of, neighbour


async def test_skills_of_an_agent_are_topics_whose_tasks_survive_a_kill(squad: Squad, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with neighbour(trace) as url:
        added = await squadron(squad, "a2a", "add", url, "--name", "near")
        assert added == {"agent": "a2a_near", "topics": ["a2a_near.talk"]}
        (listed,) = (await squadron(squad, "a2a", "list"))["agents"]
        assert (listed["name"], listed["server"]["url"]) == ("near", url)
        assert (await squad.ask("a2a_near.talk", "echo hi")).unwrap() == "hi"
        handle = await squad.submit("a2a_near.talk", "wait short", within_s=120)

        async def begun() -> list[str]:
            return lines_of(trace, "waiting")

        await until(begun)
        [replica] = squad._place.registry.replicas("a2a_near").values()
        os.kill(int(replica.pid), signal.SIGKILL)
        assert (await handle.outcome()).unwrap() == "waited"
        assert (await squadron(squad, "a2a", "remove", "near"))["agent"] == "a2a_near"
        assert (await squadron(squad, "a2a", "list"))["agents"] == []
