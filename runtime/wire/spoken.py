"""Texts that stand for values: fields on a command line, and what people and programs say in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.topics import validator_of

if TYPE_CHECKING:
    from squadron.runtime.wire.question import Action, Question

#: What an approval is answered with in words.
_WORDS: Mapping[str, tuple[Action, dict[str, Any]]] = {
    "yes": ("accept", {}),
    "always": ("accept", {"always": True}),
    "no": ("decline", {}),
    "cancel": ("cancel", {}),
}


def read_value(text: str, schema: dict[str, Any]) -> Any:
    """A value as the topic wants it: JSON if that fits its schema, else the text as it stands.

    What fits in neither way goes as JSON if it can be read so: the refusal then speaks of the value meant.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, str):
        return text  # quotes belong to the text
    try:
        fits = validator_of(schema).is_valid
    except ValueError:
        # Not one that anything can be held against; whoever sends the value is told so.
        return value
    return value if fits(value) or not fits(text) else text


def read_field(text: str, schema: Mapping[str, Any], name: str) -> Any:
    """The value of one field of an object, as `read_value` reads it."""
    field = dict(schema.get("properties", {}).get(name, {}))
    # References inside a field count from the root of the whole schema.
    return read_value(text, {**field, "$defs": schema["$defs"]} if "$defs" in schema else field)


def spoken_reply(question: Question, text: str) -> tuple[Action, dict[str, Any]]:
    """What a text answers: of an approval yes, always, no or cancel, else JSON with the fields, or the only field.

    Raises:
        InvalidInputError: it answers nothing.
    """
    if question.kind == "approval":
        said = text.strip().lower()
        if said not in _WORDS:
            hint = "yes, always, no, or cancel"
            raise InvalidInputError(f"{said[:40]!r} approves nothing", field="content", hint=hint)
        return _WORDS[said]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return "accept", value
    if not question.schema.get("properties"):
        return "accept", {}
    ((name, _),) = question.fields(text).items()
    return "accept", {name: read_field(text, question.schema, name)}
