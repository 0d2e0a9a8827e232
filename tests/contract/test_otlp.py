"""Spans go where the standard variables say, over HTTP and gRPC; whoever is away holds nobody up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from squadron import Agent, topic
from squadron.bridge.otel.exporters import exporters_in, lines_of, traces_of
from squadron.bridge.otel.lines import Lines
from squadron.bridge.otel.sending import Batches
from squadron.runtime.logs import configure_logs
from squadron.runtime.redact import STRUCK, scrub
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.testing import MemorySquad
from tests.otlp import RECEIVERS, Received, http_receiver

ME = AgentIdentity(id="me-1", type="me")
KEY = "a-key-of-a-collector"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture(params=RECEIVERS)
def received(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with RECEIVERS[request.param]() as receiver:
        for name, value in receiver.environ.items():
            monkeypatch.setenv(name, value)
        yield receiver


class Desk(Agent):
    @topic("desk.echo")
    async def echo(self, text: str) -> str:
        return text


class Teller(Agent):
    @topic("teller.tell")
    async def tell(self) -> str:
        log = structlog.get_logger("teller")
        log.warning("teller.told", count=3, key=f"it is {os.environ['ACME_API_KEY']}")
        try:
            raise ValueError(f"refused {os.environ['ACME_API_KEY']}")
        except ValueError:
            log.exception("teller.broke")
        return "told"


async def _ask_some(count: int = 1) -> None:
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Desk)
        for number in range(count):
            assert (await squad.ask("desk.echo", {"text": str(number)})).unwrap() == str(number)


async def test_a_receiver_gets_whole_traces_of_all_who_take_part(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={KEY}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=audit")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    await _ask_some(3)

    asks, puts, works = (received.named(f"{verb} desk.echo") for verb in ("ask", "publish", "process"))
    assert [len(asks), len(puts), len(works)] == [3, 3, 3]
    assert {span.trace_id for span in works} == {span.trace_id for span in asks}
    assert {span.parent_span_id for span in works} == {span.span_id for span in puts}
    of = {span.name: service for service, span in received.spans}
    assert of["ask desk.echo"]["service.name"] == "client"
    assert of["process desk.echo"]["service.name"] == "desk"
    assert of["process desk.echo"]["service.namespace"] == "squadron"
    assert of["process desk.echo"]["deployment.environment.name"] == "test"
    assert of["process desk.echo"]["team"] == "audit"
    assert of["process desk.echo"]["service.instance.id"] != of["ask desk.echo"]["service.instance.id"]
    assert all({name.lower(): value for name, value in each.items()}["x-key"] == KEY for each in received.headers)
    # What lets us in there is a secret in whatever we log from now on.
    assert scrub(f"refused: {KEY}") == f"refused: {STRUCK}"


async def test_a_name_that_is_set_is_that_of_all(received: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-audits")
    await _ask_some()
    assert {service["service.name"] for service, _ in received.spans} == {"our-audits"}


async def test_a_receiver_gets_log_lines_within_their_traces_and_no_secret(
    received: Received, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={KEY}")
    monkeypatch.setenv("ACME_API_KEY", "sk-of-the-acme-account")
    (lines,) = lines_of(ME, "test")
    assert isinstance(lines, Lines)
    before = structlog.get_config()
    configure_logs("INFO", lines)
    try:
        await _ask_some()
        async with MemorySquad(turned=False) as squad:
            await squad.deploy(Teller)
            assert (await squad.ask("teller.tell")).unwrap() == "told"
    finally:
        structlog.configure(**before)
    lines.provider.shutdown()

    by_body = {line.body.string_value: (service, line) for service, line in received.lines}
    service, told = by_body["teller.told"]
    assert (service["service.name"], service["service.instance.id"]) == ("me", "me-1")
    (work,) = received.named("process teller.tell")
    assert (told.trace_id, told.span_id) == (work.trace_id, work.span_id)
    assert told.severity_text == "warning"
    said = {each.key: each.value for each in told.attributes}
    assert said["count"].int_value == 3
    assert said["key"].string_value == f"it is {STRUCK}"
    broke = {each.key: each.value.string_value for each in by_body["teller.broke"][1].attributes}
    assert "refused" in broke["exception.stacktrace"]
    for secret in (KEY, "sk-of-the-acme-account"):
        assert not any(secret in str(line) for _, line in received.lines)
    # They are on standard error as well, as they were.
    assert '"event": "teller.told"' in capsys.readouterr().err


def test_log_lines_stay_here_unless_they_are_asked_for() -> None:
    assert lines_of(ME, "test", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}) == ()
    assert lines_of(ME, "test", {"OTEL_LOGS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}) == ()
    with capture_logs() as logs:
        assert lines_of(ME, "test", {"OTEL_LOGS_EXPORTER": "syslog"}) == ()
    assert "syslog" in logs[0]["reason"]


@pytest.mark.parametrize(
    "settings",
    [
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
async def test_what_is_turned_off_sends_nothing(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    with http_receiver() as received:
        for name, value in (received.environ | settings).items():
            monkeypatch.setenv(name, value)
        await _ask_some()
    assert received.spans == []


@pytest.mark.parametrize(
    ("env", "exporters"),
    [
        ({}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318"}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "console, OTLP,otlp"}, ("console", "otlp")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ()),
    ],
)
def test_the_standard_variables_say_where_spans_go(env: dict[str, str], exporters: tuple[str, ...]) -> None:
    assert exporters_in(env) == exporters


@pytest.mark.parametrize(
    "env",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_MAX_QUEUE_SIZE": "many"},
    ],
)
def test_what_can_not_be_used_is_told_and_turns_traces_off(env: dict[str, str]) -> None:
    name, value = list(env.items())[-1]
    with capture_logs() as logs:
        assert traces_of(ME, "test", env) is None
        assert traces_of(ME, "test", env) is None
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("traces.off", "warning")
    assert name in line["reason"]
    assert value in line["reason"]


def _run(folder: Path, before: str, **env: str) -> tuple[bool, list[str], str]:
    """Run the program; whether somebody observed it, what it has loaded of OpenTelemetry, and all that it said."""
    path = folder / "program.py"
    path.write_text(f"{before}\n{PROGRAM}")
    done = subprocess.run([sys.executable, path], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    on, loaded = json.loads(done.stdout.splitlines()[-1])
    return on, loaded, done.stdout + done.stderr


PROGRAM = """
import asyncio, json, sys
from squadron.testing import MemorySquad
from squadron import Agent, topic

class Desk(Agent):
    @topic("desk.echo")
    async def echo(self, text: str) -> str:
        return text

async def main():
    async with MemorySquad(turned=False) as squad:
        await squad.deploy(Desk)
        assert (await squad.ask("desk.echo", {"text": "hi"})).unwrap() == "hi"
        on = squad._own.ports.observers.on
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry")
    print(json.dumps([on, loaded]))

asyncio.run(main())
"""


def test_where_nobody_traces_nothing_is_loaded_and_nobody_listens(tmp_path: Path) -> None:
    on, loaded, _ = _run(tmp_path, "")
    assert (on, loaded) == (False, [])


def test_without_the_extra_it_is_told_once_and_all_goes_on(tmp_path: Path) -> None:
    # As if it were not installed: an entry of None is what Python takes for that.
    blocked = "import sys; sys.modules['opentelemetry.exporter'] = None"
    on, _, said = _run(tmp_path, blocked, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert not on
    assert said.count("traces.off") == 1
    assert "squadron-ray[otel]" in said


async def test_a_receiver_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # A port that takes connections and never answers: worse than none.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        monkeypatch.setattr("squadron.bridge.otel.provider.FLUSH_WITHIN_S", 0.2)
        with capture_logs() as logs:
            await _ask_some(5)
    told = {line["event"]: line for line in logs}
    assert told["traces.not_sent"]["within_s"] == 0.2


class Held(SpanExporter):
    """Sends when it is let."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.result, self.sent, self.go, self.begun = result, 0, threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        assert self.go.wait(60)
        self.sent += len(spans)
        return self.result

    def shutdown(self) -> None:
        self.go.set()


def _spans(batches: Batches, count: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(batches)
    tracer = provider.get_tracer("test")
    for _ in range(count):
        tracer.start_span("one").end()


def test_spans_that_find_no_room_are_counted_and_told() -> None:
    exporter = Held()
    batches = Batches(exporter, 1000)
    with capture_logs() as logs:
        _spans(batches, 1500)
        exporter.go.set()
        batches.shutdown()
        batches.tell_lost()
    assert (exporter.sent, batches.lost) == (1000, 500)
    assert [line["event"] for line in logs] == ["traces.lost", "traces.lost"]
    assert logs[-1]["spans"] == 500


def test_spans_that_can_not_be_sent_are_counted_too() -> None:
    exporter = Held(SpanExportResult.FAILURE)
    exporter.go.set()
    batches = Batches(exporter, 1000)
    _spans(batches, 30)
    batches.shutdown()
    assert (exporter.sent, batches.lost) == (30, 30)


def test_a_burst_that_the_default_queue_would_lose_is_kept() -> None:
    from squadron.bridge.otel.provider import QUEUE

    exporter = Held()
    batches = Batches(exporter, QUEUE)
    _spans(batches, 20_000)
    exporter.go.set()
    batches.shutdown()
    assert (exporter.sent, batches.lost) == (20_000, 0)
