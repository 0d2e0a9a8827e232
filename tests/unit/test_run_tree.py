"""What a person sees of a run while it goes on: on a terminal a tree that fits on it, elsewhere lines."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from squadron.cli import frame
from squadron.cli.ending import INTERRUPTED
from squadron.cli.progress import Watch, _Pane, _PlainLines, watching
from squadron.cli.run import cancelled_with_us, show_run
from squadron.cli.tally import Tally
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.outcome import Result

RUN = "run-3f2a91bc77d0e1a2b3c4d5e6"


def told(watch: Watch, *, rounds: int = 2, calls: int = 2) -> None:
    """A run whose last round still has a call under way, and two that wait for people."""
    watch.phase("run")
    watch.event({"event": "submitted", "ticket": "t"})
    watch.event({"event": "started", "at_s": 0.0, "run": RUN, "model": "m:1"})
    for number in range(1, rounds + 1):
        thought = {"round": number, "text": f"I do \x1b[2J {number}", "seconds": 1.0, "tokens": 100, "usd": 0.01}
        if number == 2:
            about = {"at_s": 1.0, "round": 2, "number": 3, "model": "m:1"}
            watch.event({"event": "text", "at_s": 1.0, "delta": "half of it"})
            watch.event({"event": "retry", "at_s": 1.0, "round": 2, "try": 3})
            watch.event({"event": "try_failed", "reason": "503 too busy", **about})
            watch.event({"event": "fallback", "from": "m:1", "to": "n:2", "why": "503", **about})
            watch.event({"event": "summarized", "at_s": 1.0, "round": 2, "messages": 42})
        watch.event({"event": "thought", "at_s": 2.0, "model": "n:2", **thought})
        for position in range(calls):
            call, topic = f"r{number}c{position}", f"topic.number_{position}"
            about = {"at_s": 2.0, "round": number, "call": call, "topic": topic}
            watch.event({"event": "dispatched", "tasks": 2, **about})
            watch.event({"event": "outcome", "kind": "result", "tokens": 5, "usd": 0.001, **about})
            if number < rounds or position:
                watch.event({"event": "outcome", "kind": "failed", "reason": "no [bold]", **about})
    for call, approval in (("q", True), ("p", False)):
        asked = {"round": rounds, "call": call, "topic": "mail.send", "query": f"{call}123456789"}
        watch.event({"event": "asked", "at_s": 2.0, "approval": approval, **asked})
    watch.event({"event": "text", "at_s": 2.0, "delta": "And so"})


def seen(pane: _Pane, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(pane)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_tree_has_rounds_calls_costs_trouble_and_the_way_to_answer() -> None:
    pane = _Pane("Pursuing")
    pane.budget = Budget(tokens=1000, usd=1.0)
    told(pane)

    lines = seen(pane, 120, 40)

    text = "\n".join(lines)
    assert "Pursuing  0 s  run-3f2a91bc" in text
    assert "round 3 · 220 tokens · $0.0240 · left: 780 tokens, $0.9760" in text
    assert "! m:1, try 3: 503 too busy" in text
    assert "! n:2 is asked instead of m:1" in text
    assert "≡ summarized 42 messages  an extract" in text
    assert "✗ topic.number_1  2 tasks, 1 failed" in text
    assert "no [bold]" in text
    assert "● topic.number_0  1/2" in text
    assert "waits for approval: squadron answer q1234567 --accept" in text
    assert "waits for an answer: squadron answer p1234567" in text
    assert "I do \\x1b[2J 2" in text
    # What was streamed before the retry is void.
    assert "half of it" not in text
    assert "thinking" in lines[-1]
    assert lines[-1].endswith("And so")


def test_a_turn_that_comes_again_after_a_crash_is_shown_once() -> None:
    pane = _Pane("Pursuing")
    told(pane, rounds=1, calls=0)
    pane.event({"event": "resumed", "at_s": 3.0, "attempt": 2, "replica": "x"})
    pane.event({"event": "text", "at_s": 4.0, "delta": "And so on"})

    assert pane.tally.rounds[2].text == "And so on"


def test_another_attempt_tells_all_anew_and_nothing_counts_twice(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    lines = _PlainLines("A job")
    lines.tally = Tally(lambda: now[0])
    told(lines, rounds=1, calls=2)
    before, tasks = capsys.readouterr().err, lines.tally.tasks()

    # Ten minutes later, say because a person had to answer.
    now[0] = 700.0
    told(lines, rounds=1, calls=2)
    lines.event({"event": "resumed", "at_s": 600.0, "attempt": 2, "replica": "x"})

    assert "round 1" in before
    assert capsys.readouterr().err == ""
    assert lines.tally.tasks() == tasks
    assert lines.tally.attempt == 2
    # Where it was: six hundred seconds of the run are over, and as many of the job.
    assert all(span.began_s < 10 for span, _ in lines.tally.spans())


def test_what_was_before_the_command_takes_none_of_its_time() -> None:
    now = [0.0]
    tally = Tally(lambda: now[0])
    tally.phase("run")
    for event in (
        {"event": "started", "at_s": 0.0, "run": "run-1"},
        {"event": "dispatched", "at_s": 1.0, "round": 1, "call": "a", "topic": "a.b", "tasks": 1},
        {"event": "outcome", "at_s": 20.0, "round": 1, "call": "a", "topic": "a.b", "kind": "result"},
        {"event": "resumed", "at_s": 90.0, "attempt": 2, "replica": "x"},
        {"event": "dispatched", "at_s": 90.5, "round": 2, "call": "b", "topic": "a.b", "tasks": 1},
    ):
        tally.event(event)
    now[0] = 2.0
    tally.event({"event": "outcome", "at_s": 91.5, "round": 2, "call": "b", "topic": "a.b", "kind": "result"})

    (_, _), (span, _) = tally.spans()
    assert (span.began_s, span.ended_s) == (0.5, 1.5)


def test_what_is_said_beside_a_pane_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another console writes the pane wipes away with itself."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=20, highlight=False)
    monkeypatch.setattr(frame, "err", lambda: frame._shown or console)

    with watching("A job"):
        assert frame.err() is console
        frame.tell("Cancelled run-1.")
    after = screen.getvalue()

    # The last thing is to wipe the pane, and what was said stands above it.
    assert "Cancelled run-1." in after
    assert frame._shown is None


@pytest.mark.parametrize(("rounds", "calls"), [(2, 40), (14, 4), (30, 40)])
def test_on_80_columns_it_fits_and_hides_nothing_that_waits_for_people(rounds: int, calls: int) -> None:
    pane = _Pane("Pursuing the goal with anthropic:claude-of-a-rather-long-name-that-goes-on")
    told(pane, rounds=rounds, calls=calls)

    lines = seen(pane, 80, 24)

    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert sum("squadron answer" in line for line in lines) == 2
    assert any(line.startswith(f"round {rounds + 1} ") for line in lines)
    assert any("…" in line and "result" in line for line in lines)


def test_without_a_terminal_each_thing_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with watching("A job") as watch:
        told(watch)
        watch.event({"event": "answered", "at_s": 3.0, "round": 2, "call": "p", "by": "ana"})
        outcome = {"event": "outcome", "at_s": 3.0, "round": 2, "call": "p", "topic": "", "kind": "result"}
        watch.event(outcome)

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "round 1, 100 tokens, $0.0100: I do" in printed.err
    assert "round 2: m:1, try 3: 503 too busy" in printed.err
    assert "round 2: ≡ summarized 42 messages  an extract" in printed.err
    assert "mail.send waits for approval: squadron answer q1234567" in printed.err
    assert "mail.send: answered by ana" in printed.err
    assert "topic.number_1: 2 tasks, 1 failed" in printed.err
    assert watch.tally.tasks()["dispatched"] == 8
    assert [call.id for call in watch.tally.waiting] == ["q"]
    assert "\x1b" not in printed.err


def report(stopped: str) -> Result:
    data = {"run": RUN, "stopped": stopped, "answer": "it is done", "deliverables": {}, "rounds": 2, "tokens": 220}
    tasks = {"dispatched": 1, "outcomes": {"result": 1}}
    return Result(data=data | {"usd": 0.024, "seconds": 3.0, "tasks": tasks})


def test_the_end_tells_the_answer_what_it_cost_and_which_run_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_run(report("finished"), Watch("A job"), as_json=False) == 0
    printed = capsys.readouterr()
    assert printed.out == "it is done\n"
    assert f"Run: {RUN}, 2 rounds, 220 tokens, $0.0240, 3.0 s." in printed.err

    assert show_run(report("budget"), Watch("A job"), as_json=False) == 1
    assert f"Stopped: budget. It can go on: squadron runs resume {RUN}" in capsys.readouterr().err

    assert show_run(report("finished"), Watch("A job"), as_json=True) == 0
    assert capsys.readouterr().out.startswith("{")


async def test_at_ctrl_c_the_run_is_cancelled_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    cancelled = list[str]()

    async def cancel(ticket: str) -> None:
        cancelled.append(ticket)

    squad: Any = SimpleNamespace(resume=lambda ticket: SimpleNamespace(cancel=lambda: cancel(ticket)))
    watch = Watch("A job")

    async def work() -> None:
        async with cancelled_with_us(squad, watch):
            told(watch)
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert cancelled == ["t"]
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"Cancelled {RUN}. It can go on: squadron runs resume {RUN}"
    assert INTERRUPTED == 130
