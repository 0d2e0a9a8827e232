"""Prompts: one for each topic that pursues goals, and those that agents give out themselves.

An agent's prompt is a topic with the tag `mcp:prompt=NAME`, that answers with a text or with messages.
"""

from __future__ import annotations

from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.mcp.client_inputs import with_client
from squadron.bridge.gateways.mcp.tool_calls import Context, visitor_of
from squadron.bridge.gateways.mcp.tool_list import (
    CLIENT_FIELD,
    PROMPT_TAG,
    ToolList,
    said_by_tag,
    takes_client,
    tool_name_of,
)
from squadron.bridge.gateways.mcp.tool_results import text_of
from squadron.bridge.gateways.visitors import behalf_of
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.topics import SemanticTopic

#: The domain of topics that pursue goals, as `goal.pursue` of a supervisor.
GOALS = "goal."
_MESSAGES: TypeAdapter[list[types.PromptMessage]] = TypeAdapter(list[types.PromptMessage])


class McpPrompts:
    """`prompts/list` and `prompts/get`."""

    def __init__(self, front: Front, tools: ToolList) -> None:
        self._front, self._tools = front, tools

    def _by_name(self, ctx: Context) -> dict[str, SemanticTopic]:
        found: dict[str, SemanticTopic] = {}
        for topic in self._tools.served(visitor_of(ctx)):
            name = said_by_tag(topic, PROMPT_TAG) or (tool_name_of(topic) if topic.name.startswith(GOALS) else "")
            if name:
                found.setdefault(name, topic)
        return found

    async def listed(self, ctx: Context, _: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        """The prompts, with the plain fields of their topics as arguments."""
        found = [
            types.Prompt(
                name=name, title=topic.name, description=topic.tool_description, arguments=arguments_of(topic)
            )
            for name, topic in self._by_name(ctx).items()
        ]
        return types.ListPromptsResult(prompts=found)

    async def get(
        self, ctx: Context, params: types.GetPromptRequestParams
    ) -> types.GetPromptResult | types.InputRequiredResult:
        """One prompt: of a goal, what tells a model to have it pursued; else what its agent says.

        Raises:
            MCPError: there is none of this name, an argument is missing, or its agent did not give it out.
        """
        topic = self._by_name(ctx).get(params.name)
        if topic is None:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown prompt: {params.name[:100]}")
        given: dict[str, Any] = dict(params.arguments or {})
        missing = [each.name for each in arguments_of(topic) if each.required and each.name not in given]
        if missing:
            raise MCPError(code=types.INVALID_PARAMS, message=f"The argument {missing[0]!r} is missing")
        if not said_by_tag(topic, PROMPT_TAG):
            text = f"Call the tool {tool_name_of(topic)!r} with these arguments, and report what it finds:\n"
            return _prompt(topic, text + text_of(given))
        behalf = behalf_of(visitor_of(ctx), self._front.place.ports.principal)
        options = AskOptions(within_s=self._front.within_s, on_behalf_of=behalf)

        async def ask(content: dict[str, Any]) -> Outcome:
            return await self._front.place.caller.ask(topic.name, content, options)

        outcome = await with_client(ctx, given, params, ask) if takes_client(topic) else await ask(given)
        if isinstance(outcome, types.InputRequiredResult):
            return outcome
        if not outcome.ok:
            reason = f"{outcome.kind.replace('_', ' ')}: {outcome.reason}"
            raise MCPError(code=types.INTERNAL_ERROR, message=reason[:500])
        return _prompt(topic, outcome.unwrap())


async def no_completions(ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    """Agents say nothing of how their fields might go on."""
    return types.CompleteResult(completion=types.Completion(values=[]))


def arguments_of(topic: SemanticTopic) -> list[types.PromptArgument]:
    """The fields that a form of texts can have."""
    properties = topic.input_schema.get("properties")
    required = topic.input_schema.get("required") or ()
    if not isinstance(properties, dict):
        return []
    return [
        types.PromptArgument(
            name=name,
            description=field.get("description") if isinstance(field, dict) else None,
            required=name in required,
        )
        for name, field in properties.items()
        if name != CLIENT_FIELD and (not isinstance(field, dict) or field.get("type", "string") == "string")
    ]


def _prompt(topic: SemanticTopic, data: Any) -> types.GetPromptResult:
    messages = data.get("messages") if isinstance(data, dict) else None
    if isinstance(messages, list):
        try:
            found = _MESSAGES.validate_python(messages)
            return types.GetPromptResult(description=topic.tool_description, messages=found)
        except ValidationError:
            pass
    message = types.PromptMessage(role="user", content=types.TextContent(text=text_of(data)))
    return types.GetPromptResult(description=topic.tool_description, messages=[message])
