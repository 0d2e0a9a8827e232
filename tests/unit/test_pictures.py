"""The pictures of the live views show what the views draw now."""

from __future__ import annotations

import re
import runpy
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day as the pictures have them."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def words(svg: str) -> list[str]:
    """What a picture says; how rich writes SVG differs by its release."""
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def test_the_pictures_are_of_today(utc: None) -> None:
    script = runpy.run_path(str(IMAGES / "draw.py"))

    assert {path.stem for path in IMAGES.glob("*.svg")} == set(script["VIEWS"])
    for name in script["VIEWS"]:
        kept = (IMAGES / f"{name}.svg").read_text()
        assert words(kept) == words(script["drawn"](name)), "make pictures"
        assert len(words(kept)) > 10
        assert len(kept) < 60_000
        # Nobody's reading is told to others.
        assert set(re.findall(r"https?://[^/\s\"]*", kept)) <= {"http://www.w3.org", "https://www.textualize.io"}
