"""Input schemas as providers take them, and the way back to what the topic or function takes itself."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import jsonschema_rs

#: Anthropic's pattern for the keys of a tool's properties; OpenAI takes these, too.
_KEY = re.compile("[a-zA-Z0-9_.-]{1,64}")
#: OpenAI and Anthropic answer 400 to these at the top of a tool's schema.
_NOT_AT_THE_TOP = frozenset({"anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref", "if"})
#: What else may name a property. Whoever is called checks its input anyway, so the offer may be looser.
_NAMING_KEYWORDS = ("dependentRequired", "dependentSchemas", "dependencies", "propertyNames", "then", "else")
_VALUE = "value"


class InputShape:
    """One input schema: `schema` is what is offered to a model, `restore` undoes the difference.

    An object is offered with its properties, those with names that a provider refuses under others; anything else
    as the property `value` of an object.

    Raises:
        ValueError: it is no JSON Schema, or refers to one that is not in it.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            jsonschema_rs.Draft202012Validator(schema)
        except Exception as error:  # besides ValueError it raises what belongs to no class of Python's
            raise ValueError(str(error).splitlines()[0]) from None
        self._real: dict[str, str] = {}
        kind = schema.get("type", "object" if "properties" in schema else "")
        is_object = kind == "object" or (isinstance(kind, list) and "object" in kind)
        self._wrapped = not is_object or not _NOT_AT_THE_TOP.isdisjoint(schema)
        self.schema = _wrap(schema) if self._wrapped else self._rename(schema)

    def _rename(self, schema: dict[str, Any]) -> dict[str, Any]:
        properties: dict[str, Any] = schema.get("properties", {})
        shown = {name: name if _KEY.fullmatch(name) else _safe(name) for name in properties}
        self._real = {safe: name for name, safe in shown.items() if safe != name}
        offered = schema | {"type": "object", "properties": {shown[name]: properties[name] for name in properties}}
        if not self._real:
            return offered
        for keyword in _NAMING_KEYWORDS:
            offered.pop(keyword, None)
        if "required" in schema:
            offered["required"] = [shown.get(name, name) for name in schema["required"]]
        return offered

    def restore(self, arguments: Any) -> Any:
        """What a model gave, as the topic or function takes it; what has its own shape already stays."""
        if self._wrapped:
            return arguments[_VALUE] if isinstance(arguments, dict) and arguments.keys() == {_VALUE} else arguments
        if not self._real or not isinstance(arguments, dict):
            return arguments
        return {self._real.get(name, name): value for name, value in arguments.items()}


def _wrap(schema: dict[str, Any]) -> dict[str, Any]:
    # References start at the root, so definitions stay there.
    inner = {name: part for name, part in schema.items() if name not in ("$defs", "definitions", "$schema", "$id")}
    outer: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return {"type": "object", "properties": {_VALUE: inner}, "required": [_VALUE], **outer}


def _safe(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub('[^a-zA-Z0-9_.-]', '_', name)[:55]}_{digest}"
