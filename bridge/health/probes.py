"""Whether a process lives and can work: for `squadron health`, and as `/healthz` and `/readyz` at a port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from squadron.bridge.jetstream.link.connect import Connection
from squadron.runtime.errors import SquadronError
from squadron.runtime.wire.subjects import Subjects

#: How late an event loop may be, and how long NATS and the bridge may take to answer, in seconds.
LAG_MOST_S, ANSWER_WITHIN_S = 1.0, 1.0
#: How long the loop is watched, in seconds.
_WATCHED_S = 0.01


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing looked at: whether it is well, how long it took in seconds, and what is not well."""

    ok: bool
    seconds: float
    trouble: str = ""


async def loop_lag() -> Probe:
    """Whether this event loop comes round in time; `seconds` is how late it was."""
    loop = asyncio.get_running_loop()
    due = loop.time() + _WATCHED_S
    await asyncio.sleep(_WATCHED_S)
    lag_s = max(0.0, loop.time() - due)
    return Probe(lag_s < LAG_MOST_S, lag_s, "" if lag_s < LAG_MOST_S else "the event loop is blocked")


async def nats_answers(connection: Connection, *, within_s: float = ANSWER_WITHIN_S) -> Probe:
    """Whether the server answers a ping, on this connection."""
    if not connection.is_connected:
        return Probe(False, 0.0, "the connection to NATS is lost")
    return await _timed(connection.flush, within_s, "NATS does not answer")


async def bridge_answers(
    connection: Connection, subjects: Subjects, *, within_s: float = ANSWER_WITHIN_S
) -> Probe:
    """Whether the environment's bridge answers, over NATS."""

    async def ask() -> None:
        await connection.request(subjects.control("ping"), b"", within_s=within_s)

    return await _timed(ask, within_s, "the bridge does not answer")


async def _timed(ask: Callable[[], Awaitable[None]], within_s: float, trouble: str) -> Probe:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(within_s):
            await ask()
    except (TimeoutError, OSError, SquadronError):
        return Probe(False, loop.time() - began, trouble)
    return Probe(True, loop.time() - began)


class Probes:
    """The two questions that whoever runs processes asks of them, as functions, and as an ASGI application.

    Mounted at a port, `GET /healthz` says whether the process should be replaced, `GET /readyz` whether it should
    be sent work: 200 or 503, and which probe failed, as JSON. It tells nothing secret, and asks for no token.
    """

    def __init__(self, connection: Connection, subjects: Subjects, *, within_s: float = ANSWER_WITHIN_S) -> None:
        self._connection, self._subjects, self._within_s = connection, subjects, within_s

    async def alive(self) -> dict[str, Probe]:
        """Liveness: does the event loop come round?"""
        return {"loop": await loop_lag()}

    async def ready(self) -> dict[str, Probe]:
        """Readiness: do NATS and the bridge answer?"""
        connection, within_s = self._connection, self._within_s
        heard = nats_answers(connection, within_s=within_s)
        answered = bridge_answers(connection, self._subjects, within_s=within_s)
        return dict(zip(("nats", "bridge"), await asyncio.gather(heard, answered), strict=True))

    async def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body for a path, for servers that don't speak ASGI."""
        questions = {"/healthz": self.alive, "/readyz": self.ready}
        asked = next((ask for end, ask in questions.items() if path.rstrip("/").endswith(end)), None)
        if asked is None:
            return 404, {"paths": list(questions)}
        probes = await asked()
        ok = all(each.ok for each in probes.values())
        return 200 if ok else 503, {"ok": ok, **{name: asdict(each) for name, each in probes.items()}}

    async def __call__(
        self, scope: dict[str, Any], _: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return
        status, body = await self.answer(scope["path"])
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        data = b"" if scope["method"] == "HEAD" else json.dumps(body).encode()
        await send({"type": "http.response.body", "body": data})

    def over_wsgi(self, loop: asyncio.AbstractEventLoop) -> Callable[[dict[str, Any], Any], list[bytes]]:
        """The same as a WSGI application, for a port that threads serve; `loop` is that of the connection.

        From there a loop that is blocked for good is told, too.
        """

        def respond(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            asked = asyncio.run_coroutine_threadsafe(self.answer(environ.get("PATH_INFO", "")), loop)
            try:
                status, body = asked.result(LAG_MOST_S + self._within_s)
            except TimeoutError:
                asked.cancel()
                blocked = Probe(False, LAG_MOST_S + self._within_s, "the event loop is blocked")
                status, body = 503, {"ok": False, "loop": asdict(blocked)}
            headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
            start_response(f"{status} {HTTPStatus(status).phrase}", headers)
            return [json.dumps(body).encode()]

        return respond
