"""Agents as Ray actors: deployed, killed, scaled, redeployed, with real work under way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squadron import Agent, Context, Settings, Squad, on, topic
from squadron.bridge.serve import local
from squadron.runtime.errors import ConfigError, DeployError, IncompatibleVersionError, RouteConflictError
from squadron.runtime.wire.envelope import AgentMessage
from tests.cluster.conftest import until


class Worker(Agent):
    """Does small jobs."""

    slots = 4
    min_replicas = 2

    def __init__(self) -> None:
        self.served = 0

    @topic("work.pid")
    async def pid(self) -> int:
        """Tell the process id."""
        return os.getpid()

    @topic("work.hold")
    def hold(self, until: str) -> int:
        """Wait for a file, in a thread."""
        while not os.path.exists(until):
            time.sleep(0.01)
        return os.getpid()

    @topic("work.count")
    async def count(self, to: int) -> AsyncIterator[int]:
        """Count, one chunk at a time."""
        for number in range(to):
            yield number

    @topic("work.delegate")
    async def delegate(self, seconds: float, ctx: Context) -> list[object]:
        """Ask another agent, and tell how long it was allowed to take."""
        outcome = await ctx.ask("work.pid", within_s=1_000)
        return [outcome.unwrap(), ctx.deadline.remaining_s()]


async def replicas(squad: Squad, agent: str) -> dict[str, int]:
    status = await squad.status()
    found = next(each for each in status["agents"] if each["agent"] == agent)
    return {replica["id"]: replica["pid"] for replica in found["replicas"]}


async def test_an_agent_is_asked_from_another_process_that_never_imports_ray(squad, settings):
    await squad.deploy(Worker)
    script = """
        import asyncio, sys
        from squadron import Squad
        async def main():
            async with Squad.connect() as squad:
                print((await squad.ask("work.pid")).unwrap(), "ray" in sys.modules)
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | settings.environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    pid, imported = done.stdout.split()
    assert int(pid) in (await replicas(squad, "worker")).values()
    assert imported == "False"


async def test_a_plain_script_uses_the_same_calls_without_await(squad, settings):
    await squad.deploy(Worker)
    script = """
        from squadron import Squad
        with Squad.connect() as squad:
            found = squad.discover("process id")[0].topic.name
            assert squad.submit("work.pid").outcome().ok
            news = squad.subscribe("news.*")
            squad.publish("news.sport", "they won")
            assert next(news).payload.content == "they won"
            news.close()
            stream = squad.stream("work.count", {"to": 3})
            *_, end = stream.events()
            assert stream.outcome().ok
            assert (end.chunks, end.outcome.ok) == (3, True)
            print(squad.ask("work.pid").ok, list(squad.stream("work.count", {"to": 3})), found)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | settings.environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split(maxsplit=1) == ["True", "[0, 1, 2] work.pid\n"], done.stderr


async def test_tasks_of_a_killed_replica_are_done_by_another_and_the_replica_is_replaced(squad, tmp_path):
    await squad.deploy(Worker)
    before = await replicas(squad, "worker")
    assert len(before) == 2
    may_end = tmp_path / "may end"
    asking = [asyncio.create_task(squad.ask("work.hold", {"until": str(may_end)})) for _ in range(8)]
    await until(lambda: _taken(squad, 8))
    victim = next(iter(before.values()))
    os.kill(victim, signal.SIGKILL)
    may_end.touch()
    outcomes = await asyncio.gather(*asking)
    assert [outcome.kind for outcome in outcomes] == ["result"] * 8
    assert max(outcome.attempt for outcome in outcomes) == 2
    assert victim not in {outcome.unwrap() for outcome in outcomes}
    await until(lambda: _healed(squad, "worker", 2, victim))


async def _taken(squad: Squad, count: int) -> bool:
    return (await squad.status())["agents"][0]["taken"] == count


async def _healed(squad: Squad, agent: str, count: int, victim: int) -> bool:
    pids = (await replicas(squad, agent)).values()
    return len(pids) == count and victim not in pids


async def test_scaling_changes_the_number_in_place_and_restarts_nobody(squad):
    await squad.deploy(Worker)
    before = await replicas(squad, "worker")
    assert await squad.scale("worker", 3) == "3"
    after = await until(lambda: _counts(squad, "worker", 3))
    assert before.items() <= after.items()
    assert await squad.scale("worker", "1..2") == "1..2"
    with pytest.raises(ConfigError, match="not a scale"):
        await squad.scale("worker", "many")
    with pytest.raises(ConfigError, match="more than the cluster has memory for"):
        await squad.scale("worker", 100_000)
    with pytest.raises(ConfigError, match="no agent 'nobody'"):
        await squad.scale("nobody", 1)


async def _counts(squad: Squad, agent: str, count: int) -> dict[str, int]:
    found = await replicas(squad, agent)
    return found if len(found) == count else {}


class Sleeper(Agent):
    """Is only there when it is needed."""

    min_replicas = 0
    max_replicas = 2
    slots = 1

    @topic("sleep.nap")
    async def nap(self, seconds: float) -> int:
        """Sleep."""
        await asyncio.sleep(seconds)
        return os.getpid()


async def test_an_agent_scaled_to_zero_wakes_up_for_a_task_and_grows_with_its_backlog(squad):
    await squad.deploy(Sleeper)
    assert await replicas(squad, "sleeper") == {}
    asking = [asyncio.create_task(squad.ask("sleep.nap", {"seconds": 1.5})) for _ in range(6)]
    outcomes = await asyncio.gather(*asking)
    assert [outcome.kind for outcome in outcomes] == ["result"] * 6
    assert len({outcome.unwrap() for outcome in outcomes}) == 2


@pytest.mark.slow
async def test_an_agent_with_nothing_to_do_goes_back_to_zero(squad):
    await squad.deploy(Sleeper)
    assert (await squad.ask("sleep.nap", {"seconds": 0.1})).ok

    async def asleep() -> bool:
        return (await squad.status())["agents"][0]["target"] == 0 and not await replicas(squad, "sleeper")

    # It is kept for IDLE_S, 30 s, after its last task.
    await until(asleep)
    assert (await squad.ask("sleep.nap", {"seconds": 0.1})).ok


async def test_redeployed_code_answers_and_nothing_under_way_is_lost(squad):
    class Versioned(Agent):
        """Tells its version."""

        @topic("version.tell")
        async def tell(self, wait_s: float = 0.0) -> int:
            """Which version answers."""
            await asyncio.sleep(wait_s)
            return 1

    await squad.deploy(Versioned)
    assert (await squad.ask("version.tell")).unwrap() == 1
    # Long enough to be under way while the new replica starts and the old one is told to go.
    asking = [asyncio.create_task(squad.ask("version.tell", {"wait_s": 8.0})) for _ in range(10)]
    await until(lambda: _taken(squad, 10))

    class Versioned(Agent):
        """Tells its version."""

        @topic("version.tell")
        async def tell(self, wait_s: float = 0.0) -> int:
            """Which version answers."""
            await asyncio.sleep(wait_s)
            return 2

    await squad.deploy(Versioned)
    assert (await squad.ask("version.tell")).unwrap() == 2
    outcomes = await asyncio.gather(*asking)
    assert [outcome.unwrap() for outcome in outcomes] == [1] * 10
    assert [outcome.attempt for outcome in outcomes] == [1] * 10


async def test_a_canary_takes_its_share_is_killed_promoted_and_aborted_and_no_task_is_lost(squad):
    def version(number: int, *, needs: bool = False) -> type[Agent]:
        class Press(Agent):
            """Prints."""

            min_replicas = 1

            @topic("press.print", max_attempts=8)
            async def print_page(self, page: int, takes_s: float = 0.2) -> list[int]:
                """Print a page."""
                await asyncio.sleep(takes_s)
                return [number, page]

        class Strict(Press):
            """Prints for who says why."""

            name = "press"

            @topic("press.print")
            async def print_page(self, page: int, why: str) -> list[int]:
                """Print a page for a reason."""
                return [number, page]

        return Strict if needs else Press

    async def pages(first: int, count: int, takes_s: float = 0.2) -> list[list[int]]:
        contents = ({"page": page, "takes_s": takes_s} for page in range(first, first + count))
        outcomes = await asyncio.gather(*(squad.ask("press.print", each, within_s=120) for each in contents))
        assert [outcome.kind for outcome in outcomes] == ["result"] * count
        told = [outcome.unwrap() for outcome in outcomes]
        assert [page for _, page in told] == list(range(first, first + count))
        versions.update({number: outcome.version for (number, _), outcome in zip(told, outcomes, strict=True)})
        return told

    versions: dict[int, str] = {}
    await squad.deploy(version(1))
    with pytest.raises(IncompatibleVersionError, match="input why is required"):
        await squad.deploy(version(2, needs=True), canary=50)
    await squad.deploy(version(2), canary=50)
    assert {number for number, _ in await pages(0, 40)} == {1, 2}

    async def status() -> dict[str, object]:
        return next(each for each in (await squad.status())["agents"] if each["agent"] == "press")

    both = await status()
    tried = both["canary"]
    assert (tried["weight"], tried["running"], both["running"]) == (50, 1, 1)
    assert both["version"].startswith(versions[1])
    assert tried["version"].startswith(versions[2])

    async def counted() -> bool:
        tried = (await status())["canary"]
        return sum(tried["outcomes"].values()) + sum(tried["stable_outcomes"].values()) == 40

    await until(counted)

    # The canary's replica dies under load, and while Serve starts another one it is promoted.
    asking = asyncio.create_task(pages(40, 60, 2.0))
    await until(lambda: _some_taken(squad, "press"))
    os.kill(tried["replicas"][0]["pid"], signal.SIGKILL)
    await squad.canary("press", "promote")
    await asking
    # What served is gone, too: before that, the canary stayed.
    promoted = await status()
    assert (promoted["canary"], promoted["version"]) == (None, tried["version"])
    assert {each["version"] for each in promoted["replicas"]} == {tried["version"]}
    assert {number for number, _ in await pages(100, 10)} == {2}

    # Another one is aborted in the middle of its tasks.
    await squad.deploy(version(3), canary=50)
    asking = asyncio.create_task(pages(110, 60, 2.0))
    await until(lambda: _some_taken(squad, "press"))
    await squad.canary("press", "abort")
    await asking
    assert {number for number, _ in await pages(170, 10)} == {2}


async def _some_taken(squad: Squad, agent: str) -> bool:
    found = next(each for each in (await squad.status())["agents"] if each["agent"] == agent)
    return bool(found["taken"])


async def test_an_agent_that_cannot_start_is_a_deploy_error_with_the_reason(squad):
    class Broken(Agent):
        """Does not start."""

        async def on_start(self) -> None:
            raise RuntimeError("the coffee machine is empty")

        @topic("broken.ask")
        async def ask(self) -> int:
            """Never runs."""
            return 1

    with pytest.raises(DeployError, match="the coffee machine is empty"):
        # Serve gives up after three starts, of half a minute each on a busy machine.
        await squad.deploy(Broken, within_s=300)


async def test_two_agents_cannot_serve_the_same_topic(squad):
    await squad.deploy(Worker)

    class Rival(Agent):
        """Wants the same work."""

        @topic("work.*")
        async def any(self) -> int:
            """Take everything."""
            return 1

    with pytest.raises(RouteConflictError, match="overlaps"):
        await squad.deploy(Rival)


class Listener(Agent):
    """Hears events."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @on("news.*")
    async def hear(self, message: AgentMessage) -> None:
        self.heard.append(message.payload.content)

    @topic("listener.heard")
    async def tell(self) -> list[str]:
        """What was heard."""
        return self.heard


async def test_events_reach_agents_and_subscribers(squad):
    await squad.deploy(Listener)
    events = await squad.subscribe("news.*")
    await squad.publish("news.sport", "they won")
    assert (await events.next(within_s=60)).payload.content == "they won"
    await events.aclose()

    async def heard() -> bool:
        return (await squad.ask("listener.heard")).unwrap() == ["they won"]

    await until(heard)


async def test_presence_is_told_by_events_and_a_silent_death_by_the_bridge(squad):
    events = await squad.subscribe("status.*")
    await squad.deploy(Worker)
    kinds: set[str] = set()
    while not kinds >= {"agent_online", "agent_heartbeat"}:
        kinds.add((await events.next(within_s=60)).payload.content["event"])
    name, pid = next(iter((await replicas(squad, "worker")).items()))
    os.kill(pid, signal.SIGKILL)
    while True:
        content = (await events.next(within_s=60)).payload.content
        if content["event"] == "agent_offline" and content["replica"] == name:
            break
    assert content["reason"] == "heartbeat lapsed"
    await events.aclose()


async def test_an_undeployed_agent_finishes_what_runs_and_the_rest_waits_for_its_return(squad):
    class Clerk(Agent):
        """Does one thing at a time."""

        slots = 1

        @topic("clerk.nap")
        async def nap(self, seconds: float) -> str:
            """Sleep."""
            await asyncio.sleep(seconds)
            return "slept"

    await squad.deploy(Clerk)
    asking = [asyncio.create_task(squad.ask("clerk.nap", {"seconds": 2.0})) for _ in range(2)]
    await until(lambda: _taken(squad, 1))
    await squad.undeploy("clerk")
    assert squad.discover("sleep") == []
    assert (await squad.ask("clerk.nap", {"seconds": 0.1})).kind == "undeliverable"
    done, waiting = await asyncio.wait(asking, timeout=10, return_when="FIRST_COMPLETED")
    assert [(task.result().kind, task.result().attempt) for task in done] == [("result", 1)]
    assert len(waiting) == 1
    await squad.deploy(Clerk)
    assert (await waiting.pop()).unwrap() == "slept"
    # What was finished while the agent went was settled: it is not done again.
    assert (await squad.status())["agents"][0]["waiting"] == 0


async def test_a_childs_deadline_is_never_later_than_its_parents(squad):
    await squad.deploy(Worker)
    _, left_s = (await squad.ask("work.delegate", {"seconds": 0}, within_s=20)).unwrap()
    assert 0 < left_s < 20


async def test_the_environment_of_another_name_is_refused_with_advice(squad, settings):
    other = Settings.load({}, home=settings.home, env="nowhere")
    with pytest.raises(Exception, match="squadron up"):
        async with Squad.connect(other):
            pass


async def test_no_process_is_started_to_build_an_application(squad, settings):
    await squad.deploy(Worker)

    found = local.find(settings.home)
    assert found is not None
    logs = Path(found.temp_dir, "session_latest", "logs", "serve")
    builds = f"Importing application '{settings.env}.worker'"

    def which() -> list[str]:
        return [each.name for each in logs.glob("*.log") if builds in each.read_text()]

    names = await asyncio.to_thread(which)
    assert names
    assert not [each for each in names if each.startswith("controller_build_")]
