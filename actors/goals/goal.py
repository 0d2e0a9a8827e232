"""The rules and the data of one pursuit of a goal. No I/O: whoever drives it does that."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from squadron.actors.thinking.model import ChatMessage, ModelTurn, ToolCall, ToolDefinition
from squadron.actors.thinking.shapes import InputShape, cut
from squadron.runtime.errors import SquadronError
from squadron.runtime.wire.outcome import Outcome, Rejected, Result
from squadron.runtime.wire.subjects import matches
from squadron.runtime.wire.topics import SemanticTopic

#: Longest result shown to the model, in characters: about 2,000 tokens, so that a dozen rounds of several
#: calls fit into any current context window. The rest is within reach by reference.
SHOWN_CHARS = 8_000
#: Most topics offered at once: OpenAI takes 128 tools, and models choose badly among many.
MAX_OFFERED = 64
#: Longest tool name that both providers take.
MAX_TOOL_NAME = 64
#: Names (of ids, of an object's keys) that an error or a note lists.
MAX_LISTED = 20
#: Most items of one `for_each`: their results travel in messages and are held in memory.
MAX_ITEMS = 2_000

FINISH, FOR_EACH, DISCOVER = "finish", "for_each", "discover_topics"

M = TypeVar("M", bound=BaseModel)

_NO_ITEM = object()
_INDEX = re.compile("0|[1-9][0-9]*")


class BadReferenceError(SquadronError):
    """A `$from` or `$item` leads nowhere; the message says what there is instead."""


class DiscoverTopics(BaseModel):
    """Find more tools by what you want done. What is found can be called from your next turn on."""

    intent: str = Field(description="what you want done, in plain words")


class ForEach(BaseModel):
    """Call one tool once per item of a list, all in parallel.

    The result is the list of results in the order of the items; a failed one is
    {"failed": kind, "reason": why, "input": item}.
    """

    topic: str = Field(description="name of the tool to call for each item")
    items: list[Any] | dict[str, Any] = Field(description='a list, or {"$from": "CALL_ID#/POINTER"} for one')
    arguments: Any = Field(
        default={"$item": ""},
        description='arguments of each call: {"$item": "/POINTER"} in them is replaced by that part of the '
        'item, {"$item": ""} by the whole item; by default the item itself is the arguments',
    )


class Finish(BaseModel):
    """End the run with your answer."""

    answer: Any = Field(description="the answer to the goal, a text")
    deliverables: dict[str, Any] = Field(
        default_factory=dict,
        description='data to hand over by name; values may be {"$from": "CALL_ID#/POINTER"}',
    )
    achieved: bool = Field(default=True, description="false if the goal was not achieved; the answer says why")


def read_arguments(model: type[M], arguments: Any) -> M:
    """The arguments of a built-in tool.

    Raises:
        ValueError: they don't fit; names the field.
    """
    try:
        return model.model_validate(arguments)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"field {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from None


def _tool(name: str, model: type[BaseModel]) -> ToolDefinition:
    schema = model.model_json_schema()
    return ToolDefinition(name, str(schema.pop("description")), schema)


BUILT_IN = (_tool(DISCOVER, DiscoverTopics), _tool(FOR_EACH, ForEach), _tool(FINISH, Finish))


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """A model turn as it is kept: with the topics that were on offer, so that its calls keep their meaning."""

    round: int
    turn: ModelTurn
    offered: tuple[str, ...]
    seconds: float
    #: When the run began, in seconds since the epoch; its time goes on counting over attempts.
    started_at: float


def at_pointer(value: Any, pointer: str) -> Any:
    """The part of `value` that a JSON pointer (RFC 6901) names; the empty pointer is all of it.

    Raises:
        BadReferenceError: there is no such part.
    """
    if pointer and not pointer.startswith("/"):
        raise BadReferenceError(f"the pointer {pointer!r} must be empty or begin with '/'")
    for raw in pointer.split("/")[1:]:
        token = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif isinstance(value, list) and _INDEX.fullmatch(token) and int(token) < len(value):
            value = value[int(token)]
        else:
            raise BadReferenceError(f"{pointer!r} leads nowhere: at {token!r} there is {describe(value)}")
    return value


def describe(value: Any) -> str:
    """The shape of a value in a few words."""
    if isinstance(value, dict):
        return f"an object with the keys {_listed(value)}" if value else "an empty object"
    if isinstance(value, list):
        inside = f", the first is {describe(value[0])}" if value and isinstance(value[0], dict) else ""
        return f"a list of {len(value)} items{inside}"
    return f"a text of {len(value)} characters" if isinstance(value, str) else json.dumps(value)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(repr(name) for name in names[:MAX_LISTED]) + more


def as_reference(template: Any) -> tuple[str, Any]:
    """(`$from` or `$item`, its value), or ("", None) for anything else."""
    if isinstance(template, str) and template.lstrip().startswith("{") and '"$' in template:
        # Where the schema wants a string, models keep to it and write the reference as text.
        try:
            template = json.loads(template)
        except ValueError:
            return "", None
    if isinstance(template, dict) and len(template) == 1:
        key, value = next(iter(template.items()))
        if key in ("$from", "$item"):
            return key, value
    return "", None


class Notebook:
    """The results of a run by call id, and why the other calls have none."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self._failures: dict[str, str] = {}

    def keep(self, call_id: str, value: Any) -> None:
        """The call ended with a value."""
        self.results[call_id] = value

    def fail(self, call_id: str, why: str) -> None:
        """The call ended without one."""
        self._failures[call_id] = why

    def fill(self, template: Any, *, item: Any = _NO_ITEM) -> Any:
        """The template with every reference replaced by what it stands for.

        What is put in is data: it is not searched for references of its own.

        Raises:
            BadReferenceError: a reference leads nowhere.
        """
        key, value = as_reference(template)
        if key == "$from":
            return self._result(value)
        if key == "$item":
            if item is _NO_ITEM:
                raise BadReferenceError('"$item" has a meaning only in the arguments of for_each')
            return at_pointer(item, str(value).removeprefix("#"))
        if isinstance(template, dict):
            return {name: self.fill(part, item=item) for name, part in template.items()}
        if isinstance(template, list):
            return [self.fill(part, item=item) for part in template]
        return template

    def _result(self, reference: Any) -> Any:
        call_id, _, pointer = str(reference).partition("#")
        if call_id in self.results:
            return at_pointer(self.results[call_id], pointer)
        if call_id in self._failures:
            raise BadReferenceError(f"call {call_id!r} has no result: {self._failures[call_id]}")
        known = f"known are {_listed(self.results)}" if self.results else "no call has a result yet"
        raise BadReferenceError(f"there is no result of a call {call_id!r}: {known}")


class Toolbox:
    """The topics offered to the model, each under a tool name that providers take.

    `allowed` holds names and patterns, empty for all; `never` holds names.
    """

    def __init__(self, allowed: Sequence[str] = (), never: Collection[str] = ()) -> None:
        self._allowed, self._never = allowed, never
        self._offered: dict[str, SemanticTopic] = {}
        self._shapes: dict[str, InputShape] = {}
        #: Topics whose cards can't be offered, and why; those that are offered otherwise than they are, and how.
        self.left_out: dict[str, str] = {}
        self.changed: dict[str, str] = {}
        self._told: set[str] = set()

    def offer(self, topics: Iterable[SemanticTopic]) -> list[str]:
        """Offer what may be offered; returns the tool names of these topics, new or not."""
        names = []
        for topic in topics:
            name = self._tool_name(topic)
            may = self._may(topic) and len(self._offered) < MAX_OFFERED
            if (name in self._offered or may) and self._takes(topic):
                self._offered[name] = topic
                names.append(name)
        return names

    def _takes(self, topic: SemanticTopic) -> bool:
        # One card that a provider refuses would end every run that finds it.
        try:
            shape = self._shapes[topic.name] = InputShape(topic.input_schema)
        except ValueError as error:
            self.left_out[topic.name] = f"its input schema can't be offered to a model: {error}"
            return False
        changes = [f"its input is offered {', '.join(shape.changes)}"] if shape.changes else []
        changes += ["its description is cut"] if _described(topic) != cut(_described(topic)) else []
        if changes:
            self.changed[topic.name] = "; ".join(changes)
        return True

    def news(self) -> dict[str, dict[str, str]]:
        """Cards that were `left_out` or `changed` and are not told of yet: by topic, why or how."""
        of_all = {"left_out": self.left_out, "changed": self.changed}
        news = {what: {k: v for k, v in cards.items() if k not in self._told} for what, cards in of_all.items()}
        self._told |= self.left_out.keys() | self.changed.keys()
        return {what: cards for what, cards in news.items() if cards}

    def restore(self, topic: str, content: Any) -> Any:
        """What a model gave for an offered topic, as the topic itself takes it."""
        return self._shapes[topic].restore(content)

    def _may(self, topic: SemanticTopic) -> bool:
        # A family ("math.*") can't be called: only its members have a place to send a task to.
        if topic.is_pattern or topic.name in self._never:
            return False
        return not self._allowed or any(matches(pattern, topic.name) for pattern in self._allowed)

    def _tool_name(self, topic: SemanticTopic) -> str:
        name = topic.tool_name
        taken = self._offered.get(name)
        if len(name) > MAX_TOOL_NAME or (taken is not None and taken.name != topic.name):
            digest = hashlib.sha256(topic.name.encode()).hexdigest()[:8]
            name = f"{name[: MAX_TOOL_NAME - 9]}_{digest}"
        return name

    def topic_of(self, name: str) -> str:
        """The topic of a tool name, or of its own name.

        Raises:
            ValueError: it is not offered.
        """
        if name in self._offered:
            return self._offered[name].name
        if name in self.topics:
            return name
        offered = ", ".join(self._offered) or "none"
        raise ValueError(f"there is no tool {name!r}; offered are {offered}; {DISCOVER} finds more")

    @property
    def topics(self) -> list[str]:
        """Names of the offered topics."""
        return [topic.name for topic in self._offered.values()]

    def definitions(self) -> list[ToolDefinition]:
        """All tools for the model, the built-in ones last."""
        offered = [
            ToolDefinition(name, cut(_described(topic)), self._shapes[topic.name].schema)
            for name, topic in self._offered.items()
        ]
        return [*offered, *BUILT_IN]


def _described(topic: SemanticTopic) -> str:
    tags = f"\nTags: {', '.join(topic.tags)}" if topic.tags else ""
    return f"{topic.tool_description}{tags}" or topic.name


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A call that is ready to go: one content per task, or an outcome for a task that can't be sent.

    `items` is what a `for_each` goes over, None for a plain call.
    """

    call: ToolCall
    topic: str
    contents: list[Any]
    items: list[Any] | None = None


def prepare(call: ToolCall, toolbox: Toolbox, notebook: Notebook) -> Dispatch:
    """Find a call's topic and resolve its references.

    Raises:
        BadReferenceError: a reference leads nowhere.
        ValueError: there is no such tool, or its arguments don't fit.
    """
    if call.name != FOR_EACH:
        topic = toolbox.topic_of(call.name)
        return Dispatch(call, topic, [toolbox.restore(topic, notebook.fill(call.arguments))])
    items = notebook.fill(call.arguments.get("items"))
    asked = read_arguments(ForEach, call.arguments | {"items": items})
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise ValueError(f"items must be a list of at most {MAX_ITEMS}, this is {describe(items)}")
    topic, contents = toolbox.topic_of(asked.topic), list[Any]()
    for item in items:
        try:
            contents.append(toolbox.restore(topic, notebook.fill(asked.arguments, item=item)))
        except BadReferenceError as error:
            contents.append(Rejected(topic=topic, reason=str(error)))
    return Dispatch(call, topic, contents, items)


def result_message(call_id: str, topic: str, value: Any, about: str = "") -> ChatMessage:
    """A result as the model sees it: a line about it, then JSON, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > SHOWN_CHARS:
        text = (
            f"{text[:SHOWN_CHARS]}…\n[Cut. In full it is {describe(value)}, {len(text)} characters of JSON. "
            f'Pass on all of it as {{"$from": "{call_id}"}}, a part as {{"$from": "{call_id}#/POINTER"}}.]'
        )
    head = f"Result of {topic}, call {call_id}{about}:"
    return ChatMessage("tool", f"{head}\n{text}", tool_call_id=call_id)


def failure_message(call_id: str, kind: str, reason: str) -> ChatMessage:
    """A failure as the model sees it."""
    content = f"Call {call_id} ended as {kind}: {reason}"
    return ChatMessage("tool", content, tool_call_id=call_id, is_error=True)


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """An outcome in the timeline: all about it but its data."""
    names = ("topic", "kind", "task_id", "source", "latency_ms", "attempt")
    return {name: getattr(outcome, name) for name in names} | ({} if outcome.ok else {"reason": outcome.reason})


def answer_one(notebook: Notebook, call_id: str, topic: str, outcome: Outcome) -> ChatMessage:
    """Note how a single task ended, and say it to the model."""
    if not isinstance(outcome, Result):
        notebook.fail(call_id, f"{outcome.kind}: {outcome.reason}")
        return failure_message(call_id, outcome.kind, outcome.reason)
    notebook.keep(call_id, outcome.data)
    sure = f", confidence {outcome.confidence:g}" if outcome.confidence is not None else ""
    why = f", because {outcome.reasoning}".replace("\n", " ") if outcome.reasoning else ""
    return result_message(call_id, topic, outcome.data, sure + why)


def answer_many(
    notebook: Notebook, call_id: str, topic: str, items: Sequence[Any], outcomes: Sequence[Outcome]
) -> ChatMessage:
    """Note how the tasks of a `for_each` ended, in the order of the items, and say it to the model."""
    value = [
        one.unwrap() if one.ok else {"failed": one.kind, "reason": one.reason, "input": item}
        for item, one in zip(items, outcomes, strict=True)
    ]
    notebook.keep(call_id, value)
    good = sum(one.ok for one in outcomes)
    message = result_message(call_id, topic, value, f", {good} of {len(items)} items without failure")
    return replace(message, is_error=bool(items) and not good)
