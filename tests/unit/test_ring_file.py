"""A principal's keys lie in a file of its own, whole, and for nobody else."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from squadron.cli.app import app
from squadron.runtime.errors import ConfigError
from squadron.runtime.trust.ring_file import read_ring, ring_in, rotate_ring


def test_many_who_make_a_ring_at_once_have_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "analyst.json"
    with ThreadPoolExecutor(16) as threads:
        kids = {ring.kids[0] for ring in threads.map(lambda _: ring_in(path), range(64))}
    assert len(kids) == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["analyst.json"]


def test_a_rotated_ring_keeps_its_old_keys(tmp_path: Path) -> None:
    path = tmp_path / "analyst.json"
    before = ring_in(path)
    after = rotate_ring(path)
    assert read_ring(path).kids == after.kids
    assert after.kids[1:] == before.kids
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_may_read_or_that_holds_no_keys_is_refused_without_its_words(tmp_path: Path) -> None:
    path = tmp_path / "analyst.json"
    with pytest.raises(ConfigError, match="no keys can be read"):
        read_ring(path)
    ring_in(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_ring(path)
    path.chmod(0o600)
    for words in ("secret-words", '{"keys": "secret-words"}', '{"keys": ["secret-words"]}'):
        path.write_text(words)
        with pytest.raises(ConfigError) as refused:
            ring_in(path)
        assert "secret-words" not in str(refused.value)


def test_the_command_line_gives_us_a_new_key_in_front_of_the_old_ones(tmp_path: Path) -> None:
    def rotate(*options: str) -> str:
        ended = CliRunner().invoke(app, ["--home", str(tmp_path), "rotate-key", *options])
        return ended.stdout if ended.exit_code == 0 else ended.output

    first, second = (json.loads(rotate("--own", "--json"))["own"] for _ in range(2))
    ring = read_ring(tmp_path / "keys" / "dev" / "client.json")
    assert str(ring.public) == second != first
    # The one that was made for it, and those of both calls.
    assert len(ring.kids) == 3
    assert "whose key?" in rotate()
