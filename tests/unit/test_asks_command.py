"""`squadron asks` and `squadron answer` on questions in memory: what they print, ask and refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from squadron.cli import asks, frame
from squadron.cli.app import app
from squadron.runtime.asking.people import Asked, put_question
from squadron.runtime.wire.limits import Deadline
from squadron.runtime.wire.question import Proposal, Question, Reply
from squadron.testing import MemorySquad, run

FORM = {
    "type": "object",
    "properties": {
        "size": {"type": "string", "enum": ["S", "M"], "title": "Size"},
        "count": {"type": "integer", "minimum": 1},
        "note": {"type": "string", "description": "anything else"},
        "gift": {"type": "boolean", "default": False},
    },
    "required": ["size", "count"],
}


class Desk:
    """A squad in memory in which two things wait for people, for each command anew."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}

    @contextlib.asynccontextmanager
    async def connected(self, _: object = None) -> AsyncIterator[MemorySquad]:
        async with MemorySquad(turned=False) as squad:
            caller = squad._wiring.caller
            deadline_ms = Deadline.after(600, caller.ports.clock).at_ms
            order = Question(message="Which\none? \x1b[2J", schema=FORM, deadline_ms=deadline_ms)
            proposal = Proposal("mail.send", {"to": "ana"}, {"type": "object", "required": ["to"]})
            mail = Question.approval(proposal, deadline_ms=deadline_ms)
            waiting = [await put_question(caller, order, "aa11"), await put_question(caller, mail, "bb22")]
            yield squad
            left = {each.query_id for each in await squad.questions()}
            await self._note([each for each in waiting if each.query_id not in left])

    async def _note(self, answered: list[Asked]) -> None:
        self.replies = {each.query_id: await each.answer() for each in answered}


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """What the commands find."""
    made = Desk()
    monkeypatch.setattr(frame, "connected", made.connected)
    return made


def call(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_asks_lists_what_waits_a_line_for_each(desk: Desk) -> None:
    ended = call("asks")
    assert ended.exit_code == 0
    order, mail = (line.split("\t") for line in ended.stdout.splitlines())
    assert (order[:3], order[4]) == (["aa11", "question", "tester"], "Which one? \\x1b[2J")
    assert (mail[0], mail[1], mail[4]) == ("bb22", "approval", "May mail.send be called?")


def test_asks_prints_json(desk: Desk) -> None:
    order, mail = json.loads(call("asks", "--json").stdout)
    assert (order["query"], order["schema"], mail["proposal"]["arguments"]) == ("aa11", FORM, {"to": "ana"})


def test_asks_follows_until_it_is_stopped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(frame, "print_json", heard.append)

    async def follow() -> None:
        async with desk.connected() as squad:
            monkeypatch.setattr(frame, "connected", lambda _: contextlib.nullcontext(squad))
            monkeypatch.setattr(frame, "settings_of", lambda _: squad.settings)
            following = asyncio.create_task(asks._follow(None, True))  # type: ignore[arg-type]
            await _until(lambda: len(heard) == 2)
            await squad.answer("aa", {"size": "S", "count": 1}, by="ben")
            await _until(lambda: len(heard) == 3)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    run(follow())
    assert [(each["event"], each["query"]) for each in heard] == [
        ("asked", "aa11"),
        ("asked", "bb22"),
        ("answered", "aa11"),
    ]
    assert heard[2]["reply"] == {"action": "accept", "content": {"size": "S", "count": 1}, "by": "ben"}


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.005)


def test_fields_are_read_as_the_schema_wants_them(desk: Desk) -> None:
    ended = call("answer", "aa", "size=M", "count=2", "note=12", "--by", "ana", "--json")
    assert ended.exit_code == 0, ended.output
    wanted = {"size": "M", "count": 2, "note": "12"}
    told = {"query": "aa11", "action": "accept", "content": wanted, "by": "ana"}
    assert json.loads(ended.stdout) == told
    assert (dict(desk.replies["aa11"].content), desk.replies["aa11"].by) == (wanted, "ana")


def test_an_answer_is_read_from_stdin(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text('{"size": "S", "count": 3}')
    with (tmp_path / "answer.json").open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        with pytest.raises(SystemExit) as ended:
            app(["answer", "aa11", "-"])
    assert ended.value.code == 0
    assert desk.replies["aa11"].value == {"size": "S", "count": 3}


@pytest.mark.parametrize(
    ("options", "action", "content"),
    [
        (("--accept",), "accept", {"arguments": {"to": "ana"}}),
        (("--always",), "accept", {"always": True, "arguments": {"to": "ana"}}),
        (('arguments={"to": "ben"}',), "accept", {"arguments": {"to": "ben"}}),
        (("--decline", "--reason", "no"), "decline", {"reason": "no"}),
        (("--cancel",), "cancel", {}),
    ],
)
def test_a_call_is_approved_or_not(desk: Desk, options: tuple[str, ...], action: str, content: Any) -> None:
    assert call("answer", "bb", *options).exit_code == 0
    reply = desk.replies["bb22"]
    assert (reply.action, reply.content) == (action, content)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("aa", "size=XXL", "count=2"), 2, "field 'size'"),
        (("aa", "size=S"), 2, "field 'count'"),
        (("bb", "arguments={}"), 2, "field 'to'"),
        (("cc", "size=S"), 2, "no question 'cc' waits"),
        (("aa",), 2, "no terminal to ask on"),
        (("aa", "size=S", "count=1", "--by", "default"), 2, "nobody answers as 'default'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    desk: Desk, arguments: tuple[str, ...], code: int, told: str
) -> None:
    ended = call("answer", *arguments)
    assert ended.exit_code == code, ended.output
    assert told in ended.stderr
    assert "Traceback" not in ended.output
    assert desk.replies == {}


@pytest.mark.parametrize(
    ("query", "typed", "action", "content"),
    [
        ("aa", "XXL\nM\n0\n2\n\n\n", "accept", {"size": "M", "count": 2, "gift": False}),
        ("aa", "S\n1\nsoon\ntrue\n", "accept", {"size": "S", "count": 1, "note": "soon", "gift": True}),
        ("bb", "yes\n", "accept", {"arguments": {"to": "ana"}}),
        ("bb", "always\n", "accept", {"always": True, "arguments": {"to": "ana"}}),
        ("bb", "\nnot now\n", "decline", {"reason": "not now"}),
        ("bb", "cancel\n", "cancel", {}),
    ],
)
def test_on_a_terminal_the_fields_are_asked_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, query: str, typed: str, action: str, content: Any
) -> None:
    monkeypatch.setattr(asks, "_can_ask", lambda: True)
    ended = call("answer", query, stdin=typed)
    assert ended.exit_code == 0, ended.output
    [reply] = desk.replies.values()
    assert (reply.action, dict(reply.content)) == (action, content)


def test_who_comes_second_is_told_who_was_first(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    @contextlib.asynccontextmanager
    async def answered(_: object) -> AsyncIterator[MemorySquad]:
        async with desk.connected() as squad:
            await squad.answer("aa", {"size": "S", "count": 1}, by="ben")
            yield squad

    monkeypatch.setattr(frame, "connected", answered)
    ended = call("answer", "aa11", "size=M", "count=1")
    assert (ended.exit_code, "ben answered it: accept" in ended.stderr) == (1, True)


def test_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.asynccontextmanager
    async def connected(_: object) -> AsyncIterator[MemorySquad]:
        async with MemorySquad(turned=False) as squad:
            yield squad

    monkeypatch.setattr(frame, "connected", connected)
    ended = call("asks")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", "Nothing waits for people.\n")
    assert call("asks", "--json").stdout == "[]\n"
