"""`squadron tail`, `top`, `trace` and `lite` over a squad in memory: what they print, and what they refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.cli import frame
from squadron.cli.app import app
from squadron.cli.lite_topics import owner_and_id, start_of
from squadron.cli.top import keys, resizes, split_keys
from squadron.runtime.background import spawn
from squadron.runtime.errors import BridgeUnavailableError, InvalidInputError, InvalidSubjectError, Terminal
from squadron.runtime.running.context import Context
from squadron.runtime.wire.start import Tail, check_lite_start
from squadron.testing import FunctionModel, MemorySquad, ScriptedModel
from squadron.views.listener import Missed
from squadron.views.passing import Passing
from tests.unit.test_hostile_words import Listened
from tests.unit.test_runs_command import House as Guests

COUNT = ModelTurn("I count.", (ToolCall("c", "door__count", {}),), Usage(100))
DONE = ModelTurn("", (ToolCall("end", "finish", {"answer": "counted"}),), Usage(30))


class Host(Supervisor):
    """The supervisor, with a script for a mind."""

    name = "supervisor"

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return ScriptedModel([COUNT, DONE])


class Door(Agent):
    """Counts guests."""

    @topic("door.count", tags=["guests"])
    async def count(self) -> int:
        """Count the guests."""
        return 3

    @topic("door.sing")
    async def sing(self, ctx: Context) -> str:
        """Sing in the wind."""
        await ctx.emit({"part": 1})
        await ctx.emit("la")
        return "sung"

    @topic("door.slam")
    async def slam(self) -> None:
        """Slam it."""
        raise Terminal("it \x1b[2J jams")


class House:
    """A squad in memory for each command anew, and what goes on in it meanwhile."""

    def __init__(self) -> None:
        self.before: Callable[[MemorySquad], Awaitable[Any]] | None = None
        self.during: Callable[[MemorySquad], Awaitable[Any]] | None = None
        self.after: Callable[[MemorySquad], Awaitable[Any]] | None = None
        self.found: Any = None

    @contextlib.asynccontextmanager
    async def connected(self, _: object = None) -> AsyncIterator[MemorySquad]:
        async with MemorySquad(model="scripted:test", turned=False, heartbeat_s=0.2) as squad:
            await squad.deploy(Host(), Door)
            if self.before is not None:
                self.found = await self.before(squad)
            # The bridge's part of it, which memory has none of.
            squad.status = _status  # type: ignore[attr-defined]
            going_on = spawn(self._go_on(squad), "goes on")
            try:
                yield squad
                if self.after is not None:
                    self.found = await self.after(squad)
            finally:
                going_on.cancel()

    async def _go_on(self, squad: MemorySquad) -> None:
        while self.during is not None:
            await self.during(squad)
            await asyncio.sleep(0.02)


async def _status() -> dict[str, Any]:
    door = {"agent": "door", "topics": ["door.count"], "status": "RUNNING", "message": "", "waiting": 0}
    return {"agents": [door | {"running": 1, "target": 1, "scale": "1..1", "slots": 16}]}


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    made = House()
    monkeypatch.setattr(frame, "connected", made.connected)
    return made


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


async def count(squad: MemorySquad) -> None:
    await squad.ask("door.count", conversation_id="guests")
    await squad.ask("door.slam")


# --- tail --------------------------------------------------------------------------------------------


def test_tail_prints_a_line_for_each_message_and_ends_after_so_many(house: House) -> None:
    house.during = count

    ended = call("tail", "-n", "8")

    assert ended.exit_code == 0, ended.stderr
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert len(rows) == 8
    kinds = {(row[1], row[2], row[6], row[7]) for row in rows}
    assert ("task", "door.count", "door", "") in kinds
    assert ("result", "door.count", "door", "result") in kinds
    assert ("result", "door.slam", "door", "failed") in kinds
    assert "it \\x1b[2J jams" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert "Listening" in ended.stderr


def test_tail_filters_and_prints_json(house: House) -> None:
    house.during = count

    ended = call("tail", "-n", "4", "--conversation", "gue", "--contents", "--json")

    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(told) == 4
    assert {each["conversation"] for each in told} == {"guests"}
    assert {each["kind"]: each.get("content", {}).get("data") for each in told} == {"task": None, "result": 3}

    ended = call("tail", "-n", "2", "--topic", "*.slam", "--json")
    assert {json.loads(line)["topic"] for line in ended.stdout.splitlines()} == {"door.slam"}
    assert "content" not in ended.stdout

    ended = call("tail", "--topic", "no topic")
    assert ended.exit_code == frame.BAD_USAGE
    assert "not domain.specificity" in ended.stderr


# --- top ---------------------------------------------------------------------------------------------


def test_top_looks_once_and_tells_a_rate(house: House) -> None:
    house.during = count

    ended = call("top", "--once", "--json")

    assert ended.exit_code == 0, ended.stderr
    (door,) = json.loads(ended.stdout)["agents"]
    assert (door["agent"], door["running"], door["waiting"]) == ("door", 1, 0)
    assert door["rates"][0] > 0
    assert 0 < door["failed"] < door["done"]
    assert door["outcomes"]["result"] == door["done"] - door["failed"]

    (row,) = [line.split("\t") for line in call("top", "--once").stdout.splitlines()]
    assert row[1:3] == ["door", "1/1"]


def test_top_tells_that_the_bridge_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, whole = list[Exception | None](), _status

    async def status() -> dict[str, Any]:
        if (look := looks.pop(0)) is not None:
            raise look
        return await whole()

    away, enough = BridgeUnavailableError("no bridge answers", hint="squadron up"), RuntimeError("enough")
    monkeypatch.setattr(f"{__name__}._status", status)

    looks[:] = [away]
    ended = call("top", "--once")
    assert (ended.exit_code, ended.stdout) == (frame.NOT_RUNNING, "")
    assert "no bridge answers" in ended.stderr

    looks[:] = [away]
    ended = call("top", "--once", "--json")
    assert (ended.exit_code, json.loads(ended.stdout)["error"]["type"]) == (3, "BridgeUnavailableError")

    looks[:] = [None, away, None, enough]
    ended = call("top", "--interval", "0.2")
    assert [line.split("\t")[1] for line in ended.stdout.splitlines()] == ["door", "door"]
    assert ended.stderr.count("no bridge answers") == 1

    looks[:] = [None, away, None, enough]
    ended = call("top", "--interval", "0.2", "--json")
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [each["trouble"] for each in told[:3]] == ["", str(away), ""]
    # The last figures stand beside it.
    assert [each["agents"][0]["agent"] for each in told[:3]] == ["door"] * 3


def test_top_refuses_an_order_that_it_does_not_know(house: House) -> None:
    ended = call("top", "--sort", "colour")
    assert ended.exit_code == frame.BAD_USAGE
    assert "name, busy, waiting, rate, failed, age" in " ".join(ended.stderr.split())


# --- trace -------------------------------------------------------------------------------------------


async def pursue(squad: MemorySquad) -> Any:
    return await squad.run("count the guests")


def test_trace_shows_a_run_in_bars_with_its_costs(house: House) -> None:
    house.before = pursue

    ended = call("trace", "run-", "--costs")

    assert ended.exit_code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "count the guests" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["round", "door.count", "round"]
    assert "100 tokens" in lines[1]
    assert "▓" in lines[1]
    assert "130 tokens, $0.0000" in ended.stdout

    told = json.loads(call("trace", "run-", "--json").stdout)
    assert [lane["name"] for lane in told["lanes"]] == ["round 1", "door.count", "round 2"]
    assert told["costs"]["tokens"] == 130
    assert sum(row["tokens"] for row in told["costs"]["models"]) == 130
    assert sum(row["tokens"] for row in told["costs"]["rounds"]) == 130
    assert sum(row["tokens"] for row in told["costs"]["calls"]) == 130


def test_trace_shows_a_task_while_its_outcome_lives_and_says_what_is_not_known(house: House) -> None:
    async def slam(squad: MemorySquad) -> None:
        await squad.ask("door.slam", task_id="mine")

    house.before = slam

    told = json.loads(call("trace", "mine", "--json").stdout)

    assert [(lane["name"], lane["outcome"]) for lane in told["lanes"]] == [("door", "failed")]
    assert [bar["kind"] for lane in told["lanes"] for bar in lane["bars"]] == ["wait", "work"]
    assert "\x1b" not in call("trace", "mine").stdout

    ended = call("trace", "nobody")
    assert ended.exit_code == frame.BAD_USAGE
    assert "no task of this id is known" in " ".join(ended.stderr.split())


# --- lite --------------------------------------------------------------------------------------------


async def chat(squad: MemorySquad) -> Any:
    one = squad.lite("one", "chat", ttl_s=60)
    await one.publish({"text": "hello"})
    await one.publish("bye \x1b[2J")
    await squad.lite("two", "desk").publish(b"\xff\x00")


def test_lite_topics_are_listed_and_read(house: House) -> None:
    house.before = chat

    rows = [line.split("\t") for line in call("lite", "list").stdout.splitlines()]
    assert {(row[0], row[1], row[-1]) for row in rows} == {
        ("desk/two", "open", "data"),
        ("chat/one", "open", "event"),
    }
    listed = json.loads(call("lite", "list", "chat", "--json").stdout)
    assert [(each["owner"], each["id"]) for each in listed] == [("chat", "one")]
    assert "No lite topics" in call("lite", "list", "nobody").stderr
    assert "newest 1 of 2" in call("lite", "list", "-n", "1").stderr

    lines = [line.split("\t")[2] for line in call("lite", "read", "chat/one").stdout.splitlines()]
    assert lines == ['{"text": "hello"}', "bye \\x1b[2J"]
    told = json.loads(call("lite", "read", "agents.test.lite.chat.one", "--from", "-1", "--json").stdout)
    assert (told["content"], told["type"], told["missed"]) == ("bye \x1b[2J", "event", False)
    assert json.loads(call("lite", "read", "desk/two", "--json").stdout)["data"] == "/wA="
    assert call("lite", "read", "chat/nothing").stdout == ""


def test_what_a_task_emitted_is_read_as_text_and_as_json(house: House) -> None:
    async def sing(squad: MemorySquad) -> Any:
        return [chunk async for chunk in squad.stream("door.sing", task_id="song")]

    house.before = sing

    read = ("lite", "read", "song/song")
    lines = [line.split("\t")[2] for line in call(*read).stdout.splitlines()]
    told = [json.loads(line) for line in call(*read, "--json").stdout.splitlines()]

    assert lines[:2] == ['{"part": 1}', "la"]
    assert [each["content"] for each in told if each["type"] == "stream"][:2] == [{"part": 1}, "la"]
    assert len(lines) == len(told)


def test_a_lite_topic_is_followed_until_it_ends(house: House) -> None:
    house.before = chat

    async def close(squad: MemorySquad) -> None:
        await squad.lite("one", "chat").publish("last")
        await squad.lite("one", "chat").close()
        house.during = None

    house.during = close

    ended = call("lite", "read", "chat/one", "--follow", "--from", "first")

    assert ended.exit_code == 0
    assert "chat/one closed" in ended.stderr


def test_lite_topics_are_written_and_closed(house: House) -> None:
    async def read(squad: MemorySquad) -> list[Any]:
        return [message.content async for message in squad.lite("one", "chat").read(live=False)]

    house.before, house.after = chat, read

    seq = call("lite", "publish", "chat/one", '{"text": "new"}', "--ttl", "60").stdout
    assert int(seq) > 2
    assert house.found == [{"text": "hello"}, "bye \x1b[2J", {"text": "new"}]
    closed = call("lite", "close", "chat/one", "--yes", "--json")
    assert json.loads(closed.stdout) == {"closed": "chat/one"}
    assert house.found == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("publish", "chat/one", "{bad"), "not JSON"),
        (("publish", "chat", "1"), "not OWNER/ID"),
        (("publish", "chat/a b", "1"), "not a subject token"),
        (("publish", "chat/one", "1", "--ttl", "9999999999"), "2592000 seconds"),
        (("close", "chat/one"), "--yes"),
        (("read", "chat/one", "--from", "yesterday"), "--from"),
        (("list", "a b"), "not a subject token"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(house: House, arguments: tuple[str, ...], why: str) -> None:
    ended = call("lite", *arguments)

    assert ended.exit_code == frame.BAD_USAGE
    assert why in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_places_and_names_are_read_as_they_are_typed() -> None:
    assert [start_of(text) for text in ("first", "last", "new", "7", "-20")] == [
        "first",
        "last",
        "new",
        7,
        Tail(20),
    ]
    assert start_of("2026-11-28T17:00:00+00:00").timestamp() == 1_795_885_200  # type: ignore[union-attr]
    assert start_of("2026-11-28").tzinfo is not None  # type: ignore[union-attr]
    for text in ("", "0001-01-01"):
        with pytest.raises(InvalidInputError, match="--from"):
            start_of(text)
    # Nothing was stored before the epoch, and no server reads a time after the year 9999.
    assert check_lite_start(start_of("0001-01-01T00:00+14:00")) == 0.0
    with pytest.raises(InvalidInputError, match="can't start at"):
        check_lite_start(start_of("9999-12-31T23:59-14:00"))
    assert owner_and_id("chat/one") == ("chat", "one")
    with pytest.raises(InvalidSubjectError):
        owner_and_id("agents.test.task.a.b")


# --- pieces ------------------------------------------------------------------------------------------


async def test_keys_are_heard_without_being_shown_and_the_terminal_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        before, typed = termios.tcgetattr(terminal), asyncio.Queue[str]()
        with keys(typed.put_nowait):
            assert not termios.tcgetattr(terminal)[3] & (termios.ECHO | termios.ICANON)
            os.write(ours, b"\x1b[B")
            assert split_keys(await typed.get()) == ["down"]
        assert termios.tcgetattr(terminal) == before
    os.close(ours)


async def test_a_terminal_that_changes_its_size_is_drawn_at_once() -> None:
    drawn = asyncio.Event()
    with resizes(drawn.set):
        os.kill(os.getpid(), signal.SIGWINCH)
        await drawn.wait()
    assert signal.getsignal(signal.SIGWINCH) is signal.SIG_DFL


class Writer(LLMAgent):
    """You write."""

    def __init__(self) -> None:
        super().__init__()
        self.thinks, self.go_on = asyncio.Event(), asyncio.Event()

    def make_model(self, spec: str) -> Model:
        return FunctionModel(self._decide, name="scripted:writer")

    async def _decide(self, request: ModelRequest) -> ModelTurn:
        if all(message.role != "tool" for message in request.messages):
            return ModelTurn("I look it up.", (ToolCall("w", "word", {}),), Usage(400))
        self.thinks.set()
        await self.go_on.wait()
        return ModelTurn("a draft", usage=Usage(50))

    @topic("text.draft")
    async def draft(self, ctx: Context) -> str:
        """Write a draft."""
        return await self.think(ctx, "Write.")

    @tool
    def word(self) -> str:
        """A word."""
        return "ray"


class Editor(Host):
    """Has a draft written."""

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        draft = ModelTurn("", (ToolCall("c", "text__draft", {}),), Usage(100))
        return ScriptedModel([draft, DONE])


async def test_a_run_is_seen_while_it_goes_on_and_its_costs_add_up_at_each_moment() -> None:
    writer = Writer()
    async with MemorySquad(model="scripted:test") as squad:
        await squad.deploy(Editor(), writer)
        mapping = asyncio.create_task(squad.map(5))
        passing = await squad.listen()
        running = asyncio.create_task(squad.run("Have a text drafted"))
        await writer.thinks.wait()
        found = {info.agent: info.run for info in await squad.runs.list()}
        live = await squad.runs.show(found["supervisor"])
        heard = [(it.kind, it.topic) for it in passing.ready(1000) if isinstance(it, Passing)]
        writer.go_on.set()
        assert (await running).kind == "result"
        over = await squad.runs.show(found["supervisor"])
        ways = {(way["sender"], way["topic"], way["agent"]): way["count"] for way in (await mapping).to_dicts()}
        await passing.aclose()

    names = [(lane.name, lane.bars[-1].kind, lane.bars[-1].ended is None) for lane in live.timeline().lanes]
    assert names == [
        ("round 1", "think", False),
        ("text.draft", "open", True),
        ("round 1", "think", False),
        ("word", "work", False),
        ("round 2", "think", True),
    ]
    assert ("task", "goal.pursue") in heard
    assert ("task", "text.draft") in heard
    assert ("result", "goal.pursue") not in heard
    assert ways["supervisor", "text.draft", "writer"] == ways["client", "goal.pursue", "supervisor"] == 1
    # Nobody has told yet what the draft cost; its run has it in its log.
    assert (live.costs().tokens, over.costs().tokens, over.info.tokens) == (500, 580, 580)
    for costs in (live.costs(), over.costs()):
        for rows in (costs.models, costs.rounds, costs.calls):
            assert sum(row.tokens for row in rows) == costs.tokens
            assert all(row.tokens > 0 for row in rows)


async def test_what_nested_runs_cost_is_told_by_their_models_and_adds_up() -> None:
    async with Guests().connected() as squad:
        found = {info.agent: info.run for info in await squad.runs.list()}
        run = await squad.runs.show(found["supervisor"])

    costs, lanes = run.costs(), run.timeline().lanes

    assert costs.tokens == run.info.tokens == 112
    for rows in (costs.models, costs.rounds, costs.calls):
        assert sum(row.tokens for row in rows) == costs.tokens
    assert [(row.name, row.calls, row.tokens) for row in costs.models] == [("scripted:test", 3, 112)]
    assert [(lane.name, lane.depth) for lane in lanes] == [
        ("round 1", 0),
        ("guests.greet", 1),
        ("round 1", 2),
        ("round 1", 2),
        ("guests.count", 1),
    ]
    # What an agent thought, it thought while it worked.
    outer, inner = lanes[1].bars[-1], lanes[2].bars[0]
    assert outer.kind == "work"
    assert outer.began - 0.1 <= inner.began <= (inner.ended or 0.0) <= (outer.ended or 0.0) + 0.1
    assert lanes[-1].outcome == "failed"
    assert "they keep moving" in lanes[-1].note
    assert run._repr_html_() == run.timeline()._repr_html_()


def test_what_passed_unseen_takes_the_place_of_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Missed(3), Passing("task", "s", id="one"), Missed(1), Passing("task", "s", id="two"), Missed(9)]

    @contextlib.asynccontextmanager
    async def connected(_: object) -> AsyncIterator[Any]:
        async def listen(**_: object) -> Listened:
            return Listened(items)

        yield SimpleNamespace(listen=listen)

    monkeypatch.setattr(frame, "connected", connected)

    ended = CliRunner().invoke(app, ["tail", "-n", "2", "--json"])

    assert ended.exit_code == 0, ended.output
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [each.get("id", each.get("count")) for each in told] == [3, "one", 1, "two"]
