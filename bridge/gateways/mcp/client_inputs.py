"""Agents that ask a client themselves, in MCP's own words: for what no question to people can say.

A topic whose input has a field `mcp_client` is told there what the client can do. It may then answer with MCP's
`input_required` (what it wants of the client: a form, a completion of its model, its roots), and is asked again
with what the client said. Nothing waits meanwhile: what it has to remember goes by the client, in a sealed state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from pydantic import BaseModel, TypeAdapter, ValidationError

from squadron.bridge.gateways.mcp.tool_list import CLIENT_FIELD, is_modern
from squadron.runtime.wire.outcome import Outcome

#: How often an agent may come back with another wish, for clients of the older wire, which are asked by us.
MOST_ROUNDS = 10
#: What a client must have declared to be asked for something.
_NEEDED = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
_RESULTS: dict[str, type[BaseModel]] = {
    "elicitation/create": types.ElicitResult,
    "sampling/createMessage": types.CreateMessageResult,
    "roots/list": types.ListRootsResult,
}
_REQUESTS: TypeAdapter[types.InputRequests] = TypeAdapter(types.InputRequests)

Context = ServerRequestContext[Any, Any]


async def with_client(
    ctx: Context,
    content: Mapping[str, Any],
    params: types.InputResponseRequestParams,
    ask: Callable[[dict[str, Any]], Awaitable[Outcome]],
) -> Outcome | types.InputRequiredResult:
    """Ask a topic that takes the client, until it has a result, or wants what the client comes back with.

    Args:
        params: with what the client says, and the state that it was given, if it comes back.
        ask: sends the content, and waits for the outcome.

    Raises:
        MCPError: the agent wants what the client did not declare, or what it wants is nothing of MCP's.
    """
    offered = ctx.session.client_capabilities
    told: dict[str, Any] = {"capabilities": _plain(offered) if offered is not None else {}}
    if params.input_responses is not None:
        told["inputResponses"] = {key: _plain(each) for key, each in params.input_responses.items()}
    if params.request_state is not None:
        told["requestState"] = params.request_state
    for _ in range(MOST_ROUNDS):
        outcome = await ask({**content, CLIENT_FIELD: told})
        data = outcome.unwrap() if outcome.ok else None
        if not isinstance(data, Mapping) or data.get("resultType") != "input_required":
            return outcome
        requests = _wanted(data)
        _check_declared(requests, told["capabilities"])
        state = data.get("requestState")
        if is_modern(ctx.protocol_version):
            return types.InputRequiredResult(input_requests=requests or None, request_state=state)
        answers = {key: await _asked_now(ctx, each) for key, each in requests.items()}
        told = {**told, "inputResponses": answers, "requestState": state}
    raise MCPError(code=types.INTERNAL_ERROR, message=f"The agent asked {MOST_ROUNDS} times")


def _wanted(data: Mapping[str, Any]) -> types.InputRequests:
    try:
        requests = _REQUESTS.validate_python(data.get("inputRequests") or {})
    except ValidationError as error:
        raise MCPError(
            code=types.INTERNAL_ERROR, message=f"The agent wants what is no request: {error}"[:500]
        ) from None
    state = data.get("requestState")
    if not (requests or state) or not isinstance(state, str | None):
        raise MCPError(code=types.INTERNAL_ERROR, message="The agent wants input, and does not say which")
    return requests


def _check_declared(requests: types.InputRequests, capabilities: Mapping[str, Any]) -> None:
    needed = {_NEEDED[each.method]: dict[str, Any]() for each in requests.values()}
    if missing := {name: each for name, each in needed.items() if name not in capabilities}:
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message=f"The client has to declare {', '.join(sorted(missing))}",
            data={"requiredCapabilities": missing},
        )


async def _asked_now(ctx: Context, request: types.InputRequest) -> dict[str, Any]:
    metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
    answer = await ctx.session.send_request(request, _RESULTS[request.method], metadata=metadata)
    return _plain(answer)


def _plain(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(by_alias=True, mode="json", exclude_none=True)
