"""A model that plays a script, for tests without an LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn, ToolDefinition
from squadron.runtime.errors import ModelError

#: One entry of a script: a turn, or a function that makes it from the messages and tools it is shown.
ScriptedTurn = ModelTurn | Callable[[Sequence[ChatMessage], Sequence[ToolDefinition]], ModelTurn]


class ScriptedModel:
    """Plays `turns` one by one, and keeps in `seen` what it was shown.

    Each entry of `seen` is the `(messages, tools)` of one call, also of a call that found the script over.
    """

    def __init__(self, turns: Sequence[ScriptedTurn]) -> None:
        self._turns = tuple(turns)
        self.seen: list[tuple[tuple[ChatMessage, ...], tuple[ToolDefinition, ...]]] = []

    @property
    def name(self) -> str:
        """Always `scripted:test`."""
        return "scripted:test"

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """Play the next turn; its text goes to `on_text` in one piece.

        Raises:
            ModelError: the script is over.
        """
        played = len(self.seen)
        self.seen.append((request.messages, request.tools))
        if played >= len(self._turns):
            message = f"the script is over: it has {len(self._turns)} turns and this is call {played + 1}"
            raise ModelError(message, hint="give ScriptedModel more turns, or look for a call too many")
        turn = self._turns[played]
        if not isinstance(turn, ModelTurn):
            turn = turn(*self.seen[-1])
        if turn.text and on_text is not None:
            on_text(turn.text)
        return turn

    async def aclose(self) -> None:
        """Nothing to close. May be called twice."""
