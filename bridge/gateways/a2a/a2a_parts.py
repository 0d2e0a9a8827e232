"""What stands in messages of A2A, and in payloads of ours."""

from __future__ import annotations

import json
import math
from typing import Any

from a2a.helpers.proto_helpers import get_data_parts, get_text_parts, new_data_part, new_text_part
from a2a.types.a2a_pb2 import Message, Part
from a2a.utils.errors import ContentTypeNotSupportedError, InvalidParamsError

from squadron.runtime.wire.topics import SemanticTopic, describe_input

#: Data parts hold doubles: beyond this a whole number loses its last digits, so it goes as text.
MOST_EXACT = 2**53


def content_of(message: Message, topic: SemanticTopic) -> Any:
    """The input of a task: its data part, or its text where the topic has one field.

    Raises:
        ContentTypeNotSupportedError: there is a file, by value or by URL.
        InvalidParamsError: there is nothing, several data parts, or text where fields are wanted.
    """
    if any(part.HasField("raw") or part.HasField("url") for part in message.parts):
        raise ContentTypeNotSupportedError("files are not taken: send a data part or text")
    data = [_exact(each) for each in get_data_parts(message.parts)]
    text = "\n".join(get_text_parts(message.parts))
    if len(data) > 1:
        raise InvalidParamsError("send one data part: which of several is the input nobody says")
    if data:
        return topic.wrap(data[0])
    content = topic.wrap(text)
    if isinstance(content, str):
        wanted = describe_input(topic.input_schema)
        raise InvalidParamsError(f"{topic.name} takes fields: send a data part with {wanted}")
    return content


def answer_of(message: Message, schema: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question: a data part, or text for its only field.

    Raises:
        InvalidParamsError: it is neither.
    """
    data = [_exact(each) for each in get_data_parts(message.parts)]
    if data and isinstance(data[0], dict):
        return dict(data[0])
    fields = list(schema.get("properties", {}))
    text = "\n".join(get_text_parts(message.parts))
    if text and len(fields) == 1:
        return {fields[0]: text}
    raise InvalidParamsError(f"answer with a data part that has {describe_input(schema)}")


def parts_of(value: Any) -> list[Part]:
    """A value as parts: text, or data."""
    if isinstance(value, str):
        return [new_text_part(value, media_type="text/plain")]
    try:
        return [new_data_part(_fitting(value), media_type="application/json")]
    except ValueError:
        return [new_text_part(json.dumps(value, ensure_ascii=False), media_type="application/json")]


def _exact(value: Any) -> Any:
    """Data as it was meant: `3` comes as 3.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_EXACT:
        return int(value)
    if isinstance(value, dict):
        return {key: _exact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_exact(each) for each in value]
    return value


def _fitting(value: Any) -> Any:
    """Data that a double holds; a number that it does not is text."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_EXACT:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _fitting(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_fitting(each) for each in value]
    return value
