"""Provider keys for agents on the local cluster, which may have been started before the keys were set.

`Squad.run` leaves them in a user-only file in the home, from where the agents take them; `squadron down`
removes it. On a cluster of the user's own the keys belong into the environment of its nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

#: What the official SDKs read, and our own default.
VARIABLES = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "SQUADRON_MODEL",
)
_FILE = "model-keys.json"


def remember_keys(home: Path) -> None:
    """Leave this process's provider keys, if it has any, where local agents find them (mode 0600)."""
    keys = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not keys:
        return
    fresh = home / f"{_FILE}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(keys, file)
    fresh.replace(home / _FILE)


def forget_keys(home: Path) -> None:
    """Remove what `remember_keys` left."""
    (home / _FILE).unlink(missing_ok=True)


def adopt_keys() -> None:
    """Take the remembered keys into this process's environment, where the SDKs look for them.

    They win over those it was started with: a person who runs a goal means the keys of that shell.
    """
    home = os.environ.get("SQUADRON_HOME")
    if home is None:
        return
    with contextlib.suppress(FileNotFoundError):
        os.environ.update(json.loads((Path(home) / _FILE).read_text()))
