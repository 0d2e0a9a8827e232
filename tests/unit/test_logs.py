"""Logs: JSON lines on standard error when nobody watches a terminal, and each turn bound to its message."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import structlog

from squadron import Agent, Context, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.memory import MemoryServer
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage

_PROGRAM = """
from squadron.runtime.logs import configure_logs
import structlog
configure_logs({level!r})
log = structlog.get_logger("x").bind(agent="a")
log.debug("quiet")
log.info("hello", n=1, who="Zoë")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broke")
print("result")
"""


def _logged(level: str) -> tuple[list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(level=level)], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stderr.splitlines()], done.stdout


def test_a_replica_loads_structlog_without_rich_and_who_prints_a_traceback_with_it_still_can() -> None:
    program = """
import sys
from io import StringIO
from squadron.runtime.logs import configure_logs, load_structlog_alone
load_structlog_alone()
configure_logs("INFO")
import structlog
assert not any(name.partition(".")[0] == "rich" for name in sys.modules)
try:
    1 / 0
except ZeroDivisionError:
    shown = StringIO()
    structlog.dev.ConsoleRenderer()._exception_formatter(shown, sys.exc_info())
import rich.console, rich.table
assert "1 / 0" in shown.getvalue() or "ZeroDivisionError" in shown.getvalue()
assert "╭" in shown.getvalue(), shown.getvalue()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_a_terminal_each_line_is_json_and_standard_output_stays_free() -> None:
    lines, output = _logged("INFO")

    assert [line["event"] for line in lines] == ["hello", "broke"]
    assert (lines[0]["agent"], lines[0]["n"], lines[0]["who"], lines[0]["level"]) == ("a", 1, "Zoë", "info")
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[1]["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert output == "result\n"


def test_the_level_is_a_floor() -> None:
    assert [line["event"] for line in _logged("DEBUG")[0]] == ["quiet", "hello", "broke"]
    assert [line["event"] for line in _logged("ERROR")[0]] == ["broke"]


class Talker(Agent):
    @topic("talk.once")
    async def once(self, context: Context) -> None:
        context.log.info("talked", extra="yes")


class _Kept:
    """A lease on what nobody wants back."""

    delivered, first = 3, False

    async def begin(self) -> int:
        return 3

    async def settle(self) -> None: ...


async def test_what_a_handler_logs_is_bound_to_its_turn(capsys: pytest.CaptureFixture[str]) -> None:
    place = MemoryServer("t").place(AgentIdentity(id="talker-7", type="talker"), Settings())
    message = AgentMessage.new("task", AgentIdentity(id="me"), {}, conversation_id="c1")
    try:
        configure_logs()
        turns = Turns("talker", AgentSpec.of(Talker).handlers(Talker()), place.caller)
        subject = place.ports.subjects.task("talk.once")
        await turns.run(Delivery(subject, message.encode(), _Kept(), seq=1))  # type: ignore[arg-type]
    finally:
        structlog.reset_defaults()

    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {
        key: line[key] for key in ("event", "message", "conversation", "topic", "agent", "replica", "attempt")
    } == {
        "event": "talked",
        "message": message.id,
        "conversation": "c1",
        "topic": "talk.once",
        "agent": "talker",
        "replica": "talker-7",
        "attempt": 3,
    }
