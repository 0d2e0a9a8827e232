"""The command line without any server: arguments, errors, exit codes, and how fast it is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from typer.main import get_command, get_group
from typer.testing import CliRunner

from squadron.cli import commands as listed
from squadron.cli.app import app
from squadron.cli.progress import show_counts, show_timeline, watching
from squadron.cli.talk import Shown, check_pairs, with_fields
from squadron.cli.tally import Tally
from squadron.demo.environment_audit import AGENTS, GOAL, TOPICS, offline_plan
from squadron.runtime.asking.handle import Handle
from squadron.runtime.errors import InvalidInputError
from squadron.runtime.streams.writer import Chunk, Restarted
from squadron.runtime.wire.spoken import read_value

COMMANDS = (
    "up",
    "down",
    "status",
    "deploy",
    "undeploy",
    "scale",
    "topics",
    "ask",
    "negotiate",
    "run",
    "demo",
    "asks",
    "answer",
    "dlq",
    "auth",
    "runs",
    "doctor",
    "nodes",
    "health",
)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment in which nothing is set and nothing runs."""
    for name in list(os.environ):
        if name.startswith(("SQUADRON_", "NATS_", "RAY_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SQUADRON_HOME", str(tmp_path / "home"))
    return tmp_path


def call(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, arguments, input=stdin)


def squadron(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from squadron.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("review.deep", "text=hello"), "--field text=hello"),
        (("review",), "domain.specificity"),
        (("review.*", "-f", "hello"), "FIELD=VALUE"),
        ((), "TOPIC"),
    ],
)
def test_a_negotiation_is_checked_before_anything_is_connected(
    clean: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = squadron("negotiate", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("said", ["x", "8..2", "-1", "0..0"])
def test_all_scales_are_read_before_the_first_agent_is_scaled(clean: Path, said: str) -> None:
    done = squadron("scale", "clerk=2", f"judge={said}")
    assert done.returncode == 2
    assert f"'{said}' is not a scale (use N, MIN..MAX" in done.stderr


# --- usage -------------------------------------------------------------------------------------------


def test_help_lists_all_commands_and_the_exit_codes() -> None:
    told = " ".join(call("--help").stdout.split())

    assert all(f" {command} " in told for command in COMMANDS)
    assert "Exit codes: 0 fine" in told
    assert "130 interrupted" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    assert call(command, "--help").exit_code == 0


def test_the_version_is_the_packages() -> None:
    import squadron as package

    assert call("--version").stdout == f"squadron {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("askk",),
        ("answer",),
        ("answer", "q1", "no-equals-sign"),
        ("answer", "q1", "--accept", "--decline"),
        ("ask",),
        ("ask", "a.b", "--within", "soon"),
        ("ask", "a.b", "--priority", "10"),
        ("ask", "a.b", "--usd", "-1"),
        ("ask", "a.b", "--rounds", "many"),
        ("ask", "a.b", "--usd", "nan"),
        ("ask", "a.b", "no-equals-sign"),
        ("scale", "clerk"),
        ("scale", "=3"),
        ("deploy", "not_a_path"),
        ("deploy", "no_such_module:Agent"),
        ("--env", "two words", "status"),
        ("run", ""),
        ("run", " "),
        ("run", "a goal", "--model", "llama"),
        ("run", "a goal", "--model", "openai:gpt"),
        ("run", "a goal", "--crew"),
        ("run", "a goal", "--tokens", "0"),
        ("run", "a goal", "--usd", "inf"),
        ("run", "a goal"),
        ("demo", "--model", "gpt-5"),
        ("demo", "--out", "/proc/nowhere"),
    ],
)
def test_bad_usage_ends_with_2_and_without_a_traceback(clean: Path, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)

    assert ended.exit_code == 2, ended.output
    assert ended.stdout == ""
    assert ended.stderr
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("topics",), ("ask", "a.b"), ("undeploy", "x"), ("scale", "x=1"), ("dlq", "list"), ("asks",)],
)
def test_where_nothing_runs_a_command_ends_with_3_and_says_what_to_do(
    clean: Path, arguments: tuple[str, ...]
) -> None:
    ended = call(*arguments)

    assert ended.exit_code == 3
    assert ended.stderr.count("\n") == 1
    assert "squadron up" in ended.stderr


def test_a_server_that_is_not_there_ends_with_3(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")

    ended = call("status")

    assert ended.exit_code == 3
    assert "127.0.0.1:1 can't be reached" in ended.stderr


def test_with_json_an_error_is_json_on_stdout_as_well(clean: Path) -> None:
    ended = call("status", "--json")

    assert json.loads(ended.stdout)["error"]["hint"].startswith("start one with `squadron up`")
    assert "squadron up" in ended.stderr


def test_an_unknown_variable_is_named(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUADRON_HOMES", "/tmp")

    ended = call("status")

    assert ended.exit_code == 2
    assert "did you mean SQUADRON_HOME?" in ended.stderr


def test_a_module_that_breaks_is_told_in_one_line(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "broken_agents.py").write_text("1 / 0\n")
    monkeypatch.chdir(clean)

    ended = call("deploy", "broken_agents:Clerk")

    assert ended.exit_code == 2
    assert "ZeroDivisionError" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_run_says_plainly_that_there_is_neither_a_model_nor_an_agent(clean: Path) -> None:
    told = call("run", "write a poem").stderr

    assert "no LLM is configured, and no agents are deployed" in told
    assert "OPENAI_API_KEY" in told


def test_down_with_nothing_running_is_fine(clean: Path) -> None:
    ended = call("down", "--delete-data", "--json")

    assert ended.exit_code == 0
    assert json.loads(ended.stdout) == {"stopped": [], "deleted": []}


def test_down_does_not_delete_on_a_server_of_the_user(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")

    ended = call("down", "--delete-data")

    assert ended.exit_code == 2
    assert "squadron-dev-{tasks,lite,registry,dead}" in ended.stderr


# --- doctor ------------------------------------------------------------------------------------------


def test_doctor_checks_the_machine_and_never_shows_a_key(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("NATS_URL", "nats://me:hidden@127.0.0.1:1")

    ended = call("doctor", "--json")
    found = {check["name"]: check for check in json.loads(ended.stdout)["checks"]}

    assert {"python", "ray", "nats-py", "nats-server", "memory", "disk (/tmp)", "ports", "home"} <= found.keys()
    assert found["nats-server"]["level"] == "ok"
    assert found["provider keys"]["found"] == "OPENAI_API_KEY is set"
    assert found["bridge"]["level"] == "fail"
    assert ended.exit_code == 1
    assert "secret" not in ended.output
    assert "hidden" not in ended.output


def test_doctor_on_a_fresh_machine_says_what_to_do_next(clean: Path) -> None:
    ended = call("doctor")

    assert ended.exit_code == 0, ended.output
    assert "not started; squadron up does it" in ended.stdout
    assert "set OPENAI_API_KEY or ANTHROPIC_API_KEY" in ended.stdout


def test_on_a_terminal_what_the_doctor_says_stands_in_its_column(clean: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 60))
    command = [sys.executable, "-c", "from squadron.cli import main; main()", "doctor"]
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environ)
    os.close(theirs)
    shown = b""
    # The end of a terminal that nobody writes to any more is an error.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            shown += part
    process.wait()
    os.close(ours)

    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert [line for line in lines if len(line) > 60] == []
    assert {line[:5].strip() for line in lines} == {"ok", "warn", ""}
    follow = [line for line in lines if not line[:5].strip()]
    assert follow
    assert all(not line[:23].strip() and line[23:].strip() for line in follow)


def test_doctor_names_a_bad_setting(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUADRON_LEASE_S", "soon")

    ended = call("doctor")

    assert ended.exit_code == 1
    assert "SQUADRON_LEASE_S: give a number of seconds" in ended.stdout


def test_health_of_what_can_not_be_reached_is_an_exit_code(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://me:hidden@127.0.0.1:1")

    ended = call("health", "--json")

    told = json.loads(ended.stdout)
    assert ended.exit_code == 1
    assert (told["ok"], told["nats"]["ok"]) == (False, False)
    assert "127.0.0.1:1 can't be reached" in told["nats"]["trouble"]
    assert "hidden" not in ended.output


@pytest.mark.parametrize(
    ("answers", "within", "says"), [(0, "0.2", "NATS did not answer in 0.2 s"), (1, "1", "NATS does not answer")]
)
async def test_health_waits_for_a_silent_server_no_longer_than_it_was_told(
    clean: Path, answers: int, within: str, says: str
) -> None:
    pings = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        info = {"server_id": "x", "version": "2.11.0", "proto": 1, "headers": True, "max_payload": 1 << 20}
        if answers:
            writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            if line == b"PING\r\n":
                pings += 1
                if pings <= answers:
                    writer.write(b"PONG\r\n")
        writer.close()

    # Given a server that takes a connection, and answers no more than that
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        options = {"env": {**os.environ, "NATS_URL": url}}
        ended = await asyncio.to_thread(squadron, "health", "--within", within, "--json", **options)

    told = json.loads(ended.stdout)
    assert ended.returncode == 1, ended.stderr
    # Who is slow has not even connected by then.
    assert told["nats"]["trouble"] in (says, f"NATS did not answer in {within} s")
    # When it leaves it does not wait for an answer once more.
    assert pings <= 2 * answers


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "integer"}, 5),
        ("5", {"type": "string"}, "5"),
        ('"5"', {"type": "string"}, '"5"'),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, 5),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("true", {"type": "boolean"}, True),
        ("true", {}, True),
        ("I love it", {}, "I love it"),
        ('["a", "b"]', {"type": "array", "items": {"type": "string"}}, ["a", "b"]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("1.5", {"type": "integer"}, 1.5),
        ("five", {"type": "integer"}, "five"),
        ("", {"type": "string"}, ""),
        ("NaN and more", {"type": "string"}, "NaN and more"),
    ],
)
def test_a_value_is_read_as_the_topic_wants_it(text: str, schema: dict[str, Any], value: Any) -> None:
    assert read_value(text, schema) == value


def test_fields_are_read_by_their_own_schema_and_win_over_stdin() -> None:
    schema = {
        "properties": {"many": {"$ref": "#/$defs/Many"}, "text": {"type": "string"}},
        "$defs": {"Many": {"type": "array"}},
    }

    content = with_fields({"text": "old", "kept": 1}, ["text=1=2", "many=[1]"], schema)

    assert content == {"text": "1=2", "kept": 1, "many": [1]}


def test_fields_need_an_object_to_go_into() -> None:
    with pytest.raises(InvalidInputError, match="JSON object only"):
        with_fields([1], ["a=1"], {})


@pytest.mark.parametrize("pair", ["text", "=5", ""])
def test_what_is_not_field_and_value_is_refused(pair: str) -> None:
    with pytest.raises(InvalidInputError, match="not FIELD=VALUE"):
        check_pairs(["a=1", pair])


# --- progress ----------------------------------------------------------------------------------------


def told_of_a_run(tally: Any) -> None:
    tally.event({"event": "started", "at_s": 0.0, "model": "offline:planner"})
    tally.event({"event": "thought", "at_s": 0.5, "round": 1, "text": "Go", "seconds": 0.4, "tokens": 0})
    tally.event({"event": "dispatched", "at_s": 0.5, "round": 1, "call": "c", "topic": "a.b", "tasks": 3})
    for attempt, kind in ((1, "result"), (2, "result"), (1, "timed_out")):
        reason = {} if kind == "result" else {"reason": "too slow"}
        tally.event({"event": "outcome", "at_s": 2.0, "call": "c", "kind": kind, "attempt": attempt, **reason})


def test_the_tally_adds_up_what_the_supervisor_tells() -> None:
    now = [100.0]
    tally = Tally(lambda: now[0])
    tally.phase("deploy")
    now[0] += 4
    tally.phase("run")
    told_of_a_run(tally)
    now[0] += 3
    tally.end()

    assert tally.tasks() == {"dispatched": 3, "outcomes": {"result": 2, "timed_out": 1}}
    assert tally.phase_seconds() == {"deploy": 4.0, "run": 3.0}
    assert [(span.name, span.began_s, span.ended_s, note) for span, note in tally.spans()] == [
        ("deploy", 0.0, 4.0, ""),
        ("run", 4.0, 7.0, ""),
        ("think, round 1", 4.1, 4.5, ""),
        ("a.b", 4.5, 6.0, "3 tasks, 1 timed out, 1 retried"),
    ]


def test_a_refusal_of_a_call_that_was_never_dispatched_is_not_a_task() -> None:
    tally = Tally()

    tally.event({"event": "outcome", "at_s": 0.1, "call": "none", "kind": "rejected", "reason": "no such tool"})

    assert tally.tasks() == {"dispatched": 0, "outcomes": {}}


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from squadron.cli import frame

    with watching("A job") as watch:
        watch.phase("run")
        told_of_a_run(watch)
    show_timeline(watch.tally, frame.err())
    show_counts(watch.tally.tasks(), frame.err())

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a.b: 3 tasks, 1 timed out, 1 retried, 1.5 s" in printed.err
    assert "Where the time went" in printed.err
    assert "Tasks: 3 dispatched, 2 result, 1 timed_out." in printed.err
    assert "\x1b" not in printed.err


# --- the demo's plan ---------------------------------------------------------------------------------


async def test_each_step_of_the_offline_plan_finds_its_topic() -> None:
    from pydantic import TypeAdapter

    from squadron.actors.agent import AgentSpec
    from squadron.actors.goals.planner import OfflinePlanner, Plan
    from squadron.actors.runs.built_in import BUILT_IN
    from squadron.actors.runs.toolbox import Toolbox
    from squadron.actors.thinking.model import ChatMessage, ModelRequest

    toolbox = Toolbox(tuple(BUILT_IN), allowed=TOPICS)
    toolbox.offer(toolbox.fitting(topic.topic for agent in AGENTS for topic in AgentSpec.of(agent).topics))
    planner = OfflinePlanner(TypeAdapter(Plan).validate_python(offline_plan(GOAL)))
    messages, chosen = [ChatMessage("user", GOAL)], dict[str, str]()
    while "finish" not in chosen:
        turn = await planner.think(ModelRequest(tuple(messages), toolbox.definitions()))
        chosen |= {one.id: one.arguments.get("topic", one.name) for one in turn.tool_calls}
        messages.append(ChatMessage("assistant", turn.text, turn.tool_calls))
        messages += [ChatMessage("tool", "done\n{}", tool_call_id=one.id) for one in turn.tool_calls]

    assert chosen == {
        "inventory": "inventory__list",
        "licenses": "license__classify",
        "summaries": "package__summarize",
        "risks": "risk__assess",
        "report": "report__write",
        "finish": "finish",
    }


# --- speed and pipes ---------------------------------------------------------------------------------


def loaded(*arguments: str) -> set[str]:
    """The modules that are loaded at the end of the program, called in a process of its own."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from squadron.cli import main\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return set(ended.stderr.splitlines()[-1].split())


def test_help_loads_nothing_that_is_slow() -> None:
    modules = loaded("--help")

    slow = {"ray", "nats", "openai", "anthropic", "aiohttp", "pydantic", "rich", "structlog", "asyncio"}
    assert "squadron.cli.commands" in modules
    assert not (slow | {"squadron.config", "squadron.runtime.errors", "squadron.cli.talk"}) & modules


def test_an_ask_loads_neither_what_thinks_nor_what_deploys_nor_websockets(clean: Path) -> None:
    modules = loaded("ask", "a.b", "text=x")

    assert {"squadron.client.squad", "nats", "squadron.cli.talk"} <= modules
    # What an ask does without that ends well: tests/contract/test_ask_command.py.
    assert not {"ray", "aiohttp", "snowballstemmer", "openai", "anthropic", "structlog"} & modules
    assert (
        not {
            "squadron.actors.agent",
            "squadron.actors.runs",
            "squadron.bridge.audit",
            "squadron.bridge.packing.code",
            "squadron.client.blocking",
            "squadron.replay.past_runs",
            "squadron.views.listener",
            "squadron.cli.doctor",
            "squadron.cli.run",
        }
        & modules
    )


def test_each_error_of_nats_own_jetstream_is_there_once() -> None:
    program = (
        "import sys, squadron.bridge.jetstream.link.connect\n"
        "assert 'nats.js' not in sys.modules\n"
        "import nats.js.errors\n"
        "from nats.js import manager\n"
        "assert manager.NotFoundError is nats.js.errors.NotFoundError\n"
        "assert nats.js is sys.modules['nats.js']\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_websockets_of_the_users_own_still_find_aiohttp() -> None:
    script = (
        "import sys, squadron.bridge.jetstream.link\n"
        "from nats.aio import transport\n"
        "assert 'aiohttp' not in sys.modules\n"
        "assert transport.aiohttp.WSMsgType.BINARY\n"
        "import aiohttp\n"
        "assert transport.aiohttp.ClientSession is aiohttp.ClientSession\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("name", listed.COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    group = cast("Any", get_command(app))

    command = group.get_command(None, name)

    assert command.name == name
    assert command.get_short_help_str(200) == listed.COMMANDS[name][1]


def test_no_module_has_a_command_that_is_not_listed() -> None:
    modules = {module for held, _ in listed.COMMANDS.values() for module in held.split()}
    folder = Path(listed.__file__).parent
    registering = {path.stem for path in folder.glob("*.py") if "def register(app" in path.read_text()}
    assert registering - {"commands"} == modules

    for module in modules:
        holder = typer.Typer()
        import_module(f"squadron.cli.{module}").register(holder)
        for name in cast("Any", get_group(holder)).commands:
            assert module in listed.COMMANDS[name][0].split()


def test_the_shell_completes_commands_and_their_options() -> None:
    def complete(*words: str) -> str:
        env = os.environ | {"_SQUADRON_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
        env |= {"COMP_CWORD": str(len(words) - 1)}
        command = [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'squadron'\nfrom squadron.cli import main; main()",
        ]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False).stdout

    assert complete("squadron", "und").split() == ["undeploy"]
    assert "--within" in complete("squadron", "ask", "--").split()
    assert "redrive" in complete("squadron", "dlq", "re").split()


def test_asking_never_imports_ray(clean: Path) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from squadron.cli.app import app\n"
        "ended = CliRunner().invoke(app, ['ask', 'a.b', 'text=x'])\n"
        "assert ended.exit_code == 3, ended.output\n"
        "assert 'squadron.client.squad' in sys.modules\n"
        "sys.exit('ray' in sys.modules)\n"
    )

    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0


class Retried:
    """A task whose second attempt is the good one."""

    async def events(self) -> AsyncIterator[Chunk | Restarted]:
        """What it emits."""
        yield Chunk("one ", 0, 1, 1)
        yield Chunk("tw", 1, 1, 1)
        yield Restarted(2, 2)
        yield Chunk("one ", 0, 2, 2)
        yield Chunk("two", 1, 2, 2)


def followed(*, as_json: bool) -> Shown:
    shown = Shown(as_json=as_json)
    asyncio.run(shown.follow(cast("Handle", Retried())))
    return shown


def test_a_retry_begins_the_shown_stream_anew(capsys: pytest.CaptureFixture[str]) -> None:
    shown = followed(as_json=False)

    assert capsys.readouterr() == ("one tw\none two\n", "attempt 2: starting over\n")
    assert shown.text == "one two"


def test_a_retry_is_a_line_of_its_own_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    followed(as_json=True)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first, again = [{"chunk": "one "}, {"chunk": "tw"}], [{"chunk": "one "}, {"chunk": "two"}]
    assert lines == [*first, {"restarted": 2}, *again]


def test_a_reader_that_goes_away_is_no_error(clean: Path) -> None:
    command = f"{sys.executable} -c 'from squadron.cli import main; main()' doctor --json | true"

    ended = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, check=False)

    assert ended.stderr == ""


def test_in_a_pipe_there_are_no_colours(clean: Path) -> None:
    ended = squadron("doctor", env={**os.environ, "TERM": "xterm-256color"})

    assert "\x1b" not in ended.stdout + ended.stderr
