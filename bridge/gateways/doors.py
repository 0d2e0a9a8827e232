"""Which doors there are, and what each is given. A door's room is loaded when it is opened, with what it needs."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from squadron.bridge.gateways.door_secret import DoorSecret
from squadron.bridge.gateways.http_guard import GuardRules, HttpGuard
from squadron.bridge.gateways.oauth_tokens import PROTECTED, OAuthRules
from squadron.bridge.gateways.open_questions import OpenQuestions
from squadron.bridge.place import Place
from squadron.runtime.errors import ConfigError
from squadron.runtime.wire.subjects import matches

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

#: How long a task may take that comes through a door, in seconds, where its protocol names no time: below the
#: 600 s after which callers of the Synadia Agent Protocol give up.
WITHIN_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What a door is given.

    Attributes:
        topics: patterns of those that are served; empty for all.
        agents: names of the agents whose topics are served; empty for all.
        lite: owners whose lite topics all visitors may read.
        push_to: hosts that news of tasks may be sent to though they are not public.
        url: under which visitors reach the gateway, without a slash at its end; empty if that is where it listens.
        leaving: set when the gateway ends: that a client is cut off then is no wish of the client's.
        rules: what the guard in front of the door lets in.
        stateless: whether the next request of a client may come to another process.
        oauth: whose access tokens count, if they are of an authorization server.
    """

    place: Place
    secret: DoorSecret
    questions: OpenQuestions
    topics: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    lite: tuple[str, ...] = ()
    push_to: tuple[str, ...] = ()
    url: str = ""
    within_s: float = WITHIN_S
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    rules: GuardRules = field(default_factory=GuardRules)
    oauth: OAuthRules | None = None
    stateless: bool = False

    def serves(self, topic: str, agent: str) -> bool:
        """Whether this topic of this agent is served."""
        if self.agents and agent not in self.agents:
            return False
        return not self.topics or any(matches(pattern, topic) for pattern in self.topics)


class Door(Protocol):
    """One protocol's way in."""

    def routes(self) -> Sequence[Any]:
        """Its routes on the HTTP server of the gateway, as of Starlette; none if it needs no HTTP."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Serve as long as this is entered."""
        ...


class StdioDoor(Door, Protocol):
    """A door that speaks on the standard streams, too."""

    async def serve_stdio(self) -> None:
        """Serve one client on the standard streams, until it leaves."""
        ...


#: By the name of its option: the module, which has `open_door(front)`, and the extra with what it needs.
DOORS = {
    "mcp": "squadron.bridge.gateways.mcp.mcp_door",
    "a2a": "squadron.bridge.gateways.a2a.a2a_door",
    "synadia": "squadron.bridge.gateways.synadia.synadia_door",
}


#: Opens a door, given what all are.
OpenDoor = Callable[[Front], Awaitable["Door"]]


def load_door(name: str) -> OpenDoor:
    """What opens a door.

    Raises:
        ConfigError: what it needs is not installed, or there is no such door.
    """
    try:
        opener: OpenDoor = importlib.import_module(DOORS[name]).open_door
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "squadron":
            raise ConfigError(f"this version has no door for {name}") from None
        raise ConfigError(
            f"--{name} needs {missing}, which is not installed", hint=f"pip install 'squadron-ray[{name}]'"
        ) from None
    return opener


def gateway_app(doors: Sequence[Door], front: Front, ready: Callable[[], bool]) -> HttpGuard:
    """All doors as one guarded ASGI application, with `/livez` and `/readyz`.

    Args:
        ready: whether requests can be served now.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> Response:
        return JSONResponse({"status": "ready" if ready() else "not ready"}, 200 if ready() else 503)

    async def protected(request: Request) -> Response:
        assert front.oauth is not None
        # A client believes it of the resource that it asked alone (RFC 9728, 3.3).
        resource = front.oauth.origin + request.path_params["resource"].rstrip("/")
        return JSONResponse(front.oauth.metadata(resource))

    routes = [
        Route("/livez", livez),
        Route("/readyz", readyz),
        *([Route(PROTECTED + "{resource:path}", protected)] if front.oauth is not None else []),
        *(route for door in doors for route in door.routes()),
    ]
    app: Starlette = Starlette(routes=routes)
    return HttpGuard(app, front.rules)
