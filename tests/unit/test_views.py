"""What live views draw of fixed inputs: at 80 and at 200 columns, and nothing that moves a cursor."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from squadron.actors.runs.entries import (
    Answered,
    Asking,
    CallEnd,
    CallsEnded,
    Dispatch,
    Entry,
    Epoch,
    Query,
    Sending,
    Thought,
    TryFailed,
)
from squadron.actors.runs.moments import Bar, Moments
from squadron.actors.runs.timeline import GLYPHS, Lane, Timeline, spanning
from squadron.cli.tail import lines_of
from squadron.cli.top import split_keys
from squadron.cli.top_screen import Screen, rate_text
from squadron.runtime.texts import one_line, printable
from squadron.views.beats import Beats
from squadron.views.passing import Filter, Passing
from squadron.views.talk_map import TalkMap, Way

#: Any text that anybody may send, with what terminals obey often in it.
NASTY = st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x07\x9b\r\b\u202e\u2066\x00\n")), max_size=60)


def drawn(shown: RenderableType, width: int, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def obeys(text: str) -> bool:
    """Whether a terminal would do something else than print it."""
    return not all(each.isprintable() or each == "\n" for each in text)


# --- the timeline ------------------------------------------------------------------------------------


def lanes() -> list[Lane]:
    return [
        Lane(
            "round",
            "round 1",
            0,
            (Bar("vain", 100, 101), Bar("pause", 101, 102), Bar("think", 102, 110)),
            tokens=1234,
        ),
        Lane(
            "call", "license.classify x 151", 1, (Bar("wait", 110, 112), Bar("work", 112, 130)), "result", usd=0.5
        ),
        Lane(
            "call",
            "mail.send",
            1,
            (Bar("person", 110, 140), Bar("again", 140, 145), Bar("work", 145, 150)),
            "failed",
        ),
        Lane("round", "round 2", 0, (Bar("think", 150, None),)),
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_timeline_fits_and_its_bars_stand_where_their_time_is(width: int) -> None:
    timeline = spanning("run-1", lanes(), ended=200.0)

    lines = timeline.text(width).splitlines()

    assert max(map(len, lines)) <= width
    assert lines[0] == "run-1 1 m 40 s"
    # All bars are equally long, and what comes later stands further right.
    begins = [min(line.index(glyph) for glyph in GLYPHS.values() if glyph in line) for line in lines[1:5]]
    assert begins == sorted(begins)
    # What went wrong is seen however short it was.
    assert set("!▓" if width < 200 else "!┄▓") <= set(lines[1])
    assert set("?▒█") <= set(lines[3])
    if width >= 80:
        assert "1,234 tokens" in lines[1]
        assert "failed" in lines[3]
        assert "waits for a person" in " ".join(lines[5:])


def test_a_bar_takes_the_share_of_the_width_that_its_time_has() -> None:
    timeline = Timeline("t", 0.0, 100.0, (Lane("call", "a", bars=(Bar("wait", 0, 25), Bar("work", 25, 100))),))

    cells = timeline.cells(timeline.lanes[0], 80)

    assert cells == ["wait"] * 20 + ["work"] * 60
    # What takes no time at all is seen all the same, at the very end, too.
    assert timeline.cells(Lane("call", "b", bars=(Bar("work", 100, 100),)), 10) == [None] * 9 + ["work"]


def test_a_timeline_as_data_counts_from_its_beginning() -> None:
    timeline = spanning("run-1", lanes(), ended=200.0)

    rows = json.loads(json.dumps(timeline.to_dicts()))

    assert [row["name"] for row in rows] == ["round 1", "license.classify x 151", "mail.send", "round 2"]
    assert rows[1]["bars"] == [
        {"kind": "wait", "began_s": 10.0, "ended_s": 12.0},
        {"kind": "work", "began_s": 12.0, "ended_s": 30.0},
    ]
    assert rows[3]["bars"] == [{"kind": "think", "began_s": 50.0, "ended_s": None}]
    assert rows[3]["seconds"] == 50.0


def test_in_a_notebook_it_is_a_picture_that_holds_no_markup_of_others() -> None:
    evil = [replace(each, name="<script>alert(1)</script>", note='"><img src=x>') for each in lanes()]

    html = spanning("<b>title", evil, ended=200.0)._repr_html_()

    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<rect") == 9


# --- moments of a log --------------------------------------------------------------------------------


def moments(*entries: Entry) -> Moments:
    made = Moments()
    for entry in entries:
        made.apply(entry)
    return made


def asking(at: float, number: int = 1) -> Asking:
    return Asking(at=at, round=1, number=number, model="m:1", digest="d", tokens=50, usd_micros=7)


EPOCH: dict[str, Any] = {"redriven": 0, "delivered": 1, "replica": "r", "deadline_at": 999.0, "max_rounds": 3}


def test_tries_in_vain_pauses_and_turns_are_told_apart_and_charged() -> None:
    turn: Any = {"text": "x", "usage": {"input": 5}, "model": "m:1-2026"}
    failed = TryFailed(at=3, round=1, number=1, model="m:1", error="E", reason="busy", spent={"tokens": 9})

    made = moments(
        asking(1),
        failed,
        asking(5, 2),
        Epoch(at=8, number=2, **EPOCH),
        asking(9, 3),
        Thought(at=12, round=1, turn=turn, seconds=2.5, spent={"tokens": 20, "cost": 0.5}),
        asking(13, 1).model_copy(update={"round": 2}),
    )

    assert made.of_round(1) == (
        Bar("vain", 1, 3),
        Bar("pause", 3, 5),
        Bar("lost", 5, 8),
        Bar("think", 9.5, 12),
    )
    assert made.coming == 2
    assert made.of_round(2) == (Bar("think", 13, None),)
    cost = made.models["m:1"]
    # What nobody knows any more is charged as it was set aside.
    assert (cost.calls, cost.vain, cost.tokens, round(cost.usd, 6)) == (1, 1, 9 + 50 + 20, 0.500007)


def end(index: int, latency_s: float, attempt: int = 1) -> CallEnd:
    return CallEnd(call="c", index=index, outcome="result", latency_ms=1000 * latency_s, attempt=attempt)


def test_a_call_waits_for_people_then_for_a_replica_and_then_works() -> None:
    made = moments(
        Query(at=10, call="c", query="q", approval=True, deadline_ms=99_000),
        Answered(at=14, call="c", by="ana"),
        Sending(at=15, calls=(Dispatch(call="c", kind="topic", topic="a.b", tasks=2, deadline_ms=99_000),)),
        CallsEnded(at=18, ends=(end(0, 1.0),)),
    )

    assert made.of_call("c") == (Bar("person", 10, 14), Bar("wait", 15, 17), Bar("work", 17, None))

    made.apply(CallsEnded(at=30, ends=(end(1, 2.0, attempt=2),)))

    assert made.of_call("c") == (Bar("person", 10, 14), Bar("again", 15, 17), Bar("work", 17, 30))
    assert made.of_call("never made") == ()


# --- the map -----------------------------------------------------------------------------------------


def test_a_map_is_a_table_a_picture_and_data() -> None:
    ways = [Way("task", "client", "a.b", "clerk", 5, 500), Way("event", "clerk", "c.d", "", 1, 10)]
    ways[0].outcomes.update(result=3, failed=2)
    seen = TalkMap(ways, seconds=2.0, missed=7)

    assert seen.to_dicts()[0] == {
        "kind": "task",
        "sender": "client",
        "topic": "a.b",
        "agent": "clerk",
        "count": 5,
        "rate": 2.5,
        "bytes": 500,
        "outcomes": {"result": 3, "failed": 2},
    }
    assert repr(seen).splitlines() == [
        "Who talked to whom in 2 s: 7 messages more passed too fast to be counted.",
        "client → a.b → clerk            2.50/s       5  2 failed",
        "clerk  → c.d → who listens      0.50/s       1",
    ]
    assert seen._repr_html_().count("<path") == 4
    assert ">2.50/s<" in seen._repr_html_()
    assert "Nobody said anything in 2 s." in repr(TalkMap([], 2.0))
    assert "Nobody said anything" in TalkMap([], 2.0)._repr_html_()


# --- top ---------------------------------------------------------------------------------------------


def beat(replica: str, done: int, *, failed: int = 0, cells: Any = None, agent: str = "clerk") -> dict[str, Any]:
    told = {"event": "agent_heartbeat", "agent": agent, "replica": replica, "slots": 4, "inFlight": 1}
    counted = {"metrics": {"v": 1, "cells": cells}} if cells is not None else {}
    return told | {"outcomes": {"result": done, "failed": failed}} | counted


def status(agent: str = "clerk", waiting: int | None = 3) -> dict[str, Any]:
    figures = {"agent": agent, "topics": [f"{agent}.work"], "status": "RUNNING", "message": "", "waiting": waiting}
    return figures | {"running": 1, "target": 2, "scale": "1..2", "slots": 4}


def test_rates_are_differences_of_heartbeats_over_their_windows() -> None:
    beats = Beats(heartbeat_s=5.0)
    # 2 per second for a while, then 10 per second.
    for at in range(0, 300, 5):
        beats.hear(beat("r1", 2 * at), float(at))
    beats.hear(beat("r1", 590 + 50), 300.0)

    (figures,) = beats.figures([status()], 301.0)

    assert figures.rates[0] == 10.0
    assert figures.rates[1] == pytest.approx((640 - 540) / 30)
    assert figures.rates[2] == pytest.approx(640 / 300)
    assert (figures.slots, figures.in_flight, figures.done, figures.waiting) == (4, 1, 640, 3)
    # Nobody told how long tasks waited: three of them at that rate.
    assert figures.age_guessed
    assert figures.age_s == pytest.approx(3 / (100 / 30))


def test_one_heartbeat_is_no_rate_and_one_that_began_anew_counts_from_there() -> None:
    beats = Beats(heartbeat_s=5.0)
    beats.hear(beat("r1", 1000), 0.0)
    assert beats.figures([status()], 1.0)[0].rates == (None, None, None)

    beats.hear(beat("r1", 3), 5.0)
    assert beats.figures([status()], 5.0)[0].rates == (None, None, None)
    beats.hear(beat("r1", 8), 10.0)
    assert beats.figures([status()], 10.0)[0].rates[0] == 1.0


def test_who_is_silent_or_said_farewell_is_counted_no_more() -> None:
    beats = Beats(heartbeat_s=5.0)
    for replica in ("r1", "r2", "r3"):
        beats.hear(beat(replica, 1), 0.0)
    beats.hear(beat("r1", 2), 10.0)
    beats.hear({"event": "agent_offline", "agent": "clerk", "replica": "r3"}, 11.0)

    (figures,) = beats.figures([status()], 16.0)

    assert [each.id for each in figures.replicas] == ["r1"]


def test_who_tells_more_seldom_by_its_own_word_is_not_silent() -> None:
    beats = Beats(heartbeat_s=5.0)
    beats.hear(beat("r1", 1) | {"beatS": 30.0}, 0.0)
    beats.hear(beat("r2", 1) | {"beatS": 1e9}, 0.0)
    beats.hear(beat("r3", 1) | {"beatS": "long"}, 0.0)

    assert [each.id for each in beats.figures([status()], 90.0)[0].replicas] == ["r1", "r2"]
    assert [each.id for each in beats.figures([status()], 4000.0)[0].replicas] == []


def test_what_replicas_count_by_topic_says_how_old_work_is_and_which_topic_is_slow() -> None:
    beats = Beats(heartbeat_s=5.0)
    beats.hear(beat("r1", 0, cells=[["wait", "a.b", [0.0, 0]], ["turn", "a.b", [0.0, 0]]]), 0.0)
    cells = [
        ["wait", "a.b", [6.0, 1, 2]],
        ["turn", "a.b", [1.5, 3]],
        ["tasks", "a.b", "result", [2]],
        ["tasks", "a.b", "failed", [1]],
        ["turn", "c.d", [9.0, 0, 0, 1]],
        ["tokens", "m:1", "input", [5]],
    ]
    beats.hear(beat("r1", 3, cells=cells), 10.0)

    (figures,) = beats.figures([status()], 10.0)

    assert [(each.topic, each.run_s, each.wait_s, each.failed) for each in figures.topics] == [
        ("c.d", 9.0, None, 0),
        ("a.b", 0.5, 2.0, 1),
    ]
    assert (figures.age_s, figures.age_guessed) == (2.0, False)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | NASTY, lambda some: st.lists(some) | st.dictionaries(NASTY, some)
    )
)
def test_whatever_a_heartbeat_holds_is_taken(content: Any) -> None:
    beats = Beats(heartbeat_s=5.0)
    for field in ("outcomes", "slots", "inFlight", "metrics"):
        beats.hear(beat("r1", 1) | {field: content}, 1.0)
        beats.hear(beat("r1", 1) | {"metrics": {"cells": [content, ["wait", content, content]]}}, 2.0)
        beats.hear(content, 3.0)
    screen = Screen("dev")
    screen.update(beats.figures([status()], 4.0))
    assert not obeys("\n".join(drawn(screen, 200)))


def screen(agents: int = 3) -> Screen:
    beats, made = Beats(heartbeat_s=5.0), Screen("dev")
    for number in range(agents):
        name = f"agent-{number}-of-a-rather-long-name"
        for at in (0.0, 5.0, 10.0):
            beats.hear(beat(f"{name}-r", int(at * 1000 * number), failed=int(at), agent=name), at)
    statuses = [status(f"agent-{number}-of-a-rather-long-name", waiting=100 - number) for number in range(agents)]
    made.update(beats.figures(statuses, 10.0))
    return made


def screen_of_desk() -> Screen:
    """With one agent, that is opened."""
    beats, made = Beats(heartbeat_s=5.0), Screen("dev")
    for at in (0.0, 5.0):
        beats.hear(beat("desk-b7b19bce", int(at * 20_000), failed=int(at), agent="desk"), at)
    made.update(beats.figures([status("desk")], 5.0))
    made.press("open")
    return made


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
@pytest.mark.parametrize("agents", [0, 3, 100])
def test_the_screen_fits(width: int, height: int, agents: int) -> None:
    shown = screen(agents)
    for key in ("", "down", "open", "w", "j", "x"):
        shown.press(key)
        lines = drawn(shown, width, height)
        assert len(lines) < height
        assert max(map(len, lines)) <= width
        assert lines[0].startswith(f"squadron dev  {agents} agents")
        assert "q quit" in lines[-1]


def test_keys_choose_open_and_sort() -> None:
    shown = screen(3)
    lines = drawn(shown, 200)
    assert lines[1].split()[:4] == ["AGENT", "REPLICAS", "BUSY", "WAITING"]
    assert [line.split()[0][:7] for line in lines[2:5]] == ["agent-0", "agent-1", "agent-2"]
    assert lines[3].split()[1:8] == ["1/2", "1/4", "99", "1,001", "1,001", "1,001", "10"]

    for key in ("r", "down", "down", "up", "open"):
        shown.press(key)
    lines = drawn(shown, 200)
    assert [line.split()[0][:7] for line in lines[2:5]] == ["agent-2", "agent-1", "agent-0"]
    assert "▾ agent-2-of-a-rather-long-name" in lines[5]
    assert "1/4 busy" in lines[7]
    # What is said of a replica is there on a narrow terminal, too.
    assert any(line.endswith("heard 0 s ago") for line in drawn(screen_of_desk(), 80))
    shown.press("close")
    assert len(drawn(shown, 200)) == len(lines) - 3

    shown.press("q")
    assert shown.over


def test_what_is_typed_at_once_is_taken_key_by_key() -> None:
    assert split_keys("\x1b[Bw\x1bOA\r\x1bq") == ["down", "w", "up", "open", "close", "q"]


def test_rates_have_the_digits_that_matter() -> None:
    assert [rate_text(rate) for rate in (None, 0.0, 1.234, 12.34, 1234.5)] == [
        "-",
        "0.00",
        "1.23",
        "12.3",
        "1,234",
    ]


# --- tail --------------------------------------------------------------------------------------------

TASK = Passing(
    "task",
    "agents.dev.task.license.classify",
    at=1_795_887_354.68,
    topic="license.classify",
    id="1989df0f62c8fda0",
    conversation="c0ffee00aaaa",
    parent="77d0e1a2b3c4d5e6",
    sender="desk-1",
    sender_type="desk",
    agent="clerk",
    bytes=1234,
)


def text_of(it: Passing, width: int) -> list[str]:
    return [line.plain for line in lines_of(it, width)]


@pytest.mark.parametrize("width", [80, 200])
def test_a_message_is_a_line_that_fits(width: int) -> None:
    failed = replace(TASK, kind="result", outcome="timed_out", said="1.2 s · " + "too slow " * 50)

    for it in (TASK, failed, Passing("inner", "agents.dev.run.x", topic="run.x")):
        (line,) = text_of(it, width)
        assert len(line) <= width
    (line,) = text_of(TASK, width)
    assert "task   license.classify" in line
    assert "1989df0f ← 77d0e1a2" in line
    assert "desk → clerk · 1.2 kB" in line
    assert ("of c0ffee00" in line) == (width == 200)
    assert "timed out · 1.2 s" in text_of(failed, width)[0]


def test_the_calls_of_a_run_are_told_apart_by_their_ids() -> None:
    calls = [f"run-eec4a61f0e7d9b2c5a3f8d10-r{number}c12-ab12cd-0" for number in (1, 2)]
    lines = [lines_of(Passing("task", "s", topic="a.b", id=id, parent="0123456789"), 80)[0].plain for id in calls]
    assert ["eec4-r1c12 ← 01234567" in lines[0], "eec4-r2c12 ← 01234567" in lines[1]] == [True, True]


def test_contents_stand_below_and_of_a_result_what_it_came_to() -> None:
    content = {"success": True, "outcome": "result", "data": {"licence": "MIT"}, "tokens": 0}

    assert text_of(replace(TASK, kind="result", content=content), 80)[1].strip() == '{"licence": "MIT"}'
    assert len(text_of(replace(TASK, content={"text": "x" * 500}), 80)[1]) == 80


@settings(deadline=None)
@given(NASTY, st.floats(), st.sampled_from([40, 80, 200]))
def test_nothing_that_anybody_sends_reaches_the_terminal_as_it_is(text: str, number: float, width: int) -> None:
    fields = (
        "topic",
        "id",
        "parent",
        "conversation",
        "sender",
        "sender_type",
        "agent",
        "outcome",
        "said",
        "subject",
    )
    it = replace(TASK, at=number, content={text: text}, **dict.fromkeys(fields, text))
    lane = Lane("call", text, 1, (Bar("work", 1, 2),), text, text, id=text)
    timeline = spanning(text, [lane])
    seen = [*text_of(it, width), timeline.text(width), repr(TalkMap([Way("task", text, text, text, 1)], 1.0))]
    seen += [timeline._repr_html_(), TalkMap([Way("task", text, text, text, 1)], 1.0)._repr_html_()]

    assert not any(map(obeys, seen))
    for html in seen[-2:]:
        ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    assert max(map(len, timeline.text(width).splitlines())) <= width


@settings(deadline=None)
@given(NASTY, st.integers(1, 50))
def test_one_line_is_one_line_and_no_longer(text: str, characters: int) -> None:
    line = one_line(text, characters)
    assert len(line) <= characters
    assert not obeys(line)
    assert "\n" not in line
    assert printable(line) == line


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (Filter(), True),
        (Filter(conversation="c0ff"), True),
        (Filter(conversation="beef"), False),
        (Filter(topic="license.*"), True),
        (Filter(topic="*.assess"), False),
        (Filter(agent="clerk"), True),
        (Filter(agent="desk"), True),
        (Filter(agent="desk-1"), True),
        (Filter(agent="cle"), False),
    ],
)
def test_a_filter_takes_what_it_names(wanted: Filter, seen: bool) -> None:
    assert wanted.wants(TASK) is seen


def test_what_the_runtime_tells_itself_and_chunks_are_shown_when_asked_for() -> None:
    inner, chunk = replace(TASK, kind="inner"), replace(TASK, kind="chunk")

    def seen(**options: Any) -> Sequence[bool]:
        return [Filter(**options).wants(each) for each in (inner, chunk)]

    assert seen() == [False, False]
    assert seen(chunks=True) == [False, True]
    assert seen(inner=True) == [True, True]
