"""llmock, a server that plays both providers and judges its clients, as the tests use it.

Its own pytest plug-in brings the fixture `llmock` (one real server for the session, a clean one for each test,
with the providers' variables set to it), which has `fail(…)`, `stall(…)`, `limits(…)`, `verdict()` and more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmock.pytest_plugin import LLMock

from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ToolDefinition
from squadron.actors.thinking.providers import AnthropicModel, OpenAIModel
from squadron.runtime.errors import ModelError

#: Longest silence that clients take in these tests, in seconds: far more than llmock needs for an answer, also on
#: a busy machine, and far less than it is told to be silent.
SILENCE_S = 5.0
OPTIONS: dict[str, Any] = {"first_event_s": SILENCE_S, "between_events_s": SILENCE_S}

QUESTION = ModelRequest((ChatMessage("user", "How many moons has Mars? " * 4),), max_tokens=200)
TOOL = ToolDefinition(
    "moons_of", "Counts moons.", {"type": "object", "properties": {"planet": {"type": "string"}}}
)


def client(llmock: LLMock, kind: str) -> Model:
    """A real client at llmock: `anthropic`, `openai` (chat completions), or `openai-responses`."""
    provider, _, api = kind.partition("-")
    options = OPTIONS | ({"api": api} if api else {}) | {"api_key": "k", "base_url": llmock.base_url(provider)}
    makers: dict[str, Callable[..., Model]] = {"openai": OpenAIModel, "anthropic": AnthropicModel}
    return makers[provider](**options)


@dataclass
class Told:
    """Books and reader in one: what was tried, and what whoever reads the stream holds in the end."""

    tries: int = 0
    errors: list[ModelError] = field(default_factory=list)
    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    async def asking(self, model: Model, request: ModelRequest, number: int) -> ModelRequest:
        self.tries = number
        return request

    async def refused(self, model: Model, error: ModelError) -> None:
        pass

    async def failed(self, model: Model, error: ModelError, number: int) -> None:
        self.errors.append(error)

    def on_text(self, piece: str) -> None:
        self.text += piece

    def on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "retry":
            self.text = ""
