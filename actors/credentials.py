"""Provider keys for agents on the local cluster, which may have been started before the keys were set.

A user-only file in the home; gone with `squadron down`. On a cluster of the user's own the keys belong into
the environment of its nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

#: What the official SDKs read.
VARIABLES = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
)
_FILE = "model-keys.json"


def remember_keys(home: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Leave this process's provider keys where local agents find them; none set forgets older ones."""
    keys = {name: environ[name] for name in VARIABLES if environ.get(name)}
    path = home / _FILE
    if not keys:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_suffix(f".{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(keys, file)
    fresh.replace(path)


def forget_keys(home: Path) -> None:
    """Remove the file."""
    (home / _FILE).unlink(missing_ok=True)


def provider_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Provider variables for a model made now: those a user left in the home, over the process's own."""
    keys = {name: environ[name] for name in VARIABLES if environ.get(name)}
    home = environ.get("SQUADRON_HOME")
    if home:
        with contextlib.suppress(FileNotFoundError):
            keys |= json.loads((Path(home) / _FILE).read_text())
    return keys
