"""Semantic topics: subjects that explain themselves, to people and to models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.html_table import ShownAsTable
from squadron.runtime.texts import whole
from squadron.runtime.trust.verify_modes import VerifyMode
from squadron.runtime.wire.canary_share import CanaryShare
from squadron.runtime.wire.policy import Who
from squadron.runtime.wire.subjects import check_pattern, check_token, matches

#: Both providers allow `[a-zA-Z0-9_-]` in a tool name, so the dot of a topic needs a stand-in; "__" keeps
#: it readable and can be undone.
TOOL_DOT = "__"
#: How much of a validator's message is told: it quotes the value, which may be megabytes.
MESSAGE_CHARACTERS = 600


class _Told(BaseModel):
    """What an author says in words and schemas, as it can travel."""

    @model_validator(mode="before")
    @classmethod
    def _make_whole(cls, fields: Any) -> Any:
        return whole(fields)


class SemanticTopic(_Told):
    """A capability somebody serves: a name, what it is good for, and the shape of its input and output.

    Not AutoGen's `TopicId`, which is a broadcast scope: asking a semantic topic reaches one agent.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    #: `domain.specificity`; either may be `*` when an agent serves a whole family.
    name: str
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})
    output_schema: dict[str, Any] = Field(default_factory=dict)
    examples: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    version: str = "1"
    #: What of its input and output is not as it was before, the newest last, for callers that were written then.
    changed: tuple[str, ...] = ()
    #: Name of the mailbox that serves it, how many tasks that may hold (0: any number), and what becomes of
    #: more. Of one agent all topics say the same.
    mailbox: str = ""
    mailbox_limit: int = Field(default=0, ge=0)
    when_full: Literal["wait", "reject"] = "wait"
    #: Whether inputs and answers are sealed, and for which public key (X25519) inputs are; see `trust.sealing`.
    sealed: bool = False
    seal_key: str = ""
    #: Why a person approves each call that a model makes of it; empty if nobody need.
    approval: str = ""
    #: Who may ask it, as patterns of principals (`wire.policy`); empty is everybody.
    allow: tuple[Who, ...] = ()
    #: What is done at least about its messages that nobody signed who may; the environment may ask for more.
    verify: VerifyMode = "off"

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_pattern(name)

    @property
    def is_pattern(self) -> bool:
        return "*" in self.name

    @property
    def tool_name(self) -> str:
        """The topic's name as a model sees it."""
        return self.name.replace(".", TOOL_DOT)

    @property
    def tool_description(self) -> str:
        """Description and examples in one text."""
        if not self.examples:
            return self.description
        return f"{self.description}\nUse it for: {'; '.join(self.examples)}"

    @cached_property
    def _validator(self) -> jsonschema_rs.Draft202012Validator:
        return validator_of(self.input_schema)

    def __getstate__(self) -> dict[Any, Any]:
        # The compiled validator is kept on the instance, but it can't travel.
        state = super().__getstate__()
        fields = type(self).model_fields
        return state | {"__dict__": {k: v for k, v in state["__dict__"].items() if k in fields}}

    def wrap(self, content: Any) -> Any:
        """`content` as an object: a bare value is the only field's, if there is only one."""
        fields = self.input_schema.get("properties")
        if isinstance(content, dict) or content is None or not isinstance(fields, dict) or len(fields) != 1:
            return content
        return {next(iter(fields)): content}

    def check(self, content: Any) -> None:
        """Hold `content` (JSON data) against the input schema.

        Raises:
            InvalidInputError: it does not fit; `field` and message say where and why.
        """
        try:
            if self._validator.is_valid(content):
                return
        except UnicodeEncodeError:
            return self.check(whole(content))  # as it will travel
        error = _cause(next(iter(self._validator.iter_errors(content))))
        path, message = [str(part) for part in error.instance_path], shortened(error.message)
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Required):
            path.append(str(error.kind.property))
            message = "is required"
        field = ".".join(path)
        raise InvalidInputError(
            f"{self.name}: {f'field {field!r}: ' if field else ''}{message}",
            field=field,
            hint="; ".join([f"takes {describe_input(self.input_schema)}", *self.changed]),
        )


def validator_of(schema: Any) -> jsonschema_rs.Draft202012Validator:
    """What holds values against a schema. Other documents are never fetched: cards hold schemas of strangers.

    Raises:
        jsonschema_rs.ValidationError: it is no schema, or refers to another document.
    """
    return jsonschema_rs.Draft202012Validator(schema, retriever=_not_fetched)


def _not_fetched(uri: str) -> Any:
    raise ValueError(f"{uri} is another document, and none is fetched")


def shortened(message: str) -> str:
    """A long message without its middle: the value is quoted first, and the reason comes last."""
    half = MESSAGE_CHARACTERS // 2
    return message if len(message) <= MESSAGE_CHARACTERS else f"{message[:half]} … {message[-half:]}"


def _cause(error: jsonschema_rs.ValidationError) -> jsonschema_rs.ValidationError:
    """Of an `anyOf` that fits in no branch: the error that lies deepest, which is where it was meant to fit."""
    branches: list[list[jsonschema_rs.ValidationError]] = getattr(error.kind, "context", [])
    causes = [_cause(each) for branch in branches for each in branch]
    wrong_type = jsonschema_rs.ValidationErrorKind.Type
    return max(causes, key=lambda e: (len(e.instance_path), not isinstance(e.kind, wrong_type)), default=error)


def describe_input(schema: dict[str, Any]) -> str:
    """An input schema in one line for people: `text: string, sentences: integer = 2`."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        return "no fields" if schema.get("additionalProperties") is False else "any fields"
    return ", ".join(f"{name}: {_type_of(field)}{_default_of(field)}" for name, field in properties.items())


def _type_of(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " | ".join(_type_of(option) for option in field["anyOf"])
    kind = field.get("type", "any")
    return str(field.get("$ref", kind)).rsplit("/", 1)[-1]


def _default_of(field: dict[str, Any]) -> str:
    return f" = {json.dumps(field['default'])}" if "default" in field else ""


class AgentCard(_Told):
    """What an agent type offers: the registry's entry for it."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    agent: str
    description: str = ""
    topics: tuple[SemanticTopic, ...] = ()
    version: str = "1"
    #: The version of its code that is tried beside the one that serves, if one is; the bridge says it.
    canary: CanaryShare | None = None

    @field_validator("agent")
    @classmethod
    def _check_agent(cls, agent: str) -> str:
        return check_token(agent, "agent")

    def with_key(self, seal_key: str) -> AgentCard:
        """The same with this public key, by which others seal for it."""
        topics = tuple(each.model_copy(update={"seal_key": seal_key}) for each in self.topics)
        return self.model_copy(update={"topics": topics})

    def serves(self, topic: str) -> bool:
        """Whether one of its topics is this one, or a family that has it."""
        return any(each.name == topic or (each.is_pattern and matches(each.name, topic)) for each in self.topics)


class ScoredTopic(BaseModel):
    """A topic found by intent; `score` lies between 0 and 1, and can be held against that of another search."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    topic: SemanticTopic
    agent: str
    score: float
    #: What speaks for it and against it, in a few words each; of a search that the bridge made.
    why: tuple[str, ...] = ()


class TopicList(ShownAsTable, list[ScoredTopic]):
    """Topics that are served, the best first if they were searched."""

    HEADER = ("topic", "agent", "takes", "what it does")
    NONE = "Nothing is served that fits."

    @staticmethod
    def _row(each: Any, /) -> Sequence[object]:
        topic = each.topic
        return topic.name, each.agent, describe_input(topic.input_schema), topic.description
