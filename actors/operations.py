"""A topic that is not a method: an operation of a server elsewhere, which its agent hands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from squadron.runtime.retries import Retries
from squadron.runtime.running.context import TurnContext
from squadron.runtime.running.handler import Handler
from squadron.runtime.wire.topics import SemanticTopic

#: The attribute of an agent class that holds its operations; only `RemoteAgent` sets it.
OPERATIONS = "__squadron_operations__"

#: How often an operation is tried before it is dead-lettered: with the pauses of `Retries` a server may be away
#: for half a minute, as over a restart.
MAX_ATTEMPTS = 8


class Performs(Protocol):
    """An agent that has operations."""

    run_timeout_s: float

    async def perform(self, operation: Operation, content: dict[str, Any], ctx: TurnContext) -> Any:
        """Have the server do one, and return what came of it as JSON data."""
        ...


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a server can do.

    Attributes:
        name: as the server calls it.
        topic: as it is found and asked here.
    """

    name: str
    topic: SemanticTopic

    def bind(self, agent: Any) -> Handler:
        """As a topic of one instance."""
        return BoundOperation(self, agent)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {"name": self.name, "topic": self.topic.model_dump(mode="json", exclude_defaults=True)}

    @classmethod
    def of_dict(cls, given: dict[str, Any]) -> Operation:
        """Read one back.

        Raises:
            ValueError, TypeError, LookupError: it is none.
        """
        return cls(str(given["name"]), SemanticTopic.model_validate(given["topic"]))


class BoundOperation:
    """One operation of one agent instance: holds the input against its schema, and hands it on."""

    def __init__(self, operation: Operation, agent: Performs) -> None:
        self._operation, self._agent = operation, agent
        self.topic, self.run_timeout_s = operation.topic, agent.run_timeout_s
        self.retries = Retries(MAX_ATTEMPTS)

    async def run(self, content: Any, context: TurnContext) -> Any:
        """Have it done.

        Raises:
            InvalidInputError: the content does not fit.
        """
        content = self.topic.wrap({} if content is None else content)
        self.topic.check(content)
        return await self._agent.perform(self._operation, content, context)
