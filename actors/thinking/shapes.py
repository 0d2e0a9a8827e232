"""Input schemas as providers take them, and the way back to what the topic or function takes itself."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from squadron.runtime.wire.topics import validator_of

#: What both providers take as the name of a property; Anthropic would take a dot, too.
_KEY = re.compile("[a-zA-Z0-9_-]{1,64}")
#: OpenAI and Anthropic answer 400 to these at the top of a tool's schema.
_NOT_AT_THE_TOP = frozenset({"anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref"})
#: One provider or the other refuses these, or some of what stands in them. All they do is to narrow what fits:
#: whoever is called checks its input anyway, so the offer may be looser.
_NARROWING = frozenset(
    {"patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "if", "then"}
    | {"else", "unevaluatedProperties", "unevaluatedItems", "contains", "minContains", "maxContains"}
)
#: Says nothing that a model could use, and may name a draft that a provider does not know.
_ABOUT = frozenset({"$schema", "$id", "$comment"})
#: Keywords that hold schemas: by name, in a list, or one.
BY_NAME = frozenset({"properties", "$defs", "definitions"})
IN_A_LIST = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
ONE = frozenset({"items", "additionalProperties", "not"})
#: Of these, where less fits the more fits inside: what is looser inside can't stay.
STRICTER = frozenset({"not", "oneOf"})
_VALUE = "value"
#: Longest description of a tool that OpenAI takes, in characters.
MOST_DESCRIBED = 1024


class InputShape:
    """One input schema: `schema` is what is offered to a model, `restore` undoes the difference.

    An object is offered with its properties, those with names that a provider refuses under others; anything else
    as the property `value` of an object. `changes` says what else a reader would miss.

    Raises:
        ValueError: it is no JSON Schema, or refers to one that is not in it.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            validator_of(schema)
        except Exception as error:  # besides ValueError it raises what belongs to no class of Python's
            raise ValueError(str(error).splitlines()[0]) from None
        self._real: dict[str, str] = {}
        left_out: set[str] = set()
        plain: dict[str, Any] = _plain(schema, left_out)
        kind = plain.get("type", "object" if "properties" in plain else "")
        is_object = kind == "object" or (isinstance(kind, list) and "object" in kind)
        self._wrapped = not is_object or not _NOT_AT_THE_TOP.isdisjoint(plain)
        self.schema = _wrap(plain) if self._wrapped else self._rename(plain)
        self.changes: list[str] = [f"without {name!r}" for name in sorted(left_out)]
        self.changes += [f"{name!r} as {shown!r}" for shown, name in self._real.items()]
        if self._wrapped:
            self.changes.append(f"all of it as the property {_VALUE!r}")
        elif not self.changes and self.schema != schema:
            self.changes.append("in the form that providers take")

    @property
    def is_other(self) -> bool:
        """Whether what fits `schema` has to be restored."""
        return self._wrapped or bool(self._real)

    def _rename(self, schema: dict[str, Any]) -> dict[str, Any]:
        required: list[str] = schema.get("required", [])
        properties: dict[str, Any] = dict(schema.get("properties", {}))
        properties |= {name: {} for name in required if name not in properties}
        shown = {name: name if _KEY.fullmatch(name) else _safe(name) for name in properties}
        self._real = {safe: name for name, safe in shown.items() if safe != name}
        offered = schema | {"type": "object", "properties": {shown[name]: properties[name] for name in properties}}
        if required:
            offered["required"] = [shown[name] for name in required]
        return offered

    def restore(self, arguments: Any) -> Any:
        """What a model gave, as the topic or function takes it; what has its own shape already stays."""
        if self._wrapped:
            return arguments[_VALUE] if isinstance(arguments, dict) and arguments.keys() == {_VALUE} else arguments
        if not self._real or not isinstance(arguments, dict):
            return arguments
        return {self._real.get(name, name): value for name, value in arguments.items()}


def cut(description: str, most: int = MOST_DESCRIBED) -> str:
    """A tool's description, as long as a provider takes it, or as `most` says, in characters."""
    return description if len(description) <= most else f"{description[: most - 1]}…"


def _plain(schema: Any, left_out: set[str]) -> Any:
    """A schema, or one within it, without what providers refuse, and with what they insist on."""
    if not isinstance(schema, dict):
        return {} if schema is True else schema
    left_out |= _NARROWING & schema.keys()
    plain = {}
    for keyword, value in schema.items():
        if keyword in _NARROWING | _ABOUT or (keyword == "additionalProperties" and "patternProperties" in schema):
            continue
        gone = set[str]()
        if keyword in BY_NAME:
            value = {name: _plain(part, gone) for name, part in value.items()}
        elif keyword in IN_A_LIST:
            value = [_plain(part, gone) for part in value]
        elif keyword in ONE and not isinstance(value, bool):
            value = _plain(value, gone)
        left_out |= gone
        if gone and keyword in STRICTER:
            left_out.add(keyword)
        else:
            plain[keyword] = value
    kinds = plain.get("type", ())
    if "array" in ([kinds] if isinstance(kinds, str) else kinds):
        # OpenAI answers 400 to a list of anything, unless that is said.
        plain["items"] = {} if plain.get("items", True) is True else plain["items"]
    return plain


def _wrap(schema: dict[str, Any]) -> dict[str, Any]:
    # References start at the root, so definitions stay there.
    inner = {name: part for name, part in schema.items() if name not in ("$defs", "definitions")}
    outer: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return {"type": "object", "properties": {_VALUE: inner}, "required": [_VALUE], **outer}


def _safe(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub('[^a-zA-Z0-9_-]', '_', name)[:55]}_{digest}"
