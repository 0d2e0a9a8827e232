"""A small OAuth 2.1 authorization server, as tests need one: codes with PKCE, JWTs, keys that change."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route


class AuthorizationServer:
    """One issuer. Everybody who comes to `/authorize` is `subject`, and consents."""

    def __init__(self, issuer: str, subject: str = "ann") -> None:
        self.issuer, self.subject = issuer, subject
        self.scopes = "tools"
        #: Requests for keys.
        self.asked = 0
        self._clients: dict[str, dict[str, Any]] = {}
        self._codes: dict[str, dict[str, str]] = {}
        #: Secrets of programs by their ids, and how many tokens they were given.
        self.programs: dict[str, str] = {}
        self.given = 0
        #: People by the refresh tokens that their sign-ins came to.
        self.signed_in: dict[str, str] = {}
        self.rotate()

    def rotate(self) -> None:
        """Sign with another key from now on; the one before is forgotten."""
        self.kid, self._key = secrets.token_hex(4), ec.generate_private_key(ec.SECP256R1())

    def token(self, audience: str | list[str], *, key: Any = None, typ: str = "at+jwt", **claims: Any) -> str:
        """An access token, with other claims, or by another key; a claim that is None is left out."""
        now = int(time.time())
        said = {"iss": self.issuer, "sub": self.subject, "aud": audience, "exp": now + 300, "iat": now}
        said |= {"scope": self.scopes, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key or self._key, "ES256", headers={"kid": self.kid, "typ": typ})

    def app(self) -> Starlette:
        """It as an application."""
        return Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server", self._metadata),
                Route("/keys", self._keys),
                Route("/register", self._register, methods=["POST"]),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
            ]
        )

    async def _metadata(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "registration_endpoint": f"{self.issuer}/register",
                "jwks_uri": f"{self.issuer}/keys",
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
            }
        )

    async def _keys(self, _: Request) -> Response:
        self.asked += 1
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        return JSONResponse({"keys": [{**public, "kid": self.kid, "use": "sig", "alg": "ES256"}]})

    async def _register(self, request: Request) -> Response:
        given = await request.json()
        client = {**given, "client_id": secrets.token_hex(8), "token_endpoint_auth_method": "none"}
        self._clients[client["client_id"]] = client
        return JSONResponse(client, 201)

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        assert asked["redirect_uri"] in self._clients[asked["client_id"]]["redirect_uris"]
        code = secrets.token_hex(8)
        self._codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}")

    async def _token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        if form["grant_type"] in ("client_credentials", "refresh_token"):
            return self._to_program(request, form)
        asked = self._codes.pop(form["code"])
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        token = self.token(asked["resource"], client_id=asked["client_id"])
        return JSONResponse(
            {"access_token": token, "token_type": "Bearer", "expires_in": 300, "scope": self.scopes}
        )

    def _to_program(self, request: Request, form: dict[str, str]) -> Response:
        shown = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        id, _, secret = map(unquote, shown.partition(":"))
        if not secret or self.programs.get(id) != secret:
            return JSONResponse({"error": "invalid_client"}, 401)
        whose = id
        if (
            form["grant_type"] == "refresh_token"
            and (whose := self.signed_in.get(form["refresh_token"], "")) == ""
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        self.given += 1
        token = self.token(form["resource"], sub=whose, client_id=id)
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": 300})
