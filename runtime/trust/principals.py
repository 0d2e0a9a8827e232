"""Who may be told apart: principals, their roles, and the document that says whose word counts for a role."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.trust.jwts import read
from squadron.runtime.trust.keys import kind_of

Role = Literal["bridge", "agent", "client", "operator", "observer", "gateway", "foreign"]
ROLES: tuple[Role, ...] = get_args(Role)

#: How far the clocks of who issues and who checks may differ, in seconds.
CLOCKS_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: How the id of a process of a principal ends, behind its name.
_PROCESS = r"-[0-9a-f]{8,32}"
LIKE_A_PROCESS = re.compile(rf".+{_PROCESS}")
_END = re.compile(_PROCESS)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who may be told apart by a credential.

    Attributes:
        name, role: what it is called, and what it may.
        user: public key of the credential.
        issued_at, expires_at: of the credential, in seconds since the epoch; 0 is always.
        tags: what the credential says that it may besides.
    """

    name: str
    role: Role
    user: str
    issued_at: float = 0.0
    expires_at: float = 0.0
    tags: tuple[str, ...] = ()

    def covers(self, id: str) -> bool:
        """Whether a process of this principal may call itself so: `analyst`, or `analyst-0a1b2c3d`."""
        return id == self.name or (id.startswith(self.name) and _END.fullmatch(id, len(self.name)) is not None)

    def check_time(self, at: float, revoked: Mapping[str, float]) -> None:
        """Check that the credential was good at this time.

        Raises:
            UntrustedError: not yet, not any more, or it was revoked.
        """
        if at < self.issued_at - CLOCKS_S:
            raise UntrustedError(f"the credential of {self.name} was issued later")
        if 0 < self.expires_at <= at:
            raise UntrustedError(f"the credential of {self.name} had expired")
        for which in (self.user, "*") if revoked else ():
            since = revoked.get(which)
            # As nats-server has it: those that were issued by then, be it all of them.
            if since is not None and at >= since and self.issued_at <= since:
                raise UntrustedError(f"the credential of {self.name} was revoked")


@dataclass(frozen=True, slots=True)
class TrustDocument:
    """Whose word counts; comes from a file, never over the bus.

    Attributes:
        account: whose users are trusted.
        streams: the account of the bridge, where the streams are in one of their own.
        roles: public key of an account's signing key → the role of whoever it vouches for.
        users: credentials without a JWT, by public key.
        revoked: public key of a user, or "*" → since when, in seconds since the epoch.
    """

    account: str
    roles: Mapping[str, Role]
    users: Mapping[str, Principal] = field(default_factory=dict)
    revoked: Mapping[str, float] = field(default_factory=dict)
    streams: str = ""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a document from a file.

        Raises:
            ConfigError: it can't be read, or is no trust document; names the field.
        """
        try:
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"the trust document can't be read: {error}", hint="see SQUADRON_TRUST") from None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a document.

        Raises:
            ConfigError: it is none; names the field.
        """
        try:
            raw = json.loads(data)
            account, given = raw["account"], raw["roles"]
            streams = raw.get("streams", "")
            _check_key(account, "A", "account")
            if streams:
                _check_key(streams, "A", "streams")
            roles: dict[str, Role] = {}
            for role, keys in given.items():
                for key in keys:
                    _check_key(key, "A", f"roles.{role}")
                    if roles.setdefault(key, _role(role)) != role:
                        raise ConfigError(f"trust document: {key} stands for two roles")
            users = {user: _static(user, said) for user, said in raw.get("users", {}).items()}
            revoked = {str(user): float(since) for user, since in raw.get("revoked", {}).items()}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"that is no trust document: {type(error).__name__}: {error}",
                hint='it is JSON: {"account": "A…", "roles": {"agent": ["A…"], …}, "revoked": {}}',
            ) from None
        return cls(account, roles, users, revoked, streams)

    def account_of(self, role: Role) -> str:
        """The account that users of a role are in."""
        return self.streams if role == "bridge" and self.streams else self.account

    def principal(self, token: str) -> Principal:
        """Who a user's JWT speaks of, if a key vouches for it that is pinned here.

        Raises:
            UntrustedError: none does, or it is no user's.
        """
        said = read(token)
        if said.kind != "user" or kind_of(said.subject) != "U":
            raise UntrustedError(f"the JWT of {said.name[:64]!r} is not a user's")
        role = self.roles.get(said.issuer)
        if role is None or said.account != self.account_of(role):
            raise UntrustedError(f"nobody who is trusted vouches for {said.name[:64]!r}")
        return Principal(_name(said.name), role, said.subject, said.issued_at, said.expires_at, said.tags)


def _name(name: str) -> str:
    if _NAME.fullmatch(name) is None or LIKE_A_PROCESS.fullmatch(name):
        raise UntrustedError(f"{name[:64]!r} names no principal", hint="not like a process: name-0a1b2c3d")
    return name


def _role(role: Any) -> Role:
    if role not in ROLES:
        raise ConfigError(f"trust document: {role!r} is no role", hint=f"one of {', '.join(ROLES)}")
    found: Role = role
    return found


def _check_key(key: Any, kind: str, where: str) -> None:
    if not isinstance(key, str) or kind_of(key) != kind:
        raise ConfigError(f"trust document: {where}: {str(key)[:60]!r} is no public key of this kind")


def _static(user: str, said: Mapping[str, Any]) -> Principal:
    _check_key(user, "U", "users")
    try:
        return Principal(_name(str(said["name"])), _role(said["role"]), user)
    except UntrustedError as error:
        raise ConfigError(f"trust document: users: {error}") from None
