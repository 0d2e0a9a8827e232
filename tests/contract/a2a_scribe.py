"""An agent as A2A clients ask it, and the official client as tests use it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
from a2a.client import Client, ClientConfig, create_client
from a2a.types import a2a_pb2 as pb

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import Context
from squadron.runtime.wire.a2a_names import TOPIC


class Scribe(Agent):
    """Adds, counts, asks."""

    def __init__(self) -> None:
        self.ran = 0
        self.cancelled = 0

    @topic("scribe.add", tags=["sums"], examples=["2 and 2"])
    async def add(self, a: int, b: int) -> dict[str, int]:
        """Add two numbers."""
        self.ran += 1
        return {"sum": a + b}

    @topic("scribe.shout")
    async def shout(self, text: str) -> str:
        """Make a text loud."""
        return text.upper()

    @topic("scribe.count")
    async def count(self, ctx: Context, to: int) -> str:
        """Count, aloud."""
        for number in range(to):
            await ctx.emit(f"{number}")
        return "done"

    @topic("scribe.fail")
    async def fail(self) -> str:
        """Never works."""
        raise Terminal("out of ink")

    @topic("scribe.wait")
    async def wait(self) -> str:
        """Wait for long."""
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "never"

    @topic("scribe.measure")
    async def measure(self, ctx: Context) -> str:
        """Ask for a size."""
        schema = {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]}
        reply = await ctx.ask_person("Which size?", schema=schema)
        return f"size {reply.content['size']}" if reply.accepted else f"{reply.action}: {reply.reason}"

    @topic("scribe.number")
    async def number(self, ctx: Context) -> dict[str, Any]:
        """Ask for a number."""
        schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
        return dict((await ctx.ask_person("How many?", schema=schema)).content)

    @topic("scribe.tell")
    async def tell(self, ctx: Context) -> str:
        """Emit two things, and wait until a person answers."""
        await ctx.emit("one")
        await ctx.emit({"two": 2})
        await ctx.ask_person("Go on?", schema={"type": "object", "properties": {"go": {"type": "boolean"}}})
        await ctx.emit("three")
        return "told"


@contextlib.asynccontextmanager
async def a2a_client(
    url: str, binding: str = "JSONRPC", *, streaming: bool = False, token: str = ""
) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(timeout=30, headers=headers) as http:
        config = ClientConfig(httpx_client=http, streaming=streaming, supported_protocol_bindings=[binding])
        client = await create_client(f"{url}/a2a/scribe", config)
        yield client


def a2a_message(skill: str, *parts: pb.Part, **rest: Any) -> pb.SendMessageRequest:
    fields = {"message_id": uuid.uuid4().hex} | rest
    message = pb.Message(role=pb.Role.ROLE_USER, parts=parts, **fields)
    if skill:
        message.metadata.update({TOPIC: f"scribe.{skill}"})
    return pb.SendMessageRequest(message=message)


async def all_said(client: Client, request: pb.SendMessageRequest) -> list[Any]:
    """What comes of a message, each as what it is."""
    found = []
    async for response in client.send_message(request):
        kind = response.WhichOneof("payload")
        found.append(getattr(response, str(kind)))
    return found


async def only_task(client: Client, request: pb.SendMessageRequest) -> pb.Task:
    (task,) = await all_said(client, request)
    assert isinstance(task, pb.Task)
    return task
