"""A topic that answers by a script instead of by an agent."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import DEFAULT_RUN_TIMEOUT_S
from squadron.runtime.calling import call
from squadron.runtime.errors import Terminal
from squadron.runtime.retries import Retries
from squadron.runtime.running.context import TurnContext
from squadron.runtime.running.handler import Handler
from squadron.runtime.wire.outcome import Answer, Failed, Outcome, Result
from squadron.runtime.wire.subjects import token_of
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from squadron.testing.misuse import ScriptError


class Script:
    """The replies of one topic, each given once, in order; made by `MemorySquad.script`.

    Attributes:
        asked: what it was asked, oldest first: the content of each task, once for each attempt.
    """

    run_timeout_s = DEFAULT_RUN_TIMEOUT_S
    retries = Retries()

    def __init__(self, topic: str, replies: tuple[Any, ...], description: str = "") -> None:
        for reply in replies:
            _check(topic, reply)
        # Whatever it is asked fits.
        self.topic = SemanticTopic(name=topic, description=description, input_schema={})
        self.asked: list[Any] = []
        self._left, self._count = deque(replies), len(replies)

    @property
    def left(self) -> int:
        """How many replies were not given yet."""
        return len(self._left)

    async def run(self, content: Any, context: TurnContext) -> Any:
        """Give the next reply."""
        self.asked.append(content)
        if not self._left:
            raise Terminal(
                f"the script of {self.topic.name!r} has {self._count} replies, and was asked a time more, "
                f"for {str(content)[:200]}"
            )
        reply = self._left.popleft()
        if callable(reply) and not _is_error_type(reply):
            # As a handler: a plain one in a thread, so that it may wait.
            reply = await call(context.threads, reply, content)
            _check(self.topic.name, reply)
        return _given(reply)


def _is_error_type(reply: Any) -> bool:
    return isinstance(reply, type) and issubclass(reply, Exception)


def _check(topic: str, reply: Any) -> None:
    if isinstance(reply, Outcome) and not isinstance(reply, Result | Failed):
        raise ScriptError(
            f"{topic}: no handler can reply {type(reply).__name__}",
            hint="reply an exception, which is tried again and buried in the end; a Terminal, which fails; or a "
            "function that waits until the time is over",
        )


def _given(reply: Any) -> Any:
    if isinstance(reply, Failed):
        raise Terminal(reply.reason)
    if isinstance(reply, Exception) or _is_error_type(reply):
        raise reply
    if isinstance(reply, Result):
        return Answer(reply.data, reply.confidence, reply.reasoning)
    return reply


class _Player(Agent):
    """Whoever plays a script has no state."""


@dataclass(frozen=True)
class ScriptSpec(AgentSpec):
    """A script as an agent that can be hosted."""

    script: Script = field(kw_only=True)

    @classmethod
    def playing(cls, script: Script) -> ScriptSpec:
        """The agent of one script; the same topic has the same."""
        topic = script.topic
        return cls(_Player, f"script-{token_of(topic.name)}", topic.description, (), (), (), script=script)

    def card(self) -> AgentCard:
        """The registry's entry for it."""
        topic = self.script.topic.model_copy(update={"mailbox": self.name})
        return AgentCard(agent=self.name, description=self.description, topics=(topic,))

    def handlers(self, agent: Agent) -> list[Handler]:
        """The script itself."""
        return [self.script]
