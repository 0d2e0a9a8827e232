"""Settings: the one place where the environment is read.

Precedence: an argument of `Settings.load`, then the environment variable, then the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from platformdirs import user_data_dir

from squadron.runtime.errors import ConfigError
from squadron.runtime.lite.quotas import IN_ALL, PER_OWNER
from squadron.runtime.ports.vault import MOST_BYTES, OVER_BYTES

#: Field of `Settings` → the environment variable it is read from. Those of NATS and Ray carry the names that
#: their own command lines use (`nats`, `ray`), so that a shell set up for those tools works here unchanged.
VARIABLES: Mapping[str, str] = {
    "home": "SQUADRON_HOME",
    "env": "SQUADRON_ENV",
    "nats_url": "NATS_URL",
    "nats_user": "NATS_USER",
    "nats_password": "NATS_PASSWORD",
    "nats_user_credentials": "NATS_CREDS",
    "nats_nkey_seed_file": "NATS_NKEY",
    "nats_tls_ca": "NATS_CA",
    "nats_tls_cert": "NATS_CERT",
    "nats_tls_key": "NATS_KEY",
    "ray_address": "RAY_ADDRESS",
    "model": "SQUADRON_MODEL",
    "heartbeat_s": "SQUADRON_HEARTBEAT_S",
    "lease_s": "SQUADRON_LEASE_S",
    "deaf_after_s": "SQUADRON_DEAF_AFTER_S",
    "claim_over_bytes": "SQUADRON_CLAIM_OVER_BYTES",
    "max_message_bytes": "SQUADRON_MAX_MESSAGE_BYTES",
    "lite_topics_per_owner": "SQUADRON_LITE_TOPICS_PER_OWNER",
    "lite_topics": "SQUADRON_LITE_TOPICS",
    "pass_env": "SQUADRON_PASS_ENV",
    "log_level": "SQUADRON_LOG_LEVEL",
}

_PREFIX = "SQUADRON_"
_SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,32}")
_NATS_SCHEMES = ("nats", "tls")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_SECONDS = ("heartbeat_s", "lease_s", "deaf_after_s")
#: See `bridge.jetstream.dial.PING_INTERVAL_S`.
_LEAST_DEAF_S = 8.0
_BYTES = ("claim_over_bytes", "max_message_bytes")
#: Smallest `claim_over_bytes`: an envelope alone takes a part of this. Largest `max_message_bytes`: a message is
#: whole in the memory of its sender and of its replica, several times.
_LEAST_BYTES, _MOST_BYTES = 16 * 1024, 1024**3
_TOPICS = ("lite_topics_per_owner", "lite_topics")
_FILES = ("nats_user_credentials", "nats_nkey_seed_file", "nats_tls_ca", "nats_tls_cert", "nats_tls_key")


def _default_home() -> Path:
    return Path(user_data_dir("squadron"))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the servers are and how this process behaves. Immutable and picklable: it travels to the workers.

    Raises:
        ConfigError: a value is out of its range; the message names the field, the hint says what to do.
    """

    home: Path = field(default_factory=_default_home)
    """Where the embedded servers keep their data, absolute; by default the user's data directory.
    `SQUADRON_HOME`."""

    env: str = "dev"
    """The environment: second token of every subject, so that dev and prod share a server. `SQUADRON_ENV`."""

    nats_url: str | None = field(default=None, repr=False)
    """Server URL, or several separated by commas; None starts an embedded nats-server. `NATS_URL`.
    Not in `repr`, because a URL may carry a password."""

    nats_user: str = ""
    """A user's name, for a password that is not to stand in the URL. `NATS_USER`."""

    nats_password: str = field(default="", repr=False)
    """The password of `nats_user`, as it is: nothing in it needs to be escaped. `NATS_PASSWORD`."""

    nats_user_credentials: Path | None = None
    """A `.creds` file (JWT and seed). `NATS_CREDS`."""

    nats_nkey_seed_file: Path | None = None
    """A file with an nkey seed, instead of `.creds`. `NATS_NKEY`."""

    nats_tls_ca: Path | None = None
    """The CA that signed the server's certificate (PEM); None trusts the system's. `NATS_CA`."""

    nats_tls_cert: Path | None = None
    """Client certificate (PEM) for mutual TLS; needs `nats_tls_key`. `NATS_CERT`."""

    nats_tls_key: Path | None = None
    """Private key (PEM) of `nats_tls_cert`. `NATS_KEY`."""

    ray_address: str | None = None
    """Address of a Ray cluster, as `ray.init` takes it; None starts a local one. `RAY_ADDRESS`."""

    model: str = ""
    """Default LLM of agents that name none, as `provider:name`; empty = none. `SQUADRON_MODEL`."""

    heartbeat_s: float = 5.0
    """Seconds between two heartbeats of a replica. `SQUADRON_HEARTBEAT_S`."""

    lease_s: float = 2.5
    """Seconds a replica owns a delivery before it must extend; a dead replica's work is taken over after
    this long. `SQUADRON_LEASE_S`."""

    deaf_after_s: float = 15.0
    """Seconds without an answer from NATS after which a replica counts as unhealthy and is replaced; at least 8,
    since a connection that broke is found and made anew within 7. `SQUADRON_DEAF_AFTER_S`."""

    claim_over_bytes: int = OVER_BYTES
    """Bytes above which a payload travels as a claim check through the object store, 16384 or more; lowered at
    connect if the server's `max_payload` asks for it. `SQUADRON_CLAIM_OVER_BYTES`."""

    max_message_bytes: int = MOST_BYTES
    """Bytes of the largest message, claim check or not, 1073741824 at most; more is rejected before anything is
    sent. `SQUADRON_MAX_MESSAGE_BYTES`."""

    lite_topics_per_owner: int = PER_OWNER
    """Most lite topics with a life that one owner may have; who would make another is refused.
    `SQUADRON_LITE_TOPICS_PER_OWNER`."""

    lite_topics: int = IN_ALL
    """Most lite topics with a life in the environment. `SQUADRON_LITE_TOPICS`."""

    pass_env: str = ""
    """Variables of the shell that agents on the local cluster get, too: names or patterns like `AWS_*`, by commas.
    Only a start of the cluster looks at it. `SQUADRON_PASS_ENV`."""

    log_level: str = "INFO"
    """DEBUG, INFO, WARNING, ERROR or CRITICAL. `SQUADRON_LOG_LEVEL`."""

    def __post_init__(self) -> None:
        if not self.home.is_absolute():
            raise _bad("home", str(self.home), "give an absolute path")
        if not _SUBJECT_TOKEN.fullmatch(self.env):
            raise _bad("env", self.env, "use 1 to 32 letters, digits, '_' or '-': it is one token of a subject")
        if self.nats_url is not None:
            _check_nats_url(self.nats_url)
        if self.nats_user_credentials and self.nats_nkey_seed_file:
            raise ConfigError(
                "nats_user_credentials and nats_nkey_seed_file are both set",
                hint="set one of NATS_CREDS and NATS_NKEY",
            )
        if bool(self.nats_tls_cert) != bool(self.nats_tls_key):
            raise ConfigError(
                "nats_tls_cert and nats_tls_key belong together",
                hint="set both NATS_CERT and NATS_KEY, or neither",
            )
        if self.nats_url and bool(self.nats_user) != bool(self.nats_password):
            raise ConfigError(
                "nats_user and nats_password belong together",
                hint="set both NATS_USER and NATS_PASSWORD, or neither",
            )
        for name in _SECONDS:
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise _bad(name, str(seconds), "give a number of seconds greater than 0, like 5 or 2.5")
        if self.deaf_after_s < _LEAST_DEAF_S:
            raise _bad("deaf_after_s", str(self.deaf_after_s), f"give at least {_LEAST_DEAF_S:g} seconds")
        if self.claim_over_bytes < _LEAST_BYTES:
            raise _bad("claim_over_bytes", str(self.claim_over_bytes), f"give {_LEAST_BYTES} bytes or more")
        if not (self.claim_over_bytes <= self.max_message_bytes <= _MOST_BYTES):
            fix = f"give a number of bytes from claim_over_bytes ({self.claim_over_bytes}) to {_MOST_BYTES}"
            raise _bad("max_message_bytes", str(self.max_message_bytes), fix)
        for name in _TOPICS:
            if getattr(self, name) < 1:
                raise _bad(name, str(getattr(self, name)), "give 1 or more")
        if self.log_level not in _LOG_LEVELS:
            raise _bad("log_level", self.log_level, f"use one of {', '.join(_LOG_LEVELS)}")

    @classmethod
    def load(cls, env: Mapping[str, str] = os.environ, /, **overrides: Any) -> Settings:
        """Read the settings from `env`; `overrides` (by field name) win over it.

        An override of None means "not given", so that a command line can pass its options straight on. An
        empty string, here or in the environment, means "the default": `nats_url=""` asks for the embedded
        server even where NATS_URL is set. Paths may start with `~`; relative ones are made absolute.

        Raises:
            ConfigError: an unknown SQUADRON_* variable or override, a bad value, a file that is not there.
        """
        _reject_unknown((name for name in env if name.startswith(_PREFIX)), VARIABLES.values(), "variable")
        _reject_unknown(overrides, VARIABLES, "setting")
        values: dict[str, Any] = {}
        for name, variable in VARIABLES.items():
            given = overrides.get(name)
            raw = env.get(variable, "") if given is None else given
            if raw != "":
                values[name] = _parse(name, raw)
        settings = cls(**values)
        for name in _FILES:
            path = getattr(settings, name)
            if path is not None and not path.is_file():
                raise _bad(name, str(path), "no such file")
        return settings

    @property
    def is_embedded(self) -> bool:
        """Whether both servers are local ones of ours."""
        return self.nats_url is None and self.ray_address is None

    def passed_on(self, env: Mapping[str, str] = os.environ, /) -> dict[str, str]:
        """The variables that `pass_env` names, from `env`."""
        patterns = [pattern.strip() for pattern in self.pass_env.split(",")]
        return {name: env[name] for name in env if any(fnmatchcase(name, pattern) for pattern in patterns)}

    def environ(self) -> dict[str, str]:
        """The environment variables that make `load` give these settings in another process."""
        values = dataclasses.asdict(self)
        return {var: str(values[name]) for name, var in VARIABLES.items() if values[name] not in (None, "")}


def _parse(name: str, raw: Any) -> Any:
    if name == "home" or name in _FILES:
        return Path(raw).expanduser().absolute()
    if name in _SECONDS:
        try:
            return float(raw)
        except (TypeError, ValueError):
            raise _bad(name, str(raw), "give a number of seconds greater than 0, like 5 or 2.5") from None
    if name in _BYTES:
        try:
            return int(raw)
        except (TypeError, ValueError):
            raise _bad(name, str(raw), "give a whole number of bytes, like 524288") from None
    if name in _TOPICS:
        try:
            return int(raw)
        except (TypeError, ValueError):
            raise _bad(name, str(raw), "give a whole number, like 100000") from None
    if name == "nats_password":  # a blank in it may be meant; the line break of a file of secrets is not
        return str(raw).rstrip("\r\n")
    text = str(raw).strip()
    return text.upper() if name == "log_level" else text


def _check_nats_url(urls: str) -> None:
    # The value itself stays out of the message: it may carry a password.
    for url in urls.split(","):
        parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
        if parts.scheme in ("ws", "wss"):
            raise ConfigError(
                "nats_url: NATS over WebSocket is not supported, it would be slow",
                hint="set NATS_URL to the server's own port, like nats://host:4222 or tls://host:4222",
            )
        try:
            usable = parts.scheme in _NATS_SCHEMES and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(
                "nats_url is not a NATS URL",
                hint="set NATS_URL like nats://host:4222 or tls://host:4222, several by commas; in a password "
                "write '/', '#', '?', '@' and ',' as %2F, %23, %3F, %40 and %2C, or set NATS_USER, NATS_PASSWORD",
            )


def _bad(name: str, value: str, fix: str) -> ConfigError:
    return ConfigError(f"{name}: {value!r} can't be used", hint=f"{VARIABLES[name]}: {fix}")


def _reject_unknown(names: Any, known: Any, what: str) -> None:
    choices = sorted(known)
    for name in sorted(set(names) - set(choices)):
        nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.75)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(choices)}"
        raise ConfigError(f"unknown {what} {name!r}", hint=hint)
