"""Squadron: Ray runs the agents, NATS carries their messages, a supervisor steers them.

Importing this is cheap: each name is loaded on first use, and Ray and NATS only when something connects.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squadron.actors.agent import Agent
    from squadron.actors.marks import on, on_durable, topic
    from squadron.config import Settings
    from squadron.runtime.context import Context
    from squadron.runtime.errors import (
        BlockingCallError,
        FencedError,
        InvalidInputError,
        InvalidSubjectError,
        QuotaExceededError,
        Retry,
        SquadClosedError,
        SquadronError,
        StreamGapError,
        Terminal,
    )
    from squadron.runtime.lite import LiteTopic
    from squadron.runtime.lite_reader import End, LiteMessage, Tail
    from squadron.runtime.outcome import (
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
    from squadron.runtime.route import Route
    from squadron.runtime.streams import Chunk, Ended, Nested, Restarted
    from squadron.squad import Squad

__version__ = "0.1.0"

_HOMES = {
    "Agent": "actors.agent",
    "Answer": "runtime.outcome",
    "BlockingCallError": "runtime.errors",
    "Cancelled": "runtime.outcome",
    "Chunk": "runtime.streams",
    "Context": "runtime.context",
    "DeadLettered": "runtime.outcome",
    "End": "runtime.lite_reader",
    "Ended": "runtime.streams",
    "Expired": "runtime.outcome",
    "Failed": "runtime.outcome",
    "FencedError": "runtime.errors",
    "InvalidInputError": "runtime.errors",
    "InvalidSubjectError": "runtime.errors",
    "LiteMessage": "runtime.lite_reader",
    "LiteTopic": "runtime.lite",
    "Nested": "runtime.streams",
    "Outcome": "runtime.outcome",
    "QuotaExceededError": "runtime.errors",
    "Rejected": "runtime.outcome",
    "Restarted": "runtime.streams",
    "Result": "runtime.outcome",
    "Retry": "runtime.errors",
    "Route": "runtime.route",
    "Settings": "config",
    "Squad": "squad",
    "SquadClosedError": "runtime.errors",
    "SquadronError": "runtime.errors",
    "StreamGapError": "runtime.errors",
    "Tail": "runtime.lite_reader",
    "Terminal": "runtime.errors",
    "TimedOut": "runtime.outcome",
    "Undeliverable": "runtime.outcome",
    "on": "actors.marks",
    "on_durable": "actors.marks",
    "topic": "actors.marks",
}

__all__ = [
    "Agent",
    "Answer",
    "BlockingCallError",
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
    "QuotaExceededError",
    "Rejected",
    "Restarted",
    "Result",
    "Retry",
    "Route",
    "Settings",
    "Squad",
    "SquadClosedError",
    "SquadronError",
    "StreamGapError",
    "Tail",
    "Terminal",
    "TimedOut",
    "Undeliverable",
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
