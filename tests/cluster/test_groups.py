"""Agents that share processes on Ray: each is addressed, scaled, renewed, taken away and mended as itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, Settings, Squad, topic
from squadron.runtime.errors import DeployError, InvalidAgentError
from tests.cluster.conftest import until


def agent_of(name: str, **attributes: Any) -> type[Agent]:
    """An agent that tells where it runs, on a topic of its own."""

    class Light(Agent):
        """Takes little."""

        grace_s = 5.0

        @topic(f"{name}.nap")
        async def nap(self, seconds: float) -> tuple[int, str]:
            """Sleep, and tell which process this is, and of which word."""
            await asyncio.sleep(seconds)
            return self._here()

        @topic(f"{name}.hold")
        async def hold(self, until: str) -> tuple[int, str]:
            """The same, when there is such a file."""
            while not os.path.exists(until):  # noqa: ASYNC240
                await asyncio.sleep(0.01)
            return self._here()

        def _here(self) -> tuple[int, str]:
            return os.getpid(), str(getattr(self, "_word", ""))

    Light.__name__ = Light.__qualname__ = name.title()
    Light.name = name
    for attribute, value in attributes.items():
        setattr(Light, attribute, value)
    return Light


async def rows(squad: Squad) -> dict[str, dict[str, Any]]:
    return {each["agent"]: each for each in (await squad.status())["agents"]}


async def pids(squad: Squad, agent: str) -> list[int]:
    return sorted(each["pid"] for each in (await rows(squad))[agent]["replicas"])


async def where(squad: Squad, agent: str, seconds: float = 0.0) -> tuple[int, str]:
    pid, word = (await squad.ask(f"{agent}.nap", {"seconds": seconds}, within_s=60)).unwrap()
    return pid, word


async def run_at(squad: Squad, agent: str, count: int) -> bool:
    row = (await rows(squad))[agent]
    return row["status"] == "RUNNING" and (row["running"], row["target"], len(row["replicas"])) == (
        count,
        count,
        count,
    )


@pytest.mark.timeout(300)
async def test_each_agent_of_a_group_is_asked_scaled_renewed_and_taken_away_as_itself(
    squad: Squad, settings: Settings
) -> None:
    one, two, three = (agent_of(name) for name in ("one", "two", "three"))
    await squad.deploy(one, two, three, group="light")
    home, _ = await where(squad, "one")
    assert {(await where(squad, name))[0] for name in ("one", "two", "three")} == {home}
    listed = await rows(squad)
    assert {name: (each["group"], each["status"]) for name, each in listed.items()} == dict.fromkeys(
        ("one", "two", "three"), ("light", "RUNNING")
    )

    # One of them is scaled: the others stay where they are, and nobody is started anew.
    await squad.scale("two", 1)
    await squad.scale("three", 1)
    assert await squad.scale("one", 3) == "3"
    await until(lambda: run_at(squad, "one", 3))
    assert [await pids(squad, name) for name in ("two", "three")] == [[home], [home]]
    assert home in await pids(squad, "one")
    assert await squad.scale("one", 1) == "1"
    await until(lambda: run_at(squad, "one", 1))
    await until(lambda: run_at(squad, "two", 1))
    (home,) = await pids(squad, "one")

    # New code of one, under way: in the same process, its neighbours don't notice.
    under_way = asyncio.create_task(where(squad, "two", 3.0))
    replica = (await rows(squad))["three"]["replicas"][0]["id"]
    await squad.deploy(agent_of("two", _word="new"), group="light")
    assert await where(squad, "two") == (home, "new")
    assert (await under_way) == (home, "")
    await squad.redeploy("two")
    await until(lambda: run_at(squad, "two", 1))
    assert (await rows(squad))["three"]["replicas"][0]["id"] == replica

    # Code that can't start: it is told of this agent, and the one from before goes on.
    class Broken(agent_of("two")):  # type: ignore[misc]
        """Fails."""

        async def on_start(self) -> None:
            raise SystemExit("no such thing")

    with pytest.raises(DeployError, match="two could not start: SystemExit: no such thing"):
        await squad.deploy(Broken, group="light")
    assert (await rows(squad))["two"]["status"] == "DEPLOY_FAILED"
    assert await where(squad, "two") == (home, "new")

    # So it is with what fails late; and what was opened is closed each time, since the process goes on.
    class Late(agent_of("two")):  # type: ignore[misc]
        """Opens something, and fails then."""

        def _note(self, sign: str) -> None:
            with open(journal, "a") as file:
                file.write(sign)

        async def on_start(self) -> None:
            self._note("+")

        async def on_stop(self) -> None:
            self._note("-")

        @property
        def capabilities(self) -> list[str]:
            raise ValueError("what can I do?")

    journal = str(settings.home / "opened")
    with pytest.raises(DeployError, match="two could not start: ValueError: what can I do"):
        await squad.deploy(Late, group="light")
    assert await where(squad, "two") == (home, "new")
    # While the process is told anew, Serve says of all in it that they are being deployed.
    await until(lambda: run_at(squad, "three", 1))
    assert (await rows(squad))["three"]["replicas"][0]["id"] == replica
    await squad.deploy(two, group="light")
    await until(lambda: _all_closed(Path(journal)))

    # One is taken away, with a task under way and one that waits for its return.
    under_way = asyncio.create_task(where(squad, "three", 4.0))
    await until(lambda: _taken(squad, "three"))
    await squad.undeploy("three")
    assert (await under_way)[0] == home
    assert (await where(squad, "one"))[0] == home
    assert set(await rows(squad)) == {"one", "two"}

    # Out of the group: it has a process of its own.
    await squad.deploy(two, group="")
    assert (await where(squad, "two"))[0] != home
    assert (await where(squad, "one"))[0] == home
    env = os.environ | {"SQUADRON_HOME": str(settings.home), "SQUADRON_ENV": settings.env}
    command = [sys.executable, "-c", "from squadron.cli import main; main()", "status"]
    done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60)
    assert ["one", "(light)", "RUNNING"] in [line.split()[:3] for line in done.stdout.splitlines()]


async def _all_closed(journal: Path) -> bool:
    opened = await asyncio.to_thread(journal.read_text)
    return opened != "" and opened == "+-" * (len(opened) // 2)


async def _taken(squad: Squad, agent: str) -> bool:
    return bool((await rows(squad))[agent]["taken"])


@pytest.mark.timeout(300)
async def test_the_process_of_a_group_is_killed_under_load_and_each_task_has_its_one_result(
    squad: Squad, tmp_path: Path
) -> None:
    names = ("east", "west", "north")
    await squad.deploy(*(agent_of(name, slots=8, max_replicas=1) for name in names), group="compass")
    victim, _ = await where(squad, "east")
    may_end = tmp_path / "may end"
    handles = [
        await squad.submit(f"{name}.hold", {"until": str(may_end)}, within_s=120)
        for _ in range(60)
        for name in names
    ]
    for name in names:
        await until(lambda: _taken(squad, name))  # noqa: B023
    os.kill(victim, signal.SIGKILL)
    may_end.touch()
    outcomes = [await handle.outcome() for handle in handles]
    assert Counter(each.kind for each in outcomes) == {"result": 180}
    assert len({each.task_id for each in outcomes}) == 180
    again = [each for each in outcomes if each.attempt == 2]
    # What runs, what is asked for just before a slot is free, and outcomes that are being stored.
    assert 1 <= len(again) <= 3 * 24, "those under way were delivered again, and no others"
    assert {each.attempt for each in outcomes} == {1, 2}
    assert not [letter for letter in await squad.dead_letters.list() if letter.topic.split(".")[0] in names]
    for name in names:
        await until(lambda: run_at(squad, name, 1))  # noqa: B023
        assert victim not in await pids(squad, name)


async def test_a_group_sleeps_and_wakes_for_the_task_of_one(squad: Squad) -> None:
    await squad.deploy(
        agent_of("owl", min_replicas=0, max_replicas=1),
        agent_of("bat", min_replicas=0, max_replicas=1),
        group="night",
    )
    await squad.scale("owl", 0)
    await squad.scale("bat", 0)
    await until(lambda: run_at(squad, "owl", 0))
    await squad.scale("owl", "0..1")
    first, _ = await where(squad, "owl")
    assert not (await rows(squad))["bat"]["replicas"], "it is to have none, though the process runs"
    await squad.scale("bat", "0..1")
    assert (await where(squad, "bat"))[0] == first


class Ticket(Agent):
    """Tells its environment."""

    runtime_env = {"env_vars": {"TICKET": "blue"}}  # noqa: RUF012

    @topic("ticket.colour")
    async def colour(self) -> str | None:
        """Tell the colour."""
        return os.environ.get("TICKET")


async def test_an_agent_has_an_environment_and_resources_of_its_own_or_is_in_a_group(
    squad: Squad,
) -> None:
    await squad.deploy(Ticket)
    assert (await squad.ask("ticket.colour")).unwrap() == "blue"
    with pytest.raises(InvalidAgentError, match="ticket has runtime_env of its own"):
        await squad.deploy(Ticket, group="light")
    assert (await rows(squad))["ticket"]["group"] == ""

    with pytest.raises(DeployError, match="greedy did not start"):
        await squad.deploy(agent_of("greedy", resources={"unobtainium": 2}), within_s=3)
    await until(lambda: _waits(squad, "greedy", "1 replica waits for 2 unobtainium"))


async def _waits(squad: Squad, agent: str, said: str) -> bool:
    return said in (await rows(squad))[agent]["message"]
