"""A connection to one MCP server, opened when it is needed and again when it broke."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from importlib.metadata import version
from typing import Any, TextIO

import mcp_types as types
from mcp.client.client import Client
from mcp.client.session import ElicitationFnT
from mcp.client.stdio import StdioServerParameters, get_default_environment, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from squadron.actors.remote import watched_command
from squadron.actors.remote.mcp_bus import BusTransport
from squadron.actors.remote.mcp_errand import McpErrands
from squadron.actors.remote.mcp_oauth import authorizing
from squadron.actors.remote.mcp_server import McpServer
from squadron.runtime.background import spawn
from squadron.runtime.errors import ServerUnavailableError
from squadron.runtime.logs import get_logger
from squadron.runtime.redact import scrub
from squadron.runtime.retries import summary_of
from squadron.runtime.store.port_set import Ports

#: How long a server may take to start and to say what it is, in seconds: one that is fetched by `npx` or `uvx`
#: takes tens of them.
OPEN_WITHIN_S = 60.0
#: How long a server may take to list its tools as it is opened, in seconds.
LIST_WITHIN_S = 10.0
#: How long it may take to end, in seconds: the SDK gives a command two before it is terminated, two more before it
#: is killed.
CLOSE_WITHIN_S = 8.0
#: Pause before news of the server are listened for again, in seconds.
LISTEN_AGAIN_S = 5.0
#: Pages that tools may be told of on; the server decides how many it makes.
_MOST_PAGES = 100
#: How much of a line is told that a command wrote on its standard error, in characters.
_LINE_CHARACTERS = 1_000


class McpLink:
    """One server, whichever wire it speaks.

    Args:
        server: as it was given; what it names is looked up each time it is opened.
        elicit: answers what the server asks of people.
        ports: for a server on the bus.
        errands: sees tasks through that calls become; without it none does.
    """

    def __init__(
        self, server: McpServer, elicit: ElicitationFnT | None, ports: Ports, errands: McpErrands | None = None
    ) -> None:
        self._server, self._elicit, self._ports, self._errands = server, elicit, ports, errands
        #: Set whenever the server's tools may be others than before.
        self.changed = asyncio.Event()
        self._opening, self._closing = asyncio.Lock(), asyncio.Event()
        self._client: Client | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._log = get_logger("squadron.mcp")

    async def client(self) -> Client:
        """The client, connected.

        Raises:
            ConfigError: what the server is given can't be looked up.
            ServerUnavailableError: it can't be reached, or does not speak MCP.
        """
        async with self._opening:
            if self._client is None:
                await self._close()
                # A client is left by the task that entered it.
                opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                self._closing = asyncio.Event()
                work = self._keep(self._server.looked_up(), opened, self._closing)
                self._keeping = spawn(work, "mcp server", lasting=True)
                try:
                    async with asyncio.timeout(OPEN_WITHIN_S):
                        self._client = await asyncio.shield(opened)
                except TimeoutError:
                    await self._close()
                    raise self._unreachable(f"does not say what it is within {OPEN_WITHIN_S:g} s") from None
            return self._client

    def _unreachable(self, why: str) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"the MCP server {scrub(self._server.where)[:200]!r} {scrub(why)[:500]}",
            hint="run its command, or open its URL, where the agent's replicas are",
        )

    async def _keep(self, server: McpServer, opened: asyncio.Future[Client], closing: asyncio.Event) -> None:
        try:
            async with contextlib.AsyncExitStack() as rest:
                client = await rest.enter_async_context(await self._made(server, rest))
                if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                    if server.url:
                        # Arguments that a tool wants in headers as well (`x-mcp-header`) go there only if the SDK
                        # saw its schema on this very connection. Who lists nothing may be called all the same.
                        with contextlib.suppress(Exception):
                            async with asyncio.timeout(LIST_WITHIN_S):
                                await tools_of(client)
                    listening = spawn(self._listen(client), "news of an mcp server", lasting=True)
                    rest.callback(listening.cancel)
                opened.set_result(client)
                await closing.wait()
        except BaseException as error:
            if not opened.done():
                opened.set_exception(self._unreachable(f"can't be reached: {summary_of(_first(error))}"))
                return
            if isinstance(error, asyncio.CancelledError):
                raise
            self._log.info("mcp.left", error=scrub(summary_of(_first(error))))

    async def _made(self, server: McpServer, rest: contextlib.AsyncExitStack) -> Client:
        transport: Any
        if server.bus:
            transport = BusTransport(self._ports, server.bus)
        elif server.url:
            auth = authorizing(server.url, server.oauth) if server.oauth is not None else None
            http = await rest.enter_async_context(create_mcp_http_client(dict(server.headers), auth=auth))
            transport = streamable_http_client(server.url, http_client=http)
        else:
            program, *args = _watched(server)
            command = StdioServerParameters(
                command=program, args=args, env=dict(server.env), cwd=server.cwd or None
            )
            transport = stdio_client(command, errlog=await self._heard(rest))
        return Client(
            transport,
            elicitation_callback=self._elicit,
            extensions=[self._errands] if self._errands is not None else None,
            message_handler=self._hear,
            client_info=types.Implementation(name="squadron", version=version("squadron-ray")),
            cache=None,
        )

    async def _heard(self, rest: contextlib.AsyncExitStack) -> TextIO:
        """Where a command's standard error goes: into our logs, without what is secret."""
        reading, writing = os.pipe()
        ours, theirs = os.fdopen(reading, "rb"), os.fdopen(writing, "w")
        rest.callback(theirs.close)
        lines = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), ours
        )
        rest.callback(pipe.close)

        async def tell() -> None:
            with contextlib.suppress(ValueError):  # a line without an end
                async for line in lines:
                    self._log.info(
                        "mcp.stderr", line=scrub(line.decode(errors="replace").rstrip())[:_LINE_CHARACTERS]
                    )

        rest.callback(spawn(tell(), "stderr of an mcp server", lasting=True).cancel)
        return theirs

    async def _hear(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.changed.set()

    async def _listen(self, client: Client) -> None:
        """On the newer wire nothing is told unasked."""
        tools = client.server_capabilities.tools
        while tools is not None and tools.list_changed:
            with contextlib.suppress(MCPError, RuntimeError, TimeoutError):
                async with client.listen(tools_list_changed=True) as news:
                    async for _ in news:
                        self.changed.set()
            await asyncio.sleep(LISTEN_AGAIN_S)
            # What was said meanwhile nobody heard.
            self.changed.set()

    def drop(self, client: Client) -> None:
        """Have the next call open another connection: this one broke."""
        if self._client is client:
            self._client = None
            self.changed.set()

    async def aclose(self) -> None:
        """Leave the server, and end its command. May be called twice."""
        async with self._opening:
            await self._close()

    async def _close(self) -> None:
        self._client, keeping, self._keeping = None, self._keeping, None
        self._closing.set()
        if keeping is not None:
            await asyncio.wait((keeping,), timeout=CLOSE_WITHIN_S)
            keeping.cancel()


async def tools_of(client: Client) -> list[types.Tool]:
    """All tools of a server.

    Raises:
        MCPError, OSError, RuntimeError, ValueError: they can't be listed.
    """
    tools: list[types.Tool] = []
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        if (cursor := page.next_cursor) is None:
            break
    return tools


def _watched(server: McpServer) -> list[str]:
    """The command of a server, with somebody beside it who ends it when this process is killed.

    Raises:
        FileNotFoundError: there is no such program.
    """
    own = [server.command, *server.args]
    if sys.platform == "win32" or not sys.executable:
        return own
    folders = server.env.get("PATH", get_default_environment().get("PATH"))
    if os.sep not in server.command and shutil.which(server.command, path=folders) is None:
        raise FileNotFoundError(f"there is no program {server.command!r}")
    # Alone, and without what an environment has for interpreters: that is for the command.
    return [sys.executable, "-I", "-S", watched_command.__file__, *own]


def _first(error: BaseException) -> BaseException:
    """What it was, in groups of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
