"""Agents that think with an LLM, and what all of them need: a model, patience, an ordered stream."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from squadron.actors.agent import Agent
from squadron.actors.decorators import TOOL, marked
from squadron.actors.thinking.assemble import Pieces, mended_turn
from squadron.actors.thinking.credentials import adopt_keys
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall, ToolDefinition
from squadron.actors.thinking.providers import default_model_spec, model_from, model_key
from squadron.actors.thinking.shapes import InputShape, cut
from squadron.runtime import calling
from squadron.runtime.background import spawn
from squadron.runtime.errors import ConfigError, InvalidAgentError, ModelError, Retry, SquadronError, Terminal
from squadron.runtime.retries import backoff_s, summary_of
from squadron.runtime.running.context import Context
from squadron.runtime.texts import encoded, whole

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

#: The spec that stands for no LLM at all.
OFFLINE = "offline"
#: How often a model is asked before the turn fails. The SDKs retry what failed before the stream began; this
#: is for what breaks later, and for an overload that lasts seconds.
TRIES = 3
#: Turns of the model within one task of an `LLMAgent`: room to use tools, an end for one that is lost.
MAX_ROUNDS = 8
#: Exchanges of a conversation that are shown to the model again.
MAX_REMEMBERED = 20
#: Names of functions that both providers take.
TOOL_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
#: The tool through which a model hands over a typed answer.
ANSWER_TOOL = "give_answer"


def spec_of(ctx: Context) -> str:
    """The model to use for this task: the one the message names, else the environment's default."""
    adopt_keys()
    return ctx.message.payload.model or default_model_spec(os.environ)


def sampling_of(ctx: Context) -> dict[str, Any]:
    """`temperature` and `max_tokens` from the message's parameters, as arguments of `Model.think`.

    Raises:
        Terminal: one of them is not a number.
    """
    given = ctx.message.payload.parameters or {}
    sampling: dict[str, Any] = {}
    for name, wire, kind in (("temperature", "temperature", float), ("max_tokens", "maxTokens", int)):
        value = given.get(wire, given.get(name))
        if value is not None:
            try:
                sampling[name] = kind(value)
            except (TypeError, ValueError):
                raise Terminal(f"payload.parameters.{wire}: {value!r} is not a number") from None
    return sampling


def open_model(spec: str) -> Model:
    """The LLM that `spec` names.

    Raises:
        Terminal: it names none, or there is no key for it.
    """
    try:
        return model_from(spec)
    except (ConfigError, ModelError) as error:
        raise Terminal(str(error)) from error


async def think_patiently(
    model: Model,
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolDefinition],
    on_text: Callable[[str], None],
    sampling: dict[str, Any],
) -> ModelTurn:
    """Ask the model, again after a pause when the provider has a passing problem.

    Raises:
        Terminal: it can't be asked; says why.
    """
    tried = 0
    while True:
        pieces = Pieces(on_text)
        try:
            request = ModelRequest(tuple(messages), tuple(tools), **sampling)
            turn = await model.think(request, pieces.add)
            pieces.end()
            return mended_turn(turn)
        except ModelError as error:
            tried += 1
            if not error.retryable or tried == TRIES:
                often = f" in {tried} tries" if tried > 1 else ""
                raise Terminal(f"the model {model.name} gave no answer{often}: {error}") from error
        await asyncio.sleep(backoff_s(tried))


async def all_at_once(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once; when one breaks, the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def with_unique_ids(turn: ModelTurn, used: Collection[str]) -> ModelTurn:
    """The turn with call ids that no other call has; some servers number the calls of each turn anew."""
    taken, calls = set(used), list[ToolCall]()
    for call in turn.tool_calls:
        base = call.id.replace("#", "_") or "call"
        number, unique = 1, base
        while unique in taken:
            number += 1
            unique = f"{base}-{number}"
        taken.add(unique)
        calls.append(replace(call, id=unique))
    return replace(turn, tool_calls=tuple(calls))


class Emitter:
    """Sends what a turn emits in order, also from code that can't wait; text that piles up goes as one piece.

    A stream that breaks does not break the turn: the outcome is what counts.
    """

    def __init__(self, ctx: Context, wrap_text: Callable[[str], Any] = str) -> None:
        self._ctx, self._wrap_text = ctx, wrap_text
        #: No more than one turn of the model says: texts that come while one is sent are joined.
        self._waiting: deque[tuple[bool, Any]] = deque()
        self._grown = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        self._writer = spawn(self._write(), "emitter")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._grown.set()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._writer.cancel()
        await asyncio.wait([self._writer])

    def send(self, chunk: Any) -> None:
        """Emit one chunk."""
        self._waiting.append((False, chunk))
        self._grown.set()

    def text(self, delta: str) -> None:
        """Emit a piece of text."""
        if self._waiting and self._waiting[-1][0]:
            delta = self._waiting.pop()[1] + delta
        self._waiting.append((True, delta))
        self._grown.set()

    async def _write(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._grown.clear()
                await self._grown.wait()
                continue
            is_text, chunk = self._waiting.popleft()
            try:
                await self._ctx.emit(self._wrap_text(chunk) if is_text else chunk)
            except SquadronError as error:
                self._ctx.log.warning("emit.lost", error=str(error))


def tool(method: F) -> F:
    """Offer this method to the model of its `LLMAgent`; its docstring says what it is good for.

    Raises:
        InvalidAgentError: a parameter has no type, there is no docstring, or providers don't take the name.
    """
    name = method.__name__
    if not TOOL_NAME.fullmatch(name) or name == ANSWER_TOOL:
        what = "is the tool for typed answers" if name == ANSWER_TOOL else "is not a name that providers take"
        raise InvalidAgentError(
            f"tool {method.__qualname__}: {name!r} {what}",
            hint="rename the method: 1 to 64 ASCII letters, digits, '_' or '-'",
        )
    parameters = list(inspect.signature(method).parameters.values())[1:]
    untyped = [p.name for p in parameters if p.annotation is p.empty]
    if untyped or not method.__doc__:
        what = f"parameter {untyped[0]!r} has no type" if untyped else "it has no docstring"
        raise InvalidAgentError(f"tool {method.__qualname__}: {what}")
    setattr(method, TOOL, True)
    return method


class LLMAgent(Agent):
    """An agent whose handlers ask an LLM with `think` or `think_as`.

    class Translator(LLMAgent):
        \"\"\"You translate into plain English.\"\"\"

        @topic("text.translate")
        async def translate(self, text: str, ctx: Context) -> str:
            \"\"\"Translate a text into English.\"\"\"
            return await self.think(ctx, text)

    Attributes:
        instructions: the system prompt; the class docstring by default.
        remembers: whether it recalls its earlier exchanges in the same conversation.
    """

    instructions: ClassVar[str] = ""
    remembers: ClassVar[bool] = True

    @cached_property
    def _models(self) -> dict[str, Model]:
        return {}

    @cached_property
    def _tools(self) -> dict[str, tuple[ToolDefinition, TypeAdapter[Any], InputShape]]:
        tools = {}
        for each in marked(type(self), TOOL):
            adapter = TypeAdapter(getattr(self, each.name))
            description = inspect.getdoc(getattr(type(self), each.name)) or ""
            shape = InputShape(adapter.json_schema())
            tools[each.name] = ToolDefinition(each.name, cut(description), shape.schema), adapter, shape
        return tools

    async def on_stop(self) -> None:
        """Close the models' connections; call it when you override it."""
        while self._models:
            _, model = self._models.popitem()
            await model.aclose()

    def make_model(self, spec: str) -> Model:
        """The model of a spec; tests override it.

        Raises:
            Terminal: there is none.
        """
        if spec == OFFLINE:
            raise Terminal(
                f"{type(self).__name__} needs an LLM and none is configured: set OPENAI_API_KEY or "
                "ANTHROPIC_API_KEY, or SQUADRON_MODEL=provider:name, or name a model in the task (payload.model)"
            )
        return open_model(spec)

    def _model(self, ctx: Context) -> Model:
        spec = spec_of(ctx)
        key = model_key(spec)  # a model made with a key that was rotated since is not the one to ask
        if key not in self._models:
            self._models[key] = self.make_model(spec)
        return self._models[key]

    async def think(self, ctx: Context, prompt: str) -> str:
        """The model's answer to `prompt`, in words; streamed to whoever follows the task.

        Raises:
            Terminal: the model can't be asked, or does not come to an end.
        """
        text = str(await self._converse(ctx, prompt, None))
        await self._remember(ctx, prompt, text)
        return text

    async def think_as(self, ctx: Context, prompt: str, kind: type[T]) -> T:
        """The model's answer to `prompt` as a value of `kind` (a pydantic model, or any type with a schema).

        Raises:
            Terminal: the model can't be asked, or gives no such value.
        """
        value: T = await self._converse(ctx, prompt, _AnswerSlot(kind))
        await self._remember(ctx, prompt, encoded(value).decode())
        return value

    async def _converse(self, ctx: Context, prompt: str, answer: _AnswerSlot | None) -> Any:
        model, sampling = self._model(ctx), sampling_of(ctx)
        messages = [*self._opening(), *await self._earlier(ctx), ChatMessage("user", prompt)]
        tools = [definition for definition, _, _ in self._tools.values()]
        tools += [answer.definition] if answer is not None else []
        async with Emitter(ctx) as emitter:
            for _ in range(MAX_ROUNDS):
                turn = await think_patiently(model, messages, tools, emitter.text, sampling)
                ctx.charge(turn.tokens)
                messages.append(turn.as_message())
                messages += await all_at_once(self._call(ctx, call, answer) for call in turn.tool_calls)
                if answer is not None and (answer.given or answer.take(turn)):
                    return answer.value
                if not turn.tool_calls:
                    if answer is None:
                        return turn.text
                    nudge = f"Call {ANSWER_TOOL} with your answer. {answer.problem}"
                    messages.append(ChatMessage("user", nudge))
        raise Terminal(f"the model {model.name} came to no answer in {MAX_ROUNDS} turns")

    def _opening(self) -> Iterator[ChatMessage]:
        text = self.instructions or inspect.cleandoc(type(self).__doc__ or "")
        if text:
            yield ChatMessage("system", text)

    async def _call(self, ctx: Context, call: ToolCall, answer: _AnswerSlot | None) -> ChatMessage:
        if call.problem:
            return _told(call, call.problem, is_error=True)
        if answer is not None and call.name == ANSWER_TOOL:
            taken = answer.offer(call.arguments)
            return _told(call, "taken" if taken else answer.problem, is_error=not taken)
        if call.name not in self._tools:
            names = ", ".join(self._tools)
            return _told(call, f"there is no tool {call.name!r}; there are: {names}", is_error=True)
        _, adapter, shape = self._tools[call.name]
        given = shape.restore(call.arguments)
        try:
            # In a thread, because a plain function may block; a coroutine function only makes its coroutine.
            returned = await calling.call(ctx.threads, adapter.validate_python, ArgsKwargs((), given))
            return _told(call, whole(returned) if isinstance(returned, str) else encoded(returned).decode())
        except (Retry, Terminal):
            raise
        except Exception as error:
            # The model can often do something about it: other arguments, another way.
            return _told(call, summary_of(error), is_error=True)

    async def _earlier(self, ctx: Context) -> list[ChatMessage]:
        """The conversation so far: the caller's own account of it, else what this agent remembers."""
        told = ctx.message.context
        if told.history is not None:
            most = len(told.history) if told.max_history is None else told.max_history
            return [_read_history(item) for item in told.history[max(0, len(told.history) - most) :]]
        if not self._talks(ctx):
            return []
        return [_read_history(item) for pair in await ctx.recall(most=MAX_REMEMBERED) for item in pair]

    async def _remember(self, ctx: Context, prompt: str, answer: str) -> None:
        if self._talks(ctx):
            pair = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            await ctx.remember(pair)

    def _talks(self, ctx: Context) -> bool:
        # A message that names no conversation is one of its own, and nobody will ever come back to it.
        return self.remembers and ctx.message.context.conversation_id != ctx.message.id


class _AnswerSlot:
    """Where the model puts its typed answer: through a tool, or as bare JSON."""

    def __init__(self, kind: type[Any]) -> None:
        self._adapter = TypeAdapter[Any](kind)
        self._shape = InputShape(self._adapter.json_schema())
        self.definition = ToolDefinition(
            ANSWER_TOOL, "Give your answer; call it exactly once.", self._shape.schema
        )
        self.given, self.value, self.problem = False, None, ""

    def offer(self, arguments: Any) -> bool:
        try:
            self.value = self._adapter.validate_python(self._shape.restore(arguments))
        except ValidationError as error:
            self.problem = f"The answer does not fit: {error}"
            return False
        self.given = True
        return True

    def take(self, turn: ModelTurn) -> bool:
        """Whether the text itself is the answer; some models ignore the tool."""
        text = turn.text.strip().removeprefix("```json").strip("`").strip()
        if turn.tool_calls or not text.startswith(("{", "[")):
            return False
        try:
            raw = json.loads(text)
        except ValueError:
            return False
        return self.offer(raw)


def _told(call: ToolCall, content: str, *, is_error: bool = False) -> ChatMessage:
    return ChatMessage("tool", content, tool_call_id=call.id, is_error=is_error)


def _read_history(item: Any) -> ChatMessage:
    """One entry of a history in whatever shape: `{role, content}`, or anything that the user said."""
    role: Literal["user", "assistant"] = "user"
    if isinstance(item, dict) and "content" in item:
        role = "assistant" if item.get("role") in ("assistant", "agent", "model") else "user"
        item = item["content"]
    return ChatMessage(role, item if isinstance(item, str) else json.dumps(item, ensure_ascii=False))
