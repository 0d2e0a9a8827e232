"""What an LLM is to us: a conversation and some tools in, a turn out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


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

    `problem` is set instead of raising when the model sent arguments that are not a JSON object.
    """

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One entry of a conversation.

    A `tool` message answers the call `tool_call_id`; `is_error` marks a failed one. An `assistant` message
    may carry `tool_calls`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class ModelTurn:
    """What the model said: text, calls to make (both may be empty), and what it cost in tokens."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Model(Protocol):
    """One LLM behind one method. Implementations keep no conversation: all of it comes in each time."""

    @property
    def name(self) -> str:
        """`provider:model`, as it is shown to people."""
        ...

    async def think(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[ToolDefinition] = (),
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> ModelTurn:
        """Run one model turn; `on_text` sees the text as it streams in.

        Raises:
            ModelError: the provider refused or the connection broke; `retryable` says whether to try again.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections to the provider. May be called twice."""
        ...
