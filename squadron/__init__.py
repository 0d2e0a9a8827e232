"""Squadron: Ray runs the agents, NATS carries their messages, a supervisor steers them.

Importing this is cheap: each name is loaded on first use, and Ray and NATS only when something connects.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squadron.actors.agent import Agent
    from squadron.actors.decorators import bid, on, on_durable, topic
    from squadron.client.squad import Squad
    from squadron.config import Settings
    from squadron.runtime.errors import (
        BlockingCallError,
        BudgetError,
        FencedError,
        InvalidInputError,
        InvalidSubjectError,
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
    "Bid": "runtime.wire.bids",
    "BlockingCallError": "runtime.errors",
    "Budget": "runtime.wire.limits",
    "BudgetError": "runtime.errors",
    "Cancelled": "runtime.wire.outcome",
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
    "LiteMessage": "runtime.lite.reader",
    "LiteTopic": "runtime.lite.topic",
    "Nested": "runtime.streams.writer",
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
    "Settings": "config",
    "Spent": "runtime.wire.spent",
    "Squad": "client.squad",
    "SquadClosedError": "runtime.errors",
    "SquadronError": "runtime.errors",
    "StreamGapError": "runtime.errors",
    "Tail": "runtime.wire.start",
    "Terminal": "runtime.errors",
    "TimedOut": "runtime.wire.outcome",
    "UnansweredError": "runtime.errors",
    "Undeliverable": "runtime.wire.outcome",
    "bid": "actors.decorators",
    "on": "actors.decorators",
    "on_durable": "actors.decorators",
    "topic": "actors.decorators",
}

__all__ = [
    "Agent",
    "Answer",
    "Bid",
    "BlockingCallError",
    "Budget",
    "BudgetError",
    "Cancelled",
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
    "LiteMessage",
    "LiteTopic",
    "Nested",
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
    "Settings",
    "Spent",
    "Squad",
    "SquadClosedError",
    "SquadronError",
    "StreamGapError",
    "Tail",
    "Terminal",
    "TimedOut",
    "UnansweredError",
    "Undeliverable",
    "bid",
    "on",
    "on_durable",
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
