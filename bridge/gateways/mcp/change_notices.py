"""Who is told that the lists of tools, resources and prompts have changed, or a lite topic has news."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress

import mcp_types as types
from mcp.server.connection import Connection
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.mcp.mcp_resources import LITE
from squadron.bridge.gateways.mcp.tool_calls import Context
from squadron.bridge.gateways.mcp.tool_list import ToolList
from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError

#: How often the list of what is served is looked at, in seconds: agents come and go in steps of some seconds.
LOOK_S = 0.5


class ChangeNotices:
    """Tells streams of `subscriptions/listen` (2026-07-28), and the sessions of those with a handshake.

    Each process of a gateway sees the changes itself, and tells those who listen there.
    """

    def __init__(self, front: Front, tools: ToolList) -> None:
        self._front, self._tools = front, tools
        self.bus = InMemorySubscriptionBus()
        self._sessions: weakref.WeakKeyDictionary[Connection, set[str]] = weakref.WeakKeyDictionary()
        self._working: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look."""
        self._working.append(spawn(self._look(), "changes of tools", lasting=True))
        for owner in self._front.lite:
            self._working.append(spawn(self._follow(owner), f"lite topics of {owner}", lasting=True))

    async def aclose(self) -> None:
        """Stop looking. May be called twice."""
        for each in self._working:
            each.cancel()

    async def initialized(self, ctx: Context, _: types.NotificationParams | None) -> None:
        """A session of a client with a handshake has begun."""
        # The session's own notices go over its connection; a context has no public way to it.
        self._sessions[ctx.session._connection] = set()

    async def subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """A session wants to hear of one resource."""
        self._sessions.setdefault(ctx.session._connection, set()).add(str(params.uri))
        return types.EmptyResult()

    async def unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        """A session does not want to hear of it any more."""
        self._sessions.get(ctx.session._connection, set()).discard(str(params.uri))
        return types.EmptyResult()

    async def _look(self) -> None:
        known = self._tools.signature()
        while True:
            await asyncio.sleep(LOOK_S)
            if (now := self._tools.signature()) != known:
                known = now
                for event in (ToolsListChanged(), ResourcesListChanged(), PromptsListChanged()):
                    await self._tell(event)

    async def _follow(self, owner: str) -> None:
        while True:
            with suppress(BusUnavailableError):
                async with self._front.place.caller.lite_topics.follow(owner) as feed:
                    feed.add_all("new")
                    async for id, _ in feed:
                        await self._tell(ResourceUpdated(uri=f"{LITE}{owner}/{id}"))
            await asyncio.sleep(LOOK_S)

    async def _tell(self, event: ServerEvent) -> None:
        await self.bus.publish(event)
        for connection, uris in list(self._sessions.items()):
            # Whoever left hears nothing, and hinders nobody.
            with suppress(Exception):
                match event:
                    case ToolsListChanged():
                        await connection.send_tool_list_changed()
                    case ResourcesListChanged():
                        await connection.send_resource_list_changed()
                    case PromptsListChanged():
                        await connection.send_prompt_list_changed()
                    case ResourceUpdated() if event.uri in uris:
                        await connection.send_resource_updated(event.uri)
