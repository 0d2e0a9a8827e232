"""How many replicas: `N`, `MIN..MAX` or `auto`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.runtime.errors import ConfigError
from squadron.runtime.wire.deployment import Scale

OWN = Scale(minimum=1, maximum=4)


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("3", Scale(minimum=3, maximum=3, pinned=True)),
        ("0", Scale(minimum=0, maximum=0, pinned=True)),
        ("0..1", Scale(minimum=0, maximum=1)),
        ("2..8", Scale(minimum=2, maximum=8)),
        ("2..2", Scale(minimum=2, maximum=2)),
        ("auto", OWN),
    ],
)
def test_what_can_be_said(text: str, scale: Scale) -> None:
    assert Scale.parse(text, OWN) == scale


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "3..1", "0..0", "1..", "..2", "many", "AUTO", "1...3", " 1", "1\n"]
)
def test_what_can_not_be_said_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a scale"):
        Scale.parse(text, OWN)


@given(bounds=st.tuples(st.integers(0, 99), st.integers(1, 99)).map(sorted), pinned=st.booleans())
def test_it_prints_as_it_parses(bounds: list[int], pinned: bool) -> None:
    low, high = bounds
    scale = Scale(minimum=high, maximum=high, pinned=True) if pinned else Scale(minimum=low, maximum=max(1, high))

    assert Scale.parse(str(scale), OWN) == scale


def test_a_minimum_above_the_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match="above maximum"):
        Scale(minimum=2, maximum=1)
