"""One topic of an agent: what its method says of itself, and how it is run."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Never, NoReturn, Union, get_args, get_origin, get_type_hints

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model
from pydantic_core import SchemaError, to_json

from squadron.actors.decorators import Marked, TopicMark
from squadron.runtime.calling import THREAD_GRACE_S, is_async
from squadron.runtime.errors import InvalidAgentError, InvalidInputError
from squadron.runtime.retries import Retries
from squadron.runtime.running.context import Context, TurnContext
from squadron.runtime.running.handler import Handler, OutputError
from squadron.runtime.texts import whole
from squadron.runtime.wire.outcome import Answer
from squadron.runtime.wire.topics import SemanticTopic, describe_input, shortened, validator_of

#: There is no next chunk.
_END = object()


class BoundHandler:
    """One topic of one agent instance: validates the input, runs the method, checks the output."""

    def __init__(self, spec: TopicSpec, agent: object) -> None:
        self._spec = spec
        self._method = getattr(agent, spec.method)
        self._in_loop = is_async(self._method)
        self.topic, self.run_timeout_s, self.retries = spec.topic, spec.run_timeout_s, spec.retries

    async def run(self, content: Any, context: TurnContext) -> Any:
        """Run the method on `content`; returns JSON-ready data or an `Answer` of such.

        Raises:
            InvalidInputError: the content does not fit the parameters.
            OutputError: the method returned what its annotation does not allow.
        """
        arguments = self._spec.arguments(content)
        if self._spec.context_parameter:
            arguments[self._spec.context_parameter] = context
        if self._in_loop:
            returned = self._method(**arguments)
        else:
            returned = await _in_thread(context, self._method, **arguments)
        if inspect.isawaitable(returned):
            returned = await returned
        if isinstance(returned, AsyncIterator):
            return await self._take(returned, context)
        if isinstance(returned, Iterator):
            return await self._take(_from_thread(returned, context), context)
        if isinstance(returned, Answer):
            return Answer(self._spec.dump(returned.data), returned.confidence, returned.reasoning)
        return self._spec.dump(returned)

    async def _take(self, items: AsyncIterator[Any], context: TurnContext) -> Any:
        """All items; those of a handler that promises a stream are emitted, the next is made when one is sent."""
        taken = []
        try:
            async for item in items:
                ready = item
                if self._spec.chunk is not None:
                    ready = self._spec.chunk.dump(item, self.topic.name)
                    await context.emit(ready)
                taken.append(ready)
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()
        # As they were sent, each by itself.
        return self._spec.dump("".join(map(whole, taken)) if self._spec.joins(taken) else taken)


async def _from_thread(items: Iterator[Any], context: TurnContext) -> AsyncGenerator[Any, None]:
    """A plain iterator, each step in a thread, so that the loop is free meanwhile."""
    step = partial(_in_thread, context, next, items, _END)
    try:
        while (item := await step()) is not _END:
            yield item
    finally:
        if isinstance(items, Generator):
            # One that is still in its step after a cancel ends with it.
            with contextlib.suppress(ValueError):
                await _in_thread(context, items.close)


async def _in_thread(context: TurnContext, call: Callable[..., Any], /, *args: Any, **arguments: Any) -> Any:
    thread = context.threads.begin(partial(call, *args, **arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        # A thread can't be stopped; it is asked to.
        context.stop()
        await asyncio.wait([thread], timeout=THREAD_GRACE_S)
        raise


@dataclass(frozen=True)
class TopicSpec:
    """What one `@topic` method says about itself, read from its signature and docstring."""

    method: str
    topic: SemanticTopic
    input_model: type[BaseModel]
    output: _Output
    #: What each chunk is, if the handler promises a stream of them.
    chunk: _Output | None
    context_parameter: str
    run_timeout_s: float
    retries: Retries
    #: Names that a field of an open-ended handler can't have: they are parameters already.
    taken: frozenset[str] = frozenset()

    @classmethod
    def of(cls, owner: type, method: Marked) -> TopicSpec:
        """Read one method.

        Raises:
            InvalidAgentError: a parameter has no type, or a type has no JSON Schema.
        """
        mark: TopicMark = method.mark
        where, function = f"{owner.__name__}.{method.name}", method.function
        hints = _hints(where, function)
        parameters = list(inspect.signature(function).parameters.values())
        own = {each.name for each in parameters[:1] if method.takes_self}
        fields, context_parameter, extra = _parameters(where, parameters[len(own) :], hints)
        try:
            base = _open_to(extra) if extra is not _CLOSED else _Closed
            with warnings.catch_warnings():
                # A parameter may well be called `schema` or `copy`: nobody uses those methods of the model.
                warnings.simplefilter("ignore", UserWarning)
                input_model = create_model(method.name, __base__=base, **fields)
            returned, item = _returned(hints.get("return", Any), function)
            chunk = None if item is _END else _Output.of(item)
            output = _Output.of(returned)
            input_schema = input_model.model_json_schema()
        except (PydanticUserError, SchemaError, ValueError) as error:
            # Pydantic's own errors end with an address; those of its core begin with where, and end with what.
            said = " ".join(str(error).split()) if isinstance(error, SchemaError) else str(error).splitlines()[0]
            raise InvalidAgentError(f"{where}: {said}", hint="use JSON types or pydantic models") from None
        described = SemanticTopic(
            name=mark.name,
            description=mark.description or inspect.getdoc(getattr(owner, method.name)) or "",
            input_schema=input_schema,
            output_schema=output.schema,
            examples=mark.examples,
            tags=mark.tags,
            approval=mark.approval,
            allow=mark.allow,
            verify=mark.verify,
            sealed=mark.sealed,
        )
        taken = frozenset(own | {context_parameter} - {""})
        limits = mark.run_timeout_s, mark.retries
        return cls(method.name, described, input_model, output, chunk, context_parameter, *limits, taken)

    def bind(self, agent: object) -> Handler:
        """As a topic of one instance."""
        return BoundHandler(self, agent)

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
        """A returned value as JSON-ready data that fits the output schema.

        Raises:
            OutputError: it is not what the annotation promises, or not JSON.
        """
        return self.output.dump(value, self.topic.name)

    def joins(self, chunks: list[Any]) -> bool:
        """Whether the result of a stream is one text: its chunks are texts, or happen to be."""
        if self.output.schema:
            return self.output.schema == {"type": "string"}
        return bool(chunks) and self.chunk is not None and all(isinstance(each, str) for each in chunks)


@dataclass(frozen=True)
class _Output:
    """What leaves an agent: its type, its schema, and how it is held to both."""

    type: TypeAdapter[Any]
    schema: dict[str, Any]
    validator: jsonschema_rs.Draft202012Validator

    @classmethod
    def of(cls, annotation: Any) -> _Output:
        adapter = TypeAdapter(annotation)
        schema = adapter.json_schema(mode="serialization")
        try:
            return cls(adapter, schema, validator_of(schema))
        except ValueError as error:
            raise InvalidAgentError(f"the schema of {annotation!r}: {error}"[:500]) from None

    def _ready(self, value: Any) -> Any:
        checked = self.type.validate_python(value, by_alias=True, by_name=True)
        # By alias, as the schema has it; what the serializer would warn of, the schema says, too.
        return self.type.dump_python(checked, mode="json", by_alias=True, warnings="none")

    def dump(self, value: Any, topic: str) -> Any:
        try:
            try:
                ready = self._ready(value)
                fits = self.validator.is_valid(ready)
            except UnicodeEncodeError:
                # Half a surrogate pair, in a key or where the schema has something to say of texts.
                ready = whole(self._ready(whole(value)))
                fits = self.validator.is_valid(ready)
            if fits:
                return ready
            detail = next(iter(self.validator.iter_errors(ready))).message
        except (ValueError, RecursionError) as error:
            # Also bytes that are no text, and lists that are too deep or hold themselves.
            detail = (
                error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
            )
        detail = shortened(detail.replace("\n", " "))
        raise OutputError(f"{topic} returned what it does not promise: {detail}") from None


def _hints(where: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise InvalidAgentError(
            f"{where}: {error}", hint="types of parameters must be importable where the class is defined"
        ) from None


def _parameters(
    where: str, parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> tuple[dict[str, Any], str, Any]:
    """Model fields, name of the context parameter (or empty), and the type that any other field has."""
    fields: dict[str, Any] = {}
    context_parameter, extra = "", _CLOSED
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = hints.get(parameter.name, Any)
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise InvalidAgentError(f"{where}: parameter {parameter.name!r} must be passable by name")
        elif parameter.name.startswith("_") or parameter.name == "model_config":
            raise InvalidAgentError(f"{where}: parameter {parameter.name!r} can't be a field", hint="rename it")
        elif parameter.name not in hints:
            raise InvalidAgentError(f"{where}: parameter {parameter.name!r} has no type", hint="annotate it")
        elif _is_context(hints[parameter.name]):
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


def _is_context(annotation: Any) -> bool:
    """`Context`, also annotated, and also if it may be None."""
    if get_origin(annotation) is Annotated:
        return _is_context(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(each is NoneType or _is_context(each) for each in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, Context)


def _returned(annotation: Any, function: Callable[..., Any]) -> tuple[Any, Any]:
    """Types of the result and of each chunk (`_END` if there are none)."""
    if annotation in (Answer, NoReturn, Never):
        return Any, _END
    inner = inspect.unwrap(function)
    yields = inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner)
    if not yields and get_origin(annotation) not in _STREAMS and annotation not in _STREAMS:
        return annotation, _END
    item: Any = next(iter(get_args(annotation)), Any)
    if item is Any:
        return Any, Any
    return (str if _is_text(item) else list.__class_getitem__(item)), item


#: What is said of the results of generators.
_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator, Iterator, Generator)


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    supertype = getattr(annotation, "__supertype__", None)  # of a NewType
    return annotation is str or (supertype is not None and _is_text(supertype))
