"""Answers that fit a schema: in the provider's own format, or through a tool."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from squadron.actors.thinking.echoes import ANSWER_TOOL
from squadron.actors.thinking.model import ModelTurn, ToolDefinition
from squadron.actors.thinking.shapes import InputShape
from squadron.runtime.errors import ModelError

#: Keywords that both providers keep to in their formats. What is left out only narrows, and the reader checks.
_KEPT = frozenset({"type", "description", "title", "enum", "const", "anyOf", "items", "properties"})
#: Keywords without which a schema says something else; OpenAI and Anthropic refuse them, or one of them does.
_ESSENTIAL = frozenset({"prefixItems", "allOf", "not"})


class AnswerForm:
    """How a model is to give an answer that fits `schema`.

    Attributes:
        format: the schema as both providers hold a model to it, or None where it is not among those they can.
        tool: the tool that takes such an answer.
        is_changed: whether what the model writes differs from the answer, so that it can't be shown as it comes.

    Raises:
        ModelError: it is no JSON Schema.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            self._shape = InputShape(schema)
        except ValueError as error:
            hint = "output_schema has to be a JSON Schema without references to others"
            raise ModelError(f"output_schema is not usable: {error}", hint=hint) from None
        about = "Your answer goes here and nowhere else: call it exactly once, when you have it."
        self.tool = ToolDefinition(ANSWER_TOOL, about, self._shape.schema)
        plain: dict[str, Any] = json.loads(json.dumps(self._shape.schema))
        try:
            self.format: dict[str, Any] | None = _strict(plain, _definitions(plain), ())
        except _NoFormatError:
            self.format = None
        self.is_changed = self._shape.is_other

    def of(self, turn: ModelTurn) -> ModelTurn:
        """The turn with the answer as its text.

        An answer that was given together with calls of other tools came too early: these go first.
        """
        others = tuple(call for call in turn.tool_calls if call.name != ANSWER_TOOL)
        given = [call for call in turn.tool_calls if call.name == ANSWER_TOOL]
        if others or turn.stop == "pause":
            return replace(turn, tool_calls=others)
        if given and given[0].problem:
            return replace(turn, text=given[0].raw, tool_calls=(), stop=_ended(turn))
        if given:
            return replace(turn, text=self._written(given[0].arguments), tool_calls=(), stop=_ended(turn))
        text = turn.text.strip()
        if text.startswith("```"):  # some models wrap all JSON in Markdown
            text = text.partition("\n")[2].removesuffix("```").strip()
        try:
            return replace(turn, text=self._written(json.loads(text)))
        except (ValueError, RecursionError):
            return turn

    def _written(self, value: Any) -> str:
        return json.dumps(self._shape.restore(value), ensure_ascii=False)


def _ended(turn: ModelTurn) -> Any:
    return "end" if turn.stop == "tools" else turn.stop


class _NoFormatError(Exception):
    """The schema is not among those that both providers hold a model to."""


def _definitions(schema: dict[str, Any]) -> dict[str, Any]:
    named = {f"#/$defs/{name}": part for name, part in schema.get("$defs", {}).items()}
    return named | {f"#/definitions/{name}": part for name, part in schema.get("definitions", {}).items()}


def _strict(schema: Any, known: dict[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
    """The schema in the strict form: closed objects of which every property is required, references written out.

    That narrows it: a property that may be left out is always written. OpenAI asks for it, and Anthropic takes
    24 optional properties in all.
    """
    if not isinstance(schema, dict) or not _ESSENTIAL.isdisjoint(schema):
        raise _NoFormatError
    if "$ref" in schema:
        name = schema["$ref"]
        if name in seen or name not in known:  # Anthropic takes no recursion
            raise _NoFormatError
        told = {key: value for key, value in schema.items() if key == "description"}
        return _strict(known[name], known, (*seen, name)) | told
    one_of = schema.get("oneOf")
    plain = {key: value for key, value in schema.items() if key in _KEPT}
    if one_of or "anyOf" in plain:
        parts = one_of or plain.pop("anyOf")
        plain = {key: plain[key] for key in ("description", "title") if key in plain}
        return plain | {"anyOf": [_strict(part, known, seen) for part in parts]}
    kinds = plain.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not kinds and plain.keys().isdisjoint({"enum", "const"}):
        raise _NoFormatError  # anything at all
    if "object" in kinds:
        if not plain.get("properties") or schema.get("additionalProperties", False):
            raise _NoFormatError  # a mapping
        plain["properties"] = {name: _strict(part, known, seen) for name, part in plain["properties"].items()}
        plain |= {"required": list(plain["properties"]), "additionalProperties": False}
    if "array" in kinds:
        plain["items"] = _strict(plain.get("items"), known, seen)
    return plain
