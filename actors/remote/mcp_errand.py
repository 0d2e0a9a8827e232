"""A call that an MCP server made a task of, by the Tasks extension: followed until it has ended, and answered.

https://modelcontextprotocol.io/extensions/tasks (2026-07-28). A server makes a task of a call only for clients
that say that they know such. What it is called there is noted: an attempt after this one takes it up, instead of
calling again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import mcp_types as types
from mcp.client.extension import ClientExtension, ResultClaim
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from pydantic import Field

from squadron.actors.remote.errand_notes import ErrandNote
from squadron.runtime.errors import Terminal
from squadron.runtime.running.context import TurnContext

EXTENSION = "io.modelcontextprotocol/tasks"
#: How often a task is looked at, in seconds: as its server asks, within these.
LEAST_POLL_S, MOST_POLL_S, POLL_S = 0.05, 10.0, 1.0
#: How long a cancel may take, in seconds.
CANCEL_WITHIN_S = 5.0
#: How much is told of what a task says of itself, in characters.
MOST_SAID = 2000

#: Has people answer what a server asks.
Ask = Callable[[types.ElicitRequestParams], Awaitable[types.ElicitResult | types.ErrorData]]


class _TaskRequest(types.Request[dict[str, Any], str]):
    name_param = "taskId"


class _TaskBegun(types.Result):
    result_type: Literal["task"] = "task"
    task_id: str


class _TaskState(types.Result):
    status: Literal["working", "input_required", "completed", "failed", "cancelled"]
    status_message: str = ""
    poll_interval_ms: float | None = None
    result: types.CallToolResult | None = None
    error: types.ErrorData | None = None
    input_requests: dict[str, types.ElicitRequest] = Field(default_factory=dict)


class McpErrands(ClientExtension):
    """For the SDK's `Client`: sees tasks through that calls become.

    Args:
        turn: that in which a call is made; there is one.
        ask: for what a task asks.
    """

    identifier = EXTENSION

    def __init__(self, turn: Callable[[], TurnContext | None], ask: Ask) -> None:
        self._turn, self._ask = turn, ask

    def claims(self) -> list[ResultClaim[Any]]:
        """The answer to a call that became a task."""
        return [ResultClaim(result_type="task", model=_TaskBegun, resolve=self._begun)]

    async def _begun(self, created: _TaskBegun, context: Any) -> types.CallToolResult:
        turn = self._turn()
        assert turn is not None, "calls are made in turns"
        await ErrandNote(turn, "mcp").write({"task": created.task_id})
        return await self._followed(context.session, created.task_id, turn)

    async def taken_up(self, session: ClientSession, turn: TurnContext) -> types.CallToolResult | None:
        """What came of the task that an earlier attempt began there; None if there is none, or it was forgotten.

        Raises:
            MCPError: it failed by an error of the protocol.
            Terminal: it was cancelled there.
        """
        if turn.attempt == 1 or not (task := (await ErrandNote(turn, "mcp").read()).get("task")):
            return None
        try:
            await self._look(session, task)
        except MCPError as error:
            if error.error.code in (types.INVALID_PARAMS, types.METHOD_NOT_FOUND):
                return None
            raise
        return await self._followed(session, task, turn)

    async def _followed(self, session: ClientSession, task: str, turn: TurnContext) -> types.CallToolResult:
        answered, said = set[str](), ""
        try:
            while True:
                told = await self._look(session, task)
                if told.status in ("working", "input_required") and told.status_message not in ("", said):
                    said = told.status_message
                    await turn.emit({"message": said[:MOST_SAID]})
                match told.status:
                    case "completed" if told.result is not None:
                        return told.result
                    case "failed" if told.error is not None:
                        raise MCPError(told.error.code, told.error.message)
                    case "completed" | "failed" | "cancelled":
                        raise Terminal(f"{told.status} there: {told.status_message or 'it says no more'}"[:2000])
                asked = {id: each for id, each in told.input_requests.items() if id not in answered}
                if asked:
                    await self._answer(session, task, asked)
                    answered |= asked.keys()
                await asyncio.sleep(_pause_s(told))
        except asyncio.CancelledError:
            # A replica that is drained leaves the task to the next one.
            if turn.cancelled:
                with contextlib.suppress(MCPError, OSError, TimeoutError):
                    async with asyncio.timeout(CANCEL_WITHIN_S):
                        await session.send_request(_request("tasks/cancel", task), types.EmptyResult)
            raise

    async def _look(self, session: ClientSession, task: str) -> _TaskState:
        return await session.send_request(_request("tasks/get", task), _TaskState)

    async def _answer(self, session: ClientSession, task: str, asked: dict[str, types.ElicitRequest]) -> None:
        answers: dict[str, Any] = {}
        for id, each in asked.items():
            answer = await self._ask(each.params)
            if isinstance(answer, types.ErrorData):
                raise MCPError(answer.code, answer.message)
            answers[id] = answer.model_dump(by_alias=True, mode="json", exclude_none=True)
        await session.send_request(_request("tasks/update", task, inputResponses=answers), types.EmptyResult)


def _request(method: str, task: str, **more: Any) -> _TaskRequest:
    return _TaskRequest(method=method, params={"taskId": task, **more})


def _pause_s(told: _TaskState) -> float:
    if told.poll_interval_ms is None:
        return POLL_S
    return min(max(told.poll_interval_ms / 1000, LEAST_POLL_S), MOST_POLL_S)
