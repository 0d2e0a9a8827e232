"""Who vouches for the users of a home: an operator, its accounts, and a signing key for each role.

All of it is in one private file, `auth/authority.json`; beside it stand the credentials that it has made, a folder
for each environment, and what a server is told, `auth/server.conf`. The form is that of two accounts (`roles.py`).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from squadron.bridge.auth.minting import AGENT_KEYS, AgentKeys, user_token
from squadron.bridge.auth.roles import ROLES, Role, check_peer, template
from squadron.bridge.auth.server_conf import AGENTS, STREAMS, claims
from squadron.bridge.daemons import locked, private_dir, write_private
from squadron.bridge.jetstream.link.at_home import TRUST, authority_of, credentials_of
from squadron.runtime.errors import ConfigError
from squadron.runtime.trust.jwts import credentials, issue
from squadron.runtime.trust.keys import Key, kind_of
from squadron.runtime.trust.principals import LIKE_A_PROCESS
from squadron.runtime.wire.subjects import Subjects, check_pattern, check_token

#: Agents with `ordered_by` may more, so another key vouches for them.
ORDERED = "ordered"
#: Users that each environment has from the start: who runs it, who looks after it, and who asks.
FIRST_USERS: tuple[tuple[Role, str], ...] = (("bridge", "bridge"), ("operator", "operator"), ("client", "client"))
#: How long another change may take, in seconds: it writes a few files.
_LOCK_WITHIN_S = 10.0
_UNLIMITED = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1}
_STORE = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who was let in; `expires_at` is in seconds since the epoch, 0 is never."""

    role: Role
    user: str
    issued_at: int
    expires_at: int = 0
    groups: tuple[str, ...] = ()
    serves: tuple[str, ...] = ("*.*",)
    peers: tuple[str, ...] = ()


@dataclass(slots=True)
class _Environment:
    #: Role, or `ORDERED` → seeds of the keys that vouch for it, the newest last.
    keys: dict[str, list[str]]
    users: dict[str, User] = field(default_factory=dict)


class Authority:
    """The authority of one home. `open` one to change it, `load` one to look."""

    def __init__(self, home: Path, kept: Mapping[str, Any]) -> None:
        self._home, self._base = home, authority_of(home)
        self._operator, self._system = Key(kept["operator"].encode()), Key(kept["system"].encode())
        self._streams, self._agents = Key(kept["streams"].encode()), Key(kept["agents"].encode())
        self._made_at, self._revoked = int(kept["made_at"]), dict[str, int](kept["revoked"])
        #: Credentials of bridges that there ever were: those are of the account of the streams.
        self._keepers: list[str] = list(kept["keepers"])
        self._environments = {
            name: _Environment(
                each["keys"],
                {who: _user(user) for who, user in each["users"].items()},
            )
            for name, each in kept["environments"].items()
        }

    # --- a home's ------------------------------------------------------------------------------------

    @classmethod
    def create(cls, home: Path, environment: str) -> Self:
        """Make the authority of a home, with the first users of an environment.

        What the home's server has stored so far becomes that of the account of the streams; it must not run.

        Raises:
            ConfigError: there is one already, or the home can't be written.
        """
        base = private_dir(authority_of(home))
        with locked(base / "lock", within_s=_LOCK_WITHIN_S):
            if (base / "authority.json").exists():
                raise ConfigError(f"{base} has an authority already", hint="see it with `squadron auth list`")
            kinds = {"operator": "O", "system": "A", "streams": "A", "agents": "A"}
            seeds = {name: Key.create(kind).seed.decode() for name, kind in kinds.items()}  # type: ignore[arg-type]
            made = cls(home, {**seeds, "made_at": time.time(), "revoked": {}, "keepers": [], "environments": {}})
            made.admit(environment)
            store = home / "nats" / "store" / "jetstream"
            with contextlib.suppress(FileNotFoundError):
                # Where the server keeps what belongs to nobody's account.
                (store / "$G").rename(store / made._streams.public)
            made._save()
        return made

    @classmethod
    def load(cls, home: Path) -> Self:
        """Read the authority of a home.

        Raises:
            ConfigError: it has none, or it can't be read.
        """
        path = authority_of(home) / "authority.json"
        try:
            return cls(home, json.loads(path.read_text()))
        except FileNotFoundError:
            hint = "make one with `squadron auth init`"
            raise ConfigError(f"{home} has no authority", hint=hint) from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} can't be read: {type(error).__name__}", hint="take it from a backup"
            ) from None

    @classmethod
    @contextlib.contextmanager
    def open(cls, home: Path) -> Iterator[Self]:
        """Change the authority of a home: written at the end, by one process at a time.

        Raises:
            ConfigError: it has none, or it can't be read or written.
        """
        cls.load(home)
        with locked(authority_of(home) / "lock", within_s=_LOCK_WITHIN_S):
            authority = cls.load(home)
            yield authority
            authority._save()

    def _save(self) -> None:
        kept = {
            **{
                name: getattr(self, f"_{name}").seed.decode()
                for name in ("operator", "system", "streams", "agents")
            },
            "made_at": self._made_at,
            "revoked": self._revoked,
            "keepers": self._keepers,
            "environments": {
                name: {"keys": each.keys, "users": {who: asdict(user) for who, user in each.users.items()}}
                for name, each in self._environments.items()
            },
        }
        # First what holds the keys: what follows from it can be made anew.
        write_private(self._base / "authority.json", json.dumps(kept, indent=1))
        write_private(self._base / "server.conf", self.server_conf())
        for name in self._environments:
            folder = private_dir(self._base / name)
            write_private(folder / TRUST, json.dumps(self.trust(name), indent=1))
            write_private(folder / AGENT_KEYS, self.agent_keys(name).to_json())

    # --- who is let in -------------------------------------------------------------------------------

    def admit(self, environment: str) -> bool:
        """Have keys and first users for an environment; whether it is new."""
        if environment in self._environments:
            return False
        Subjects(environment)
        keys = {role: [Key.create("A").seed.decode()] for role in (*ROLES, ORDERED)}
        self._environments[environment] = _Environment(keys)
        for role, name in FIRST_USERS:
            self.add(environment, role, name)
        return True

    def add(
        self,
        environment: str,
        role: str,
        name: str,
        *,
        groups: Sequence[str] = (),
        serves: Sequence[str] = (),
        peers: Sequence[str] = (),
        for_s: float = 0.0,
    ) -> tuple[User, Path]:
        """Let somebody in: who it is, and where its credentials are.

        Args:
            groups: of durable events that it is a member of.
            serves: the topics of an agent, or patterns of such; by default any.
            peers: of other protocols, see `roles.check_peer`.
            for_s: how long, in seconds; 0 is without an end.

        Raises:
            ConfigError: there is no such role or environment, the name is taken, or it is no agent that serves.
            InvalidSubjectError: the name is no token, or what is served is no topic.
        """
        of = self._of(environment)
        known = _role(role)
        check_token(name, "name")
        if LIKE_A_PROCESS.fullmatch(name):
            raise ConfigError(f"{name!r} looks like a process of somebody", hint="not so: name-0a1b2c3d")
        if name in of.users:
            taken = f"{name!r} is there already, as {of.users[name].role}"
            raise ConfigError(taken, hint=f"take another name, or `squadron auth revoke {name}` first")
        now = int(time.time())
        if serves and known != "agent":
            raise ConfigError(f"a {known} serves no topics", hint="an agent does")
        topics = tuple(check_pattern(each) for each in serves or ("*.*",))
        spoken = tuple(check_peer(each) for each in peers)
        if spoken and known not in ("agent", "gateway", "foreign"):
            raise ConfigError(f"a {known} has no peers", hint="an agent, a gateway or a foreign program does")
        if known != "foreign" and any(each.startswith("prompts:") for each in spoken):
            raise ConfigError(f"a {known} prompts nobody by that", hint="an agent: --peer synadia:AGENT.OWNER")
        user = User(known, "", now, int(now + for_s) if for_s else 0, tuple(groups), topics, spoken)
        return self._issue(environment, name, user)

    def _issue(self, environment: str, name: str, like: User) -> tuple[User, Path]:
        """Credentials with a new key, for one who is the same otherwise."""
        key, of, role = Key.create("U"), self._of(environment), like.role
        signing = Key(of.keys[role][-1].encode())
        account = self._streams if role == "bridge" else self._agents
        token = user_token(
            key.public,
            name,
            signing,
            account.public,
            scoped=role != "bridge",
            groups=like.groups,
            serves=like.serves if role == "agent" else (),
            peers=like.peers,
            expires_at=like.expires_at,
        )
        if role == "bridge":
            self._keepers.append(key.public)
        path = credentials_of(self._home, environment, name)
        private_dir(path.parent)
        write_private(path, credentials(token, key).decode())
        of.users[name] = user = replace(like, user=key.public)
        return user, path

    def users(self, environment: str) -> Mapping[str, User]:
        """Who was let in, by name."""
        return dict(self._of(environment).users)

    @property
    def environments(self) -> tuple[str, ...]:
        """Those that have keys."""
        return tuple(self._environments)

    @property
    def is_current(self) -> bool:
        """Whether a server is told what this release has to tell: rights change with it."""
        try:
            return (self._base / "server.conf").read_text() == self.server_conf()
        except OSError:
            return False

    def revoke(self, environment: str, name: str) -> str:
        """Let somebody in no more, by name or by the public key of a credential; returns the key.

        Raises:
            ConfigError: nobody is called so.
        """
        of = self._of(environment)
        if kind_of(name) == "U":
            user = name
            names = [each for each, known in of.users.items() if known.user == user]
        elif name in of.users:
            user, names = of.users[name].user, [name]
        else:
            raise ConfigError(f"nobody is called {name!r}", hint=f"there are {', '.join(of.users)}")
        self._revoked[user] = int(time.time())
        for each in names:
            del of.users[each]
            credentials_of(self._home, environment, each).unlink(missing_ok=True)
        return user

    def rotate(self, environment: str, role: str, *, drop_old: bool = False) -> list[str]:
        """Have a new key vouch for a role, and for its users anew; returns whose credentials are new.

        The old keys vouch for what they have signed until they are dropped: give the new credentials to whoever
        has a copy of the old, and drop the old keys then.

        Args:
            drop_old: instead, have none but the newest key vouch from now on.

        Raises:
            ConfigError: there is no such role.
        """
        of, known = self._of(environment), _role(role)
        kinds = (known, ORDERED) if known == "agent" else (known,)
        if drop_old:
            for kind in kinds:
                del of.keys[kind][:-1]
            return []
        for kind in kinds:
            of.keys[kind].append(Key.create("A").seed.decode())
        renewed = [name for name, user in of.users.items() if user.role == known]
        for name in renewed:
            self._issue(environment, name, replace(of.users[name], issued_at=int(time.time())))
        return renewed

    # --- what others are told ------------------------------------------------------------------------

    def trust(self, environment: str) -> dict[str, Any]:
        """The trust document: public, and enough to check who signed something."""
        keys = self._of(environment).keys
        public = {kind: [Key(seed.encode()).public for seed in seeds] for kind, seeds in keys.items()}
        roles = {role: public[role] + (public[ORDERED] if role == "agent" else []) for role in ROLES}
        accounts = {"account": self._agents.public, "streams": self._streams.public}
        # A program of theirs can't tell its JWT to those who read what it signs. What ends is not said here.
        foreign = {
            each.user: {"name": name, "role": each.role}
            for name, each in self._of(environment).users.items()
            if each.role == "foreign" and not each.expires_at
        }
        return {**accounts, "roles": roles, "users": foreign, "revoked": dict(self._revoked)}

    def agent_keys(self, environment: str) -> AgentKeys:
        """What the bridge makes users for replicas with."""
        keys = self._of(environment).keys
        return AgentKeys(self._agents.public, keys["agent"][-1], keys[ORDERED][-1])

    def tokens(self) -> dict[str, str]:
        """The JWTs of the operator and of each account, by name."""
        exports, imports = claims(self._streams.public)
        keepers = [
            Key(seed.encode()).public for each in self._environments.values() for seed in each.keys["bridge"]
        ]
        streams = {"limits": _UNLIMITED | _STORE, "signing_keys": keepers, **exports}
        agents = {"limits": _UNLIMITED, "signing_keys": list(self._scopes()), **imports}
        # Each in its own: an account that changed has its imports made anew by a server that runs, and what was
        # asked over them is not answered any more, pulls of replicas above all.
        for account, of_keepers in ((streams, True), (agents, False)):
            if revoked := {
                user: at for user, at in self._revoked.items() if (user in self._keepers) is of_keepers
            }:
                account["revocations"] = revoked
        operator = issue(
            "operator",
            self._operator.public,
            self._operator,
            name="squadron",
            nats={"system_account": self._system.public},
            # Always the same: a server that runs takes no other.
            issued_at=self._made_at,
        )
        made = {"operator": operator}
        says: dict[str, dict[str, Any]] = {"SYS": {}, STREAMS: streams, AGENTS: agents}
        for name, key in self._accounts.items():
            made[name] = issue(
                "account", key.public, self._operator, name=name, nats=says[name], issued_at=self._made_at
            )
        return made

    def _scopes(self) -> Iterator[dict[str, Any]]:
        for environment, each in self._environments.items():
            for kind, seeds in each.keys.items():
                if kind == "bridge":
                    continue
                role: Any = "agent" if kind == ORDERED else kind
                lists = template(role, environment, ordered=kind == ORDERED)
                for seed in seeds:
                    public = Key(seed.encode()).public
                    yield {"kind": "user_scope", "key": public, "role": f"{environment}-{kind}", "template": lists}

    def server_conf(self) -> str:
        """What a nats-server needs to know: put it beside `jetstream { … }`, and nothing else that names users."""
        tokens = self.tokens()
        preload = {key.public: tokens[name] for name, key in self._accounts.items()}
        return (
            f'operator: "{tokens["operator"]}"\n'
            f'system_account: "{self._system.public}"\n'
            "resolver: MEMORY\n"
            f"resolver_preload: {json.dumps(preload, indent=1)}\n"
        )

    @property
    def _accounts(self) -> dict[str, Key]:
        return {"SYS": self._system, STREAMS: self._streams, AGENTS: self._agents}

    def _of(self, environment: str) -> _Environment:
        try:
            return self._environments[environment]
        except KeyError:
            known = ", ".join(self._environments)
            raise ConfigError(
                f"the authority knows no environment {environment!r}",
                hint=f"it knows {known}; `squadron up` lets in another",
            ) from None


def _user(kept: Mapping[str, Any]) -> User:
    fields: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in kept.items()}
    return User(**fields)


def _role(role: str) -> Role:
    for each in ROLES:
        if each == role:
            return each
    raise ConfigError(f"{role!r} is no role", hint=f"one of {', '.join(ROLES)}")
