"""What an author writes: a class with typed, documented handlers.

class Analyst(Agent):
    \"\"\"Reads numbers and text.\"\"\"

    @topic("analysis.sentiment", examples=["is this review angry?"])
    async def sentiment(self, text: str) -> float:
        \"\"\"Score how positive a text is, from -1 to 1.\"\"\"
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import SchemaError, to_json

from squadron.actors.marks import DurableMark, EventMark, TopicMark
from squadron.runtime.context import Context
from squadron.runtime.errors import InvalidAgentError, InvalidInputError, InvalidSubjectError
from squadron.runtime.outcome import Answer
from squadron.runtime.retries import Retries
from squadron.runtime.subjects import check_token, overlap
from squadron.runtime.topics import AgentCard, SemanticTopic, describe_input
from squadron.runtime.turn import OutputError

#: How long a handler in a thread may go on after it was told to stop, in seconds, before it is left alone.
THREAD_GRACE_S = 1.0
#: What the marks leave on a method.
MARKS = ("__squadron_topic__", "__squadron_event__", "__squadron_durable_event__")


class Agent:
    """Base of all agents. One instance per replica; its attributes are that replica's state.

    Attributes:
        name: how it is deployed and listed; kebab-case of the class name by default.
        slots: turns at once per replica.
        min_replicas, max_replicas: bounds of autoscaling; a minimum of 0 lets it go away when idle.
        grace_s: how long running turns may take to end when a replica is stopped, in seconds.
        num_cpus, num_gpus: what Ray reserves per replica.
        ordered_by: "conversation" runs the tasks of one conversation one at a time, in the order in which they
            were published, over all replicas; priorities then don't count.
        capabilities: what its replicas offer to tasks that ask for it; `on_start` may set it per replica.
        mailbox_limit: how many tasks its mailbox may hold, waiting and running; 0 is any number.
        when_full: what becomes of more: the caller waits for room, or the task is rejected.
    """

    name: ClassVar[str] = ""
    slots: ClassVar[int] = 32
    min_replicas: ClassVar[int] = 1
    max_replicas: ClassVar[int] = 4
    grace_s: ClassVar[float] = 20.0
    num_cpus: ClassVar[float] = 0
    num_gpus: ClassVar[float] = 0
    ordered_by: ClassVar[Literal["", "conversation"]] = ""
    capabilities: Collection[str] = frozenset()
    mailbox_limit: ClassVar[int] = 0
    when_full: ClassVar[Literal["wait", "reject"]] = "wait"

    async def on_start(self) -> None:
        """Runs once per replica, before its first task."""

    async def on_stop(self) -> None:
        """Runs once per replica, after its last task."""


class BoundHandler:
    """One topic of one agent instance: validates the input, runs the method, checks the output."""

    def __init__(self, spec: TopicSpec, agent: Agent) -> None:
        self._spec = spec
        self._method = getattr(agent, spec.method)
        self._streams = inspect.isasyncgenfunction(self._method)
        self._awaits = inspect.iscoroutinefunction(self._method)

    @property
    def topic(self) -> SemanticTopic:
        return self._spec.topic

    @property
    def run_timeout_s(self) -> float:
        return self._spec.run_timeout_s

    @property
    def retries(self) -> Retries:
        return self._spec.retries

    async def run(self, content: Any, context: Context) -> Any:
        """Run the method on `content`; returns JSON-ready data or an `Answer` of such.

        Raises:
            InvalidInputError: the content does not fit the parameters.
            OutputError: the method returned what its annotation does not allow.
        """
        arguments = self._spec.arguments(content)
        if self._spec.context_parameter:
            arguments[self._spec.context_parameter] = context
        if self._streams:
            return await self._stream(arguments, context)
        if self._awaits:
            returned = await self._method(**arguments)
        else:
            returned = await self._in_thread(arguments, context)
        if isinstance(returned, Answer):
            return Answer(self._spec.dump(returned.data), returned.confidence, returned.reasoning)
        return self._spec.dump(returned)

    async def _in_thread(self, arguments: dict[str, Any], context: Context) -> Any:
        # Not a task: one in which `sys.exit()` is called takes the loop along.
        run = partial(contextvars.copy_context().run, _call, self._method, arguments)
        thread = asyncio.get_running_loop().run_in_executor(None, run)
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            # A thread can't be stopped; it is asked to.
            context.stop()
            await asyncio.wait([thread], timeout=THREAD_GRACE_S)
            thread.cancel()
            raise

    async def _stream(self, arguments: dict[str, Any], context: Context) -> Any:
        chunks = []
        async for chunk in self._method(**arguments):
            ready = self._spec.dump(chunk)
            await context.emit(ready)
            chunks.append(ready)
        return "".join(chunks) if all(isinstance(chunk, str) for chunk in chunks) else chunks


def _call(method: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return method(**arguments)
    except StopIteration as error:
        # No future can carry it (it would never be done); PEP 479 does the same for generators.
        raise RuntimeError("the handler raised StopIteration") from error


@dataclass(frozen=True)
class TopicSpec:
    """What one `@topic` method says about itself, read from its signature and docstring."""

    method: str
    topic: SemanticTopic
    input_model: type[BaseModel]
    output: TypeAdapter[Any]
    context_parameter: str
    run_timeout_s: float
    retries: Retries
    #: Names that a field of an open-ended handler can't have: they are parameters already.
    taken: frozenset[str] = frozenset()

    @classmethod
    def of(cls, owner: type[Agent], name: str, function: Callable[..., Any]) -> TopicSpec:
        """Read one method.

        Raises:
            InvalidAgentError: a parameter has no type, or a type has no JSON Schema.
        """
        mark: TopicMark = function.__squadron_topic__  # type: ignore[attr-defined]
        where = f"{owner.__name__}.{name}"
        hints = _hints(where, function)
        fields, context_parameter, extra = _parameters(where, function, hints)
        first = next(iter(inspect.signature(function).parameters), "")
        try:
            base = _open_to(extra) if extra is not _CLOSED else _Closed
            with warnings.catch_warnings():
                # A parameter may well be called `schema` or `copy`: nobody uses those methods of the model.
                warnings.simplefilter("ignore", UserWarning)
                input_model = create_model(name, __base__=base, **fields)
            output = TypeAdapter(_returned(hints.get("return", Any), function))
            input_schema = input_model.model_json_schema()
            output_schema = output.json_schema(mode="serialization")
        except (PydanticUserError, SchemaError, ValueError) as error:
            raise InvalidAgentError(
                f"{where}: {str(error).splitlines()[0]}", hint="use JSON types or pydantic models"
            ) from None
        described = SemanticTopic(
            name=mark.name,
            description=mark.description or inspect.cleandoc(function.__doc__ or ""),
            input_schema=input_schema,
            output_schema=output_schema,
            examples=mark.examples,
            tags=mark.tags,
        )
        taken = frozenset({first, context_parameter or first})
        limits = mark.run_timeout_s, mark.retries
        return cls(name, described, input_model, output, context_parameter, *limits, taken)

    def arguments(self, content: Any) -> dict[str, Any]:
        """The method's arguments from a message's content; a bare value goes to the only parameter.

        Raises:
            InvalidInputError: it does not fit; `field` says where.
        """
        if not isinstance(content, dict) and len(self.input_model.model_fields) == 1:
            content = {next(iter(self.input_model.model_fields)): content}
        try:
            checked = self._checked({} if content is None else content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InvalidInputError(
                f"{self.topic.name}: field {field!r}: {first['msg']}",
                field=field,
                hint=f"takes {describe_input(self.topic.input_schema)}",
            ) from None
        extra = checked.model_extra or {}
        if clash := self.taken.intersection(extra):
            field = min(clash)
            raise InvalidInputError(f"{self.topic.name}: field {field!r} can't be passed on", field=field)
        return {**checked.__dict__, **extra}

    def _checked(self, content: Any) -> BaseModel:
        try:
            return self.input_model.model_validate(content)
        except ValidationError:
            # A strict type takes a tuple or a date only from JSON, which has no such things: and JSON this was.
            with contextlib.suppress(ValueError):
                return self.input_model.model_validate_json(to_json(content))
            raise

    def dump(self, value: Any) -> Any:
        """A returned value as JSON-ready data.

        Raises:
            OutputError: it is not what the annotation promises, or not JSON.
        """
        try:
            return self.output.dump_python(self.output.validate_python(value), mode="json")
        except (ValueError, RecursionError) as error:
            # Also bytes that are no text, and lists that are too deep or hold themselves.
            first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
            detail = first.replace("\n", " ")
            raise OutputError(f"{self.topic.name} returned what it does not promise: {detail}") from None


@dataclass(frozen=True)
class AgentSpec:
    """All that a class says about itself as an agent."""

    agent_class: type[Agent]
    name: str
    description: str
    topics: tuple[TopicSpec, ...]
    events: tuple[tuple[str, EventMark], ...]
    durable_events: tuple[tuple[str, DurableMark], ...]

    @classmethod
    def of(cls, agent_class: type[Agent]) -> AgentSpec:
        """Read an agent class.

        Raises:
            InvalidAgentError: it can't be served; the message says what to change.
        """
        if not (isinstance(agent_class, type) and issubclass(agent_class, Agent)):
            raise InvalidAgentError(f"{agent_class!r} is not an agent", hint="derive a class from squadron.Agent")
        for method, function in inspect.getmembers(agent_class, inspect.isfunction):
            if hasattr(Agent, method) and any(hasattr(function, mark) for mark in MARKS):
                said = f"{agent_class.__name__}.{method}: every agent has a {method!r} of its own"
                raise InvalidAgentError(said, hint="rename the handler")
        name = agent_class.name or _kebab(agent_class.__name__)
        try:
            check_token(name, f"name of agent {agent_class.__name__}:")
        except InvalidSubjectError as error:
            raise InvalidAgentError(str(error)) from None
        _check_made(name, agent_class)
        if not 0 <= agent_class.min_replicas <= max(1, agent_class.max_replicas) or agent_class.slots < 1:
            raise InvalidAgentError(
                f"{name}: needs 0 <= min_replicas <= max_replicas, max_replicas >= 1 and slots >= 1"
            )
        if agent_class.ordered_by not in ("", "conversation"):
            raise InvalidAgentError(
                f"{name}: ordered_by={agent_class.ordered_by!r}", hint='use "conversation", or "" for no order'
            )
        methods = inspect.getmembers(agent_class, inspect.isfunction)
        topics = tuple(
            TopicSpec.of(agent_class, method, function)
            for method, function in methods
            if hasattr(function, "__squadron_topic__")
        )
        events = tuple(
            (method, function.__squadron_event__)
            for method, function in methods
            if hasattr(function, "__squadron_event__")
        )
        durable_events = tuple(
            (method, function.__squadron_durable_event__)
            for method, function in methods
            if hasattr(function, "__squadron_durable_event__")
        )
        if not topics and not events and not durable_events:
            raise InvalidAgentError(f"{name} serves nothing", hint='mark a method with @topic("domain.what")')
        _check_disjoint(name, [spec.topic.name for spec in topics])
        description = inspect.cleandoc(agent_class.__doc__ or "")
        return cls(agent_class, name, description, topics, events, durable_events)

    def card(self) -> AgentCard:
        """The registry's entry for it."""
        mailbox = {
            "mailbox": self.name,
            "mailbox_limit": self.agent_class.mailbox_limit,
            "when_full": self.agent_class.when_full,
        }
        topics = tuple(spec.topic.model_copy(update=mailbox) for spec in self.topics)
        return AgentCard(agent=self.name, description=self.description, topics=topics)

    def handlers(self, agent: Agent) -> list[BoundHandler]:
        """The topics bound to one instance."""
        return [BoundHandler(spec, agent) for spec in self.topics]


def _check_made(name: str, agent_class: type[Agent]) -> None:
    """A replica makes its agent without arguments, starts and stops it, and reads the attributes of `Agent`."""
    try:
        if missing := getattr(agent_class, "__abstractmethods__", None):
            raise TypeError(f"it is abstract: {', '.join(sorted(missing))}")
        inspect.signature(agent_class).bind()
    except TypeError as error:
        hint = "a replica makes it without arguments; what it needs is made in on_start"
        raise InvalidAgentError(f"{name}: {agent_class.__name__}() can't be called: {error}", hint=hint) from None
    for hook in ("on_start", "on_stop"):
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(agent_class, hook))):
            raise InvalidAgentError(f"{name}: {hook} is not async", hint=f"async def {hook}(self)")


def _check_disjoint(name: str, patterns: list[str]) -> None:
    for i, one in enumerate(patterns):
        for other in patterns[i + 1 :]:
            # An exact topic inside a family of the same agent is fine: the exact handler gets it.
            if one == other or (overlap(one, other) and "*" in one and "*" in other):
                raise InvalidAgentError(f"{name}: {one!r} and {other!r} would both get the same task")


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _hints(where: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise InvalidAgentError(
            f"{where}: {error}", hint="types of parameters must be importable where the class is defined"
        ) from None


def _parameters(
    where: str, function: Callable[..., Any], hints: dict[str, Any]
) -> tuple[dict[str, Any], str, Any]:
    """Model fields, name of the context parameter (or empty), and the type that any other field has."""
    fields: dict[str, Any] = {}
    context_parameter, extra = "", _CLOSED
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = hints.get(parameter.name, Any)
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise InvalidAgentError(f"{where}: parameter {parameter.name!r} must be passable by name")
        elif parameter.name.startswith("_") or parameter.name == "model_config":
            raise InvalidAgentError(f"{where}: parameter {parameter.name!r} can't be a field", hint="rename it")
        elif parameter.name not in hints:
            raise InvalidAgentError(f"{where}: parameter {parameter.name!r} has no type", hint="annotate it")
        elif hints[parameter.name] is Context:
            context_parameter = parameter.name
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return fields, context_parameter, extra


class _Closed(BaseModel):
    """Input of a handler that takes no other fields than its parameters."""

    model_config = ConfigDict(extra="forbid")


#: No other fields are welcome.
_CLOSED = object()


def _open_to(kind: Any) -> type[BaseModel]:
    """Input of a handler that takes any other fields, if they are of this type (`**prices: int`)."""
    typed = {} if kind is Any else {"__pydantic_extra__": dict[str, kind]}
    names = {"__module__": __name__, "model_config": ConfigDict(extra="allow"), "__annotations__": typed}
    return type("_Open", (BaseModel,), names)


def _returned(annotation: Any, function: Callable[..., Any]) -> Any:
    if inspect.isasyncgenfunction(function):
        arguments = getattr(annotation, "__args__", (Any,))
        return arguments[0]
    return Any if annotation is Answer else annotation
