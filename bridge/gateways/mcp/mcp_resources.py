"""What a client can read: documents that agents give out, and lite topics of the owners that were named for it.

A document is a topic with the tag `mcp:resource=URI`; a URI with `{fields}` is a template, whose fields are the
topic's input. A lite topic is `squadron://lite/OWNER/ID`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.mcp.tool_calls import Context, visitor_of
from squadron.bridge.gateways.mcp.tool_list import RESOURCE_TAG, ToolList, said_by_tag
from squadron.bridge.gateways.mcp.tool_results import text_of
from squadron.bridge.gateways.visitors import behalf_of
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import InvalidSubjectError
from squadron.runtime.lite.listing import list_lite
from squadron.runtime.wire.topics import SemanticTopic

LITE = "squadron://lite/"
#: What an author says of a document's kind: `mcp:mime=text/markdown`.
MIME_TAG = "mcp:mime="
#: The newest messages of a lite topic that are handed out at once.
MOST_MESSAGES = 1000
#: Lite topics in one list.
MOST_LISTED = 1000
_FIELD = re.compile(r"\{([A-Za-z0-9_]+)\}")
_Contents = list[types.TextResourceContents | types.BlobResourceContents]
_CONTENTS: TypeAdapter[_Contents] = TypeAdapter(_Contents)


class McpResources:
    """`resources/list`, `resources/templates/list` and `resources/read`."""

    def __init__(self, front: Front, tools: ToolList) -> None:
        self._front, self._tools = front, tools

    async def listed(self, ctx: Context, _: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        """The documents without fields, and the lite topics that there are."""
        found = [
            types.Resource(
                uri=uri, name=topic.name, description=topic.tool_description, mime_type=_mime_of(topic) or None
            )
            for uri, topic in self._documents(ctx)
            if not _FIELD.search(uri)
        ]
        for owner in self._front.lite:
            for info in (await list_lite(self._front.place.ports, owner))[:MOST_LISTED]:
                name, uri = f"{owner}/{info.id}", f"{LITE}{owner}/{info.id}"
                found.append(types.Resource(uri=uri, name=name, mime_type="application/json"))
        return types.ListResourcesResult(resources=found)

    async def templates(
        self, ctx: Context, _: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """The documents with fields."""
        found = [
            types.ResourceTemplate(
                uri_template=uri,
                name=topic.name,
                description=topic.tool_description,
                mime_type=_mime_of(topic) or None,
            )
            for uri, topic in self._documents(ctx)
            if _FIELD.search(uri)
        ]
        for owner in self._front.lite:
            uri = f"{LITE}{owner}/{{id}}"
            found.append(types.ResourceTemplate(uri_template=uri, name=f"lite topics of {owner}"))
        return types.ListResourceTemplatesResult(resource_templates=found)

    async def read(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        """One document, or lite topic.

        Raises:
            MCPError: there is none under this URI, or its agent did not give it out.
        """
        uri = str(params.uri)
        if uri.startswith(LITE):
            return types.ReadResourceResult(contents=[await self._lite(uri)])
        for template, topic in self._documents(ctx):
            if (fields := fields_in(template, uri)) is not None:
                return await self._ask(ctx, topic, fields, uri)
        raise _not_found(uri)

    def _documents(self, ctx: Context) -> list[tuple[str, SemanticTopic]]:
        served = self._tools.served(visitor_of(ctx))
        return [(uri, topic) for topic in served if (uri := said_by_tag(topic, RESOURCE_TAG))]

    async def _ask(
        self, ctx: Context, topic: SemanticTopic, fields: Mapping[str, str], uri: str
    ) -> types.ReadResourceResult:
        behalf = behalf_of(visitor_of(ctx), self._front.place.ports.principal)
        options = AskOptions(within_s=self._front.within_s, on_behalf_of=behalf)
        outcome = await self._front.place.caller.ask(topic.name, dict(fields), options)
        if not outcome.ok:
            reason = f"{outcome.kind.replace('_', ' ')}: {outcome.reason}"
            raise MCPError(code=types.INTERNAL_ERROR, message=reason[:500], data={"uri": uri})
        return types.ReadResourceResult(contents=contents_of(outcome.unwrap(), uri, _mime_of(topic)))

    async def _lite(self, uri: str) -> types.TextResourceContents:
        owner, _, id = uri.removeprefix(LITE).partition("/")
        if owner not in self._front.lite:
            raise _not_found(uri)
        try:
            topic = self._front.place.caller.lite_topics.topic(id, owner)
        except InvalidSubjectError:
            raise _not_found(uri) from None
        found = []
        async with aclosing(topic.read(live=False)) as messages:
            async for each in messages:
                told = each.content if each.message is not None else each.data.decode("utf-8", "replace")
                found.append({"seq": each.seq, "time": each.time, "content": told})
        if not found:
            raise _not_found(uri)
        text = json.dumps(found[-MOST_MESSAGES:], ensure_ascii=False)
        return types.TextResourceContents(uri=uri, mime_type="application/json", text=text)


def fields_in(template: str, uri: str) -> dict[str, str] | None:
    """What stands in a URI for the fields of a template; None if it is not of it."""
    pattern, at = "", 0
    for field in _FIELD.finditer(template):
        pattern += re.escape(template[at : field.start()]) + f"(?P<{field[1]}>[^/?#]+)"
        at = field.end()
    found = re.fullmatch(pattern + re.escape(template[at:]), uri)
    return None if found is None else found.groupdict()


def contents_of(data: Any, uri: str, mime: str) -> _Contents:
    """What an agent gave as a document: text, `{"text" | "blob", "mimeType"}`, a list of such, or any JSON."""
    given = data if isinstance(data, list) else [data]
    if all(isinstance(each, Mapping) and ({"text", "blob"} & each.keys()) for each in given):
        try:
            return _CONTENTS.validate_python([{"uri": uri, "mimeType": mime or None, **each} for each in given])
        except ValidationError:
            pass
    kind = mime or ("text/plain" if isinstance(data, str) else "application/json")
    return [types.TextResourceContents(uri=uri, mime_type=kind, text=text_of(data))]


def _mime_of(topic: SemanticTopic) -> str:
    return said_by_tag(topic, MIME_TAG)


def _not_found(uri: str) -> MCPError:
    return MCPError(code=types.INVALID_PARAMS, message="Resource not found", data={"uri": uri})
