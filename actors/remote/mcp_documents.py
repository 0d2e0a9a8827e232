"""Resources and prompts of an MCP server: topics that list them, and that have one of them.

Which there are is the result of a topic, and not its schema: a server may have thousands, and others each minute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from squadron.actors.operations import Operation
from squadron.runtime.wire.topics import SemanticTopic

if TYPE_CHECKING:
    from mcp import Client

_TEXT = {"type": "string"}
_CURSOR = {"cursor": {**_TEXT, "description": "Where the last page ended, as its nextCursor had it."}}
_ARGUMENTS = {"type": "object", "additionalProperties": _TEXT}
#: Requests of the protocol: name of the topic, what it is good for, its fields, and which are needed.
_DOCUMENTS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "resources/list": ("list_resources", "List the resources of {}, page by page.", _CURSOR, []),
    "resources/templates/list": (
        "list_resource_templates",
        "List the templates of resources of {}, page by page.",
        _CURSOR,
        [],
    ),
    "resources/read": ("read_resource", "Read a resource of {}.", {"uri": _TEXT}, ["uri"]),
    "prompts/list": ("list_prompts", "List the prompts of {}, page by page.", _CURSOR, []),
    "prompts/get": (
        "get_prompt",
        "Have a prompt of {} filled in.",
        {"name": _TEXT, "arguments": _ARGUMENTS},
        ["name"],
    ),
}
#: Fields of results that are told; the others are about the wire.
_RESULTS = ("resources", "resourceTemplates", "contents", "prompts", "messages", "description", "nextCursor")


def is_document(operation: str) -> bool:
    """Whether an operation is one of these, and no tool."""
    return operation in _DOCUMENTS


async def documents_of(client: Client, agent: str, topic_for: Callable[..., SemanticTopic]) -> list[Operation]:
    """The operations for what a server has of these; none for what it has not."""
    from mcp.shared.exceptions import MCPError

    capabilities = client.server_capabilities
    there = set[str]()
    # A server says that it has resources, and may know no templates: its tools are there all the same.
    if capabilities.resources is not None:
        with contextlib.suppress(MCPError):
            if (await client.list_resources()).resources:
                there |= {"resources/list", "resources/read"}
        with contextlib.suppress(MCPError):
            if (await client.list_resource_templates()).resource_templates:
                there |= {"resources/list", "resources/templates/list", "resources/read"}
    if capabilities.prompts is not None:
        with contextlib.suppress(MCPError):
            if (await client.list_prompts()).prompts:
                there |= {"prompts/list", "prompts/get"}
    made = []
    for name, (topic, description, fields, needed) in _DOCUMENTS.items():
        if name in there:
            takes = {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}
            about = {"description": description.format(agent), "input_schema": takes, "tags": ("mcp",)}
            made.append(Operation(name, topic_for(agent, topic, **about)))
    return made


async def fetched(client: Client, operation: str, content: dict[str, Any]) -> Any:
    """What one of these comes to, as JSON data with the names of the protocol."""
    cursor: str | None = content.get("cursor")
    match operation:
        case "resources/list":
            return _told(await client.list_resources(cursor=cursor))
        case "resources/templates/list":
            return _told(await client.list_resource_templates(cursor=cursor))
        case "resources/read":
            return _told(await client.read_resource(content["uri"]))
        case "prompts/list":
            return _told(await client.list_prompts(cursor=cursor))
        case _:
            return _told(await client.get_prompt(content["name"], content.get("arguments")))


def _told(result: Any) -> dict[str, Any]:
    said = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: said[name] for name in _RESULTS if name in said}
