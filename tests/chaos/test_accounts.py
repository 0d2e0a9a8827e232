"""The accountant itself: he finds what he is there to find."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.accounts import Account
from tests.chaos.client import Plan

SENT = {"what": "sent", "at": 1.0, "number": 3}
TOLD = {"what": "outcome", "at": 3.0, "number": 3, "kind": "result", "data": 9, "attempt": 1, "reason": ""}
START = {"what": "start", "at": 1.5, "task": "run-3", "attempt": 1}
END = {"what": "end", "at": 2.5, "task": "run-3", "attempt": 1}
KILL = {"what": "kill", "at": 1.6, "role": "nats"}


def books(
    folder: Path, client: list[dict[str, Any]], handlers: list[dict[str, Any]], kills: list[dict[str, Any]]
) -> Account:
    Plan(run="run").store(folder)
    for name, lines in (("client", client), ("handlers", handlers), ("kills", kills)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Account.of(folder)


def test_books_that_add_up(tmp_path: Path):
    books(tmp_path, [SENT, TOLD], [START, END], []).assert_exact(Counter({"run-3": 1}))


@pytest.mark.parametrize(
    ("client", "handlers", "stored", "found"),
    [
        ([SENT], [START, END], 1, "told 0 outcomes"),
        ([SENT, TOLD, TOLD], [START, END], 1, "told 2 outcomes"),
        ([TOLD], [START, END], 1, "never sent"),
        ([SENT, TOLD], [START, END], 0, "0 stored outcomes"),
        ([SENT, TOLD], [START, END], 2, "2 stored outcomes"),
        ([SENT, TOLD | {"data": 8}], [START, END], 1, "ended as result 8"),
        ([SENT, TOLD | {"kind": "timed_out"}], [START, END], 1, "ended as timed_out"),
        ([SENT, TOLD], [], 1, "never started"),
        ([SENT, TOLD], [START], 1, "no attempt 1 came to its end"),
        ([SENT, TOLD], [START, START, END], 1, "ran twice as the same attempt"),
        ([SENT, TOLD], [START, END, START | {"at": 9.0, "attempt": 2}], 1, "started again after its outcome"),
        ([SENT, TOLD | {"attempt": 2}], [START | {"attempt": 2}, END | {"attempt": 2}], 1, "never began"),
    ],
)
def test_books_that_do_not(
    client: list[dict[str, Any]], handlers: list[dict[str, Any]], stored: int, found: str, tmp_path: Path
):
    with pytest.raises(AssertionError, match=found):
        books(tmp_path, client, handlers, []).assert_exact(Counter({"run-3": stored}))


def test_what_a_killed_server_forgot_is_known_as_such(tmp_path: Path):
    account = books(tmp_path, [SENT, TOLD], [START, START | {"at": 2.0}, END], [KILL])
    account.assert_exact(Counter({"run-3": 1}))
    assert account.forgotten == {"run-3"}
