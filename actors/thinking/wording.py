"""What a schema of others says in words, taken out of it: a fence can be around it only outside of the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from squadron.actors.thinking.fence import has_mark
from squadron.actors.thinking.shapes import BY_NAME, IN_A_LIST, ONE, STRICTER
from squadron.runtime.wire.topics import validator_of

#: Longest name or value that stays where it is, in characters: as long as the name of a property.
_MOST_NAME = 64
#: Keywords that are nothing but words.
_WORDS = frozenset({"description", "title", "examples"})


class Bare:
    """A schema that holds names and numbers alone: `schema`, and what else it said, line by line, in `words`.

    Values of several words go, too, from `enum` for example: what is offered is looser then, and whoever is called
    checks its input anyway. `changes` says where.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self.words: list[str] = []
        self.changes: list[str] = []
        self.schema: dict[str, Any] = self._bare(schema, "")
        try:
            validator_of(self.schema)
        except Exception:  # besides ValueError it raises what belongs to no class of Python's
            # Something referred to what is gone.
            self.words, self.changes = [f"- in full: {_json(schema)}"], ["all but names in its description"]
            self.schema = {"type": "object", "properties": {name: {} for name in schema.get("properties", {})}}

    def _bare(self, schema: Any, path: str) -> Any:
        if not isinstance(schema, dict):
            return schema
        self.words += _told(schema, path)
        bare: dict[str, Any] = {}
        for keyword, value in schema.items():
            before = len(self.changes)
            if keyword in _WORDS:
                continue
            if keyword in BY_NAME and all(map(_is_name, value)):
                inside = f"{path}." if path else ""
                bare[keyword] = {name: self._bare(part, inside + name) for name, part in value.items()}
            elif keyword in IN_A_LIST:
                bare[keyword] = [self._bare(part, path) for part in value]
            elif keyword in ONE:
                bare[keyword] = self._bare(value, f"{path}[]")
            elif _is_name(keyword) and all(map(_is_name, _texts(value))):
                bare[keyword] = value
            if keyword not in bare or (keyword in STRICTER and len(self.changes) > before):
                bare.pop(keyword, None)
                self.words.append(f"- {path or 'all'}: {keyword} {_json(value)}")
                self.changes.append(f"{keyword!r} of {path or 'all'!r} in its description")
        if "properties" in schema and "properties" not in bare:
            # What it had can be given all the same.
            bare.pop("additionalProperties", None)
        return bare


def _told(schema: dict[str, Any], path: str) -> Iterator[str]:
    text, title = schema.get("description", ""), schema.get("title", "")
    # Most titles are the name once more, and that of all of it is the topic's or its class's.
    if not text and path and _plain(title) != _plain(path.rpartition(".")[2]):
        text = title
    examples = f"for example {_json(schema['examples'])}" if schema.get("examples") else ""
    if said := "; ".join(filter(None, [" ".join(text.split()), examples])):
        yield f"- {path or 'all'}: {said}"


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _is_name(text: str) -> bool:
    """Whether it is too short for an order: one word."""
    return len(text) <= _MOST_NAME and text.isprintable() and " " not in text and not has_mark(text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
