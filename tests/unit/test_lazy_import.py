"""The face is cheap to import and small."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import squadron

_HEAVY = ("ray", "nats", "openai", "anthropic")
_PROGRAM = "import json, sys; {statement}; print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"


@pytest.mark.parametrize(
    "statement",
    [
        "import squadron",
        "from squadron import Agent, Answer, Context, Retry, Terminal, on, on_durable, topic",
        "from squadron import Settings; Settings.load()",
        "from squadron import LLMAgent, Model, ModelRequest, ModelTurn, Supervisor, tool",
        "from squadron import AnthropicModel, OpenAIModel",
        "from squadron.testing import AnyModel, FunctionModel, MemorySquad, ScriptedModel",
        "import squadron.bridge.memory",
    ],
)
def test_nothing_heavy_is_loaded_before_something_connects(statement: str) -> None:
    program = _PROGRAM.format(statement=statement, heavy=_HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == []


def test_a_replica_that_gets_a_handle_of_the_bridge_loads_nothing_of_it() -> None:
    """Ray imports an actor's class in each process that gets a handle of it."""
    program = _PROGRAM.format(
        statement="import squadron.bridge.serve.bridge_actor",
        heavy=("squadron.bridge.control.control", "squadron.bridge.audit", "prometheus_client", "nats"),
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == []


def test_the_public_names() -> None:
    """A name more or less is a decision: change this list together with the changelog."""
    assert squadron.__all__ == [
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


def test_each_public_name_is_there_and_listed() -> None:
    for name in squadron.__all__:
        assert getattr(squadron, name) is not None
        assert name in dir(squadron)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = squadron.Nothing
