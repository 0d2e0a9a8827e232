"""What stands in messages of A2A, and in payloads of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any, get_args

from a2a.helpers.proto_helpers import get_data_parts, get_text_parts, new_data_part, new_text_part
from a2a.types.a2a_pb2 import Message, Part
from a2a.utils.errors import ContentTypeNotSupportedError, InvalidParamsError
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.a2a_names import ACTION
from squadron.runtime.wire.question import Action, Question
from squadron.runtime.wire.spoken import read_field, spoken_reply
from squadron.runtime.wire.topics import SemanticTopic, describe_input
from squadron.runtime.wire.whole_numbers import exact, fitting

#: A field of an input that takes the whole message, files and all, as A2A has it.
MESSAGE_FIELD = "a2a_message"


def content_of(message: Message, topic: SemanticTopic) -> Any:
    """The input of a task: its data part, or its text where the topic has one field.

    Raises:
        ContentTypeNotSupportedError: there is a file, by value or by URL.
        InvalidParamsError: there is nothing, several data parts, or text where fields are wanted.
    """
    if takes_message(topic):
        return _with_message(message, topic)
    if any(part.HasField("raw") or part.HasField("url") for part in message.parts):
        raise ContentTypeNotSupportedError("files are not taken: send a data part or text")
    data = get_data_parts(message.parts)
    text = "\n".join(get_text_parts(message.parts))
    if len(data) > 1:
        raise InvalidParamsError("send one data part: which of several is the input nobody says")
    if data:
        return exact(topic.wrap(data[0]), topic.input_schema)
    fields = list(topic.input_schema.get("properties", ()))
    if len(fields) != 1:
        wanted = describe_input(topic.input_schema)
        raise InvalidParamsError(f"{topic.name} takes fields: send a data part with {wanted}")
    return {fields[0]: read_field(text, topic.input_schema, fields[0])}


def takes_message(topic: SemanticTopic) -> bool:
    """Whether a topic is told the whole message."""
    return MESSAGE_FIELD in (topic.input_schema.get("properties") or {})


def input_schema(topic: SemanticTopic) -> dict[str, Any]:
    """The schema of a topic's input as clients see it: what the gateway itself fills in is left out."""
    if not takes_message(topic):
        return topic.input_schema
    fields = {name: each for name, each in topic.input_schema["properties"].items() if name != MESSAGE_FIELD}
    required = [each for each in topic.input_schema.get("required", ()) if each != MESSAGE_FIELD]
    return {**topic.input_schema, "properties": fields, "required": required}


def _with_message(message: Message, topic: SemanticTopic) -> dict[str, Any]:
    data, fields = get_data_parts(message.parts), input_schema(topic)["properties"]
    content: dict[str, Any] = {}
    if len(data) == 1 and isinstance(data[0], dict):
        content = exact({name: each for name, each in data[0].items() if name in fields}, topic.input_schema)
    elif len(fields) == 1 and (text := "\n".join(get_text_parts(message.parts))):
        (name,) = fields
        content = {name: read_field(text, topic.input_schema, name)}
    return {**content, MESSAGE_FIELD: MessageToDict(message)}


def answer_of(message: Message, question: Question) -> tuple[Action, dict[str, Any]]:
    """The answer to a question: a data part with its fields, or text; and whether that is a yes.

    Raises:
        InvalidParamsError: it is neither, or says what is no action.
    """
    said = _action_of(message)
    data = get_data_parts(message.parts)
    if data and isinstance(data[0], dict):
        return said or "accept", dict(exact(data[0], _answers_of(question)))
    text = "\n".join(get_text_parts(message.parts))
    try:
        if said in ("decline", "cancel"):
            return said, question.fields(text or None, said)
        if text:
            return spoken_reply(question, "yes" if said and question.proposal else text)
    except InvalidInputError as error:
        raise InvalidParamsError(f"{error.args[0]}: {error.hint}") from None
    raise InvalidParamsError(f"answer with a data part that has {describe_input(dict(question.schema))}")


def _action_of(message: Message) -> Action | None:
    if ACTION not in message.metadata:
        return None
    said = message.metadata[ACTION]
    for each in get_args(Action):
        if said == each:
            action: Action = each
            return action
    raise InvalidParamsError(f'metadata["{ACTION}"] is one of {", ".join(get_args(Action))}')


def _answers_of(question: Question) -> dict[str, Any]:
    """The schema of an answer's fields, of an approval with the arguments that a person may change."""
    schema = dict(question.schema)
    if question.proposal is not None:
        schema["properties"] = {**schema.get("properties", {}), "arguments": dict(question.proposal.schema)}
    return schema


def parts_of(value: Any) -> list[Part]:
    """A value as parts: text, or data; a handler that returns `{"parts": […]}` has A2A's own parts passed on."""
    if isinstance(value, str):
        return [new_text_part(value, media_type="text/plain")]
    if isinstance(value, dict) and value.keys() == {"parts"} and isinstance(value["parts"], list):
        with contextlib.suppress(ParseError, TypeError, ValueError):
            if value["parts"]:
                return list(ParseDict(value, Message(), ignore_unknown_fields=True).parts)
    try:
        return [new_data_part(fitting(value), media_type="application/json")]
    except ValueError:
        return [new_text_part(json.dumps(value, ensure_ascii=False), media_type="application/json")]
