"""The files of the console's page: what is vendored is what it says, and the policy is enough for all of them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import squadron.console
from squadron.console.session_gate import POLICY

STATIC = Path(squadron.console.__file__).parent / "static"
VENDORED = json.loads((STATIC / "vendor" / "VENDORED.json").read_text())
OWN = sorted(path for path in STATIC.glob("*") if path.suffix in (".js", ".css", ".html"))


def test_each_vendored_file_has_its_hash_and_its_licences() -> None:
    files = {path.name for path in (STATIC / "vendor").iterdir()} - {"VENDORED.json"}
    licences = {name for each in VENDORED.values() for name in each["licenses"]}
    assert files == VENDORED.keys() | licences
    for name, about in VENDORED.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == about["sha256"]
    assert "Apache License" in (STATIC / "vendor" / "LICENSE-htm.txt").read_text()
    assert "MIT License" in (STATIC / "vendor" / "LICENSE-preact.txt").read_text()


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", re.sub(r"(?m)//.*$|/\*.*?\*/", "", text))
    if path.suffix == ".html":
        assert "<style" not in text
        assert not re.findall(r"<script(?![^>]*\bsrc=)", text)
        assert not re.findall(r"\son\w+=|\sstyle=", text)
    assert "innerHTML" not in text
    assert "eval(" not in text


def test_the_policy_allows_nothing_inline() -> None:
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    assert "frame-ancestors 'none'" in POLICY
