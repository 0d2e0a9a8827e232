"""A served topic as the turn sees it."""

from __future__ import annotations

from typing import Any, Protocol

from squadron.runtime.retries import Retries
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.topics import SemanticTopic


class Handler(Protocol):
    """One served topic: how it describes itself, and how it is run."""

    @property
    def topic(self) -> SemanticTopic: ...

    @property
    def run_timeout_s(self) -> float: ...

    @property
    def retries(self) -> Retries: ...

    async def run(self, content: Any, context: TurnContext) -> Any:
        """Run the handler on validated input; returns JSON-ready data, or an `Answer`.

        Raises:
            InvalidInputError: the content does not fit.
        """
        ...


class OutputError(Exception):
    """A handler returned what its own annotation does not allow."""
