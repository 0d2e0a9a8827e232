"""The A2A server of a gateway: a card and two bindings for each agent, below `/a2a/AGENT`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
from a2a.server.context import ServerCallContext
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.routes.rest_routes import create_rest_routes
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from squadron.bridge.gateways.a2a.a2a_card import ROOT, a2a_card, served
from squadron.bridge.gateways.a2a.a2a_handler import A2aHandler
from squadron.bridge.gateways.a2a.card_signer import CardSigner
from squadron.bridge.gateways.doors import Front

CARD = "/.well-known/agent-card.json"
#: How long a card may be kept, in seconds.
CARD_S = 60
#: The keys that cards are signed by, for who wants to keep them.
KEYS = "/.well-known/jwks.json"


async def open_door(front: Front) -> A2aDoor:
    """The door, as the gateway opens it."""
    return A2aDoor(front)


class A2aDoor:
    """Agents as A2A agents, their topics as skills."""

    def __init__(self, front: Front) -> None:
        self._front, self._handler = front, A2aHandler(front)
        self._signer = CardSigner(front.secret)

    def routes(self) -> Sequence[Any]:
        """Cards, JSON-RPC and HTTP+JSON."""
        handler, contexts = self._handler, _Contexts()
        agent = f"{ROOT}/{{agent}}"
        return [
            Route(ROOT, self._agents),
            Route(CARD, self._only_card),
            Route(KEYS, self._keys),
            Route(f"{agent}{CARD}", self._card),
            *create_jsonrpc_routes(handler, agent, context_builder=contexts),
            # Clients that go by a base URL end it so.
            *create_jsonrpc_routes(handler, f"{agent}/", context_builder=contexts),
            *create_rest_routes(handler, context_builder=contexts, path_prefix=f"{agent}/v1"),
        ]

    def running(self) -> AbstractAsyncContextManager[None]:
        """Serve as long as this is entered, and send news of tasks."""
        return self._handler.sending()

    def _url(self, request: Request) -> str:
        # By the name that it was called by, which the guard knows.
        return self._front.url or str(request.base_url).rstrip("/")

    async def _agents(self, request: Request) -> Response:
        url = f"{self._url(request)}{ROOT}"
        return JSONResponse({"agents": [{"name": each, "url": f"{url}/{each}"} for each in served(self._front)]})

    async def _keys(self, _: Request) -> Response:
        return JSONResponse(self._signer.jwks)

    async def _card(self, request: Request) -> Response:
        return self._told(request.path_params["agent"], request)

    async def _only_card(self, request: Request) -> Response:
        agents = list(served(self._front))
        if len(agents) != 1 or self._front.rules.verifier is not None:
            # Anybody may ask here, and what agents there are is for those who may come.
            return JSONResponse({"error": f"each agent has a card of its own, see {ROOT}"}, 404)
        return self._told(agents[0], request)

    def _told(self, agent: str, request: Request) -> Response:
        skills = served(self._front).get(agent)
        if not skills:
            return JSONResponse({"error": f"there is no agent {agent[:64]!r}"}, 404)
        card = self._signer.signed(a2a_card(self._front, agent, skills, self._url(request)))
        told = JSONResponse(card)
        etag = f'"{hashlib.sha256(bytes(told.body)).hexdigest()[:32]}"'
        headers = {"Cache-Control": f"max-age={CARD_S}", "ETag": etag}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        told.headers.update(headers)
        return told


class _Contexts(ServerCallContextBuilder):
    """Who calls, and which agent."""

    def build(self, request: Request) -> ServerCallContext:
        """What the handler is told beside the request."""
        # The SDK reads the version of the protocol from the headers.
        state = {"headers": dict(request.headers), "visitor": request.scope["state"]["visitor"]}
        return ServerCallContext(
            state=state | {"agent": request.path_params["agent"]},
            requested_extensions=get_requested_extensions(request.headers.getlist(HTTP_EXTENSION_HEADER)),
        )
