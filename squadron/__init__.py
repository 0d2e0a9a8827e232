"""Squadron: Ray runs the agents, NATS carries their messages, a supervisor steers them.

Importing this is cheap: each name is loaded on first use, and Ray and NATS only when something connects.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squadron.actors.agent import Agent
    from squadron.actors.decorators import bid, on, on_durable, topic
    from squadron.actors.goals.run_report import RunReport
    from squadron.actors.goals.supervisor import Supervisor
    from squadron.actors.llm.llm_agent import LLMAgent
    from squadron.actors.llm.tools import tool
    from squadron.actors.thinking.model import (
        Attachment,
        ChatMessage,
        Model,
        ModelRequest,
        ModelTurn,
        ToolCall,
        ToolDefinition,
        Usage,
    )
    from squadron.actors.thinking.providers import AnthropicModel, OpenAIModel
    from squadron.client.squad import Squad
    from squadron.config import Settings
    from squadron.runtime.errors import (
        BlockingCallError,
        BudgetError,
        FencedError,
        InvalidInputError,
        InvalidSubjectError,
        ModelError,
        Park,
        QuestionClosedError,
        QuotaExceededError,
        Retry,
        SquadClosedError,
        SquadronError,
        StreamGapError,
        Terminal,
        UnansweredError,
    )
    from squadron.runtime.lite.reader import End, LiteMessage
    from squadron.runtime.lite.topic import LiteTopic
    from squadron.runtime.running.context import Context
    from squadron.runtime.secret import Secret
    from squadron.runtime.streams.writer import Chunk, Ended, Nested, Restarted
    from squadron.runtime.wire.bids import Bid
    from squadron.runtime.wire.limits import Budget
    from squadron.runtime.wire.outcome import (
        Answer,
        Cancelled,
        DeadLettered,
        Expired,
        Failed,
        Outcome,
        Rejected,
        Result,
        TimedOut,
        Undeliverable,
    )
    from squadron.runtime.wire.question import Reply
    from squadron.runtime.wire.route import Route
    from squadron.runtime.wire.spent import Spent
    from squadron.runtime.wire.start import Tail

__version__ = "0.1.0"

_HOMES = {
    "Agent": "actors.agent",
    "Answer": "runtime.wire.outcome",
    "AnthropicModel": "actors.thinking.providers",
    "Attachment": "actors.thinking.model",
    "Bid": "runtime.wire.bids",
    "BlockingCallError": "runtime.errors",
    "Budget": "runtime.wire.limits",
    "BudgetError": "runtime.errors",
    "Cancelled": "runtime.wire.outcome",
    "ChatMessage": "actors.thinking.model",
    "Chunk": "runtime.streams.writer",
    "Context": "runtime.running.context",
    "DeadLettered": "runtime.wire.outcome",
    "End": "runtime.lite.reader",
    "Ended": "runtime.streams.writer",
    "Expired": "runtime.wire.outcome",
    "Failed": "runtime.wire.outcome",
    "FencedError": "runtime.errors",
    "InvalidInputError": "runtime.errors",
    "InvalidSubjectError": "runtime.errors",
    "LLMAgent": "actors.llm.llm_agent",
    "LiteMessage": "runtime.lite.reader",
    "LiteTopic": "runtime.lite.topic",
    "Model": "actors.thinking.model",
    "ModelError": "runtime.errors",
    "ModelRequest": "actors.thinking.model",
    "ModelTurn": "actors.thinking.model",
    "Nested": "runtime.streams.writer",
    "OpenAIModel": "actors.thinking.providers",
    "Outcome": "runtime.wire.outcome",
    "Park": "runtime.errors",
    "QuestionClosedError": "runtime.errors",
    "QuotaExceededError": "runtime.errors",
    "Rejected": "runtime.wire.outcome",
    "Reply": "runtime.wire.question",
    "Restarted": "runtime.streams.writer",
    "Result": "runtime.wire.outcome",
    "Retry": "runtime.errors",
    "Route": "runtime.wire.route",
    "RunReport": "actors.goals.run_report",
    "Secret": "runtime.secret",
    "Settings": "config",
    "Spent": "runtime.wire.spent",
    "Squad": "client.squad",
    "SquadClosedError": "runtime.errors",
    "SquadronError": "runtime.errors",
    "StreamGapError": "runtime.errors",
    "Supervisor": "actors.goals.supervisor",
    "Tail": "runtime.wire.start",
    "Terminal": "runtime.errors",
    "TimedOut": "runtime.wire.outcome",
    "ToolCall": "actors.thinking.model",
    "ToolDefinition": "actors.thinking.model",
    "UnansweredError": "runtime.errors",
    "Undeliverable": "runtime.wire.outcome",
    "Usage": "actors.thinking.model",
    "bid": "actors.decorators",
    "on": "actors.decorators",
    "on_durable": "actors.decorators",
    "tool": "actors.llm.tools",
    "topic": "actors.decorators",
}

__all__ = [
    "Agent",
    "Answer",
    "AnthropicModel",
    "Attachment",
    "Bid",
    "BlockingCallError",
    "Budget",
    "BudgetError",
    "Cancelled",
    "ChatMessage",
    "Chunk",
    "Context",
    "DeadLettered",
    "End",
    "Ended",
    "Expired",
    "Failed",
    "FencedError",
    "InvalidInputError",
    "InvalidSubjectError",
    "LLMAgent",
    "LiteMessage",
    "LiteTopic",
    "Model",
    "ModelError",
    "ModelRequest",
    "ModelTurn",
    "Nested",
    "OpenAIModel",
    "Outcome",
    "Park",
    "QuestionClosedError",
    "QuotaExceededError",
    "Rejected",
    "Reply",
    "Restarted",
    "Result",
    "Retry",
    "Route",
    "RunReport",
    "Secret",
    "Settings",
    "Spent",
    "Squad",
    "SquadClosedError",
    "SquadronError",
    "StreamGapError",
    "Supervisor",
    "Tail",
    "Terminal",
    "TimedOut",
    "ToolCall",
    "ToolDefinition",
    "UnansweredError",
    "Undeliverable",
    "Usage",
    "bid",
    "on",
    "on_durable",
    "tool",
    "topic",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'squadron' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"squadron.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
