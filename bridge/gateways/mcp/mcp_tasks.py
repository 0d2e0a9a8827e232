"""The Tasks extension: what a durable task looks like to a client that comes back for it.

https://modelcontextprotocol.io/extensions/tasks (2026-07-28); a client says in each request that it knows it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Literal

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.mcp.tool_calls import PROGRESS_CHARACTERS, ToolCalls, elicitation, visitor_of
from squadron.bridge.gateways.mcp.tool_list import is_modern, takes_client
from squadron.bridge.gateways.mcp.tool_results import result_of, text_of
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.asking.emitted import newest_emitted
from squadron.runtime.errors import BusUnavailableError, SquadronError
from squadron.runtime.wire.outcome import LITE_TTL_S, Cancelled, Outcome
from squadron.runtime.wire.topics import SemanticTopic

EXTENSION = "io.modelcontextprotocol/tasks"
#: How often a client is asked to look, in milliseconds.
POLL_MS = 500
#: How long a call may take to be answered at once, although its client knows tasks, in seconds: a round trip less.
AT_ONCE_S = 0.05

Context = ServerRequestContext[Any, Any]


class TaskParams(types.RequestParams):
    """Which task."""

    task_id: str


class TaskUpdateParams(TaskParams):
    """Answers to what a task asks."""

    input_responses: types.InputResponses


class TaskCreated(types.Result):
    """The answer to a call that became a task."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str = "working"
    created_at: str
    last_updated_at: str
    ttl_ms: int
    poll_interval_ms: int = POLL_MS


def knows_tasks(ctx: Context) -> bool:
    """Whether the client of this request knows the extension."""
    offered = ctx.session.client_capabilities
    return is_modern(ctx.protocol_version) and offered is not None and EXTENSION in (offered.extensions or {})


class McpTasks:
    """`tasks/get`, `tasks/update` and `tasks/cancel`."""

    def __init__(self, front: Front, calls: ToolCalls, kept: KeptTasks) -> None:
        self._front, self._calls, self._kept = front, calls, kept

    async def create(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> TaskCreated | types.CallToolResult | types.InputRequiredResult:
        """Serve a `tools/call` of a client that knows tasks: what ends at once needs none."""
        topic = self._calls.topic_of(params.name, visitor_of(ctx))
        if takes_client(topic):
            return await self._calls.call(ctx, params)
        task = await self._calls.kept(ctx, topic, params)
        outcome = task.outcome
        if outcome is None:
            try:
                async with asyncio.timeout(AT_ONCE_S):
                    outcome = await task.handle.outcome()
            except TimeoutError:
                pass
            except asyncio.CancelledError:
                self._calls.abandon(task.handle)
                raise
        if outcome is not None:
            return result_of(topic, outcome, ctx.protocol_version)
        # Whoever comes back for it reads what is stored: an open task costs this process nothing.
        self._front.place.caller.leave(task.handle)
        return TaskCreated(
            task_id=task.id,
            created_at=_iso(task.created_at),
            last_updated_at=_iso(task.news_at),
            ttl_ms=self._ttl_ms(task),
        )

    async def get(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        """How a task fares; one that has ended brings its result."""
        _check_knows(ctx, params)
        task = await self._find(params.task_id, visitor_of(ctx))
        shown: dict[str, Any] = {
            "taskId": task.id,
            "status": "working",
            "createdAt": _iso(task.created_at),
            "lastUpdatedAt": _iso(task.news_at),
            "ttlMs": self._ttl_ms(task),
            "pollIntervalMs": POLL_MS,
        }
        if task.outcome is not None:
            return shown | self._ended(task, task.outcome, ctx.protocol_version)
        if (chunk := await newest_emitted(task.handle)) is not None:
            # The extension knows no other progress.
            shown["statusMessage"] = text_of(chunk)[:PROGRESS_CHARACTERS]
        if asked := await self._front.questions.about(task.id):
            requests = {each.query_id: _wire(elicitation(each)) for each in asked}
            return shown | {"status": "input_required", "inputRequests": requests}
        return shown

    def _ended(self, task: KeptTask, outcome: Outcome, version: str) -> dict[str, Any]:
        if isinstance(outcome, Cancelled):
            return {"status": "cancelled", "statusMessage": outcome.reason}
        name = str(task.about.get("topic", outcome.topic))
        # Its agent may have gone since.
        topic = self._front.place.registry.find(name) or SemanticTopic(name=name)
        return {"status": "completed", "result": _wire(result_of(topic, outcome, version))}

    async def update(self, ctx: Context, params: TaskUpdateParams) -> types.EmptyResult:
        """Take answers to what a task asks; those to other questions are passed over."""
        _check_knows(ctx, params)
        task = await self._find(params.task_id, visitor_of(ctx))
        asked = {each.query_id for each in await self._front.questions.about(task.id)}
        fitting = {id: response for id, response in params.input_responses.items() if id in asked}
        await self._calls.answer(task.id, fitting, visitor_of(ctx))
        return types.EmptyResult(result_type="complete")

    async def cancel(self, ctx: Context, params: TaskParams) -> types.EmptyResult:
        """Have a task stopped; what has ended before stays as it is."""
        _check_knows(ctx, params)
        task = await self._find(params.task_id, visitor_of(ctx))
        if task.outcome is None:
            await task.handle.cancel()
        return types.EmptyResult(result_type="complete")

    async def _find(self, id: str, visitor: Visitor) -> KeptTask:
        try:
            return await self._kept.find(visitor, id)
        except UnknownTaskError as error:
            raise MCPError(code=types.INVALID_PARAMS, message=str(error)) from None
        except BusUnavailableError:
            raise
        except SquadronError as error:
            raise MCPError(code=types.INTERNAL_ERROR, message=str(error)) from None

    def _ttl_ms(self, task: KeptTask) -> int:
        ends_at = task.handle.deadline.at_ms + 1000 * LITE_TTL_S
        return max(0, round(ends_at - 1000 * task.created_at))


def _check_knows(ctx: Context, params: TaskParams) -> None:
    if not knows_tasks(ctx):
        missing: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
        message = f"The client has to declare {EXTENSION}"
        raise MCPError(code=types.MISSING_REQUIRED_CLIENT_CAPABILITY, message=message, data=missing)
    # Whoever routes by the header must not be led elsewhere than the body says; the SDK checks its own methods.
    if ctx.request is not None and ctx.request.headers.get("mcp-name") != params.task_id:
        raise MCPError(code=types.HEADER_MISMATCH, message="Mcp-Name is not the taskId of the body")


def _wire(value: types.Result | types.ElicitRequest) -> dict[str, Any]:
    found: dict[str, Any] = value.model_dump(by_alias=True, mode="json", exclude_none=True)
    return found


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
