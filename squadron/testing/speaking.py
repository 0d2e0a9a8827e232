"""How the doubles of models speak: their text streams, their tokens are counted, and `max_tokens` cuts them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from squadron.actors.thinking.model import ModelRequest, ModelTurn, Usage
from squadron.actors.thinking.tokens import (
    conversation_tokens,
    family_of,
    message_tokens,
    text_tokens,
    tools_tokens,
)

#: What a double says: a whole turn, or its text.
Said = ModelTurn | str

#: Pieces in which text streams: a word with what is behind it.
_PIECES = re.compile(r"\S+\s*|\s+")


def speak(said: Said, request: ModelRequest, on_text: Callable[[str], None] | None, name: str) -> ModelTurn:
    """What is said, as a provider would have it.

    Usage is estimated where the turn has none. Beyond `max_tokens` text breaks off, the calls behind it are not
    made, and it stops for its length.
    """
    turn = ModelTurn(said) if isinstance(said, str) else said
    family = family_of(name)
    if request.max_tokens is not None:
        turn = _cut(turn, request.max_tokens, name)
    if turn.usage == Usage():
        used = conversation_tokens(request.messages, family) + tools_tokens(request.tools, family)
        turn = replace(turn, usage=Usage(used, _output(turn, name)))
    if turn.tool_calls and turn.stop == "end":
        turn = replace(turn, stop="tools")
    if on_text is not None:
        for piece in _PIECES.findall(turn.text):
            on_text(piece)
    return turn


def _output(turn: ModelTurn, name: str) -> int:
    """Tokens of an answer."""
    calls = message_tokens(replace(turn.as_message(), content="", blocks=()), family_of(name))
    return text_tokens(turn.text, family_of(name)) + (calls if turn.tool_calls else 0)


def _cut(turn: ModelTurn, max_tokens: int, name: str) -> ModelTurn:
    if _output(turn, name) <= max_tokens:
        return turn
    turn = replace(turn, stop="length")
    while turn.tool_calls and _output(turn, name) > max_tokens:
        turn = replace(turn, tool_calls=turn.tool_calls[:-1])
    while turn.text and _output(turn, name) > max_tokens:
        pieces = _PIECES.findall(turn.text)
        turn = replace(turn, text="".join(pieces[: len(pieces) // 2]) if len(pieces) > 1 else "")
    return turn
