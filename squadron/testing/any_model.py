"""A model that tries everything once, for tests without an LLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.thinking.model import ModelRequest, ModelTurn, ToolCall
from squadron.testing.made_data import made_data
from squadron.testing.speaking import speak

#: What it answers where nobody asks for data.
ANSWER = "I have called all that I was offered."


class AnyModel:
    """Calls every tool that it is offered once, with data made from its schema, and then answers.

    The answer is `ANSWER`, or JSON made from `output_schema`. It decides by the conversation alone, and the same
    conversation always gives the same turn.

    Args:
        only: names of the tools to call, as the model sees them; by default all but those that a run has by itself
            (`finish`, `for_each`, `ask_person` and so on).
        values: arguments of tools that are not to be made, by the tool's name.
        name: under another, as `openai:gpt-5`, its tokens are counted and paid as that model's are.
    """

    def __init__(
        self,
        *,
        only: Collection[str] | None = None,
        values: Mapping[str, dict[str, Any]] | None = None,
        name: str = "scripted:any",
    ) -> None:
        self._only, self._values, self.name = only, values or {}, name

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """Call what was not called yet, all at once, or answer.

        Raises:
            ScriptError: no data can be made from a schema; names the tool.
        """
        called = {call.name for message in request.messages for call in message.tool_calls}
        calls = tuple(
            ToolCall(
                f"any-{tool.name}"[:64],
                tool.name,
                self._values.get(tool.name) or made_data(tool.input_schema, of=f"the tool {tool.name}"),
            )
            for tool in request.tools
            if tool.name not in called and self._wants(tool.name)
        )
        text = "" if calls else ANSWER
        if not calls and request.output_schema is not None:
            text = json.dumps(made_data(request.output_schema, of="the answer"), ensure_ascii=False)
        return speak(ModelTurn(text, calls), request, on_text, self.name)

    def _wants(self, tool: str) -> bool:
        return tool not in BUILT_IN if self._only is None else tool in self._only

    async def aclose(self) -> None:
        """Nothing to close. May be called twice."""
