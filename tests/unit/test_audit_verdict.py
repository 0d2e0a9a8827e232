"""What `verify` says of an export, by the anchors that it is held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from squadron.bridge.audit.anchors import Seal
from squadron.bridge.audit.chain import Link, SealedBatch, sealed
from squadron.bridge.audit.history import verify_file
from squadron.cli.app import app


def batches(count: int) -> list[SealedBatch]:
    """So many, of two entries each."""
    link, made = Link(), list[SealedBatch]()
    for _ in range(count):
        made.append(sealed(link, [{"kind": "event", "at": 1.0, "subject": "agents.dev.event.a"}] * 2))
        link = replace(link, first=link.first + 2, previous=made[-1].head)
    return made


def exported(batches: list[SealedBatch], path: Path) -> Path:
    lines = [line for each in batches for line in (*each.lines, json.dumps({"head": each.head}).encode())]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture
def seal(tmp_path: Path) -> Seal:
    made = Seal(tmp_path, "dev")
    for count, each in enumerate(batches(3), 1):
        made.anchor(2 * count, each.head)
    return made


def verify(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["audit", "verify", *map(str, arguments)])


def test_anchors_that_count_are_held_against_the_trail(seal: Seal, tmp_path: Path) -> None:
    file = exported(batches(3), tmp_path / "trail.jsonl")

    found = verify_file(file, anchors=seal.anchor_file, public_key=seal.public_key)
    assert (found.ok, found.anchors, found.unproven) == (True, 3, ())
    # Of a later trail the first of them are about what is gone.
    late = verify_file(exported(batches(3)[1:], tmp_path / "late.jsonl"), anchors=seal.anchor_file)
    assert (late.ok, late.anchors) == (True, 3)
    # Who has none is told, and no more.
    bare = verify(file)
    assert bare.exit_code == 0
    assert "Not proven: no anchors" in bare.stderr


@pytest.mark.parametrize(
    ("anchors", "key"),
    [
        *(("none", key) for key in ("ab" * 32, "typo")),
        *((each, key) for each in ("signed badly", "by another", "empty") for key in ("ab" * 32, "typo", "")),
    ],
)
def test_where_no_anchor_counts_nothing_is_as_it_was_recorded(
    seal: Seal, tmp_path: Path, anchors: str, key: str
) -> None:
    file, said = exported(batches(3), tmp_path / "trail.jsonl"), tmp_path / "anchors.jsonl"
    lines = [json.loads(line) for line in seal.anchor_file.read_text().splitlines()]
    changed = {"signed badly": {"signature": "00" * 64}, "by another": {"key": "cd" * 32}}
    kept = lines if anchors in changed else []
    said.write_text("".join(json.dumps(each | changed[anchors]) + "\n" for each in kept))
    options = [] if anchors == "none" else ["--anchors", said]
    options += ["--public-key", key] if key else []

    ended = verify(file, *options)

    assert ended.exit_code == 1
    assert "no anchor counts" in ended.stderr
    assert "All is as it was recorded" not in ended.stderr
    assert "Not proven:" in ended.stderr
    assert json.loads(verify(file, *options, "--json").stdout)["ok"] is False
    if anchors == "empty":
        assert "anchors.jsonl holds no anchor" in ended.stderr.replace("\n", "")


def test_anchors_of_what_has_lapsed_prove_nothing_of_what_is_there(seal: Seal, tmp_path: Path) -> None:
    file, old = exported(batches(6)[4:], tmp_path / "trail.jsonl"), tmp_path / "old.jsonl"
    old.write_text(seal.anchor_file.read_text())

    ended = verify(file, "--anchors", old)

    assert ended.exit_code == 1
    assert "all that the anchors are about has lapsed" in ended.stderr
