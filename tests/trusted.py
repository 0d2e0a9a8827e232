"""An environment in which everybody is told apart: its keys, credentials and trust document."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from squadron.runtime.trust.jwts import credentials, issue
from squadron.runtime.trust.keys import Key
from squadron.runtime.trust.principals import ROLES, Role, TrustDocument
from squadron.runtime.trust.signer import Signer


class Realm:
    """One account with a signing key for each role."""

    def __init__(self) -> None:
        self.account = Key.create("A")
        self.keys = {role: Key.create("A") for role in ROLES}
        self.revoked: dict[str, float] = {}
        #: JWTs by user, as the registry would have them.
        self.tokens: dict[str, bytes] = {}

    def document(self) -> bytes:
        roles = {role: [key.public] for role, key in self.keys.items()}
        said = {"account": self.account.public, "roles": roles, "revoked": self.revoked}
        return json.dumps(said).encode()

    @property
    def trust(self) -> TrustDocument:
        return TrustDocument.parse(self.document())

    def token(self, name: str, role: Role, user: Key, *, by: Key | None = None, expires_at: float = 0) -> str:
        nats = {"issuer_account": self.account.public}
        issued_at = time.time() - 3600
        return issue(
            "user", user.public, by or self.keys[role], name=name, nats=nats,
            expires_at=expires_at, issued_at=issued_at,
        )  # fmt: skip

    def signer(
        self, name: str, role: Role, now: Callable[[], float] = time.time, *, by: Key | None = None,
        expires_at: float = 0,
    ) -> Signer:  # fmt: skip
        """A signer whose JWT can be looked up."""
        user = Key.create("U")
        token = self.token(name, role, user, by=by, expires_at=expires_at)
        self.tokens[user.public] = token.encode()
        return Signer(token, user, now)

    async def fetch(self, user: str) -> bytes | None:
        return self.tokens.get(user)

    def write(self, folder: Path, name: str, role: Role) -> Path:
        """A `.creds` file."""
        user, path = Key.create("U"), folder / f"{role}-{name}.creds"
        path.write_bytes(credentials(self.token(name, role, user), user))
        return path
