"""The MCP server of a gateway: both wires at `/mcp`, and on the standard streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

import mcp_types as types
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import ListenHandler
from mcp.server.transport_security import TransportSecuritySettings
from starlette.routing import Route

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.http_guard import Receive, Scope, Send
from squadron.bridge.gateways.kept_tasks import KeptTasks
from squadron.bridge.gateways.mcp.change_notices import ChangeNotices
from squadron.bridge.gateways.mcp.mcp_prompts import McpPrompts, no_completions
from squadron.bridge.gateways.mcp.mcp_resources import McpResources
from squadron.bridge.gateways.mcp.mcp_tasks import (
    EXTENSION,
    McpTasks,
    TaskCreated,
    TaskParams,
    TaskUpdateParams,
    knows_tasks,
)
from squadron.bridge.gateways.mcp.tool_calls import Context, ToolCalls, visitor_of
from squadron.bridge.gateways.mcp.tool_list import ToolList
from squadron.bridge.gateways.visitors import ANYBODY

PATH = "/mcp"
#: Sessions of clients with a handshake in one process, and how long one may be idle, in seconds: nothing else ends
#: those whose clients just leave.
MOST_SESSIONS, SESSION_IDLE_S = 10_000, 1800.0
#: Streams of `subscriptions/listen` in one process.
MOST_LISTENERS = 1024
INSTRUCTIONS = (
    "Each tool is a topic that an agent serves. A call is stored before it is answered, and is not lost when an "
    "agent or this server dies; one that takes long is best made as a task."
)


async def open_door(front: Front) -> McpDoor:
    """The door, as the gateway opens it."""
    return McpDoor(front)


async def _set_level(ctx: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
    """A session gets what agents log, whatever the level: they log little."""
    return types.EmptyResult()


class McpDoor:
    """Topics as tools, documents as resources, goals as prompts, and durable tasks as tasks."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._tools = ToolList(front)
        kept = KeptTasks(front.place, front.secret, "mcp")
        self._calls = ToolCalls(front, self._tools, kept)
        self._tasks = McpTasks(front, self._calls, kept)
        self._notices = ChangeNotices(front, self._tools)
        self.server = self._made()
        self._manager = StreamableHTTPSessionManager(
            app=self.server,
            # The guard before it has checked hosts and origins, and the size of the body.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            max_request_body_size=front.rules.max_bytes,
            stateless=front.stateless,
            session_idle_timeout=None if front.stateless else SESSION_IDLE_S,
            max_sessions=MOST_SESSIONS,
        )

    def _made(self) -> Server[Any]:
        resources, prompts = McpResources(self._front, self._tools), McpPrompts(self._front, self._tools)
        server: Server[Any] = Server(
            "squadron",
            version=version("squadron-ray"),
            title="Squadron",
            instructions=INSTRUCTIONS,
            get_tool_input_schema=self._input_schema,
            on_list_tools=self._list_tools,
            on_list_resources=resources.listed,
            on_list_resource_templates=resources.templates,
            on_read_resource=resources.read,
            on_subscribe_resource=self._notices.subscribe,
            on_unsubscribe_resource=self._notices.unsubscribe,
            on_list_prompts=prompts.listed,
            on_get_prompt=prompts.get,
            on_completion=no_completions,
            on_subscriptions_listen=ListenHandler(self._notices.bus, max_subscriptions=MOST_LISTENERS),
        )
        server.add_notification_handler(
            "notifications/initialized", types.NotificationParams, self._notices.initialized
        )
        # Its results may be of the extension.
        server.add_request_handler("tools/call", types.CallToolRequestParams, self._call_tool)
        server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, _set_level)
        server.extensions[EXTENSION] = {}
        server.add_request_handler("tasks/get", TaskParams, self._tasks.get)
        server.add_request_handler("tasks/update", TaskUpdateParams, self._tasks.update)
        server.add_request_handler("tasks/cancel", TaskParams, self._tasks.cancel)
        security = RequestStateSecurity(
            keys=[self._front.secret.key("state of mcp requests")],
            ttl=self._front.within_s,
            bind_principal=lambda ctx: visitor_of(ctx).principal,
        )
        server.middleware.append(RequestStateBoundary(security, default_audience="squadron"))
        return server

    def _input_schema(self, name: str) -> Mapping[str, Any] | None:
        # Of any visitor: it only tells which arguments may stand in headers.
        topic = self._tools.find(name, ANYBODY)
        return None if topic is None else topic.input_schema

    async def _list_tools(self, ctx: Context, _: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=self._tools.tools(visitor_of(ctx), ctx.protocol_version))

    async def _call_tool(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult | TaskCreated:
        if knows_tasks(ctx) and params.request_state is None:
            return await self._tasks.create(ctx, params)
        return await self._calls.call(ctx, params)

    def routes(self) -> Sequence[Any]:
        """`/mcp`, for both wires."""

        class McpEndpoint:
            # An ASGI application of its own: Starlette would wrap a function.
            async def __call__(_, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: N805
                # The SDK lets a session be used only by who began it, if it knows who that is.
                principal = scope["state"]["visitor"].principal
                scope["user"] = AuthenticatedUser(AccessToken(token="-", client_id=principal, scopes=[]))
                await self._manager.handle_request(scope, receive, send)

        return [Route(PATH, McpEndpoint())]

    def running(self) -> AbstractAsyncContextManager[None]:
        """Serve as long as this is entered."""
        return self._running()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        self._notices.start()
        try:
            async with self._manager.run():
                yield
        finally:
            await self._notices.aclose()

    async def serve_stdio(self) -> None:
        """Serve one client on the standard streams, until it leaves."""
        changed = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
        async with stdio_server() as (read, write):
            await self.server.run(read, write, self.server.create_initialization_options(changed))
