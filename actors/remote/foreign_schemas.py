"""What is taken of the words and schemas of a server that somebody else runs: bounded, and nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema_rs
from pydantic_core import to_json

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.texts import whole
from squadron.runtime.wire.topics import validator_of

#: Largest schema of one operation, in bytes as JSON: those of GitHub's server, which are long, have 6 KB.
MOST_SCHEMA_BYTES = 64 * 1024
#: Deepest nesting of a schema: each object in a field of another takes two.
MOST_DEPTH = 40
#: Longest description, in characters: it is read by models, which pay for it with each request.
MOST_WORDS = 4_000


def foreign_words(text: str | None) -> str:
    """A description as it is taken over."""
    return str(whole(text or "")).strip()[:MOST_WORDS]


def foreign_schema(schema: Any, what: str) -> dict[str, Any]:
    """A schema as it is taken over; none at all is that of anything.

    Args:
        what: of which it is told, where it is refused.

    Raises:
        InvalidInputError: it is no JSON Schema, too large or too deep, or refers to another document.
    """
    if schema is None:
        return {}
    if not isinstance(schema, Mapping):
        raise InvalidInputError(f"{what}: the schema is no object", field="schema")
    if size := _too_deep(schema, MOST_DEPTH):
        raise InvalidInputError(f"{what}: the schema {size}", field="schema")
    if len(to_json(schema)) > MOST_SCHEMA_BYTES:
        raise InvalidInputError(f"{what}: the schema has more than {MOST_SCHEMA_BYTES:,} bytes", field="schema")
    taken: dict[str, Any] = whole(dict(schema))
    try:
        validator_of(taken)
    except (jsonschema_rs.ValidationError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:300]
        raise InvalidInputError(f"{what}: that is no JSON Schema by itself: {said}", field="schema") from None
    return taken


def _too_deep(value: Any, left: int) -> str:
    """What is wrong with a part of a schema; empty if nothing."""
    if left == 0:
        return f"is nested more than {MOST_DEPTH} deep"
    if isinstance(value, Mapping):
        return next(filter(None, (_too_deep(each, left - 1) for each in value.values())), "")
    if isinstance(value, list):
        return next(filter(None, (_too_deep(each, left - 1) for each in value)), "")
    return ""
