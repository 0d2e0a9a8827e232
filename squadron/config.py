"""Settings: what can be set, and how it is read from the environment.

Precedence: an argument of `Settings.load`, then the environment variable, then the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, get_type_hints
from urllib.parse import urlsplit

from platformdirs import user_data_dir

from squadron.runtime.errors import ConfigError
from squadron.runtime.lite.quotas import IN_ALL, PER_OWNER
from squadron.runtime.ports.vault import MOST_BYTES, OVER_BYTES

_PREFIX = "SQUADRON_"
_SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,32}")
#: Subjects that are not ours, and not the server's; the first token is no wildcard.
_OUTSIDE = re.compile(r"(?!\$|agents\.)[^\s.*>]+(\.(\*|[^\s.*>]+))*(\.>)?")
_NATS_SCHEMES = ("nats", "tls")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
#: See `bridge.jetstream.link.dial.PING_INTERVAL_S`.
_LEAST_DEAF_S = 8.0
#: Smallest `claim_over_bytes`: an envelope alone takes a part of this. Largest `max_message_bytes`: a message is
#: whole in the memory of its sender and of its replica, several times.
_LEAST_BYTES, _MOST_BYTES = 16 * 1024, 1024**3


def _default_home() -> Path:
    return Path(user_data_dir("squadron"))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a value is read from text, which values can be used, and what to give instead of others."""

    read: Callable[[Any], Any] = lambda raw: str(raw).strip()
    fits: Callable[[Any], bool] = lambda _: True
    fix: str = ""


def _is_object(text: str) -> bool:
    try:
        return text == "" or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _are_outside(text: str) -> bool:
    return all(_OUTSIDE.fullmatch(each.strip()) for each in text.split(",") if each.strip())


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})", text)
    return found is not None and int(found[1]) < 2**16


_TEXT = _Kind()
#: A blank in it may be meant; the line break of a file of secrets is not.
_SECRET = _Kind(lambda raw: str(raw).rstrip("\r\n"))
_LEVEL = _Kind(
    lambda raw: str(raw).strip().upper(), _LOG_LEVELS.__contains__, f"use one of {', '.join(_LOG_LEVELS)}"
)
_PATH = _Kind(lambda raw: Path(raw).expanduser().absolute(), Path.is_absolute, "give an absolute path")
#: It has to be there when it is loaded.
_FILE = _Kind(_PATH.read)
_SECONDS = _Kind(
    float, lambda it: math.isfinite(it) and it > 0, "give a number of seconds greater than 0, like 5 or 2.5"
)
_BYTES = _Kind(int, fix="give a whole number of bytes, like 524288")
#: What is in it is checked where it is used.
_LIMITS = _Kind(fits=_is_object, fix='give a JSON object like {"openai": {"rpm": 500, "tpm": 200000}}')
_PRICES = _Kind(fits=_is_object, fix='give a JSON object like {"openai:my-model": {"input": 1, "output": 4}}')
_ADDRESS = _Kind(
    fits=lambda it: it == "off" or _is_address(it),
    fix="give host:port, like 127.0.0.1:9464, or off",
)
#: These are `bridge.jetstream.audit_streams.MODES`.
_AUDIT = _Kind(
    lambda raw: str(raw).strip().lower(), ("", "off", "trail", "full").__contains__, "use off, trail or full"
)
_DAYS = _Kind(float, lambda it: 1 <= it <= 36_500, "give a number of days from 1 to 36500")
_YES_NO = _Kind(lambda raw: str(raw).strip().lower(), ("yes", "no").__contains__, "use yes or no")
_RULES = _Kind(
    fits=_is_object, fix='give a JSON object like {"keys": ["patient"], "patterns": {"case": "C-[0-9]{6}"}}'
)
#: Not ours, and not the server's: what a sender may not do there, an agent must not do for it.
_SUBJECTS = _Kind(
    fits=_are_outside,
    fix="give NATS subjects outside of agents. and $, by commas, like shop.answers.>",
)
_PREFIX_OF_SUBJECTS = _Kind(
    fits=lambda it: re.fullmatch(r"[A-Za-z0-9_$-]+(\.[A-Za-z0-9_$-]+)*", it) is not None,
    fix="give tokens of letters, digits, '_', '-' or '$' with dots between them",
)
_NAME = _Kind(
    fits=lambda it: re.fullmatch(r"[A-Za-z0-9_-]{1,64}", it) is not None,
    fix="give a name of letters, digits, '_' or '-'",
)
_COUNT = _Kind(int, lambda it: it >= 1, "give a whole number, 1 or more, like 100000")


@dataclass(frozen=True, slots=True)
class _From:
    """The environment variable that a setting is read from, and how."""

    variable: str
    kind: _Kind = _TEXT


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the servers are and how this process behaves. Immutable and picklable: it travels to the workers.

    Raises:
        ConfigError: a value is out of its range; the message names the field, the hint says what to do.
    """

    home: Annotated[Path, _From("SQUADRON_HOME", _PATH)] = field(default_factory=_default_home)
    """Where the embedded servers keep their data, absolute; by default the user's data directory."""

    env: Annotated[str, _From("SQUADRON_ENV")] = "dev"
    """The environment: second token of every subject, so that dev and prod share a server."""

    nats_url: Annotated[str | None, _From("NATS_URL")] = field(default=None, repr=False)
    """Server URL, or several separated by commas; None starts an embedded nats-server.
    Not in `repr`, because a URL may carry a password."""

    nats_user: Annotated[str, _From("NATS_USER")] = ""
    """A user's name, for a password that is not to stand in the URL."""

    nats_password: Annotated[str, _From("NATS_PASSWORD", _SECRET)] = field(default="", repr=False)
    """The password of `nats_user`, as it is: nothing in it needs to be escaped."""

    nats_user_credentials: Annotated[Path | None, _From("NATS_CREDS", _FILE)] = None
    """A `.creds` file (JWT and seed)."""

    user: Annotated[str, _From("SQUADRON_USER", _NAME)] = "operator"
    """Which user of the home's authority this process is, where `squadron auth init` has made one and
    `nats_user_credentials` is not set."""

    agent_keys: Annotated[Path | None, _From("SQUADRON_AGENT_KEYS", _FILE)] = None
    """What the bridge makes credentials for replicas with (`squadron auth export agent-keys`), on a server of your
    own; without it they get the bridge's."""

    nats_nkey_seed_file: Annotated[Path | None, _From("NATS_NKEY", _FILE)] = None
    """A file with an nkey seed, instead of `.creds`."""

    nats_tls_ca: Annotated[Path | None, _From("NATS_CA", _FILE)] = None
    """The CA that signed the server's certificate (PEM); None trusts the system's."""

    nats_tls_cert: Annotated[Path | None, _From("NATS_CERT", _FILE)] = None
    """Client certificate (PEM) for mutual TLS; needs `nats_tls_key`."""

    nats_tls_key: Annotated[Path | None, _From("NATS_KEY", _FILE)] = None
    """Private key (PEM) of `nats_tls_cert`."""

    nats_api_prefix: Annotated[str, _From("SQUADRON_NATS_API", _PREFIX_OF_SUBJECTS)] = "$JS.API"
    """Where the JetStream API is called; `SQ.API` where the streams are in an account of their own."""

    nats_inbox_prefix: Annotated[str, _From("SQUADRON_NATS_INBOX", _PREFIX_OF_SUBJECTS)] = "_INBOX"
    """Where answers to this process come: a user with permissions hears its own prefix only, `_INBOX_NAME`."""

    ray_address: Annotated[str | None, _From("RAY_ADDRESS")] = None
    """Address of a Ray cluster, as `ray.init` takes it; None starts a local one."""

    model: Annotated[str, _From("SQUADRON_MODEL")] = ""
    """Default LLM of agents that name none, as `provider:name`; empty = none."""

    summary_model: Annotated[str, _From("SQUADRON_SUMMARY_MODEL")] = ""
    """LLM that summarizes what a run has no more room for, as `provider:name`, or `same` as the run; empty = an
    extract, by no LLM."""

    prices: Annotated[str, _From("SQUADRON_PRICES", _PRICES)] = ""
    """Prices of LLMs that are not on the list, or of your own, as JSON: model → US dollars per million tokens
    (`input`, `output`, `cache_read`, `cache_write`), and `window` in tokens."""
    model_limits: Annotated[str, _From("SQUADRON_MODEL_LIMITS", _LIMITS)] = ""
    """What the provider accounts allow, as JSON by model or provider; empty = wait only when told to."""

    heartbeat_s: Annotated[float, _From("SQUADRON_HEARTBEAT_S", _SECONDS)] = 5.0
    """Seconds between two heartbeats of a replica."""

    lease_s: Annotated[float, _From("SQUADRON_LEASE_S", _SECONDS)] = 2.5
    """Seconds a replica owns a delivery before it must extend; a dead replica's work is taken over after
    this long."""

    deaf_after_s: Annotated[float, _From("SQUADRON_DEAF_AFTER_S", _SECONDS)] = 15.0
    """Seconds without an answer from NATS after which a replica counts as unhealthy and is replaced; at least 8,
    since a connection that broke is found and made anew within 7."""

    claim_over_bytes: Annotated[int, _From("SQUADRON_CLAIM_OVER_BYTES", _BYTES)] = OVER_BYTES
    """Bytes above which a payload travels as a claim check through the object store, 16384 or more; lowered at
    connect if the server's `max_payload` asks for it."""

    max_message_bytes: Annotated[int, _From("SQUADRON_MAX_MESSAGE_BYTES", _BYTES)] = MOST_BYTES
    """Bytes of the largest message, claim check or not, 1073741824 at most; more is rejected before anything is
    sent."""

    lite_topics_per_owner: Annotated[int, _From("SQUADRON_LITE_TOPICS_PER_OWNER", _COUNT)] = PER_OWNER
    """Most lite topics with a life that one owner may have; who would make another is refused."""

    lite_topics: Annotated[int, _From("SQUADRON_LITE_TOPICS", _COUNT)] = IN_ALL
    """Most lite topics with a life in the environment."""

    reply_subjects: Annotated[str, _From("SQUADRON_REPLY_SUBJECTS", _SUBJECTS)] = ""
    """Subjects of other systems on which agents may publish answers, by commas and as NATS patterns like `shop.>`;
    reply inboxes (`_INBOX…`) need no such leave."""

    pass_env: Annotated[str, _From("SQUADRON_PASS_ENV")] = ""
    """Variables of the shell that agents on the local cluster get, too: names or patterns like `AWS_*`, by commas.
    Only a start of the cluster looks at it."""

    audit: Annotated[str, _From("SQUADRON_AUDIT", _AUDIT)] = ""
    """What the audit trail records: off, trail (without contents) or full. `squadron up` switches it, also while
    agents run; empty leaves it as it is, which is off in a new environment."""

    audit_keep_days: Annotated[float, _From("SQUADRON_AUDIT_KEEP_DAYS", _DAYS)] = 90.0
    """Days that entries of the audit trail are kept."""

    audit_max_bytes: Annotated[int, _From("SQUADRON_AUDIT_MAX_BYTES", _BYTES)] = -1
    """Bytes that the audit trail may take, after which the oldest entries go; -1 is no limit."""

    audit_chunks: Annotated[str, _From("SQUADRON_AUDIT_CHUNKS", _YES_NO)] = "no"
    """Whether the chunks of streams are in the audit trail: yes or no."""

    audit_strict: Annotated[str, _From("SQUADRON_AUDIT_STRICT", _YES_NO)] = "no"
    """Whether what this process submits is stored for the audit trail, too, before `submit` returns: yes or no.
    With yes nothing can be submitted while nothing is audited."""

    audit_redact: Annotated[str, _From("SQUADRON_AUDIT_REDACT", _RULES)] = ""
    """What is struck out of the audit trail beyond the usual, as JSON: `keys`, regular expressions for names of
    fields, and `patterns`, names and regular expressions for texts."""

    observers: Annotated[str, _From("SQUADRON_OBSERVERS")] = ""
    """Observers of your own, for each process: what makes them, like `my_package.my_module:MyObserver`, by
    commas."""

    metrics: Annotated[str, _From("SQUADRON_METRICS", _ADDRESS)] = "127.0.0.1:0"
    """Where the bridge shows metrics to Prometheus, `host:port`; with port 0 one that is free, see
    `squadron status`. `off` shows none."""

    log_level: Annotated[str, _From("SQUADRON_LOG_LEVEL", _LEVEL)] = "INFO"
    """DEBUG, INFO, WARNING, ERROR or CRITICAL."""

    def __post_init__(self) -> None:
        for name, source in _SOURCES.items():
            if not source.kind.fits(value := getattr(self, name)):
                raise _bad(name, str(value), source.kind.fix)
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
        if self.deaf_after_s < _LEAST_DEAF_S:
            raise _bad("deaf_after_s", str(self.deaf_after_s), f"give at least {_LEAST_DEAF_S:g} seconds")
        if self.claim_over_bytes < _LEAST_BYTES:
            raise _bad("claim_over_bytes", str(self.claim_over_bytes), f"give {_LEAST_BYTES} bytes or more")
        if not (self.claim_over_bytes <= self.max_message_bytes <= _MOST_BYTES):
            fix = f"give a number of bytes from claim_over_bytes ({self.claim_over_bytes}) to {_MOST_BYTES}"
            raise _bad("max_message_bytes", str(self.max_message_bytes), fix)

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
        for name, source in _SOURCES.items():
            given = overrides.get(name)
            raw = env.get(source.variable, "") if given is None else given
            if raw != "":
                try:
                    values[name] = value = source.kind.read(raw)
                except (TypeError, ValueError):
                    raise _bad(name, str(raw), source.kind.fix) from None
                if source.kind is _FILE and not value.is_file():
                    raise _bad(name, str(value), "no such file")
        return cls(**values)

    @property
    def outside(self) -> tuple[str, ...]:
        """The patterns of `reply_subjects`."""
        return tuple(each.strip() for each in self.reply_subjects.split(",") if each.strip())

    def passed_on(self, env: Mapping[str, str] = os.environ, /) -> dict[str, str]:
        """The variables that `pass_env` names, from `env`."""
        patterns = [pattern.strip() for pattern in self.pass_env.split(",")]
        return {name: env[name] for name in env if any(fnmatchcase(name, pattern) for pattern in patterns)}

    def environ(self) -> dict[str, str]:
        """The environment variables that make `load` give these settings in another process."""
        values = dataclasses.asdict(self)
        return {var: str(values[name]) for name, var in VARIABLES.items() if values[name] not in (None, "")}


_SOURCES: Mapping[str, _From] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, include_extras=True).items()
}
#: Field of `Settings` → the environment variable it is read from. Those of NATS and Ray carry the names that
#: their own command lines use (`nats`, `ray`), so that a shell set up for those tools works here unchanged.
VARIABLES: Mapping[str, str] = {name: source.variable for name, source in _SOURCES.items()}


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
