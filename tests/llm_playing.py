"""A model of ours and a double of its provider, together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from squadron.actors.thinking.model import (
    ChatMessage,
    Model,
    ModelRequest,
    ModelTurn,
    ToolCall,
    ToolDefinition,
    Usage,
)
from squadron.actors.thinking.providers import AnthropicModel, BackgroundModel, OpenAIModel
from squadron.runtime.errors import ModelError
from tests.llm_servers import ScriptedAnthropicServer, ScriptedOpenAIServer, ScriptedResponsesServer

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    ToolDefinition("weather", "The weather now.", SCHEMA),
    ToolDefinition("time", "", {"type": "object", "properties": {}}),
]
USER = [ChatMessage("user", "hello")]
WEATHER = ToolCall("call_w", "weather", {"city": 'Zürich "old town"', "days": [1, 2]})
TIME = ToolCall("call_t", "time", {})
TURN = ModelTurn("Grüezi mitenand, it is sunny", (), Usage(11, 7))


class Provider(NamedTuple):
    name: str
    prefix: str
    model: Callable[..., Any]
    server: Callable[..., Any]


def said(turn: ModelTurn) -> ModelTurn:
    """A turn as the script has it: without what only the provider knows."""
    return replace(turn, blocks=(), model="", response_id="")


CHAT = Provider("openai-chat", "OPENAI", functools.partial(OpenAIModel, api="chat"), ScriptedOpenAIServer)
RESPONSES = Provider(
    "openai-responses", "OPENAI", functools.partial(OpenAIModel, api="responses"), ScriptedResponsesServer
)
BACKGROUND = Provider("openai-background", "OPENAI", BackgroundModel, ScriptedResponsesServer)
ANTHROPIC = Provider("anthropic", "ANTHROPIC", AnthropicModel, ScriptedAnthropicServer)


#: Each wire that we speak.
PROVIDERS = [CHAT, RESPONSES, ANTHROPIC]
#: What only one of them has.
ON_ANTHROPIC = pytest.mark.parametrize("provider", [ANTHROPIC], indirect=True, ids=["anthropic"])


class Played:
    """A model and the server it talks to."""

    def __init__(self, server: Any, model: Model) -> None:
        self.server = server
        self.model = model
        self.text: list[str] = []

    async def think(self, messages: Sequence[ChatMessage] = USER, tools: Any = (), **options: Any) -> ModelTurn:
        return await self.model.think(ModelRequest(tuple(messages), tuple(tools), **options), self.text.append)

    async def error(self, *args: Any, **options: Any) -> ModelError:
        with pytest.raises(ModelError) as caught:
            await self.think(*args, **options)
        return caught.value

    @property
    def body(self) -> dict[str, Any]:
        return self.server.requests[-1].body  # type: ignore[no-any-return]
