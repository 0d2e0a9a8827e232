"""What the model may call: built-in tools, the agent's own, and topics, each under a name that providers take."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from squadron.actors.runs.built_in import BUILT_IN, DISCOVER
from squadron.actors.runs.card import ShownCard
from squadron.actors.thinking.model import ToolDefinition
from squadron.runtime.wire.subjects import matches
from squadron.runtime.wire.topics import SemanticTopic

#: Most topics offered at once: OpenAI takes 128 tools, and models choose badly among many.
MAX_OFFERED = 64
#: Longest tool name that both providers take.
MAX_TOOL_NAME = 64


class OwnTool(Protocol):
    """A tool that the agent itself runs."""

    @property
    def definition(self) -> ToolDefinition: ...


class Tool(OwnTool, Protocol):
    """The same where it is run.

    Attributes:
        may_repeat: whether it may be run again when nobody knows how far it came.
        within_s: how long it may run, in seconds.
    """

    may_repeat: bool
    within_s: float

    async def run(self, arguments: Any) -> Any:
        """Run it; returns JSON-ready data, or an `Attachment` or a list of them, which the model gets to see.

        Raises:
            Retry: it did nothing; the next attempt at the task is to run it again.
            Terminal: the whole run comes to nothing.
            Exception: it failed, which the model is told.
        """
        ...


@dataclass(frozen=True, slots=True)
class OfferedTopic:
    """A topic as it is offered: `definition.name` stands for it in calls."""

    topic: SemanticTopic
    card: ShownCard
    definition: ToolDefinition


class Toolbox:
    """All that one run offers, in an order that only grows, so that providers find what they have cached.

    `allowed` holds names and patterns, empty for all; `never` holds names.
    """

    def __init__(
        self,
        built_in: Sequence[str] = (),
        own: Iterable[OwnTool] = (),
        *,
        allowed: Sequence[str] = (),
        never: Collection[str] = (),
    ) -> None:
        self._built_in = [BUILT_IN[name] for name in BUILT_IN if name in built_in]
        self.own = {tool.definition.name: tool for tool in own}
        self._allowed, self._never = allowed, never
        self._offered: dict[str, OfferedTopic] = {}
        #: Tool names of topics that were called: they stay.
        self._used: set[str] = set()
        #: Topics whose cards can't be offered, and why; those that are offered otherwise than they are, and how.
        self.left_out: dict[str, str] = {}
        self.changed: dict[str, str] = {}

    def with_offer(self, topics: Iterable[SemanticTopic]) -> Toolbox:
        """As this one would be once these topics are offered."""
        other = copy.copy(self)
        other._offered, other._used = dict(self._offered), set(self._used)
        other.left_out, other.changed = dict(self.left_out), dict(self.changed)
        other.offer(topics)
        return other

    def fitting(self, topics: Iterable[SemanticTopic]) -> list[SemanticTopic]:
        """Those of the topics that may be offered and are not yet, at most as many as there can be."""
        fresh = [topic for topic in topics if self._may(topic) and topic.name not in self.topics]
        return [topic for topic in fresh if self._card_of(topic) is not None][:MAX_OFFERED]

    def offer(self, topics: Iterable[SemanticTopic]) -> None:
        """Offer topics, the best first; where there is no room, the oldest go that were never called."""
        fresh = set[str]()
        for topic in topics:
            card = self._card_of(topic)
            if card is None or topic.name in self.topics:
                continue
            if len(self._offered) >= MAX_OFFERED:
                idle = next((name for name in self._offered if name not in self._used | fresh), None)
                if idle is None:
                    return
                del self._offered[idle]
            name = self._tool_name(topic)
            fresh.add(name)
            definition = ToolDefinition(name, card.description, card.schema)
            self._offered[name] = OfferedTopic(topic, card, definition)

    def use(self, name: str) -> None:
        """A call of this tool or topic was made: it stays."""
        self._used |= {tool for tool, offered in self._offered.items() if name in (tool, offered.topic.name)}

    def _card_of(self, topic: SemanticTopic) -> ShownCard | None:
        # One card that a provider refuses would end every run that finds it.
        try:
            card = ShownCard(topic)
        except ValueError as error:
            self.left_out[topic.name] = f"its input schema can't be offered to a model: {error}"
            return None
        if card.changes:
            self.changed[topic.name] = "; ".join(card.changes)
        return card

    def _may(self, topic: SemanticTopic) -> bool:
        # A family ("math.*") can't be called: only its members have a place to send a task to.
        if topic.is_pattern or topic.name in self._never:
            return False
        return not self._allowed or any(matches(pattern, topic.name) for pattern in self._allowed)

    def _tool_name(self, topic: SemanticTopic) -> str:
        name = topic.tool_name
        if len(name) > MAX_TOOL_NAME or name in self._offered or name in self.own or name in BUILT_IN:
            digest = hashlib.sha256(topic.name.encode()).hexdigest()[:8]
            name = f"{name[: MAX_TOOL_NAME - 9]}_{digest}"
        return name

    def find(self, name: str) -> OfferedTopic:
        """The offered topic of a tool name, or of its own name.

        Raises:
            ValueError: it is not offered.
        """
        if name in self._offered:
            return self._offered[name]
        for offered in self._offered.values():
            if offered.topic.name == name:
                return offered
        known = ", ".join(tool.name for tool in self.definitions()) or "none"
        more = f"; {DISCOVER} finds more" if any(tool.name == DISCOVER for tool in self._built_in) else ""
        raise ValueError(f"there is no tool {name!r}; offered are {known}{more}")

    def has(self, built_in: str) -> bool:
        """Whether a built-in tool is offered."""
        return any(tool.name == built_in for tool in self._built_in)

    @property
    def offered(self) -> list[OfferedTopic]:
        """The offered topics, the oldest first."""
        return list(self._offered.values())

    @property
    def topics(self) -> list[str]:
        """Names of the offered topics."""
        return [each.topic.name for each in self._offered.values()]

    def definitions(self) -> tuple[ToolDefinition, ...]:
        """All tools for the model: first those that never change."""
        own = [tool.definition for tool in self.own.values()]
        return (*self._built_in, *own, *(each.definition for each in self._offered.values()))
