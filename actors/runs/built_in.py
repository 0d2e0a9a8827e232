"""The tools that the loop itself offers to a model."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from squadron.actors.thinking.model import ToolCall, ToolDefinition

FINISH, FOR_EACH, DISCOVER, WAIT_FOR, CANCEL = "finish", "for_each", "discover_topics", "wait_for", "cancel_calls"
ASK_PERSON, CALL_FOR_BIDS = "ask_person", "call_for_bids"

M = TypeVar("M", bound=BaseModel)


class DiscoverTopics(BaseModel):
    """Find more tools by what you want done. What is found can be called from your next turn on."""

    intent: str = Field(description="what you want done, in plain words")


class ForEach(BaseModel):
    """Call one tool once per item of a list, all in parallel.

    The result is the list of results in the order of the items; a failed one is
    {"failed": kind, "reason": why, "input": item}.
    """

    topic: str = Field(description="name of the tool to call for each item")
    items: list[Any] | dict[str, Any] = Field(description='a list, or {"$from": "CALL_ID#/POINTER"} for one')
    arguments: Any = Field(
        default={"$item": ""},
        description='arguments of each call: {"$item": "/POINTER"} in them is replaced by that part of the '
        'item, {"$item": ""} by the whole item; by default the item itself is the arguments',
    )


class AskForBids(BaseModel):
    """Have several tools that can do the same bid for a task: the best gets it, and if it fails the next one."""

    tools: list[str] = Field(min_length=1, description="names of the tools; the first is called if none bids")
    arguments: Any = Field(default_factory=dict, description="arguments of the call, which must fit each tool")


class Finish(BaseModel):
    """End the run with your answer. Calls that still run are stopped."""

    answer: Any = Field(description="the answer to the goal, a text")
    deliverables: dict[str, Any] = Field(
        default_factory=dict,
        description='data to hand over by name; values may be {"$from": "CALL_ID#/POINTER"}',
    )
    achieved: bool = Field(default=True, description="false if the goal was not achieved; the answer says why")


class WaitFor(BaseModel):
    """Wait for calls that are still running; you are asked again when all of them have ended."""

    calls: list[str] = Field(description="ids of the calls", min_length=1)
    most_s: float | None = Field(default=None, gt=0, description="at most so many seconds")


class CancelCalls(BaseModel):
    """Stop calls that are still running, because you don't need what they would come to."""

    calls: list[str] = Field(description="ids of the calls", min_length=1)


class AskPerson(BaseModel):
    """Ask a person, when only they can know or decide. It may take them long; do all else meanwhile."""

    question: str = Field(min_length=1, description="the question, in words that stand for themselves")
    choices: list[str] = Field(default_factory=list, description="the answers there are; none for a free text")


def read_arguments(model: type[M], arguments: Any) -> M:
    """The arguments of a built-in tool.

    Raises:
        ValueError: they don't fit; names the field.
    """
    try:
        return model.model_validate(arguments)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"field {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from None


def named_in(call: ToolCall) -> list[str]:
    """The tools that a call is for, by the names that the model gives them."""
    if call.name == FOR_EACH:
        return [str(call.arguments.get("topic"))]
    tools = call.arguments.get("tools")
    return [str(tool) for tool in tools] if call.name == CALL_FOR_BIDS and isinstance(tools, list) else [call.name]


def _tool(name: str, model: type[BaseModel]) -> ToolDefinition:
    schema = model.model_json_schema()
    return ToolDefinition(name, str(schema.pop("description")), schema)


#: By name, in the order in which they are offered.
BUILT_IN = {
    name: _tool(name, model)
    for name, model in (
        (DISCOVER, DiscoverTopics),
        (FOR_EACH, ForEach),
        (CALL_FOR_BIDS, AskForBids),
        (WAIT_FOR, WaitFor),
        (CANCEL, CancelCalls),
        (ASK_PERSON, AskPerson),
        (FINISH, Finish),
    )
}
