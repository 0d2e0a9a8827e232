"""What every HTTP request passes before a door sees it: where it comes from, who it is, how large, how often.

A page in a browser can send requests to loopback, with a name of its own that it made resolve there: so `Host` and
`Origin` are checked on each, and nothing that a form could send is taken (CORS' "simple" requests).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from squadron.bridge.gateways.visitors import ANYBODY, TokenVerifier, Visitor
from squadron.runtime.errors import ServerUnavailableError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Names of this machine, as a `Host` header has them.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
JSON_TYPES = ("application/json", "application/a2a+json")
#: A token is known by 2 KB, a browser sends some 4 KB.
MOST_HEADER_BYTES = 16 * 1024
#: A client on a slow line sends 4 MiB in that time, in seconds.
BODY_WITHIN_S = 30.0
#: Requests of one principal: on average in a second, and at once after a pause.
PER_SECOND, AT_ONCE = 200.0, 400.0
#: Requests under way in one process: most are streams that wait.
MOST_UNDER_WAY = 12_000
#: Principals and addresses whose rates are kept in mind.
_RATES_KEPT = 10_000


#: Halves of surrogate pairs as JSON escapes them, after what only looks like one, and whole pairs.
_HALF = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}


class RefusedRequest(Exception):  # noqa: N818 - an answer, not an error of the runtime
    """A request is answered by the guard: status, reason, headers."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


class Rates:
    """A token bucket per name."""

    def __init__(self, per_second: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._at_once, self._clock = per_second, at_once, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, name: str) -> float:
        """Take one from the bucket of `name`: 0, or in how many seconds there will be one."""
        now = self._clock()
        left, at = self._left.pop(name, (self._at_once, now))
        left = min(self._at_once, left + (now - at) * self._per_second)
        taken = left >= 1
        self._left[name] = (left - taken, now)
        while len(self._left) > _RATES_KEPT:
            self._left.popitem(last=False)
        return 0.0 if taken else (1 - left) / self._per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRules:
    """What the guard lets in.

    Attributes:
        hosts: names, with or without a port, that a request may be for beside those of loopback.
        verifier: whose a bearer token is; without one everybody is `ANYBODY`.
        max_bytes: largest body.
        per_second, at_once: requests of one principal, on average and after a pause.
        open_paths: where nobody need say who they are.
        scopes: what a token has to be good for.
        metadata_url: where a client reads how to get a token (RFC 9728); empty if it can't.
    """

    hosts: tuple[str, ...] = ()
    verifier: TokenVerifier | None = None
    max_bytes: int = 4 * 1024 * 1024
    per_second: float = PER_SECOND
    at_once: float = AT_ONCE
    open_paths: tuple[str, ...] = ("/livez", "/readyz", "/.well-known/")
    scopes: tuple[str, ...] = ()
    metadata_url: str = ""


class HttpGuard:
    """The ASGI middleware. Doors find who is there as `scope["state"]["visitor"]`."""

    def __init__(self, app: App, rules: GuardRules) -> None:
        self._app, self._rules = app, rules
        self._rates = Rates(rules.per_second, rules.at_once)
        # Who guesses tokens is slowed down sooner.
        self._failures = Rates(1.0, 20.0)
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no door speaks WebSocket: uvicorn answers 403
        try:
            if self._under_way >= MOST_UNDER_WAY:
                raise RefusedRequest(503, "too many requests are under way", {"Retry-After": "1"})
            headers = _headers_of(scope)
            _check_from(headers, self._rules.hosts)
            scope.setdefault("state", {})["visitor"] = await self._visitor(scope, headers)
            receive = await self._body(scope, headers, receive)
        except RefusedRequest as refused:
            return await _answer(send, refused)
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _visitor(self, scope: Scope, headers: Mapping[str, str]) -> Visitor:
        if scope["path"].startswith(self._rules.open_paths):
            return ANYBODY
        visitor: Visitor | None = ANYBODY
        if self._rules.verifier is not None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            peer = (scope.get("client") or ("",))[0]
            if scheme.lower() != "bearer" or not token.strip():
                raise self._unknown("")
            try:
                visitor = await self._rules.verifier.visitor(token.strip())
            except ServerUnavailableError as error:
                raise RefusedRequest(503, str(error.args[0]), {"Retry-After": "10"}) from None
            if visitor is None:
                if wait_s := self._failures.wait_s(peer):
                    raise _too_often(wait_s)
                raise self._unknown('error="invalid_token"')
            if missing := set(self._rules.scopes) - set(visitor.scopes):
                lacks = f'error="insufficient_scope", scope="{" ".join(self._rules.scopes)}"'
                raise self._unknown(lacks, 403, f"the token is not good for {', '.join(sorted(missing))}")
        assert visitor is not None
        if wait_s := self._rates.wait_s(visitor.principal):
            raise _too_often(wait_s)
        return visitor

    def _unknown(self, error: str, status: int = 401, why: str = "a bearer token is needed") -> RefusedRequest:
        where = f'resource_metadata="{self._rules.metadata_url}"' if self._rules.metadata_url else ""
        said = ", ".join(filter(None, (error, where)))
        return RefusedRequest(status, why, {"WWW-Authenticate": f"Bearer {said}".strip()})

    async def _body(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Read the body, if there may be one; what a door then receives is that, and at last the disconnect."""
        length = headers.get("content-length")
        if length is not None and (not length.isascii() or not length.isdigit()):
            raise RefusedRequest(400, "the Content-Length is no number")
        if int(length or 0) > self._rules.max_bytes:
            raise RefusedRequest(413, f"the body is larger than {self._rules.max_bytes} bytes")
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        unknown = RefusedRequest(415, f"the Content-Type has to be {' or '.join(JSON_TYPES)}")
        if kind and kind not in JSON_TYPES:
            raise unknown
        try:
            async with asyncio.timeout(BODY_WITHIN_S):
                body = await self._read(receive)
        except TimeoutError:
            raise RefusedRequest(408, f"the body did not come within {BODY_WITHIN_S:g} s") from None
        if body and not kind:
            # Of what has no body some clients say nothing.
            raise unknown
        try:
            body.decode()
        except UnicodeDecodeError:
            # SDKs take that for a fault of their own.
            raise RefusedRequest(400, "the body is not UTF-8") from None
        body = _HALF.sub(_whole_pair, body)
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return waiting.pop() if waiting else await receive()

        return replayed

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedRequest(400, "the client left")
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._rules.max_bytes:
                raise RefusedRequest(413, f"the body is larger than {self._rules.max_bytes} bytes")
            if not message.get("more_body", False):
                return b"".join(parts)


def _whole_pair(found: re.Match[bytes]) -> bytes:
    # A half is no text that could be answered with: U+FFFD stands for it, as in all that we write.
    return b"\\ufffd" if len(found[0]) == 6 else found[0]


def _headers_of(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    size = 0
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "authorization", "origin", "content-length", "content-type"):
            # Two that differ would be read differently by whoever comes after us.
            raise RefusedRequest(400, f"there is more than one {key} header")
        found[key] = value.decode("latin-1")
    if size > MOST_HEADER_BYTES:
        raise RefusedRequest(431, f"the headers have more than {MOST_HEADER_BYTES} bytes")
    return found


def _check_from(headers: Mapping[str, str], hosts: Iterable[str]) -> None:
    host, origin = headers.get("host", ""), headers.get("origin")
    names = (*LOOPBACK, *hosts)
    if not _is_of(host, names):
        raise RefusedRequest(421, f"this is not {host[:80]!r}")
    if origin is not None:
        try:
            there = urlsplit(origin)
            fits = there.scheme in ("http", "https") and _is_of(there.netloc, names)
        except ValueError:
            fits = False
        if not fits:
            raise RefusedRequest(403, "no page of another origin may ask here")


def _is_of(host: str, names: Iterable[str]) -> bool:
    name, _, port = host.lower().rpartition(":")
    if not port.isdigit() or not name:
        name = host.lower()
    return any(each in (host.lower(), name) for each in names)


def _too_often(wait_s: float) -> RefusedRequest:
    return RefusedRequest(429, "too many requests", {"Retry-After": str(max(1, round(wait_s + 0.5)))})


async def _answer(send: Send, refused: RefusedRequest) -> None:
    # As Google's APIs tell errors (AIP-193), which A2A goes by.
    status = _STATUSES.get(refused.status, "INVALID_ARGUMENT")
    said = {"code": refused.status, "status": status, "message": refused.reason, "details": []}
    body = json.dumps({"error": said}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
    # What is left of a body that was not read would be taken for the next request.
    headers |= {"Connection": "close"} if refused.status in (408, 413, 415, 431) else {}
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
