"""The console as one ASGI application: the page, what it is told, and what it may have done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from squadron.client.deploying import Fleet
from squadron.console.board import Board, frame
from squadron.console.deeds import Deeds
from squadron.console.looking_round import Lookout
from squadron.console.session_gate import SessionGate
from squadron.runtime import errors
from squadron.runtime.errors import InvalidInputError, SquadronError
from squadron.runtime.redact import scrub_all
from squadron.runtime.texts import plain
from squadron.runtime.wire.start import Tail

STATIC = Path(__file__).parent / "static"
#: A comment goes to who hears nothing for so long, in seconds: what is between us may cut silent connections.
QUIET_S = 15.0
#: Largest body that is read, in bytes.
MOST_BODY = 8 * 1024 * 1024
#: How many messages of a lite topic are shown from its end, when it is opened.
LITE_TAIL = 200

_STATUS: Mapping[type[SquadronError], int] = {
    errors.UnknownLetterError: 404,
    errors.UnknownQuestionError: 404,
    errors.QuestionClosedError: 409,
    errors.RouteConflictError: 409,
    errors.ForbiddenError: 403,
    errors.UntrustedError: 403,
    errors.ConfigError: 400,
    errors.InvalidInputError: 400,
    errors.InvalidSubjectError: 400,
    errors.CutLetterError: 409,
    errors.BusUnavailableError: 503,
    errors.BridgeUnavailableError: 503,
}

#: Whether the process can work, as name and trouble, empty if there is none.
Ready = Callable[[], Awaitable[Mapping[str, str]]]


class PlainResponse(JSONResponse):
    """JSON that a browser reads: anybody may have sent NaN, or what has no JSON."""

    def render(self, content: Any) -> bytes:
        """Its body."""
        return super().render(plain(content))


class ConsoleApp:
    """What stands behind the routes."""

    def __init__(self, fleet: Fleet, ready: Ready, *, read_only: bool, by: str) -> None:
        self.board = Board()
        self._fleet, self._ready, self._read_only, self._by = fleet, ready, read_only, by
        self.lookout = Lookout(fleet, self.board)
        self._deeds = Deeds(fleet, self.lookout.look, by)
        self._began, self._asked = time.time(), dict[int, int]()
        self.board.put("console", {"read_only": read_only, "began": self._began})

    def routes(self) -> list[Route | Mount]:
        """All paths."""
        gets: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self._page,
            "/login": self._login_page,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/api/whoami": self._whoami,
            "/api/feed": self._feed,
            "/api/state": self._state,
            "/api/topics/{topic}": self._topic,
            "/api/runs/{id}": self._run,
            "/api/letters/{agent}/{token}": self._letter,
            "/api/lite/{owner}/{id}/follow": self._follow,
        }
        does = self._deeds
        posts: dict[str, Callable[..., Awaitable[Any]]] = {
            "/api/agents/{agent}/scale": does.scale,
            "/api/agents/{agent}/drain": does.drain,
            "/api/agents/{agent}/redeploy": does.redeploy,
            "/api/agents/{agent}/canary": does.canary,
            "/api/agents/{agent}/undeploy": does.undeploy,
            "/api/questions/{query}/answer": does.answer,
            "/api/runs/{run}/cancel": does.cancel,
            "/api/letters/redrive": does.redrive,
            "/api/letters/drop": does.drop,
            "/api/lite/{owner}/{id}/publish": does.publish,
            "/api/lite/{owner}/{id}/close": does.close,
            "/api/ask": does.ask,
        }
        return [
            *(Route(path, self._answering(get), methods=["GET"]) for path, get in gets.items()),
            *(Route(path, self._answering(_doing(do)), methods=["POST"]) for path, do in posts.items()),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    def _answering(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Errors as JSON with a status; each answer is counted."""

        async def respond(request: Request) -> Response:
            try:
                response = await answer(request)
            except SquadronError as error:
                status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
                response = PlainResponse({"error": error.to_dict()}, status)
            self._asked[response.status_code] = self._asked.get(response.status_code, 0) + 1
            return response

        return respond

    # --- pages and health ----------------------------------------------------------------------------

    async def _page(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def _login_page(self, _: Request) -> Response:
        return FileResponse(STATIC / "login.html")

    async def _whoami(self, _: Request) -> Response:
        return PlainResponse({"by": self._by, "read_only": self._read_only})

    async def _healthz(self, _: Request) -> Response:
        return PlainResponse({"ok": True})

    async def _readyz(self, _: Request) -> Response:
        troubles = {name: trouble for name, trouble in (await self._ready()).items() if trouble}
        return PlainResponse({"ok": not troubles, "troubles": troubles}, 503 if troubles else 200)

    async def _metrics(self, _: Request) -> Response:
        lines = ["# HELP squadron_console_onlookers Browsers that follow the console now.",
                 "# TYPE squadron_console_onlookers gauge",
                 f"squadron_console_onlookers {self.board.onlookers}",
                 "# HELP squadron_console_requests_total Requests that were answered, by status.",
                 "# TYPE squadron_console_requests_total counter"]  # fmt: skip
        lines += [
            f'squadron_console_requests_total{{status="{code}"}} {n}' for code, n in sorted(self._asked.items())
        ]
        lines += ["# HELP squadron_console_start_time_seconds When it began, in seconds since the epoch.",
                  "# TYPE squadron_console_start_time_seconds gauge",
                  f"squadron_console_start_time_seconds {self._began:.3f}"]  # fmt: skip
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    # --- what is looked at ---------------------------------------------------------------------------

    async def _state(self, _: Request) -> Response:
        """All rows, looked up now if nobody has looked yet."""
        onlooker = self.board.enter()
        try:
            for section in ("agents", "topics", "questions", "runs", "letters", "lite", "nodes"):
                if section not in self.board.rows:
                    await self.lookout.look(section)
        finally:
            self.board.leave(onlooker)
        return PlainResponse(self.board.rows)

    async def _feed(self, _: Request) -> Response:
        async def frames() -> AsyncIterator[bytes]:
            onlooker = self.board.enter()
            try:
                yield b"retry: 1000\n\n"
                while True:
                    try:
                        async with asyncio.timeout(QUIET_S):
                            data = await onlooker.next()
                    except TimeoutError:
                        data = b": still here\n\n"
                    yield data
            finally:
                self.board.leave(onlooker)

        return _events(frames())

    async def _topic(self, request: Request) -> Response:
        name = request.path_params["topic"]
        found = next((each for each in self._fleet.topics() if each.topic.name == name), None)
        if found is None:
            raise errors.ConfigError(f"nobody serves {name!r}", hint="see `squadron topics`")
        return PlainResponse({"agent": found.agent, **found.topic.model_dump(mode="json", exclude={"seal_key"})})

    async def _run(self, request: Request) -> Response:
        view = await self._fleet.runs.show(request.path_params["id"])
        timeline = view.timeline()
        drawn = {"began": timeline.began, "seconds": timeline.seconds, "lanes": timeline.to_dicts()}
        told = scrub_all(plain(view.to_dict()))
        return PlainResponse({"run": told, "timeline": drawn})

    async def _letter(self, request: Request) -> Response:
        letter = await self._fleet.dead_letters.show(
            request.path_params["token"], agent=request.path_params["agent"]
        )
        return PlainResponse(scrub_all(letter.to_dict()))

    async def _follow(self, request: Request) -> Response:
        """A lite topic, from its last messages on, as it grows."""
        topic = self._fleet.lite(request.path_params["id"], request.path_params["owner"])
        reader = topic.read(Tail(LITE_TAIL))

        async def frames() -> AsyncIterator[bytes]:
            async with reader:
                try:
                    async for it in reader:
                        content = it.content if it.message is not None else it.data.decode(errors="replace")
                        source = it.message.source.id if it.message is not None else ""
                        row = {"seq": it.seq, "time": it.time, "from": source, "content": scrub_all(content)}
                        yield frame("message", row | {"missed": it.missed})
                    yield frame("end", {"reason": reader.end.reason if reader.end else ""})
                except SquadronError as error:
                    yield frame("trouble", {"message": str(error)})

        return _events(frames())


def _events(frames: AsyncIterator[bytes]) -> Response:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)


def _doing(do: Callable[..., Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """A deed as a route: the path's names and the body go in, JSON or lines of it come out."""

    async def respond(request: Request) -> Response:
        answer = await do(*request.path_params.values(), await _body(request))
        if isinstance(answer, dict):
            return PlainResponse(answer)
        return StreamingResponse(answer, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    return respond


async def _body(request: Request) -> Mapping[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InvalidInputError("the body is no JSON", field="content-type", hint="application/json")
    data = bytearray()
    with contextlib.suppress(ClientDisconnect):
        async for part in request.stream():
            data += part
            if len(data) > MOST_BODY:
                raise InvalidInputError("the body is too large", field="body", hint=f"at most {MOST_BODY} bytes")
    try:
        body = json.loads(bytes(data) or b"{}")
    except (ValueError, RecursionError):
        raise InvalidInputError("the body is no JSON", field="body") from None
    if not isinstance(body, dict):
        raise InvalidInputError("the body is no object", field="body")
    return body


def console_app(
    fleet: Fleet,
    ready: Ready,
    *,
    tokens: Callable[[], Iterable[str]],
    hosts: Iterable[str],
    read_only: bool,
    by: str,
) -> Starlette:
    """The whole application, behind its gate.

    Args:
        tokens, hosts: see `SessionGate`.
        by: in whose name questions are answered.
    """
    app = ConsoleApp(fleet, ready, read_only=read_only, by=by)

    @contextlib.asynccontextmanager
    async def living(_: Starlette) -> AsyncIterator[None]:
        async with app.lookout.looking():
            yield

    gate = Middleware(SessionGate, tokens=tokens, hosts=tuple(hosts), read_only=read_only)
    return Starlette(routes=app.routes(), middleware=[gate], lifespan=living)
