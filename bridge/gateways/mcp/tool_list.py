"""Topics as MCP tools: names that every host takes, and schemas that both wires take."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import mcp_types as types
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.visitors import Visitor, behalf_of
from squadron.runtime.asking.door import forbidden_here
from squadron.runtime.wire.behalf import joined
from squadron.runtime.wire.doors_passed import doors_to
from squadron.runtime.wire.topics import SemanticTopic

#: The longest name that hosts take: for one that is longer, or has a dot, Codex and others refuse a whole list.
MOST_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MOST_NAME}}}")
#: Tags by which an author says how a topic stands in MCP: `mcp:tool=greet`, `mcp:resource=docs://{page}`,
#: `mcp:prompt=review`.
TOOL_TAG, RESOURCE_TAG, PROMPT_TAG = "mcp:tool=", "mcp:resource=", "mcp:prompt="
#: The tag of a topic whose chunks `{"level", "data"}` are log messages.
LOG_TAG = "mcp:log"
#: The field of a topic's input that the gateway fills; see `client_inputs`.
CLIENT_FIELD = "mcp_client"
#: The name and version of the topic, and how many doors it came through, in the `_meta` of its tool.
TOPIC_META, VERSION_META, DOORS_META = "squadron/topic", "squadron/version", "squadron/doors"
#: The field that holds what is no object, for hosts that know only objects.
WRAPPED = "result"


def is_modern(version: str) -> bool:
    """Whether a version of the protocol is without a handshake: 2026-07-28, or later."""
    return version in MODERN_PROTOCOL_VERSIONS


def said_by_tag(topic: SemanticTopic, tag: str) -> str:
    """What a topic's author says with one of our tags; empty if nothing."""
    return next((each.removeprefix(tag) for each in topic.tags if each.startswith(tag)), "")


class ToolList:
    """The tools of a gateway, as its visitors may see them."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def served(self, visitor: Visitor) -> Iterator[SemanticTopic]:
        """The topics that a visitor may ask, by name; families (`domain.*`) are none."""
        place = self._front.place
        ports = place.ports
        behalf = joined((), behalf_of(visitor, ports.principal))
        for topic, agent in sorted(place.registry.topics(), key=lambda each: each[0].name):
            if topic.is_pattern or not self._front.serves(topic.name, agent):
                continue
            if forbidden_here(ports, topic.name, behalf, topic.allow) is None:
                yield topic

    def by_name(self, visitor: Visitor) -> dict[str, SemanticTopic]:
        """The tools of a visitor: those of topics that are neither a resource nor a prompt."""
        found: dict[str, SemanticTopic] = {}
        for topic in self.served(visitor):
            if said_by_tag(topic, RESOURCE_TAG) or said_by_tag(topic, PROMPT_TAG):
                continue
            name = tool_name_of(topic)
            # Two topics may come to one name: the second goes by a digest of its own.
            found[name if name not in found else _digested(topic)] = topic
        return found

    def find(self, name: str, visitor: Visitor) -> SemanticTopic | None:
        """The topic of a tool."""
        return self.by_name(visitor).get(name)

    def tools(self, visitor: Visitor, version: str) -> list[types.Tool]:
        """The tools as a client of this version of the protocol reads them."""
        return [tool_of(name, topic, version) for name, topic in self.by_name(visitor).items()]

    def signature(self) -> tuple[tuple[str, str, str], ...]:
        """What changes when what is served changes."""
        topics = self._front.place.registry.topics()
        return tuple(sorted((topic.name, agent, topic.model_dump_json()) for topic, agent in topics))


def takes_client(topic: SemanticTopic) -> bool:
    """Whether a topic wants to know of the client."""
    return CLIENT_FIELD in (topic.input_schema.get("properties") or {})


def shown_schema(topic: SemanticTopic) -> dict[str, Any]:
    """The input schema without the field that clients don't fill."""
    schema = {**topic.input_schema, "type": "object"}
    if takes_client(topic):
        schema["properties"] = {k: v for k, v in schema["properties"].items() if k != CLIENT_FIELD}
        schema["required"] = [each for each in schema.get("required", ()) if each != CLIENT_FIELD]
    return schema


def tool_name_of(topic: SemanticTopic) -> str:
    """The name of a topic's tool."""
    name = said_by_tag(topic, TOOL_TAG) or topic.tool_name
    return name if _NAME.fullmatch(name) else _digested(topic)


def _digested(topic: SemanticTopic) -> str:
    digest = hashlib.sha256(topic.name.encode()).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9_-]', '_', topic.tool_name)[: MOST_NAME - 9]}_{digest}"


def tool_of(name: str, topic: SemanticTopic, version: str) -> types.Tool:
    """One tool."""
    return types.Tool(
        name=name,
        title=topic.name,
        description=topic.tool_description or topic.name,
        input_schema=shown_schema(topic),
        output_schema=output_schema_of(topic, version),
        _meta={TOPIC_META: topic.name, VERSION_META: topic.version, DOORS_META: doors_to(topic)},
    )


def output_schema_of(topic: SemanticTopic, version: str) -> dict[str, Any] | None:
    """The output schema as a version of the protocol takes it; None if the topic has none."""
    schema = topic.output_schema
    if not schema or is_modern(version) or schema.get("type") == "object":
        return schema or None
    # References stay right: they are to definitions at the root.
    inner = {key: value for key, value in schema.items() if key not in ("$defs", "$schema")}
    wrapper: dict[str, Any] = {"type": "object", "properties": {WRAPPED: inner}, "required": [WRAPPED]}
    return wrapper | ({"$defs": schema["$defs"]} if "$defs" in schema else {})


def structured(topic: SemanticTopic, data: Any, version: str) -> Any:
    """A result's data as structured content; None if that has to be left out."""
    schema = topic.output_schema
    if is_modern(version):
        return data
    if schema and schema.get("type") != "object":
        return {WRAPPED: data}
    return data if isinstance(data, Mapping) else None
