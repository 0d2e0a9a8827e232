"""Who may come in: a token or a session, from the page itself, at a name that is ours."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: The cookie of a session, and the one by which Ray's dashboard knows who logged in there: cookies know no ports.
COOKIE, RAY_COOKIE = "squadron-console", "ray-authentication-token"
#: A header that no form and no foreign page can send without being asked first (CORS).
WRITE_HEADER = "x-squadron-console"
#: Sessions that are known; of more the oldest has to log in again.
MOST_SESSIONS = 1000
#: What anybody may see: the page without its data, and whether the process lives.
OPEN_PATHS = ("/healthz", "/readyz", "/login", "/static/")
#: Scripts, styles and calls of our own, and nothing else; nobody may frame the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SessionGate:
    """In front of the console: refuses what is not of a person who may, and marks all answers.

    Args:
        tokens: any of which lets in, read anew at each request: they are rotated.
        hosts: names and addresses, with port, under which the console is reached.
        read_only: whether nothing may be changed.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Callable[[], Iterable[str]], hosts: Iterable[str], read_only: bool
    ) -> None:
        self._app, self._tokens, self._read_only = app, tokens, read_only
        self._hosts = {each.lower() for each in hosts}
        self._sessions: dict[str, None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope, receive)
        refusal = self._refusal(request)
        if refusal is None and request.url.path == "/login":
            refusal = await self._login(request)
        await (refusal or self._app)(scope, receive, marked)

    def _refusal(self, request: Request) -> Response | None:
        headers, path = request.headers, request.url.path
        if headers.get("host", "").lower() not in self._hosts:
            return _refuse(
                421, "this is not the console's name", "open the address that `squadron console` printed"
            )
        if request.method not in ("GET", "HEAD"):
            if not _is_own(headers):
                return _refuse(403, "only the console's own page may change anything")
            if self._read_only and path != "/login":
                return _refuse(403, "this console is read-only", "start one without --read-only")
        if path.startswith(OPEN_PATHS) or self._is_in(headers):
            return None
        if path == "/":
            return RedirectResponse("/login", 303)
        return _refuse(401, "nobody is logged in", "log in at /login, or send `Authorization: Bearer TOKEN`")

    def _is_in(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._is_token(token.strip())
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        if COOKIE in cookies and cookies[COOKIE].value in self._sessions:
            return True
        return RAY_COOKIE in cookies and self._is_token(cookies[RAY_COOKIE].value)

    def _is_token(self, given: str) -> bool:
        # All of them: which one it was is not to be told from the time that it takes.
        return any([hmac.compare_digest(given.encode(), each.encode()) for each in self._tokens() if each])  # noqa: C419

    async def _login(self, request: Request) -> Response | None:
        """By the link, or by the form; without a token the page with the form."""
        token = request.query_params.get("token", "")
        if request.method == "POST":
            body = await request.body()
            token = body.decode(errors="replace").strip()[:1000]
        elif not token:
            return None
        if not self._is_token(token):
            return (
                _refuse(401, "that is not the token")
                if request.method == "POST"
                else RedirectResponse("/login", 303)
            )
        session = secrets.token_urlsafe(32)
        self._sessions[session] = None
        while len(self._sessions) > MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        response: Response = RedirectResponse("/", 303) if request.method == "GET" else JSONResponse({"ok": True})
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, session, httponly=True, samesite="strict", path="/", secure=secure)
        return response


def _is_own(headers: Headers) -> bool:
    """Whether a write comes from our page, or from a program that knows what it does."""
    origin = headers.get("origin")
    return (
        headers.get("sec-fetch-site", "same-origin") == "same-origin"
        and (origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower())
        and headers.get(WRITE_HEADER, "") != ""
    )


def _refuse(status: int, message: str, hint: str = "") -> Response:
    return JSONResponse({"error": {"type": "Refused", "message": message, "hint": hint}}, status)
