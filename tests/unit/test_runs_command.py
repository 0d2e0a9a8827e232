"""`squadron runs` and `squad.runs` on runs in memory: what they print and refuse, and how runs go on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rich.console import Console
from rich.tree import Tree
from typer.testing import CliRunner

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.runs.shelf import RunInfo, RunView
from squadron.actors.thinking.model import Model, ModelTurn, ToolCall, Usage
from squadron.cli import frame
from squadron.cli.app import app
from squadron.cli.run_views import _grow, _headline, _show_table
from squadron.runtime.errors import ConfigError, ModelError, Terminal
from squadron.runtime.running.context import Context
from squadron.testing import MemorySquad, ScriptedModel
from squadron.testing.scripted_model import ScriptedTurn

GOAL = "greet \x1b[2J the guests"


def turn(*calls: ToolCall, text: str = "", tokens: int = 0) -> ModelTurn:
    return ModelTurn(text, calls, Usage(tokens))


GREET = turn(
    ToolCall("c", "guests__greet", {"name": "ana"}),
    ToolCall("d", "guests__count", {}),
    text="First ana.",
    tokens=100,
)
ASK = turn(ToolCall("p", "ask_person", {"question": "Who else?"}), text="Somebody knows more.", tokens=20)
BUSY = ModelError("too busy", kind="passing")
DONE = turn(ToolCall("end", "finish", {"answer": "all greeted"}), tokens=30)


class Host(Supervisor):
    """The supervisor, with a script for a mind."""

    name = "supervisor"

    def __init__(self, *turns: ScriptedTurn) -> None:
        self.model = ScriptedModel(turns)

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model


class Greeter(LLMAgent):
    """You greet."""

    def make_model(self, spec: str) -> Model:
        return ScriptedModel([turn(text="hello ana", tokens=7), turn(text="welcome", tokens=5)])

    @topic("guests.greet", tags=["greet"])
    async def greet(self, name: str, ctx: Context) -> str:
        """Greet a guest."""
        return f"{await self.think(ctx, f'greet {name}')}, {await self.think(ctx, 'and welcome them')}"


class Door(Agent):
    """Counts guests, badly."""

    def __init__(self) -> None:
        self.counted, self.stopped, self.begun = Counter[str](), 0, asyncio.Event()

    @topic("guests.count", tags=["guests"])
    async def count(self) -> int:
        """Count the guests."""
        self.counted["all"] += 1
        raise Terminal("they keep moving")

    @topic("guests.await", tags=["guests"])
    async def wait(self) -> None:
        """Wait for guests."""
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise


class House:
    """A squad in which a run ended at its limit of rounds, for each command anew."""

    def __init__(self, *, turned: bool = False) -> None:
        self.host, self.door, self._turned = Host(GREET, BUSY, DONE), Door(), turned

    @contextlib.asynccontextmanager
    async def connected(self, _: object = None) -> AsyncIterator[MemorySquad]:
        async with MemorySquad(model="scripted:test", turned=self._turned) as squad:
            self.host, self.door = Host(GREET, BUSY, DONE), Door()
            await squad.deploy(self.host, Greeter, self.door)
            await squad.run(GOAL, max_rounds=1)
            yield squad


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    """What the commands find."""
    made = House()
    monkeypatch.setattr(frame, "connected", made.connected)
    return made


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ("runs", *arguments))


def drawn(view: RunView) -> str:
    """What `runs show` draws of it."""
    tree, console = Tree(_headline(view)), Console(width=100, file=io.StringIO())
    _grow(tree, view)
    console.print(tree)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [60, 80, 119, 120, 200])
def test_a_table_of_runs_fits_and_shows_each_goal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    info = RunInfo(
        run=f"run-{'a' * 24}",
        state="cancelled",
        agent="supervisor",
        topic="goal.pursue",
        task="t",
        title="translate all the essays of the last year into three languages, and bind them",
        rounds=12,
        running=3,
        tokens=1_234_567,
        usd=1.25,
        started=1_790_000_000.0,
        updated=1_790_000_100.0,
        deadline=1_790_000_900.0,
    )
    console = Console(width=width, file=io.StringIO())
    monkeypatch.setattr(frame, "out", lambda: console)

    _show_table([info])

    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert "translate" in lines[1]
    assert "cancelled" in lines[1]
    assert ("1,234,567" in lines[1]) == (width >= 120)


# --- looking -----------------------------------------------------------------------------------------


def test_a_list_that_is_piped_is_one_line_per_run_and_can_be_narrowed(house: House) -> None:
    ended = call("list")

    assert ended.exit_code == 0, ended.stderr or ended.exception
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert Counter(row[2] for row in rows) == {"supervisor": 1, "greeter": 2}
    mine = next(row for row in rows if row[2] == "supervisor")
    assert (mine[1], mine[3], mine[5], mine[-1]) == ("rounds", "1", "112", "greet \\x1b[2J the guests")
    assert call("list", "--agent", "nobody").stderr.endswith("No runs.\n")
    assert "newest 1" in call("list", "--limit", "1").stderr
    assert {each["state"] for each in json.loads(call("list", "--json").stdout)} == {"rounds", "finished"}


def shown(monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """`runs show` of the supervisor's run, whose id is known once it is there."""
    from squadron.actors.runs.shelf import Runs

    find = Runs.find

    async def found(self: Runs, id: str) -> Any:
        mine = next(info for info in await self.list(agent="supervisor"))
        return await find(self, mine.run if id == "mine" else id)

    monkeypatch.setattr(Runs, "find", found)
    return call("show", "mine", *options)


def test_a_run_is_shown_as_a_tree_with_the_runs_of_those_it_called(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(monkeypatch).stdout
    assert "\x1b" not in text
    lines = [" ".join(line.strip("│├└─ ").split()) for line in text.splitlines()]
    assert lines[0].endswith("greet \\x1b[2J the guests")
    assert lines[1].startswith("rounds · supervisor goal.pursue · 112 tokens")
    assert any(line.startswith("round 1") and line.endswith("First ana.") for line in lines)
    assert any(line.startswith("✓ guests.greet") and "12 tokens" in line for line in lines)
    assert any(line.startswith("✗ guests.count") and line.endswith("they keep moving") for line in lines)
    # Both thoughts of one handler, below the call that asked for it.
    assert [line for line in lines if line.endswith(("greet ana", "and welcome them"))].__len__() == 2
    assert any(line.startswith("answer: Stopped: 1 rounds are the limit") for line in lines)


def test_a_run_as_json_has_all_of_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    view = json.loads(shown(monkeypatch, "--json").stdout)
    (first,) = view["rounds"]
    greet, count = first["calls"]
    assert (view["info"]["state"], view["attempts"], view["tries"]) == ("rounds", 1, 1)
    assert [each["answer"] for each in greet["runs"]] == ["hello ana", "welcome"]
    assert (greet["tokens"], count["outcomes"], count["reason"]) == (12, {"failed": 1}, "they keep moving")
    assert (greet["query"], greet["answered_by"]) == ("", None)


@pytest.mark.parametrize("command", ["show", "cancel", "resume"])
def test_a_run_that_nobody_knows_ends_with_2_and_says_where_to_look(house: House, command: str) -> None:
    ended = call(command, "run-nothing")
    assert ended.exit_code == 2
    assert "there is no run 'run-nothing'" in ended.stderr
    assert "squadron runs list" in " ".join(ended.stderr.split())


# --- going on ----------------------------------------------------------------------------------------


async def test_a_run_that_ended_at_a_limit_goes_on_in_its_log_and_pays_nothing_twice() -> None:
    house = House(turned=True)
    async with house.connected() as squad:
        (mine,) = await squad.runs.list(agent="supervisor")
        told = list[dict[str, Any]]()
        outcome = await squad.resume_run(mine.run, on_event=told.append)

        report = outcome.unwrap()
        assert (report["run"], report["stopped"], report["answer"]) == (mine.run, "finished", "all greeted")
        assert (report["tokens"], report["rounds"], house.door.counted["all"]) == (142, 2, 1)
        view = await squad.runs.show(mine.run)
        assert (view.info.state, view.attempts, view.tries, view.failures) == ("finished", 2, 3, 1)
        assert view.rounds[1].failed == ("scripted:test, try 2: too busy",)
        assert told[0]["event"] == "submitted"
        with pytest.raises(ConfigError, match="has ended: finished"):
            await squad.runs.cancel(mine.run)


async def test_who_was_asked_and_who_answered_is_shown() -> None:
    async with MemorySquad(model="scripted:test") as squad:
        await squad.deploy(Host(ASK, DONE))
        running = asyncio.create_task(squad.run("ask around"))
        async for news in squad.follow_questions():
            (info,) = await squad.runs.list()
            (waits,) = (await squad.runs.show(info.run)).rounds[0].calls
            await squad.answer(news.asked.query_id, "bob", by="ana")
            break
        assert (await running).ok
        (done,) = (await squad.runs.show(info.run)).rounds[0].calls
        assert (waits.query, waits.answered_by, waits.outcomes) == (news.asked.query_id, None, {})
        assert (done.query, done.answered_by, done.outcomes) == (waits.query, "ana", {"result": 1})


async def test_a_cancelled_run_says_so_stops_what_it_asked_for_and_may_go_on() -> None:
    door = Door()
    async with MemorySquad(model="scripted:test") as squad:
        await squad.deploy(Host(turn(ToolCall("w", "guests__await", {})), DONE), door)
        running = asyncio.create_task(squad.run("wait for guests"))
        await door.begun.wait()
        (info,) = await squad.runs.list()
        assert info.state == "running"
        with pytest.raises(ConfigError, match="still runs"):
            await squad.resume_run(info.run)

        await squad.runs.cancel(info.run)
        assert (await running).kind == "cancelled"
        assert door.stopped == 1
        over = await squad.runs.show(info.run)
        assert (over.info.state, over.info.running) == ("cancelled", 0)
        text = drawn(over)
        assert "guests.await  no outcome" in text
        assert "running" not in text

        # It goes on as another task, and that one can be stopped, too.
        report = (await squad.resume_run(info.run)).unwrap()
        assert (report["run"], report["answer"]) == (info.run, "all greeted")
        again = await squad.runs.find(info.run)
        assert (again.state, again.task != info.task) == ("finished", True)


async def test_a_run_that_goes_on_is_cancelled_with_what_it_adopted() -> None:
    door = Door()
    async with MemorySquad(model="scripted:test") as squad:
        first = Host(GREET, turn(ToolCall("w", "guests__await", {})), DONE)
        await squad.deploy(first, Greeter, door)
        await squad.run(GOAL, max_rounds=1)
        (info,) = await squad.runs.list(agent="supervisor")
        resumed = asyncio.create_task(squad.resume_run(info.run))
        await door.begun.wait()
        # The replica dies, and another one adopts what it had asked for.
        await squad.kill(first)
        second = Host(DONE)
        await squad.deploy(second)
        while (await squad.runs.show(info.run)).attempts < 3:
            await asyncio.sleep(1)

        await squad.runs.cancel(info.run)
        assert (await resumed).kind == "cancelled"
        while not door.stopped:
            await asyncio.sleep(1)
        assert second.model.seen == []
