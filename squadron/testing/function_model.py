"""A model whose answers a function decides, for tests without an LLM."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from squadron.actors.thinking.model import ModelRequest, ModelTurn
from squadron.testing.speaking import Said, speak


class FunctionModel:
    """Answers what `decide` makes of each request: a turn, or its text; what that raises is raised.

    What it decides by the request alone is the same after a crash, and whoever asks.

    Args:
        decide: a function, sync or async.
        name: under another, as `openai:gpt-5`, its tokens are counted and paid as that model's are.
    """

    def __init__(
        self, decide: Callable[[ModelRequest], Said | Awaitable[Said]], *, name: str = "scripted:function"
    ) -> None:
        self._decide, self.name = decide, name

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """Answer once."""
        said = self._decide(request)
        return speak(await said if inspect.isawaitable(said) else said, request, on_text, self.name)

    async def aclose(self) -> None:
        """Nothing to close. May be called twice."""
