"""What the shell says to those who think: keys and addresses of providers, and how models are chosen.

For agents on the local cluster, who starts it and each `Squad.run` leave it in a user-only file in the home: what
is in the environment of Ray's processes is in that of all they start. `squadron down` removes it. On a cluster of
the user's own it belongs into the environment of its nodes. Who asks a provider looks its key up for each call.
"""

from __future__ import annotations

import json
import os
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from squadron.runtime.errors import ConfigError
from squadron.runtime.redact import keep_address, keep_secret, names_secret
from squadron.runtime.secret import Secret, is_reference, resolved

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
    "SQUADRON_RERANK",
    "SQUADRON_PRICES",
    "SQUADRON_MODEL_LIMITS",
)
#: What opens the door of a collector of traces (OpenTelemetry's specification of its exporters).
HEADERS = (
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
)
_FILE = "model-keys.json"


def is_for_all(name: str) -> bool:
    """Whether a variable of the shell may stand in the environment of all of Ray's processes.

    There is no secret in it, and who runs a goal in another shell can't have meant another value.
    """
    return not (names_secret(name) or name in VARIABLES or name in HEADERS)


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
        if raw is None or not name.startswith(prefix) or is_reference(raw):
            continue
        value = clean_key(name, raw)
        if not value:  # an empty address or key means: none
            del os.environ[name]
        elif value != raw:
            os.environ[name] = value


def remember_keys(home: Path) -> None:
    """Leave what this process's shell says, if it says anything, where local agents find it (mode 0600)."""
    keys = {name: os.environ[name].strip() for name in (*VARIABLES, *HEADERS) if os.environ.get(name, "").strip()}
    if not keys:
        return
    fresh = home / f"{_FILE}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(keys, file)
    fresh.replace(home / _FILE)


def forget_keys(home: Path) -> None:
    """Remove what `remember_keys` left."""
    (home / _FILE).unlink(missing_ok=True)


def given() -> Mapping[str, str]:
    """This process's environment, and what the home's file remembers of variables that it does not have."""
    home = os.environ.get("SQUADRON_HOME")
    try:
        remembered: dict[str, str] = json.loads((Path(home) / _FILE).read_text()) if home else {}
    except FileNotFoundError:
        remembered = {}
    missing = {name: value for name, value in remembered.items() if not os.environ.get(name, "").strip()}
    for name, value in missing.items():
        # Those in the environment are struck out anyway.
        if name in HEADERS or names_secret(name):
            keep_secret(Secret(value).value_given())
        elif name.endswith("_URL"):
            keep_address(value)
    return ChainMap(missing, os.environ)


def key_of(name: str) -> str:
    """The value of a variable that is a secret, as it is now; the empty string if nobody has set it.

    Raises:
        ConfigError: it is kept at a place where it can't be had, or can't be sent.
    """
    return clean_key(name, Secret(given().get(name, "").strip()).value())


def value_of(name: str) -> str:
    """The value of another variable, which may be kept at a place, too; the empty string if nobody has set it.

    Raises:
        ConfigError: it can't be had there, or can't be sent.
    """
    value = clean_key(name, resolved(given().get(name, "").strip()))
    keep_address(value)
    return value
