"""A receiver of news, as a client of A2A would run it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Webhook:
    """What came, in order; `answers` are the statuses that are given first.

    Attributes:
        states: of the tasks, as the news tell them.
    """

    url: str = ""
    came: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    location: str = ""

    @property
    def states(self) -> list[str]:
        bodies = [body for _, body in self.came]
        return [each["statusUpdate"]["status"]["state"] for each in bodies if "statusUpdate" in each]

    async def hear(self, request: Request) -> Response:
        status = self.answers.pop(0) if self.answers else 200
        if status < 300:
            self.came.append((dict(request.headers), json.loads(await request.body())))
        return Response(status_code=status, headers={"location": self.location} if self.location else {})


@contextlib.asynccontextmanager
async def webhook() -> AsyncIterator[Webhook]:
    """A receiver on loopback."""
    hook = Webhook()
    app = Starlette(routes=[Route("/{path:path}", hook.hear, methods=["POST", "GET"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    hook.url = f"http://127.0.0.1:{port}/news"
    try:
        yield hook
    finally:
        server.should_exit = True
        await serving
