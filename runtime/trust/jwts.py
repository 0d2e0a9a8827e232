"""JWTs as nats-server reads them: who an operator, an account or a user is, signed by whoever vouches for it.

The format is that of github.com/nats-io/jwt (v2): header `{"typ":"JWT","alg":"ed25519-nkey"}`, base64url without
padding, the id a digest of the other claims.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any, Literal

from squadron.runtime.errors import UntrustedError
from squadron.runtime.trust.keys import Key, is_signed_by

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
#: Longest token that is looked at, in characters: an account with hundreds of permissions has some 20,000.
_MOST = 256 * 1024

ClaimKind = Literal["operator", "account", "user"]


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says, once its signature was found to be right; whether its `issuer` may say so is another
    question.

    Attributes:
        subject: public key of whom it is about.
        issuer: public key of who signed it.
        issued_at, expires_at: in seconds since the epoch; it never expires if `expires_at` is 0.
        nats: what else it says.
    """

    subject: str
    issuer: str
    name: str
    issued_at: int
    expires_at: int
    nats: dict[str, Any]

    @property
    def kind(self) -> str:
        """`operator`, `account` or `user`."""
        return str(self.nats.get("type", ""))

    @property
    def account(self) -> str:
        """The account that a user is of."""
        return str(self.nats.get("issuer_account") or self.issuer)

    @property
    def tags(self) -> tuple[str, ...]:
        """Words that the issuer gave it."""
        tags = self.nats.get("tags")
        return tuple(map(str, tags)) if isinstance(tags, list) else ()

    def expired(self, at: float) -> bool:
        """Whether it is over at this time, in seconds since the epoch."""
        return 0 < self.expires_at <= at


def issue(
    kind: ClaimKind,
    subject: str,
    issuer: Key,
    *,
    name: str,
    nats: dict[str, Any],
    expires_at: float = 0,
    issued_at: float | None = None,
) -> str:
    """A token about `subject`, signed by `issuer`.

    Args:
        subject: a public key.
        nats: what the kind asks for, as permissions, limits, tags; its `type` and `version` are put in here.
        expires_at: in seconds since the epoch; 0 is never.
        issued_at: now, by default.
    """
    claims: dict[str, Any] = {
        "iat": int(time.time() if issued_at is None else issued_at),
        "iss": issuer.public,
        "sub": subject,
        "name": name,
        "nats": {**nats, "type": kind, "version": 2},
    }
    if expires_at:
        claims["exp"] = int(expires_at)
    digest = hashlib.new("sha512_256", _json(claims)).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    signed = f"{_text(_json(_HEADER))}.{_text(_json(claims))}"
    return f"{signed}.{_text(issuer.sign(signed.encode()))}"


def read(token: str) -> Token:
    """What a token says.

    Raises:
        UntrustedError: it is no token, or not as its issuer signed it.
    """
    try:
        if len(token) > _MOST:
            raise ValueError("too long")
        signed, _, signature = token.strip().rpartition(".")
        header, claims = (json.loads(_bytes(part)) for part in signed.split("."))
        if header != _HEADER:
            raise ValueError(f"its header is {str(header)[:80]}")
        expires_at, nats = claims.get("exp", 0), claims["nats"]
        if not isinstance(nats, dict):
            raise TypeError("nats is no object")
        _about, _made_at = str(claims["sub"]), int(claims["iat"])
        made = Token(
            str(claims["sub"]),
            str(claims["iss"]),
            str(claims.get("name", "")),
            int(claims["iat"]),
            int(expires_at),
            nats,
        )
        right = is_signed_by(made.issuer, signed.encode(), _bytes(signature))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UntrustedError(f"that is no JWT: {str(error)[:200]}") from None
    if not right:
        raise UntrustedError(f"the JWT of {made.name[:64]!r} is not as {made.issuer[:60]} signed it")
    return made


def credentials(token: str, key: Key) -> bytes:
    """A `.creds` file, as nats-server's tools write it: who somebody is, and the seed that proves it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed.decode()}\n------END USER NKEY SEED------\n"
    ).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
