"""A question to people and what they reply, as they travel; the shape is that of MCP elicitation (2025-11-25).

There `elicitation/create` has a `message` and a flat schema of primitives, and is answered with an action and a
content. So any client that can show a form can show a question of ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.texts import jsonable
from squadron.runtime.wire.envelope import LAST_MS, AgentMessage
from squadron.runtime.wire.topics import SemanticTopic, validator_of

Kind = Literal["question", "approval"]
Action = Literal["accept", "decline", "cancel"]

#: Who "answers" when the deadline passes; no person goes by it.
DEFAULT_BY = "default"
#: One field of text, for who wants just an answer.
TEXT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}
#: What can be said to a proposal beside yes and no; an edited proposal comes as `arguments`, which no form shows.
APPROVAL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "title": "Why, or why not"},
        "always": {"type": "boolean", "title": "Always, for this topic in this run", "default": False},
    },
}
_PRIMITIVES = ("string", "number", "integer", "boolean")


def digest_of(value: Any) -> str:
    """The SHA-256 of a JSON value in hex, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question.

    Attributes:
        action: "accept", "decline", or "cancel": a person looked away and decided nothing.
        content: the fields of the question's schema; of an approval also `reason`, `always`, and `arguments` if a
            person changed them.
        by: who answered; "default" if nobody did in time.
    """

    action: Action
    content: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it is a yes."""
        return self.action == "accept"

    @property
    def value(self) -> Any:
        """The answer where one field was asked for, else all of them; None if it was not accepted."""
        if not self.accepted:
            return None
        return next(iter(self.content.values())) if len(self.content) == 1 else dict(self.content)

    @property
    def reason(self) -> str:
        """Why, in a person's words, for the model that asked; may be empty."""
        return str(self.content.get("reason") or "")

    @property
    def arguments(self) -> Any:
        """What an approved call is to be made with: as it was proposed, or as a person changed it."""
        return self.content.get("arguments")

    @property
    def always(self) -> bool:
        """Whether an approval holds for all calls of the topic in the same run."""
        return self.accepted and self.content.get("always") is True

    def to_content(self) -> dict[str, Any]:
        """The `payload.content` of the answer."""
        return {"action": self.action, "content": dict(self.content), "by": self.by}

    @classmethod
    def of_content(cls, content: Any) -> Self:
        """Read a reply back.

        Raises:
            InvalidInputError: it is none; `field` says where.
        """
        if not isinstance(content, Mapping) or content.get("action") not in get_args(Action):
            hint = '{"action": "accept" | "decline" | "cancel", "content": {…}, "by": "…"}'
            raise InvalidInputError("that is no answer to a question", field="action", hint=hint)
        given = content.get("content")
        if given is not None and not isinstance(given, Mapping):
            raise InvalidInputError("the content of an answer is an object", field="content")
        return cls(content["action"], dict(given or {}), str(content.get("by") or ""))


@dataclass(frozen=True, slots=True)
class Proposal:
    """A call that is to be approved. `schema` is what its arguments must fit, those that a person edits too."""

    topic: str
    arguments: Any
    schema: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What an approval is for: this topic with these arguments."""
        return digest_of({"topic": self.topic, "arguments": self.arguments})


@dataclass(frozen=True, kw_only=True)
class Question:
    """What people are asked, and until when; see `ask` and `approval`, which make one.

    Attributes:
        message: the question in words.
        schema: the fields of an answer: an object of strings, numbers, booleans and choices, and nothing nested.
        proposal: of an approval, what is to be approved.
        default: what counts when nobody answers in time; None makes that an `UnansweredError`.
        deadline_ms: until when an answer counts, in milliseconds since the epoch.

    Raises:
        InvalidInputError: the schema is not flat, or the default does not fit it; `field` says where.
    """

    message: str
    deadline_ms: int
    kind: Kind = "question"
    schema: Mapping[str, Any] = field(default_factory=lambda: TEXT_SCHEMA)
    proposal: Proposal | None = None
    default: Reply | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.message, str) or not self.message.strip():
            raise InvalidInputError("a question has words", field="message", hint='"Which one?", for example')
        if self.kind not in get_args(Kind) or (self.kind == "approval") != (self.proposal is not None):
            raise InvalidInputError("an approval has a proposal, a question has none", field="proposal")
        if type(self.deadline_ms) is not int or not 0 <= self.deadline_ms <= LAST_MS:
            raise InvalidInputError(f"{self.deadline_ms!r} is no time", field="deadline")
        check_flat(self.schema)
        if self.default is not None:
            try:
                self.check(self.default)
            except InvalidInputError as error:
                raise InvalidInputError(f"the default: {error.args[0]}", field="default") from None

    @classmethod
    def approval(
        cls, proposal: Proposal, *, why: str = "", deadline_ms: int, default: Reply | None = None
    ) -> Self:
        """The question whether a call may be made."""
        message = f"May {proposal.topic} be called?" + (f" {why}" if why else "")
        schema = APPROVAL_SCHEMA
        return cls(
            kind="approval",
            message=message,
            schema=schema,
            proposal=proposal,
            default=default,
            deadline_ms=deadline_ms,
        )

    @cached_property
    def digest(self) -> str:
        """What tells it from other questions: the proposal, or the words and fields."""
        return self.proposal.digest if self.proposal else digest_of([self.message, dict(self.schema)])

    @cached_property
    def _door(self) -> SemanticTopic:
        return SemanticTopic(name="people.answer", input_schema=dict(self.schema))

    def check(self, reply: Reply) -> None:
        """Hold a reply against the question.

        Raises:
            InvalidInputError: it does not fit; `field` and message say where and why.
        """
        if not reply.accepted:
            return
        self._door.check(dict(reply.content))
        if self.proposal is not None and "arguments" in reply.content:
            schema = dict(self.proposal.schema)
            SemanticTopic(name=self.proposal.topic, input_schema=schema).check(reply.content["arguments"])

    def check_field(self, name: str, value: Any) -> None:
        """Hold the value of one field against its part of the schema.

        Raises:
            InvalidInputError: it does not fit.
        """
        schema = {"type": "object", "properties": {name: self.schema["properties"][name]}}
        SemanticTopic(name="people.answer", input_schema=schema).check({name: value})

    def whole(self, reply: Reply) -> Reply:
        """The reply with all that its asker needs: of an approved call also arguments that nobody edited."""
        if self.proposal is None or not reply.accepted or "arguments" in reply.content:
            return reply
        return replace(reply, content={**reply.content, "arguments": self.proposal.arguments})

    def fields(self, value: Any, action: Action = "accept") -> dict[str, Any]:
        """The content of a reply: a mapping as it is, a bare value as the only field, or as the reason of a no.

        Raises:
            InvalidInputError: there are several fields.
        """
        if value is None or isinstance(value, Mapping):
            return dict(value or {})
        if action != "accept":
            return {"reason": value}
        names = list(self.schema.get("required") or self.schema.get("properties", ()))
        if len(names) != 1:
            hint = f"the fields are {', '.join(names) or 'none'}"
            raise InvalidInputError(f"{value!r} does not say which field it is", field="content", hint=hint)
        return {names[0]: value}

    def at_deadline(self) -> Reply:
        """What counts when nobody answered in time; "cancel" if there is no default."""
        return replace(self.default or Reply("cancel"), by=DEFAULT_BY)

    def to_content(self) -> dict[str, Any]:
        """The `payload.content` of the question; its deadline is in `payload.constraints`."""
        content: dict[str, Any] = {"kind": self.kind, "message": self.message, "schema": dict(self.schema)}
        if (of := self.proposal) is not None:
            proposal = {"topic": of.topic, "arguments": of.arguments, "schema": dict(of.schema)}
            content["proposal"] = proposal | {"digest": of.digest}
        if self.default is not None:
            content["default"] = {"action": self.default.action, "content": dict(self.default.content)}
        return content

    @classmethod
    def of_message(cls, message: AgentMessage) -> Self:
        """Read a question back.

        Raises:
            InvalidInputError: it is none; `field` says where.
        """
        content, limits = message.payload.content, message.payload.constraints
        if message.type != "query" or not isinstance(content, Mapping):
            raise InvalidInputError("that is no question", field="type")
        if limits is None or limits.deadline is None:
            raise InvalidInputError("a question has a deadline", field="constraints.deadline")
        of, default = content.get("proposal"), content.get("default")
        try:
            return cls(
                message=content["message"],
                deadline_ms=limits.deadline,
                kind=content.get("kind", "question"),
                schema=dict(content.get("schema") or TEXT_SCHEMA),
                proposal=of and Proposal(of["topic"], of.get("arguments"), dict(of.get("schema") or {})),
                default=default and Reply.of_content(default),
            )
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"that is no question: {error!r}", field="content") from None


def check_flat(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that a form of plain fields can't show.

    Raises:
        InvalidInputError: it is not an object of primitives, or no schema; `field` says where.
    """
    hint = '{"type": "object", "properties": {"size": {"type": "string", "enum": ["S", "M"]}}}, for example'
    fields = schema.get("properties", {}) if isinstance(schema, Mapping) else None
    if not isinstance(fields, Mapping) or schema.get("type") != "object":
        raise InvalidInputError("an answer's schema is that of an object", field="schema", hint=hint)
    if missing := [name for name in schema.get("required", ()) if name not in fields]:
        raise InvalidInputError(f"{missing[0]!r} is required, and no field", field=f"schema.{missing[0]}")
    for name, each in fields.items():
        if not (isinstance(each, Mapping) and (_is_primitive(each) or _is_choice_of_many(each))):
            what = "a field is a string, number, integer or boolean, or a choice of strings"
            raise InvalidInputError(f"{name!r}: {what}", field=f"schema.{name}", hint=hint)
    try:
        validator_of(dict(schema))
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"that is no JSON Schema: {error}", field="schema") from None


def _is_primitive(field: Mapping[str, Any]) -> bool:
    return field.get("type") in _PRIMITIVES and not {"$ref", "properties", "items"} & field.keys()


def _is_choice_of_many(field: Mapping[str, Any]) -> bool:
    items = field.get("items")
    return field.get("type") == "array" and isinstance(items, Mapping) and bool({"enum", "anyOf"} & items.keys())


def schema_of(wanted: Mapping[str, Any] | type[BaseModel] | None) -> dict[str, Any]:
    """The schema of an answer, from one, or from a model with plain fields; without any, one field of text.

    Raises:
        InvalidInputError: it is neither.
    """
    if wanted is None:
        return TEXT_SCHEMA
    if isinstance(wanted, Mapping):
        given: dict[str, Any] = jsonable(dict(wanted))
        return given
    if not (isinstance(wanted, type) and issubclass(wanted, BaseModel)):
        hint = "a JSON Schema, or a pydantic model with plain fields"
        raise InvalidInputError(f"{wanted!r} is no schema of an answer", field="schema", hint=hint)
    schema: dict[str, Any] = wanted.model_json_schema()
    defined = schema.pop("$defs", {})
    schema["properties"] = {name: _plain(each, defined) for name, each in schema.get("properties", {}).items()}
    return schema


def _plain(field: dict[str, Any], defined: Mapping[str, Any]) -> dict[str, Any]:
    """A field without references, and without the null of one that may be left out."""
    options = [each for each in field.get("anyOf", ()) if each != {"type": "null"}]
    if len(options) == 1:
        rest = {name: value for name, value in field.items() if name != "anyOf" and value is not None}
        return _plain(options[0], defined) | rest
    if "$ref" in field:
        meant: dict[str, Any] = defined.get(str(field["$ref"]).rsplit("/", 1)[-1], {})
        return meant | {name: value for name, value in field.items() if name != "$ref"}
    return field
