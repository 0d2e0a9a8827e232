"""The way that a task came: circles are seen, depth has an end, and what a stranger wrote does no harm."""

from __future__ import annotations

from typing import Any

import pytest

from squadron.runtime.wire.path import MOST_DEPTH, circle_in, path_in, step_of


def test_the_same_input_on_the_same_topic_is_a_circle_however_it_was_written() -> None:
    path = [step_of("a.plan", {"x": 1, "y": 2}), step_of("b.check", {})]

    assert circle_in(path, "a.plan", {"y": 2, "x": 1}) == (
        "it asks itself for the same again: a.plan → b.check → a.plan"
    )
    assert circle_in(path, "a.plan", {"x": 1, "y": 3}) == ""
    assert circle_in(path, "c.plan", {"x": 1, "y": 2}) == ""


def test_a_way_has_an_end_even_if_each_step_is_new() -> None:
    path = [step_of("a.count", number) for number in range(MOST_DEPTH)]

    assert circle_in(path[1:], "a.count", "more") == ""
    too_deep = circle_in(path, "a.count", "more")
    assert f"passed on {MOST_DEPTH} times" in too_deep
    assert len(too_deep) < 300


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        (None, ()),
        ({}, ()),
        ({"path": "a.b#1"}, ()),
        ({"path": {"a": 1}}, ()),
        ({"path": [1, None, "a.b#1", "x" * 10_000]}, ("a.b#1",)),
        ({"path": ["a.b#1"] * 1_000_000}, ("a.b#1",) * MOST_DEPTH),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_what_is_no_path_stands_for_none_and_a_long_one_is_cut(metadata: Any, path: tuple[str, ...]) -> None:
    assert path_in(metadata) == path
