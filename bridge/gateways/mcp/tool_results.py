"""How a task ended, as the result of a tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError

from squadron.bridge.gateways.mcp.tool_list import structured
from squadron.runtime.wire.outcome import Cancelled, Outcome
from squadron.runtime.wire.topics import SemanticTopic

#: What is told of a task beside its result, in `_meta`.
TASK_META, OUTCOME_META = "squadron/task", "squadron/outcome"
#: The code of JSON-RPC for what an error's author gave no other: servers may use -32000 to -32019.
ENDED_OTHERWISE = -32000

_BLOCKS: TypeAdapter[list[types.ContentBlock]] = TypeAdapter(list[types.ContentBlock])


def result_of(topic: SemanticTopic, outcome: Outcome, version: str) -> types.CallToolResult:
    """The result of a call. All ends but a result are errors of the tool, which its model reads.

    A handler that returns `{"content": […]}` with MCP's own blocks (text, image, audio, resource) has those passed
    on.

    Raises:
        MCPError: the task was cancelled, and not by its caller, who would not hear of it any more.
    """
    meta = {TASK_META: outcome.task_id, OUTCOME_META: outcome.kind}
    if isinstance(outcome, Cancelled):
        raise MCPError(code=ENDED_OTHERWISE, message=f"cancelled: {outcome.reason}"[:500], data=meta)
    if not outcome.ok:
        details = {"outcome": outcome.kind, "retryable": outcome.retryable, "details": dict(outcome.details)}
        text = f"{outcome.kind.replace('_', ' ')}: {outcome.reason}"
        return types.CallToolResult(
            content=[types.TextContent(text=text)], is_error=True, _meta=meta | {"squadron/error": details}
        )
    data = outcome.unwrap()
    blocks = content_blocks(data)
    if blocks is not None:
        given = data.get("structuredContent")
        return types.CallToolResult(content=blocks, structured_content=given, _meta=meta)
    whole = structured(topic, data, version)
    return types.CallToolResult(
        content=[types.TextContent(text=text_of(data))], structured_content=whole, _meta=meta
    )


def content_blocks(data: Any) -> list[types.ContentBlock] | None:
    """The content blocks that a handler gave itself; None if it gave none."""
    if not isinstance(data, Mapping) or not data.keys() <= {"content", "structuredContent"}:
        return None
    content = data.get("content")
    if not isinstance(content, list) or not content:
        return None
    try:
        return _BLOCKS.validate_python(content)
    except ValidationError:
        return None


def text_of(data: Any) -> str:
    """Data as a model reads it: text as it is, all else as JSON."""
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
