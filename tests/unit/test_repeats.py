"""Calls that go in circles are refused, and rounds that bring nothing are counted."""

from __future__ import annotations

from squadron.actors.thinking.repeats import Repeats


def test_the_same_call_with_the_same_end_is_refused_the_third_time_and_told_why() -> None:
    repeats = Repeats()
    for _ in range(2):
        assert repeats.refusal("files.grep", {"for": "x", "in": "."}) == ""
        repeats.note("files.grep", {"for": "x", "in": "."}, {"found": []})

    # Another order, the same arguments.
    why = repeats.refusal("files.grep", {"in": ".", "for": "x"})

    assert "files.grep was called with exactly these arguments 2 times" in why
    assert repeats.refusal("files.grep", {"in": ".", "for": "y"}) == ""
    assert repeats.refusal("files.find", {"in": ".", "for": "x"}) == ""


def test_a_call_whose_end_changes_is_made_as_often_as_it_is_wanted() -> None:
    repeats = Repeats()
    for number in range(10):
        assert repeats.refusal("job.status", {"id": 7}) == ""
        assert repeats.note("job.status", {"id": 7}, f"{number} % done")


def test_an_end_that_comes_back_after_another_one_counts_anew() -> None:
    repeats = Repeats()
    for end in ("busy", "busy", "free", "busy"):
        repeats.note("job.status", {}, end)

    assert repeats.refusal("job.status", {}) == ""


def test_rounds_in_which_nothing_new_came_are_counted_until_something_does() -> None:
    repeats = Repeats()

    assert repeats.end_round([repeats.note("a.b", 1, "x"), repeats.note("a.b", 2, "x")]) == 0
    assert repeats.end_round([repeats.note("a.b", 1, "x")]) == 1
    assert repeats.end_round([]) == 1
    assert repeats.end_round([repeats.note("a.b", 2, "x")]) == 2
    assert repeats.end_round([repeats.note("a.b", 2, "x"), repeats.note("a.b", 3, "x")]) == 0
