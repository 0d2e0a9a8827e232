"""A provider at which everything goes wrong, and which repeats the caller's key in whatever it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

#: What goes wrong, by the first part of the path; besides, nobody listens at port 9.
FAULTS = ("auth", "limit", "page", "event", "rubbish", "cut", "redirect", "silent", "bare")


@asynccontextmanager
async def faulty_provider() -> AsyncIterator[int]:
    """The port at which it listens on loopback, for all APIs."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        begin = await reader.readexactly(1)
        if not begin.isalpha():
            raise OSError("that is TLS")
        head = begin + await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        given = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines}
        await reader.readexactly(int(headers.get("content-length", "0")))
        said = f"wrong key {given.get('x-api-key', '')}, or wrong header {given.get('authorization', '')}"
        fault = first.split(" ")[1].strip("/").split("/")[0]
        if fault == "silent":
            await reader.read()
        writer.write(_answer(fault, said))
        await writer.drain()
    writer.close()


def _answer(fault: str, said: str) -> bytes:
    error = {"type": "error", "error": {"type": "server_error", "code": "server_error", "message": said}}
    match fault:
        case "auth":
            return _whole("401 Unauthorized", json.dumps(error))
        case "limit":
            return _whole("429 Too Many Requests", json.dumps(error), "retry-after: 0.01\r\n")
        case "page":
            return _whole("502 Bad Gateway", f"<html>{said}</html>", kind="text/html")
        case "redirect":
            key = said.split()[2].strip(",") or said.split()[-1]
            return _whole("307 Temporary Redirect", "", f"location: http://eve:{key}@127.0.0.1:9/x\r\n")
        case "event":
            return _stream(f"event: error\ndata: {json.dumps(error)}\n\n")
        case "rubbish":
            return _stream(f"event: message_start\ndata: {{{said}\n\n")
        case "cut":
            return _stream(f"data: {said}")[:-7]
    return b""


def _whole(status: str, body: str, more: str = "", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{more}content-length: {len(body.encode())}\r\n"
    return f"{head}connection: close\r\n\r\n{body}".encode()


def _stream(events: str) -> bytes:
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return f"{head}{len(events.encode()):x}\r\n{events}\r\n0\r\n\r\n".encode()
