"""A line for each end of a task: all failures, and of what went well what one can read."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from squadron.runtime.telemetry.happenings import MessageStored, TurnEnded
from squadron.runtime.telemetry.turn_log import FIRST_EACH_S, THEN_ONE_IN, TurnLog
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import Failed, Outcome, Result

MESSAGE = AgentMessage.new("task", AgentIdentity(id="me"), {}, timestamp=1_000.0)


class Watch:
    """A clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def ended(outcome: Outcome | None = None, **fields: Any) -> TurnEnded:
    given = {"kind": "task", "topic": "a.b", "served": "a.b", "end": "outcome", "attempt": 1, "seconds": 0.25}
    return TurnEnded(agent="desk", message=MESSAGE, outcome=outcome or Result(data=1), **(given | fields))


def test_a_line_says_what_became_of_the_task_and_how_long_it_took() -> None:
    log = TurnLog(now=lambda: 1_001.0)
    with capture_logs() as lines:
        log.hear(ended(Result(data=1, tokens=7), attempt=2))

    [line] = lines
    assert line == {
        "event": "task.ended",
        "log_level": "info",
        "agent": "desk",
        "topic": "a.b",
        "message": MESSAGE.id,
        "conversation": MESSAGE.context.conversation_id,
        "attempt": 2,
        "outcome": "result",
        "waited_ms": 750.0,
        "ran_ms": 250.0,
        "tokens": 7,
    }


def test_a_failure_is_a_warning_with_its_reason() -> None:
    with capture_logs() as lines:
        TurnLog().hear(ended(Failed(reason="no such book")))

    assert lines[0]["log_level"] == "warning"
    assert (lines[0]["outcome"], lines[0]["error"]) == ("failed", "no such book")


def test_a_durable_event_that_was_handled_has_a_line_too() -> None:
    handled = TurnEnded(
        kind="durable", agent="desk.hear", topic="n.s", served="n.*", message=MESSAGE, end="handled", attempt=1
    )
    with capture_logs() as lines:
        TurnLog().hear(handled)

    assert (lines[0]["event"], lines[0]["outcome"]) == ("event.ended", "handled")


@pytest.mark.parametrize("end", ["again", "parked", "handed_on", "handed_back", "superseded"])
def test_what_is_no_end_of_the_message_has_no_line(end: str) -> None:
    with capture_logs() as lines:
        TurnLog().hear(ended(end=end))
        TurnLog().hear(MessageStored(id="x"))

    assert lines == []


def test_of_a_noisy_topic_some_successes_are_logged_and_all_are_counted() -> None:
    watch, count = Watch(), 1_000
    log = TurnLog(steady=watch)
    with capture_logs() as lines:
        for _ in range(count):
            log.hear(ended())
        watch.at = 1.0
        log.hear(ended())

    assert len(lines) == FIRST_EACH_S + count // THEN_ONE_IN + 1
    assert sum(line.get("sampled", 1) for line in lines) == count + 1
    assert "sampled" not in lines[0]


def test_failures_are_all_logged_and_a_quiet_topic_is_not_cut_by_a_noisy_one() -> None:
    log = TurnLog(steady=Watch())
    with capture_logs() as lines:
        for _ in range(500):
            log.hear(ended())
            log.hear(ended(Failed(reason="no")))
        log.hear(ended(topic="c.d", served="c.d"))

    assert sum(line["outcome"] == "failed" for line in lines) == 500
    assert lines[-1]["topic"] == "c.d"


def test_a_trace_that_somebody_bound_is_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    with structlog.contextvars.bound_contextvars(trace_id="4bf92f35"):
        TurnLog().hear(ended())

    assert "trace_id" in capsys.readouterr().out
