"""Provider keys for agents on the local cluster, which may have been started before the keys were set.

`Squad.run` leaves them in a user-only file in the home, from where the agents take them; `squadron down`
removes it. On a cluster of the user's own the keys belong into the environment of its nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from squadron.runtime.errors import ConfigError

#: What the official SDKs read, our own defaults, and prices of one's own.
VARIABLES = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "SQUADRON_MODEL",
    "SQUADRON_SUMMARY_MODEL",
    "SQUADRON_PRICES",
    "SQUADRON_MODEL_LIMITS",
)
_FILE = "model-keys.json"


def clean_key(name: str, value: str) -> str:
    """The value of a key variable without the white space around it, as files of secrets often have it.

    Raises:
        ConfigError: it can't go into an HTTP header; names the variable and never the value.
    """
    value = value.strip()
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise ConfigError(
            f"{name} holds a character that can't be sent",
            hint=f"check {name}: it may have no line break, blank or special character inside",
        )
    return value


def tidy_variables(prefix: str) -> None:
    """Clean this process's variables of one provider where they are, because the SDKs read them there.

    Raises:
        ConfigError: one of them can't be used.
    """
    for name in VARIABLES:
        raw = os.environ.get(name)
        if raw is None or not name.startswith(prefix):
            continue
        value = clean_key(name, raw)
        if not value:  # an empty address or key means: none
            del os.environ[name]
        elif value != raw:
            os.environ[name] = value


def remember_keys(home: Path) -> None:
    """Leave this process's provider keys, if it has any, where local agents find them (mode 0600)."""
    keys = {name: os.environ[name].strip() for name in VARIABLES if os.environ.get(name, "").strip()}
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
