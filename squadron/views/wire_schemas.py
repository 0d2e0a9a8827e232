"""What travels, as JSON Schemas and as an AsyncAPI document, for those who write in other languages."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from squadron.runtime.registry.presence import Presence
from squadron.runtime.wire.envelope import PROTOCOL_VERSION, AgentMessage
from squadron.runtime.wire.outcome import KINDS
from squadron.runtime.wire.subjects import MAX_TOKEN, ROOT, Subjects
from squadron.runtime.wire.topics import AgentCard

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Stands for a token of a subject until it is a parameter: addresses are built by `Subjects`, as all others.
_PARAMETERS = {
    "ENVIRONMENT": "The environment.",
    "DOMAIN": "First part of the topic.",
    "SPECIFICITY": "Second part of the topic.",
    "OWNER": "Whose lite topic it is: the `source.id` of who asks.",
    "ID": "The lite topic's id; of an outcome that of the task.",
    "AGENT": "Name of the agent.",
    "REPLICA": "Name of the replica.",
    "TASK": "Id of the task.",
}


def outcome_schema() -> dict[str, Any]:
    """How a task ended: the `payload.content` of a result."""
    number: dict[str, Any] = {"type": "number"}
    properties: dict[str, Any] = {
        "success": {"type": "boolean"},
        "outcome": {"enum": list(KINDS)},
        "data": {"description": "What the handler returned, as the topic's output schema has it."},
        "confidence": number,
        "reasoning": {"type": "string"},
        "tokens": {"type": "integer", "minimum": 0},
        "latency": {**number, "description": "Milliseconds in the handler."},
        "attempt": {"type": "integer", "minimum": 0},
        "spent": {"type": ["object", "null"], "description": "Null where nobody knows."},
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "details": {"type": "object"}},
            "required": ["message"],
        },
    }
    ended = {"properties": {"success": {"const": True}, "outcome": {"const": "result"}}}
    other = [kind for kind in KINDS if kind != "result"]
    failed = {
        "properties": {"success": {"const": False}, "outcome": {"enum": other}},
        "required": ["error"],
    }
    return {
        "title": "Outcome",
        "type": "object",
        "properties": properties,
        "required": ["success"],
        "oneOf": [ended, failed],
    }


def _of(model: type[BaseModel]) -> dict[str, Any]:
    schema = _without_python(model.model_json_schema(by_alias=True, mode="validation"))
    assert isinstance(schema, dict)
    return schema


def _without_python(value: Any) -> Any:
    """A schema without what pydantic adds to it for nobody: the titles of fields."""
    if isinstance(value, list):
        return [_without_python(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {name: each for name, each in value.items() if name != "title" or not isinstance(each, str)}
    return {name: _without_python(each) for name, each in kept.items()}


def schemas() -> dict[str, dict[str, Any]]:
    """All schemas, by the names of their files without `.json`."""
    found = {
        "agent-message": {"title": "AgentMessage", **_of(AgentMessage)},
        "outcome": outcome_schema(),
        "agent-card": {"title": "AgentCard", **_of(AgentCard)},
        "presence": {"title": "Presence", **_of(Presence)},
    }
    return {name: {"$schema": DIALECT, **schema} for name, schema in found.items()}


def async_api() -> dict[str, Any]:
    """The subjects that other programs take part by, as AsyncAPI 3.0.

    `send` and `receive` are of a program that asks, and of one that serves, as their names say.
    """
    subjects = Subjects("ENVIRONMENT")
    topic = "DOMAIN.SPECIFICITY"
    channels = {
        "task": (subjects.task(topic), "Tasks; the server stores them.", ("AgentMessage",)),
        "priorityTask": (subjects.task(topic, 9), "Tasks that come first; p0 to p9.", ("AgentMessage",)),
        "liteTopic": (subjects.lite("OWNER", "ID"), "Outcome and chunks of a task.", ("AgentMessage",)),
        "result": (subjects.result(topic), "Outcomes of tasks that named no `replyTo`.", ("AgentMessage",)),
        "event": (subjects.event(topic), "Events, to whoever listens now.", ("AgentMessage",)),
        "durableEvent": (subjects.durable(topic), "Events that are stored.", ("AgentMessage",)),
        "card": (subjects.card("AGENT"), "What an agent offers.", ("AgentCard",)),
        "presence": (subjects.presence("AGENT", "REPLICA"), "A replica's sign of life.", ("Presence",)),
        "deadLetter": (subjects.dead("AGENT", "TASK"), "What was given up.", ("AgentMessage",)),
    }
    operations = {
        "ask": ("send", "task", "Publish a task, with its id as `Nats-Msg-Id`."),
        "hearOutcome": ("receive", "liteTopic", "The last message of a task is its result."),
        "serve": ("receive", "task", "Take tasks by a durable pull consumer, and acknowledge them."),
        "answer": ("send", "liteTopic", "Store the result before the task is acknowledged."),
        "advertise": ("send", "card", "Say which topics an agent serves."),
        "discover": ("receive", "card", "Read who serves what."),
        "live": ("send", "presence", "Say that a replica lives."),
        "tell": ("send", "event", "Tell whoever listens."),
        "listen": ("receive", "event", "Hear what is told."),
        "tellForLater": ("send", "durableEvent", "Tell, and keep it."),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Squadron",
            "version": PROTOCOL_VERSION,
            "description": "Agents over NATS JetStream; the whole protocol is in docs/protocol.md.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(*each) for name, each in channels.items()},
        "operations": {
            name: {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}
            for name, (action, channel, summary) in operations.items()
        },
        "components": {
            "messages": {
                title: {"name": title, "payload": {"schemaFormat": _FORMAT, "schema": {"$ref": f"./{file}.json"}}}
                for file, title in _TITLES.items()
            }
        },
    }


_FORMAT = "application/schema+json;version=draft-2020-12"
_TITLES = {"agent-message": "AgentMessage", "agent-card": "AgentCard", "presence": "Presence"}


def _channel(address: str, description: str, messages: tuple[str, ...]) -> dict[str, Any]:
    names = {
        token: token.lower() for token in address.split(".") if token in _PARAMETERS and address.startswith(ROOT)
    }
    spelled = ".".join(f"{{{names[token]}}}" if token in names else token for token in address.split("."))
    return {
        "address": spelled,
        "description": description,
        "parameters": {
            name: {"description": f"{_PARAMETERS[token]} 1 to {MAX_TOKEN} of `A-Z a-z 0-9 _ -`."}
            for token, name in names.items()
        },
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }


def files() -> dict[str, str]:
    """All that is exported, by the names of the files."""
    exported = {f"{name}.json": schema for name, schema in schemas().items()}
    exported["asyncapi.json"] = async_api()
    return {
        name: json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        for name, value in exported.items()
    }
