"""MCP over NATS: the wire of 2026-07-28 unchanged, as requests on `agents.{env}.mcp.{server_id}`.

A request's body is one JSON-RPC request. What it is answered with comes to its reply subject: notifications, and
at last the response, which has its id. Who gives up says so by `notifications/cancelled` on
`agents.{env}.mcp.{server_id}.cancel`, with the reply subject of the request that it means: ids are each client's
own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel.server import Server
from mcp.server.runner import serve_dual_era_loop
from mcp.shared.inbound import InboundLadderRejection, classify_inbound_request
from mcp.shared.message import SessionMessage
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from squadron.runtime.background import spawn
from squadron.runtime.errors import ConfigError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.retries import summary_of
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.replies import principal_of
from squadron.runtime.wire.subjects import is_foreign, token_of

#: Requests under way at one instance, and how long one may take, in seconds: nobody tells that a client has died.
MOST_UNDER_WAY, WITHIN_S = 1024, 3600.0
#: What NATS answers in place of a server that is not there.
_NOBODY = "503"

_log = get_logger("squadron.mcp")

_Read = MemoryObjectReceiveStream[SessionMessage | Exception]
_Feed = MemoryObjectSendStream[SessionMessage | Exception]


def check_may_serve(ports: Ports, server_id: str) -> None:
    """Refuse who has credentials that say nothing of this server: it would hear of no request.

    Raises:
        ConfigError: says how to get some.
    """
    me = ports.principal
    if me is not None and not (me.role == "gateway" and f"mcp:{server_id}" in me.tags):
        raise ConfigError(
            f"{me.name} may not answer as the MCP server {server_id!r}",
            hint=f"squadron auth add gateway NAME --peer mcp:{server_id}, and serve it with those credentials",
        )


class BusTransport:
    """For the SDK's `Client`: the way to a server on the bus.

        async with Client(BusTransport(ports, "files"), mode="2026-07-28") as client:
            await client.list_tools()

    Raises:
        InvalidSubjectError: the id is no token.
    """

    def __init__(self, ports: Ports, server_id: str) -> None:
        self._bus, self._subject = ports.bus, ports.subjects.mcp(server_id)
        self._cancels = ports.subjects.mcp(server_id, cancel=True)
        # Under roles a server may answer nowhere else, and nobody else hears it there.
        asker = token_of(principal_of(ports.identity.id))
        self._inbox = f"_INBOX.mcp.{server_id}.{asker}.{uuid.uuid4().hex}"
        #: Requests under way, by the last token of their reply subjects.
        self._asked: dict[str, types.RequestId] = {}
        self._ear: Subscription | None = None
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> tuple[_Read, MemoryObjectSendStream[SessionMessage]]:
        """The streams of a client."""
        # What comes is bounded by what was asked for; the read loop of the connection must not wait.
        self._feed, read = anyio.create_memory_object_stream[SessionMessage | Exception](math.inf)
        write, sent = anyio.create_memory_object_stream[SessionMessage](0)
        self._ear = await self._bus.subscribe(f"{self._inbox}.*", self._hear)
        self._writing = spawn(self._send(sent), "mcp on the bus", lasting=True)
        return read, write

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; what is under way is cancelled there."""
        if self._writing is not None:
            self._writing.cancel()
        with contextlib.suppress(SquadronError):
            for token, id in list(self._asked.items()):
                await self._cancel(token, id)
        if self._ear is not None:
            await self._ear.aclose()
        self._feed.close()

    async def _send(self, sent: MemoryObjectReceiveStream[SessionMessage]) -> None:
        async for each in sent:
            message = each.message
            if isinstance(message, types.JSONRPCRequest):
                token = uuid.uuid4().hex
                self._asked[token] = message.id
                try:
                    await self._bus.publish(
                        self._subject, _bytes_of(message), reply=f"{self._inbox}.{token}", signed=False
                    )
                except SquadronError as error:
                    self._gone(token, str(error))
            elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
                meant = (message.params or {}).get("requestId")
                for token in [token for token, id in self._asked.items() if id == meant]:
                    del self._asked[token]
                    with contextlib.suppress(SquadronError):
                        await self._cancel(token, meant)

    async def _cancel(self, token: str, id: Any) -> None:
        said = types.JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params={"requestId": id})
        await self._bus.publish(self._cancels, _bytes_of(said), reply=f"{self._inbox}.{token}", signed=False)

    def _hear(self, note: Note) -> None:
        token = note.subject.rpartition(".")[2]
        if token not in self._asked:
            return
        if note.headers.get("Status") == _NOBODY:
            return self._gone(token, "nobody serves it")
        try:
            message = types.jsonrpc_message_adapter.validate_json(note.data, by_name=False)
        except ValueError:
            return self._gone(token, "what answered is no MCP server")
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            # Its id is the one that was asked, or who answers could end other requests.
            message = message.model_copy(update={"id": self._asked.pop(token)})
        self._give(message)

    def _gone(self, token: str, why: str) -> None:
        error = _error(types.CONNECTION_CLOSED, f"{self._subject}: {why}")
        self._give(types.JSONRPCError(jsonrpc="2.0", id=self._asked.pop(token), error=error))

    def _give(self, message: types.JSONRPCMessage) -> None:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._feed.send_nowait(SessionMessage(message))


@contextlib.asynccontextmanager
async def served_on_bus(ports: Ports, server_id: str, server: Server[Any]) -> AsyncIterator[None]:
    """Answer for an MCP server on the bus as long as this is entered; several instances share the requests.

    Args:
        server: as the SDK makes it; of an `MCPServer` it is the low-level one.

    Raises:
        ConfigError: whoever this process is may not; see `check_may_serve`.
        InvalidSubjectError: the id is no token.
        BusUnavailableError: the server can't be reached.
    """
    check_may_serve(ports, server_id)
    subject = ports.subjects.mcp(server_id)
    async with contextlib.AsyncExitStack() as rest:
        serving = _Serving(ports, server, await rest.enter_async_context(server.lifespan(server)))
        rest.callback(serving.close)
        for pattern, sink, group in (
            (ports.subjects.mcp(server_id, cancel=True), serving.hear_cancel, ""),
            (subject, serving.hear, "mcp"),
        ):
            rest.push_async_callback((await ports.bus.subscribe(pattern, sink, group=group)).aclose)
        yield


class _Serving:
    """The requests that one instance has under way, each on streams of its own: ids of clients may be the same."""

    def __init__(self, ports: Ports, server: Server[Any], state: Any) -> None:
        self._bus, self._server, self._state = ports.bus, server, state
        self._subjects = ports.subjects
        self._tasks: dict[tuple[str, types.RequestId], asyncio.Task[None]] = {}

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def hear(self, note: Note) -> None:
        if not (is_foreign(note.reply) and self._subjects.is_outside(note.reply)):
            return
        try:
            request = types.jsonrpc_message_adapter.validate_json(note.data, by_name=False)
            if not isinstance(request, types.JSONRPCRequest):
                raise TypeError
        except (ValueError, TypeError):
            self._refuse(note.reply, None, _error(types.INVALID_REQUEST, "that is no JSON-RPC request"))
            return
        if (wrong := _wrong_with(request)) is not None:
            self._refuse(note.reply, request.id, wrong)
            return
        key = (note.reply, request.id)
        if len(self._tasks) >= MOST_UNDER_WAY or key in self._tasks:
            self._refuse(note.reply, request.id, _error(types.INTERNAL_ERROR, "too many requests are under way"))
            return
        self._tasks[key] = task = spawn(self._serve(note.reply, request), f"mcp {request.method}", lasting=True)
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def hear_cancel(self, note: Note) -> None:
        with contextlib.suppress(ValueError):
            said = types.jsonrpc_message_adapter.validate_json(note.data, by_name=False)
            if isinstance(said, types.JSONRPCNotification) and said.method == "notifications/cancelled":
                task = self._tasks.get((note.reply, (said.params or {}).get("requestId", "")))
                if task is not None:
                    task.cancel()

    def _refuse(self, reply: str, id: Any, error: types.ErrorData) -> None:
        answer = types.JSONRPCError(jsonrpc="2.0", id=id, error=error)
        spawn(self._bus.publish(reply, _bytes_of(answer), signed=False), "refuses an mcp request")

    async def _serve(self, reply: str, request: types.JSONRPCRequest) -> None:
        feed, read = anyio.create_memory_object_stream[SessionMessage | Exception](1)
        write, written = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with asyncio.timeout(WITHIN_S), anyio.create_task_group() as both:
                both.start_soon(self._forward, reply, written, feed)
                await feed.send(SessionMessage(request))
                await serve_dual_era_loop(self._server, read, write, lifespan_state=self._state)
        except TimeoutError:
            self._refuse(reply, request.id, _error(types.INTERNAL_ERROR, f"it took more than {WITHIN_S:g} s"))
        except Exception as error:
            _log.warning("mcp.request_broke", method=request.method, error=summary_of(error))
            self._refuse(reply, request.id, _error(types.INTERNAL_ERROR, "Internal error"))

    async def _forward(self, reply: str, written: MemoryObjectReceiveStream[SessionMessage], feed: _Feed) -> None:
        async for each in written:
            await self._bus.publish(reply, _bytes_of(each.message), signed=False)
            if isinstance(each.message, types.JSONRPCResponse | types.JSONRPCError):
                break
        # No more comes in: the loop ends, and nothing is left of the request.
        feed.close()


def _wrong_with(request: types.JSONRPCRequest) -> types.ErrorData | None:
    """Why a request is none of this wire; None if it is one."""
    if request.method == "initialize":
        asked = {
            "supported": [*MODERN_PROTOCOL_VERSIONS],
            "requested": (request.params or {}).get("protocolVersion"),
        }
        return _error(types.UNSUPPORTED_PROTOCOL_VERSION, "there is no handshake here", asked)
    route = classify_inbound_request({"method": request.method, "params": request.params})
    if isinstance(route, InboundLadderRejection):
        return _error(route.code, route.message, route.data)
    return None


def _error(code: int, message: str, data: Any = None) -> types.ErrorData:
    return types.ErrorData(code=code, message=message, data=data)


def _bytes_of(message: types.JSONRPCMessage) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
