"""What an LLM is to us: a conversation and some tools in, a turn out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

#: Why a model stopped: it had said all, it wants tools called, its tokens ran out, the conversation is too long
#: for it, or its provider paused a long turn that goes on when it is sent back as it is.
Stop = Literal["end", "tools", "length", "overflow", "pause"]


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A function offered to the model.

    `name` fits both providers: `[a-zA-Z0-9_-]`, at most 64 characters. `input_schema` is a JSON Schema object.
    """

    name: str
    description: str
    input_schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model wants `name` called with `arguments`; `id` ties the answer to the question.

    `problem` is set instead of raising when the model sent arguments that are not a JSON object; `raw` is then
    what it sent, so that it can be shown what it wrote.
    """

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """An image or a file: `data` in base64, or a `url` under which the provider fetches it."""

    media_type: str
    data: str = ""
    url: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One entry of a conversation.

    A `tool` message answers the call `tool_call_id`; `is_error` marks a failed one. An `assistant` message
    may carry `tool_calls`, and the `blocks` in which `model` said it all (`ModelTurn.blocks`): to the same model
    they go back as they are, to another one text and calls do. `user` and `tool` messages may have attachments.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    is_error: bool = False
    attachments: tuple[Attachment, ...] = ()
    blocks: tuple[dict[str, Any], ...] = ()
    model: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call used, in tokens.

    `input` is all of the input: what was read from the provider's cache (`cache_read`) or written to it
    (`cache_write`) is a part of it, as `reasoning` is of `output`. `estimated`: the provider did not tell.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        """Input and output."""
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class ModelTurn:
    """What the model said: text, calls to make (both may be empty), and what it used.

    Attributes:
        blocks: the turn as its provider wrote it, thinking and signatures included; opaque JSON. Empty where text
            and calls are all of it.
        model: who said it, as `Model.name` has it; a chain of models names the one that answered.
        response_id: the provider's own id of the answer, for its support and its logs.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    stop: Stop = "end"
    blocks: tuple[dict[str, Any], ...] = ()
    model: str = ""
    response_id: str = ""

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.usage.total

    def as_message(self) -> ChatMessage:
        """The turn as a part of the conversation that goes on."""
        return ChatMessage("assistant", self.text, self.tool_calls, blocks=self.blocks, model=self.model)


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One question to a model: the whole conversation, what it may call, and how it is to answer.

    Attributes:
        max_tokens: most tokens of the answer, thinking included; None is the model's own limit.
        output_schema: the text of the answer is to be JSON that fits this schema. Providers hold a model to it as
            well as they can; whoever reads the answer checks it.
        cache_key: requests with the same one share a beginning; helps providers to find it in their cache.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolDefinition, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    output_schema: dict[str, Any] | None = None
    cache_key: str = ""


class Model(Protocol):
    """One LLM behind one method. Implementations keep no conversation: all of it comes in each time."""

    @property
    def name(self) -> str:
        """`provider:model`, as it is shown to people."""
        ...

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """Ask once, and never again by itself; `on_text` sees the text as it streams in.

        Raises:
            ModelError: the provider refused or the connection broke; `retryable` says whether to try again.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections to the provider. May be called twice."""
        ...


@runtime_checkable
class Resumable(Model, Protocol):
    """A model whose calls go on at its provider when nobody listens any more: another process may take them up."""

    async def think_resumably(
        self,
        request: ModelRequest,
        on_text: Callable[[str], None],
        on_accepted: Callable[[str], Awaitable[None]],
    ) -> ModelTurn:
        """As `think`; `on_accepted` is awaited once, with the id under which the call can be taken up."""
        ...

    async def take_up(
        self, response_id: str, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelTurn:
        """The turn of a call that was accepted, and all of its text from the start; `request` is what was asked.

        Raises:
            ModelError: as `think`; or the provider does not know the call any more.
        """
        ...

    async def give_up(self, response_id: str) -> None:
        """Have the provider end a call that nobody wants any more, if it can be reached. Does not raise."""
        ...
