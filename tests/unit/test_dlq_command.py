"""`squadron dlq` on dead letters in memory: what it prints, asks and refuses, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from squadron import Settings
from squadron.bridge.jetstream.wiring import SystemClock
from squadron.bridge.memory import MemoryServer
from squadron.cli import dlq, frame
from squadron.cli.app import app
from squadron.client.opening import Opening
from squadron.runtime.ports.queue import Backlog, Delivery, Mailbox
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import DeadLettered

REPLICA = AgentIdentity(id="clerk-1", type="clerk")


class Office:
    """Three letters: two tasks, and bytes that nobody can read."""

    def __init__(self) -> None:
        place = MemoryServer("dev", SystemClock()).place(REPLICA, Settings())
        self.queue, self.subjects, self.letters = place.ports.queue, place.ports.subjects, place.dead_letters
        self._seq = 0

    async def open(self) -> None:
        await self.queue.declare(Mailbox("clerk", ("form.*",)))
        for id, name in (("3f2a", "form.file"), ("3f99", "form.stamp")):
            message = AgentMessage.new("task", AgentIdentity(id="me"), {"text": "ünï"}, id=id)
            await self.bury(id, name, message.encode())
        await self.letters.bury_poison(
            "clerk", self.delivery("form.file", b"\xff"), ValueError("no"), source=REPLICA
        )

    def delivery(self, name: str, data: bytes) -> Delivery:
        self._seq += 1
        return Delivery(self.subjects.task(name), data, None, self._seq)  # type: ignore[arg-type]

    async def bury(self, id: str, name: str, data: bytes) -> None:
        details = {"attempts": 3, "last_error": "ValueError: a\nb [bold]", "traceback_digest": "90f1c2"}
        outcome = DeadLettered(task_id=id, reason="failed in each of 3 attempts", details=details)
        await self.letters.bury("clerk", self.delivery(name, data), outcome, source=REPLICA)

    def ids(self) -> list[str]:
        return [letter.id for letter in asyncio.run(self.letters.list())]

    def waiting(self) -> int:
        backlog: Backlog = asyncio.run(self.queue.backlog("clerk"))
        return backlog.waiting


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Office:
    """The letters that the command finds."""
    opened = Office()
    asyncio.run(opened.open())

    @contextlib.asynccontextmanager
    async def connected(_: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(dead_letters=opened.letters)

    monkeypatch.setattr(frame, "connected", connected)
    return opened


def call(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ("dlq", *arguments), input=stdin)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Somebody who can be asked, and what they see on stderr."""
    seen = io.StringIO()
    monkeypatch.setattr(dlq, "_can_ask", lambda: True)
    monkeypatch.setattr(frame, "err", lambda: Console(file=seen, force_terminal=True, width=100))
    return seen


# --- looking -----------------------------------------------------------------------------------------


def test_a_list_that_is_piped_is_one_line_per_letter_newest_first(office: Office) -> None:
    ended = call("list")

    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert [row[0] for row in rows] == office.ids()
    assert rows[1][:4] == ["3f99", "clerk", "form.stamp", "3"]
    assert rows[1][5] == "ValueError: a b [bold]"
    assert rows[0][5] == "no"
    assert (ended.exit_code, ended.stderr) == (0, "")


def test_a_list_can_be_narrowed_and_says_that_there_is_more(office: Office) -> None:
    assert [line.split("\t")[0] for line in call("list", "--topic", "form.stamp").stdout.splitlines()] == ["3f99"]
    assert call("list", "--agent", "nobody").stderr == "No dead letters.\n"
    cut = call("list", "--limit", "2")
    assert len(cut.stdout.splitlines()) == 2
    assert "newest 2" in cut.stderr
    assert call("list", "--limit", "3").stderr == ""


def test_letters_as_json_have_their_message_as_text_or_base64(office: Office) -> None:
    poison, stamp, file = json.loads(call("list", "--json").stdout)

    assert base64.b64decode(poison["message_base64"]) == b"\xff"
    assert json.loads(stamp["message"])["id"] == "3f99"
    assert file | {"message": "", "buried_at": 0} == {
        "id": "3f2a",
        "agent": "clerk",
        "topic": "form.file",
        "subject": "agents.dev.task.form.file",
        "reason": "failed in each of 3 attempts",
        "attempts": 3,
        "last_error": "ValueError: a\nb [bold]",
        "traceback_digest": "90f1c2",
        "buried_at": 0,
        "complete": True,
        "message": "",
    }
    assert call("list", "--topic", "no.body", "--json").stdout == "[]\n"


def test_a_letter_is_shown_with_its_message(office: Office) -> None:
    shown = call("show", "3f2").stdout

    for line in ("subject    agents.dev.task.form.file", "attempts   3", "traceback  90f1c2"):
        assert line in shown.splitlines()
    assert '"text":"ünï"' in shown
    assert "b'\\xff'" in call("show", office.ids()[0]).stdout
    assert json.loads(call("show", "3f2a", "--json").stdout)["id"] == "3f2a"


def test_on_a_terminal_the_list_is_a_table(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(frame, "out", lambda: Console(file=seen, force_terminal=True, no_color=True, width=120))

    dlq._show_table(asyncio.run(office.letters.list()))

    assert "BURIED (UTC)" in seen.getvalue()
    assert "ValueError: a b [bold]" in seen.getvalue()


def test_the_table_shortens_ids_no_further_than_they_are_clear(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(frame, "out", lambda: Console(file=seen, width=80))
    for id in ("order-2024-17", "order-2024-18"):
        asyncio.run(office.bury(id, "form.file", b"{}"))

    dlq._show_table(asyncio.run(office.letters.list()))

    rows = seen.getvalue().splitlines()
    assert [row.split()[0] for row in rows[1:3]] == ["order-2024-18", "order-2024-17"]
    assert rows[3].split()[0] == office.ids()[2][:13]
    assert len(rows) == 6
    assert all("ValueErr" in row for row in rows if "form.stamp" in row)


def test_what_a_stranger_sent_can_not_move_the_cursor(office: Office) -> None:
    asyncio.run(office.bury("a\tb\x1b[2J", "form.file", b"\x1b[2J\xc2\x9b1A"))

    (row, *_), shown = call("list").stdout.splitlines(), call("show", "a").stdout

    assert row.split("\t")[:2] == ["a\\tb\\x1b[2J", "clerk"]
    assert "\x1b" not in shown
    assert "\\x1b[2J\\x9b1A" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show", "3f"), "3f2a of clerk, 3f99 of clerk"),
        (("show", "4"), "squadron dlq list"),
        (("redrive", "4"), "no dead letter '4'"),
        (("drop", "4", "--yes"), "no dead letter '4'"),
        (("redrive",), "say which"),
        (("drop", "--yes"), "say which"),
        (("redrive", "--topic", "form.file"), "say which"),
        (("redrive", "3f2a", "--all"), "say which"),
        (("redrive", "3f2a", "--topic", "form.file"), "goes with --all"),
        (("drop", "3f2a"), "add --yes"),
        (("list", "--topic", "form"), "not domain.specificity"),
        (("list", "--agent", "*"), "mailbox '*'"),
        (("list", "--limit", "0"), "greater than or equal"),
    ],
)
def test_bad_usage_ends_with_2_says_what_to_do_and_moves_nothing(
    office: Office, arguments: tuple[str, ...], told: str
) -> None:
    before = office.ids()

    ended = call(*arguments)

    assert ended.exit_code == 2, ended.output
    assert told in " ".join(ended.stderr.split())
    assert ended.stdout == ""
    assert office.ids() == before
    assert office.waiting() == 0


def test_with_json_an_error_is_json(office: Office) -> None:
    ended = call("show", "3f", "--json")

    assert ended.exit_code == 2
    assert json.loads(ended.stdout)["error"]["type"] == "UnknownLetterError"


# --- moving ------------------------------------------------------------------------------------------


def test_letters_are_redriven_by_id_or_all_of_a_topic(office: Office) -> None:
    first = call("redrive", "3f9")
    assert (first.exit_code, first.stdout, first.stderr) == (0, "", "Put 1 dead letter back.\n")
    assert "3f99" not in office.ids()

    rest = call("redrive", "--all", "--topic", "form.file", "--json")
    assert rest.exit_code == 0
    assert len(json.loads(rest.stdout)["redriven"]) == 2
    assert office.ids() == []
    assert office.waiting() == 3
    assert call("redrive", "--all").exit_code == 0


def test_a_letter_that_can_not_go_back_stays_and_the_command_ends_with_1(office: Office) -> None:
    asyncio.run(office.bury("cut", "form.file", b"\xff" * 7_000_000))

    ended = call("redrive", "--all")
    told = call("redrive", "--all", "--json")

    assert (ended.exit_code, told.exit_code) == (1, 1)
    assert "Put 3 dead letters back." in ended.stderr
    assert "cut stays: only a part" in ended.stderr
    assert json.loads(told.stdout)["left"]["cut"]["type"] == "CutLetterError"
    assert call("redrive", "cut").exit_code == 2
    assert office.ids() == ["cut"]


def test_on_a_terminal_a_redrive_shows_how_far_it_is(office: Office, terminal: io.StringIO) -> None:
    assert call("redrive", "--all").exit_code == 0

    assert "3/3" in terminal.getvalue()


def test_a_drop_is_asked_for_on_a_terminal(office: Office, terminal: io.StringIO) -> None:
    refused = call("drop", "3f2", stdin="n\n")
    assert refused.exit_code == 1
    assert "Drop 3f2a for good?" in refused.stderr
    assert len(office.ids()) == 3

    assert (
        "Drop all dead letters of form.file for good?"
        in call("drop", "--all", "-t", "form.file", stdin="n\n").stderr
    )
    assert call("drop", "3f2", stdin="y\n").exit_code == 0
    assert "3f2a" not in office.ids()


def test_a_drop_with_yes_asks_nobody(office: Office) -> None:
    one = call("drop", "3f2", "--yes")
    assert (one.exit_code, one.stderr) == (0, "Dropped 1 dead letter.\n")
    rest = call("drop", "--all", "--yes", "--json")
    assert json.loads(rest.stdout) == {"dropped": 2}
    assert office.ids() == []
    assert office.waiting() == 0


# --- in a program ------------------------------------------------------------------------------------


def test_a_plain_script_does_the_same_without_await(office: Office) -> None:
    async def open_squad() -> Any:
        return SimpleNamespace(dead_letters=office.letters, aclose=lambda: asyncio.sleep(0))

    squad = Opening(open_squad).__enter__()
    letters = squad.dead_letters

    assert [letter.id for letter in letters.list(topic="form.stamp")] == ["3f99"]
    assert letters.show("3f2").id == "3f2a"
    assert letters.redrive("3f2").ids == ("3f2a",)
    assert letters.drop(all=True) == 2
    assert letters.list() == ()
    squad.close()
