"""Who comes through a door: a bearer token stands for one principal, which policies then know."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.secret import HINT, Secret
from squadron.runtime.trust.principals import Principal
from squadron.runtime.wire.behalf import DELEGATES, name_of
from squadron.runtime.wire.policy import PRINCIPAL

#: Shortest token, in characters: 128 bits as base64.
LEAST_TOKEN = 22


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever is behind a request.

    Attributes:
        principal: as policies name it, `client:ann`.
        scopes: what its token is good for, where the token says so.
    """

    principal: str
    scopes: tuple[str, ...] = ()


#: Where nothing tells visitors apart, all of them are this one: on loopback, and on the standard streams.
ANYBODY = Visitor("client:local")


class TokenVerifier(Protocol):
    """Says whose a bearer token is."""

    async def visitor(self, token: str) -> Visitor | None:
        """Whoever holds this token; None if nobody does."""
        ...


class Visitors:
    """The bearer tokens of a gateway, looked up at each request where they are kept: a new one counts at once."""

    def __init__(self, tokens: Iterable[tuple[Visitor, Secret]] = ()) -> None:
        self._tokens = list(tokens)

    @classmethod
    def of(cls, given: Iterable[str]) -> Self:
        """Read `NAME=PLACE`, as in `ann=env:ANN_TOKEN` or `ann=file:/run/secrets/ann`.

        Raises:
            ConfigError: a name or a place is wrong, a token is short, or two are the same.
        """
        found: list[tuple[Visitor, Secret]] = []
        for each in given:
            name, equals, place = each.partition("=")
            principal = name if ":" in name else f"client:{name}"
            secret = Secret(place)
            if not equals or PRINCIPAL.fullmatch(principal) is None:
                # What stands behind `=` may be a secret.
                hint = "for example --token ann=env:ANN_TOKEN, or ann=file:/run/secrets/ann"
                raise ConfigError(f"{name[:64]!r} is no NAME=PLACE of a token", hint=hint)
            if not secret.place:
                raise ConfigError(f"the token of {name} was given as it is, where others can read it", hint=HINT)
            if len(secret.value()) < LEAST_TOKEN:
                hint = "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
                raise ConfigError(f"the token of {name} has fewer than {LEAST_TOKEN} characters", hint=hint)
            found.append((Visitor(principal), secret))
        values = [secret.value() for _, secret in found]
        if len(set(values)) < len(values):
            raise ConfigError("two visitors have the same token", hint="give each a token of their own")
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    async def visitor(self, token: str) -> Visitor | None:
        """Whoever holds this token; None if nobody does."""
        given, found = _digest(token), None
        for visitor, secret in self._tokens:
            try:
                kept = secret.value()
            except ConfigError:
                continue  # that of one who was taken out
            # All of them, and whole, so that time tells nothing.
            if hmac.compare_digest(given, _digest(kept)):
                found = visitor
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def behalf_of(visitor: Visitor, me: Principal | None) -> str:
    """What to give as `on_behalf_of` for a visitor, by a gateway that signs as `me`, if it does."""
    return "" if me is not None and me.role not in DELEGATES else visitor.principal


def check_delegate(me: Principal | None, *, tokens: bool) -> None:
    """Refuse to tell visitors apart where their names could not be passed on.

    Raises:
        UntrustedError: this process signs as somebody who may ask for nobody but itself.
    """
    if tokens and me is not None and me.role not in DELEGATES:
        raise UntrustedError(
            f"{name_of(me)} may act on behalf of nobody, so that policies could not tell visitors apart",
            hint="run it as a gateway: squadron auth add gateway web, then SQUADRON_USER=web",
        )
