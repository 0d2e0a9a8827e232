"""Methods of an agent that its model may call."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints, overload

from pydantic import TypeAdapter
from pydantic_core import ArgsKwargs, from_json

from squadron.actors.decorators import TOOL, marked
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.runs.ends import attached
from squadron.actors.thinking.model import ToolDefinition
from squadron.actors.thinking.shapes import InputShape, cut
from squadron.runtime import calling
from squadron.runtime.errors import InvalidAgentError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.texts import encoded, whole

F = TypeVar("F", bound=Callable[..., Any])

#: Names of functions that both providers take.
TOOL_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
#: The name under which providers without a format of their own are asked for a typed answer.
ANSWER_TOOL = "give_answer"
#: How long a tool may run, in seconds, where it does not say.
WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class ToolMark:
    """What `@tool` notes on a method."""

    may_repeat: bool = False
    within_s: float = WITHIN_S


@overload
def tool(method: F, /) -> F: ...
@overload
def tool(*, may_repeat: bool = ..., within_s: float = ...) -> Callable[[F], F]: ...
def tool(method: Any = None, /, *, may_repeat: bool = False, within_s: float = WITHIN_S) -> Any:
    """Offer this method to the model of its `LLMAgent`; its docstring says what it is good for.

    Args:
        may_repeat: it may run again when its replica died while it ran, and nobody knows how far it came; else the
            model is told so.
        within_s: how long it may run, in seconds.

    Raises:
        InvalidAgentError: a parameter has no type, there is no docstring, or providers don't take the name.
    """
    if not (isinstance(within_s, int | float) and within_s > 0):
        raise InvalidAgentError(f"within_s of a tool can't be {within_s!r}", hint="seconds, more than 0")
    mark = ToolMark(may_repeat, float(within_s))
    return _marked(method, mark) if method is not None else lambda function: _marked(function, mark)


def _marked(method: F, mark: ToolMark) -> F:
    name = method.__name__
    if not TOOL_NAME.fullmatch(name) or name == ANSWER_TOOL or name in BUILT_IN:
        what = "is not a name that providers take"
        if TOOL_NAME.fullmatch(name):
            what = "is the name of a built-in tool"
        raise InvalidAgentError(
            f"tool {method.__qualname__}: {name!r} {what}",
            hint="rename the method: 1 to 64 ASCII letters, digits, '_' or '-'",
        )
    parameters = list(inspect.signature(method).parameters.values())[1:]
    untyped = [p.name for p in parameters if p.annotation is p.empty]
    if untyped or not method.__doc__:
        what = f"parameter {untyped[0]!r} has no type" if untyped else "it has no docstring"
        raise InvalidAgentError(f"tool {method.__qualname__}: {what}")
    setattr(method, TOOL, mark)
    return method


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool of an agent, without a turn to run it in."""

    definition: ToolDefinition
    mark: ToolMark
    adapter: TypeAdapter[Any]
    shape: InputShape

    def bound(self, ctx: TurnContext) -> MethodTool:
        """The tool, for one turn."""
        return MethodTool(self, ctx)


def tools_of(agent: Any) -> list[ToolSpec]:
    """The tools of an agent."""
    tools = []
    for each in marked(type(agent), TOOL):
        adapter = TypeAdapter[Any](_typed(getattr(agent, each.name)))
        description = inspect.getdoc(getattr(type(agent), each.name)) or ""
        shape = InputShape(adapter.json_schema())
        definition = ToolDefinition(each.name, cut(description), shape.schema)
        tools.append(ToolSpec(definition, each.mark, adapter, shape))
    return tools


def _typed(method: Callable[..., Any]) -> Any:
    """The method with its types in place of their names, which pydantic would look for in this module."""

    @functools.wraps(method)
    def typed(*args: Any, **options: Any) -> Any:
        return method(*args, **options)

    typed.__annotations__ = get_type_hints(method, include_extras=True)
    return typed


@dataclass(frozen=True, slots=True)
class MethodTool:
    """A method as a run calls it; see `runs.acting.Tool`."""

    spec: ToolSpec
    ctx: TurnContext

    @property
    def definition(self) -> ToolDefinition:
        return self.spec.definition

    @property
    def may_repeat(self) -> bool:
        return self.spec.mark.may_repeat

    @property
    def within_s(self) -> float:
        return self.spec.mark.within_s

    async def run(self, arguments: Any) -> Any:
        """Call it, a plain function in a thread because it may block; what it returns as JSON, or attachments."""
        given = ArgsKwargs((), self.spec.shape.restore(arguments))
        returned = await calling.call(self.ctx.threads, self.spec.adapter.validate_python, given)
        if attached(returned):
            return returned
        return whole(returned) if isinstance(returned, str) else from_json(encoded(returned))
