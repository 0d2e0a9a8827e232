"""Access tokens of an OAuth 2.1 authorization server: a gateway is the resource that they are for.

A token is a JWT (RFC 9068), signed by a key of the server's. It counts if it is of the issuer, for this gateway
(`aud`, RFC 8707), and in its time; and it is never passed on.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.errors import InvalidInputError, ServerUnavailableError
from squadron.runtime.logs import get_logger
from squadron.runtime.wire.subjects import token_of

if TYPE_CHECKING:
    import jwt

#: Signatures that are taken; those by a shared secret would make of the public key a secret that all know.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
#: What a token may say that it is, in its header: not an ID token's or a logout's.
_TYPES = ("", "jwt", "at+jwt", "application/at+jwt")
#: How far the clocks of both servers may be apart, in seconds.
LEEWAY_S = 30.0
#: Keys are read anew after so many seconds; for one that is not known, or after a failure, no more often than the
#: second of these.
KEYS_LIFE_S, AGAIN_S = 600.0, 10.0
#: How long the authorization server may take to tell its keys, in seconds, and how much it may say, in bytes.
FETCH_WITHIN_S, _MOST_BYTES = 5.0, 1024 * 1024
#: Where a client reads of which authorization server tokens are (RFC 9728); behind it comes the path it asked.
PROTECTED = "/.well-known/oauth-protected-resource"
#: Where its metadata is (RFC 8414, and OpenID Connect's own way): before the path of the issuer, or after it.
_METADATA = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")

_log = get_logger("squadron.gateway")


def _checked_url(url: str) -> str:
    there = urlsplit(url)
    if there.scheme not in ("http", "https") or not there.hostname or there.fragment or "@" in there.netloc:
        raise ValueError("is no URL of a server")
    if there.scheme == "http" and not _is_loopback(there.hostname):
        raise ValueError("is not https, so that anybody on the way could give other keys")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


Url = Annotated[str, AfterValidator(_checked_url)]


class OAuthRules(BaseModel):
    """Whose tokens count.

    Attributes:
        issuer: the authorization server, as tokens name it in `iss`.
        audience: this gateway, as tokens name it in `aud`: the URL of what clients connect to.
        jwks_url: where its keys are; by default where its metadata says.
        scopes: what a token has to be good for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: Url
    audience: Url
    jwks_url: Annotated[str, AfterValidator(lambda url: _checked_url(url) if url else url)] = ""
    scopes: tuple[Annotated[str, Field(pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+$")], ...] = ()

    @property
    def origin(self) -> str:
        """Of this gateway: what is not the path of its audience."""
        there = urlsplit(self.audience)
        return f"{there.scheme}://{there.netloc}"

    @property
    def metadata_url(self) -> str:
        """Where a client without a token is sent."""
        return f"{self.origin}{PROTECTED}{urlsplit(self.audience).path.rstrip('/')}"

    @classmethod
    def of(cls, *, issuer: str, audience: str, jwks_url: str = "", scopes: Sequence[str] = ()) -> OAuthRules:
        """Read them.

        Raises:
            InvalidInputError: one is wrong; `field` says which.
        """
        try:
            return cls(issuer=issuer, audience=audience, jwks_url=jwks_url, scopes=tuple(scopes))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][0])
            said = f"{field} {str(first['input'])[:200]!r}: {first['msg'].removeprefix('Value error, ')}"
            raise InvalidInputError(said, field=field, hint="see docs/mcp.md#oauth") from None

    def metadata(self, resource: str) -> dict[str, Any]:
        """What a client reads to learn how to get a token (RFC 9728)."""
        said = {
            "resource": resource,
            "authorization_servers": [self.issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": "Squadron",
        }
        return said | ({"scopes_supported": list(self.scopes)} if self.scopes else {})


class OAuthTokens:
    """The tokens of one authorization server, checked here: it is asked for its keys alone."""

    def __init__(self, rules: OAuthRules) -> None:
        self._rules = rules
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at, self._tried_at = float("-inf"), float("-inf")
        self._reading = asyncio.Lock()

    async def visitor(self, token: str) -> Visitor | None:
        """Whoever this token was given to, as `client:SUBJECT`; None if it does not count.

        Raises:
            ServerUnavailableError: the keys of the authorization server are not to be had.
        """
        import jwt

        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return None
        kind = str(header.get("typ") or "").lower()
        if header.get("alg") not in ALGORITHMS or kind not in _TYPES:
            return None
        key = await self._key(str(header.get("kid") or ""))
        if key is None:
            return None
        try:
            claims = jwt.decode(
                token,
                key,
                # Its own, where it says: a key is not for whatever a token claims.
                algorithms=[key.algorithm_name] if key.algorithm_name in ALGORITHMS else [],
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            _log.info("gateway.token_refused", why=type(error).__name__)
            return None
        scopes = claims.get("scope", "")
        has = tuple(scopes.split()) if isinstance(scopes, str) else ()
        return Visitor(f"client:{token_of(claims['sub'])}", has)

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        now = time.monotonic()
        if now - self._read_at > KEYS_LIFE_S or kid not in self._keys:
            async with self._reading:
                # Whoever waited for another one's look has what that found.
                if now >= self._read_at and time.monotonic() - self._tried_at > AGAIN_S:
                    await self._read()
        if not self._keys:
            raise ServerUnavailableError(
                f"the keys of {self._rules.issuer} are not to be had", hint="is it there?"
            )
        return self._keys.get(kid)

    async def _read(self) -> None:
        self._tried_at = time.monotonic()
        try:
            self._keys = await asyncio.to_thread(keys_of, self._rules)
            self._read_at = time.monotonic()
        except ServerUnavailableError as error:
            # Those that are known count on: a server that is away for a moment has not taken them back.
            _log.warning("gateway.no_keys", issuer=self._rules.issuer, error=str(error))


def keys_of(rules: OAuthRules) -> dict[str, jwt.PyJWK]:
    """The keys of an authorization server, by their ids. It blocks.

    Raises:
        ServerUnavailableError: they can't be had, or are none.
    """
    import jwt

    url = rules.jwks_url or _jwks_url(rules.issuer)
    try:
        keys = jwt.PyJWKSet.from_dict(_fetched(url)).keys
    except (jwt.PyJWTError, ValueError, TypeError, LookupError) as error:
        raise ServerUnavailableError(f"{url} tells no keys: {type(error).__name__}") from None
    return {str(each.key_id or ""): each for each in keys if each.public_key_use in (None, "sig")}


def _jwks_url(issuer: str) -> str:
    there, failed = urlsplit(issuer), ""
    root, path = f"{there.scheme}://{there.netloc}", there.path.rstrip("/")
    places = [f"{root}{_METADATA[0]}{path}", f"{root}{_METADATA[1]}{path}", f"{root}{path}{_METADATA[1]}"]
    for place in dict.fromkeys(places):
        try:
            said = _fetched(place)
        except ServerUnavailableError as error:
            failed = str(error)
            continue
        # Who could give the metadata of another issuer could give its keys, too (RFC 8414, 3.3).
        if said.get("issuer") == issuer and isinstance(said.get("jwks_uri"), str):
            try:
                return _checked_url(said["jwks_uri"])
            except ValueError as error:
                failed = f"jwks_uri of {place} {error}"
        else:
            failed = f"{place} is not the metadata of {issuer}"
    raise ServerUnavailableError(failed)


class _NotFollowed(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _fetched(url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(_NotFollowed)
    try:
        asked = urllib.request.Request(url, headers={"Accept": "application/json"})
        with opener.open(asked, timeout=FETCH_WITHIN_S) as got:
            raw = got.read(_MOST_BYTES + 1)
        said = json.loads(raw) if len(raw) <= _MOST_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ServerUnavailableError(f"{url} can't be read: {type(error).__name__}") from None
    if not isinstance(said, dict):
        raise ServerUnavailableError(f"{url} is no JSON object")
    return said
