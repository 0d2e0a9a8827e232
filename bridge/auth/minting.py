"""Users by JWT: made by the authority for whoever it lets in, and by the bridge for each replica."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.trust.jwts import issue
from squadron.runtime.trust.keys import Key, kind_of
from squadron.runtime.wire.subjects import check_token

#: Name of the file that the bridge makes users with, in the folder of its environment.
AGENT_KEYS = "agent-keys.json"
#: How long a replica's credential is good, in seconds: who steals one has no more than that.
LIFE_S = 3600.0
#: Characters that the topics in a JWT may have: it goes in one line of at most 4,096 bytes (`max_control_line`).
MAX_SERVED = 1_000


def user_token(
    user: str,
    name: str,
    signing: Key,
    account: str,
    *,
    scoped: bool = True,
    groups: Sequence[str] = (),
    serves: Sequence[str] = (),
    peers: Sequence[str] = (),
    expires_at: float = 0,
) -> str:
    """The JWT of a user.

    Args:
        user: its public key.
        signing: vouches for it; its scope says what the user may, if `scoped`, else the user may all.
        account: public key of the account that it is of.
        groups: of durable events that it is a member of, an agent's as `AGENT.METHOD`.
        serves: the topics of an agent, or patterns of such; too many of them are told as all there are.
        peers: of other protocols, see `roles.rights`.
    """
    # A token of the subject of its consumer, which has no dot.
    tags = [f"group:{group.replace('.', '=')}" for group in groups]
    served = [f"serves:{topic}" for topic in serves]
    tags += served if sum(map(len, served)) <= MAX_SERVED else ["serves:*.*"]
    tags += peers
    if any(each.startswith("synadia:") for each in peers):
        # What all of that protocol are an instance of; see `roles.SERVICE`.
        tags.append("service:agents")
    if any(each.startswith("prompts:") for each in peers):
        tags.append("finds:agents")
    whole: dict[str, Any] = {} if scoped else {"subs": -1, "data": -1, "payload": -1}
    nats = {"issuer_account": account, **whole, **({"tags": tags} if tags else {})}
    return issue("user", user, signing, name=name, nats=nats, expires_at=expires_at)


@dataclass(frozen=True, slots=True)
class AgentKeys:
    """What the bridge makes users for replicas with, and for nobody else.

    Attributes:
        account: public key of the account that they are of.
        agent, ordered: seeds of the keys that vouch for an agent, and for one with `ordered_by`.
        life_s: how long a credential is good, in seconds.
    """

    account: str
    agent: str = field(repr=False)
    ordered: str = field(repr=False)
    life_s: float = LIFE_S

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read them from a file, as `to_json` gives them.

        Raises:
            ConfigError: it can't be read, or holds something else.
        """
        try:
            keys = cls(**json.loads(path.read_text()))
            Key(keys.agent.encode()), Key(keys.ordered.encode())
        except (OSError, ValueError, TypeError, AttributeError):
            hint = "make it with `squadron auth export agent-keys`"
            raise ConfigError(f"{path} holds no keys for agents", hint=hint) from None
        return keys

    def to_json(self) -> str:
        """For a private file."""
        return json.dumps(asdict(self), indent=1)

    def mint(
        self,
        user: str,
        agent: str,
        *,
        ordered: bool,
        serves: Sequence[str] = (),
        peers: Sequence[str] = (),
        groups: Sequence[str] = (),
    ) -> str:
        """The JWT of a replica, good from now on for `life_s` seconds.

        Args:
            user: public key that the replica has made; nobody else has its seed.
            serves, peers: topics of the agent, and whom of another protocol it stands for.
            groups: of durable events; only the agent's own.

        Raises:
            UntrustedError: that is no user's key, or a group of somebody else.
            InvalidSubjectError: an agent can't be called so.
        """
        check_token(agent, "agent")
        if kind_of(user) != "U":
            raise UntrustedError(f"{user[:60]!r} is no public key of a user")
        for group in groups:
            of, _, method = group.partition(".")
            if of != agent:
                raise UntrustedError(f"{agent} is no member of {group[:80]!r}")
            check_token(method, "group")
        signing = Key((self.ordered if ordered else self.agent).encode())
        expires_at = time.time() + self.life_s
        limits: dict[str, Any] = {"serves": serves, "peers": peers, "expires_at": expires_at}
        return user_token(user, agent, signing, self.account, groups=groups, **limits)
