"""Numbers through protocols whose JSON goes by protobuf, which has doubles only: `3` arrives as 3.0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from squadron.runtime.wire.amounts import MOST_EXACT


def exact(value: Any, schema: Mapping[str, Any]) -> Any:
    """Data as it was meant: 3.0 is 3 again, unless its schema has a number with a fraction there."""
    return _exact(value, _places([schema], schema), schema)


def fitting(value: Any) -> Any:
    """Data that doubles hold; a number that they do not is text."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_EXACT:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): fitting(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [fitting(each) for each in value]
    return value


def _exact(value: Any, places: list[Mapping[str, Any]], root: Mapping[str, Any]) -> Any:
    if isinstance(value, float):
        kinds = {kind for place in places for kind in _kinds(place)}
        is_whole = value.is_integer() and abs(value) <= MOST_EXACT
        return int(value) if is_whole and ("integer" in kinds or "number" not in kinds) else value
    if isinstance(value, dict):
        return {key: _exact(each, _places(_fields(places, key), root), root) for key, each in value.items()}
    if isinstance(value, list):
        items = _places([place.get("items") for place in places], root)
        return [_exact(each, items, root) for each in value]
    return value


def _places(schemas: Iterable[Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Schemas that hold at one place, and those that they are put together from, each once."""
    found: dict[int, Mapping[str, Any]] = {}
    waiting = list(schemas)
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, Mapping) or id(schema) in found:
            continue
        found[id(schema)] = schema
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref.startswith("#/$defs/"):
            waiting.append(root.get("$defs", {}).get(ref.removeprefix("#/$defs/")))
        for name in ("anyOf", "oneOf", "allOf"):
            waiting.extend(schema.get(name, ()))
    return list(found.values())


def _kinds(place: Mapping[str, Any]) -> list[str]:
    kind = place.get("type", [])
    return kind if isinstance(kind, list) else [kind]


def _fields(places: list[Mapping[str, Any]], name: str) -> list[Any]:
    return [place.get("properties", {}).get(name, place.get("additionalProperties")) for place in places]
