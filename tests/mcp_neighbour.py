"""An MCP server of somebody else, made with the SDK: `python -m tests.mcp_neighbour [--older | --http PORT]`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mcp.server.lowlevel import NotificationOptions
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    ImageContent,
    InputRequiredResult,
    TextContent,
    ToolAnnotations,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

server = MCPServer("neighbour", instructions="Tools of a neighbour.", log_level="ERROR")
#: Where calls leave a line, for tests that look at what happened.
TRACE = os.environ.get("NEIGHBOUR_TRACE", "")


def trace(what: str) -> None:
    """Leave a line for the test."""
    if TRACE:
        with Path(TRACE).open("a") as file:
            file.write(what + "\n")


class Size(BaseModel):
    """What a shirt is asked for."""

    size: str


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    trace(f"add {os.getpid()}")
    return a + b


@server.tool()
def greet(name: str) -> CallToolResult:
    """Greet somebody, in words alone."""
    return CallToolResult(content=[TextContent(text=f"Hello, {name}!")])


@server.tool()
def picture() -> CallToolResult:
    """Draw a dot."""
    return CallToolResult(content=[ImageContent(data="iVBORw0=", mime_type="image/png")])


@server.tool()
def broken() -> str:
    """Fail, each time."""
    raise ValueError("the press is jammed")


@server.tool()
def refused() -> str:
    """Refuse, by an error of the protocol."""
    raise MCPError(code=-32001, message="not on Sundays")


@server.tool(annotations=ToolAnnotations(destructive_hint=True))
def wipe(path: str) -> str:
    """Delete a file."""
    return path


@server.tool()
async def count(ctx: Context[Any, Any], to: int) -> str:
    """Count, and tell of each step."""
    for step in range(1, to + 1):
        await ctx.report_progress(step, to, f"step {step}")
    return "counted"


@server.tool()
async def forever(ctx: Context[Any, Any]) -> str:
    """Go on until it is cancelled."""
    trace(f"begun {os.getpid()}")
    await ctx.report_progress(1, None, "begun")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        trace("cancelled")
        raise
    return ""


@server.tool()
def once_slow() -> str:
    """Take for ever the first time, and no time the second, as the trace tells."""
    begun = Path(TRACE).exists() and "slow" in Path(TRACE).read_text()
    trace(f"slow {os.getpid()}")
    if not begun:
        signal.pause()
    return "done at last"


@server.tool()
async def shirt(ctx: Context[Any, Any]) -> CallToolResult | InputRequiredResult:
    """Order a shirt, in the size that a person says."""
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        given = (ctx.input_responses or {}).get("size")
        if given is None:
            form = ElicitRequestFormParams(message="Which size?", requested_schema=Size.model_json_schema())
            return InputRequiredResult(input_requests={"size": ElicitRequest(params=form)}, request_state="1")
        assert isinstance(given, ElicitResult)
        said = f"{given.action} {(given.content or {}).get('size')}"
    else:
        asked = await ctx.elicit("Which size?", Size)
        said = f"{asked.action} {asked.data.size if asked.action == 'accept' else None}"
    return CallToolResult(content=[TextContent(text=said)])


@server.tool()
def whisper() -> str:
    """Tell on the standard error what nobody else is to know, and how much of it there is."""
    secret = os.environ.get("NEIGHBOUR_KEY", "")
    sys.stderr.write(f"my key is {secret}\n")
    sys.stderr.flush()
    return f"{len(secret)} characters"


def late() -> str:
    """Came later."""
    return "late"


@server.tool()
async def grow(ctx: Context[Any, Any]) -> str:
    """Have one tool more; so does who is started later with the same trace."""
    server.add_tool(late)
    trace("grown")
    await ctx.session.send_tool_list_changed()
    await ctx.notify_tools_changed()
    return "grown"


async def run_older() -> None:
    """Serve the standard streams as a server from before the newer wire does."""
    low = server._lowlevel_server
    async with stdio_server() as (read, write), low.lifespan(low) as state:
        options = low.create_initialization_options(NotificationOptions(tools_changed=True))
        await serve_loop(low, read, write, lifespan_state=state, init_options=options)


if __name__ == "__main__":
    if TRACE and Path(TRACE).is_file() and "grown" in Path(TRACE).read_text().splitlines():
        server.add_tool(late)
    trace(f"started {os.getpid()}")
    if "--older" in sys.argv:
        asyncio.run(run_older())
    elif "--http" in sys.argv:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[-1]))
    else:
        server.run("stdio")
