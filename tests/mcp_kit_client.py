"""The client that MCP's kit judges: our agent for a server, and whoever asks it. Called with the server's URL.

The kit says in the environment what it wants to have called, or has credentials for.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from squadron.actors.remote.mcp_agent import McpAgent, look_at
from squadron.actors.remote.mcp_server import McpServer
from squadron.runtime.wire.topics import SemanticTopic
from squadron.testing import MemorySquad

#: What a value of a type is, where the kit does not say which it wants.
VALUES: dict[str, Any] = {"string": "kit", "number": 3, "integer": 3, "boolean": True, "object": {}, "array": []}
#: Less than the kit has for a scenario, in seconds.
WITHIN_S = 240
#: More than any scenario asks.
MOST_QUESTIONS = 20
NAME = "mcp_kit"


def filled(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be there."""
    fields = schema.get("properties", {})
    return {
        name: VALUES[fields[name]["type"]] for name in schema.get("required", ()) if "default" not in fields[name]
    }


def content_for(topic: SemanticTopic, topics: Mapping[str, SemanticTopic]) -> dict[str, Any]:
    """An input that a topic takes."""
    if topic.name == f"{NAME}.json_schema_echo":
        return {"schema": topics[f"{NAME}.json_schema_2020_12_tool"].input_schema}
    return filled(topic.input_schema)


async def main(url: str) -> None:
    """Add the server, and ask each of its topics, all at once."""
    told = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    given: dict[str, Any] = {"url": url}
    if "client_secret" in told:
        os.environ["KIT_SECRET"] = told["client_secret"]
        issuer = url.removesuffix("/mcp")
        given["oauth"] = {"clientId": told["client_id"], "clientSecret": "env:KIT_SECRET", "issuer": issuer}
    async with MemorySquad(turned=False) as squad:
        server = McpServer.of(given)
        operations, _ = await look_at(server, NAME, squad._place.ports)
        if not operations:
            return
        await squad.deploy(McpAgent.serving(NAME, server.to_dict(), operations))
        topics = {each.topic.name: each.topic for each in operations}
        # What is null in the kit's words is what a caller leaves out: the tool's schema takes no null.
        calls = {
            f"{NAME}.{each['name']}": {
                name: value for name, value in each["arguments"].items() if value is not None
            }
            for each in told.get("toolCalls", ())
        }
        calls = calls or {name: content_for(topic, topics) for name, topic in topics.items()}
        people = squad.people(*[lambda asked: filled(asked.question.schema)] * MOST_QUESTIONS)
        asks = (squad.ask(name, content, within_s=WITHIN_S) for name, content in calls.items())
        for outcome in await asyncio.gather(*asks):
            sys.stdout.write(f"{outcome}\n")
        await people.aclose()


asyncio.run(main(sys.argv[1]))
