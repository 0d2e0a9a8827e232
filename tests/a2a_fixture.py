"""What A2A's own kit (TCK) asks an agent to do, by the beginning of a message's id."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.runtime.running.context import Context

FILE = {"filename": "output.txt", "mediaType": "text/plain"}


class Conformant(Agent):
    """Does as the kit wants."""

    name = "conformant"

    @topic("conformant.run", description="Do as the kit wants.", tags=["kit"])
    async def run(self, ctx: Context, a2a_message: dict[str, Any]) -> Any:
        begins = str(a2a_message["messageId"]).removeprefix("tck-")
        if begins.startswith("input-required"):
            await ctx.ask_person("What else?")
            return "Hello from TCK"
        if begins.startswith("artifact-file-url"):
            return {"parts": [{"url": "https://example.com/output.txt", **FILE}]}
        if "artifact-file" in begins:
            return {"parts": [{"raw": base64.b64encode(b"Generated").decode(), **FILE}]}
        if begins.startswith("artifact-data"):
            return {"key": "value", "count": 42}
        if begins.startswith("artifact-text"):
            return "Generated text content"
        if begins.startswith("message-response"):
            return {"message": {"parts": [{"text": "Direct message response"}]}}
        if begins.startswith("stream-artifact-chunked"):
            await ctx.emit("chunk-1 ")
            return "chunk-2"
        if begins.startswith("test-resubscribe"):
            await asyncio.sleep(4)
        return "Hello from TCK"
