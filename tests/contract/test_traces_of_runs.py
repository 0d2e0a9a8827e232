"""A run of a model in a trace: its rounds, tools and tasks, over attempts; contents only when asked for."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import tool
from squadron.actors.thinking.model import Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.bridge.otel.contents import VARIABLE
from squadron.runtime.errors import ModelError, Retry
from squadron.runtime.redact import STRUCK
from squadron.runtime.running.context import Context
from squadron.testing import ScriptedModel
from tests.contract.conftest import Inbox, Peer, Serve
from tests.contract.traced import Collector, attributes_of, id_of, is_child, links_of, made, trace_of

SECRET = "sk-abcdefghijklmnop"


class Words(Agent):
    """Counts words, and says so to all and on a lite topic."""

    @topic("words.count")
    async def count(self, text: str, ctx: Context) -> int:
        """Count the words of a text."""
        await ctx.publish("words.counted", len(text.split()))
        await ctx.lite("notes", owner="words").publish("counted")
        return len(text.split())


class Boss(Supervisor):
    """The supervisor, with a mind that counts first and answers then."""

    name = "supervisor"

    def __init__(self) -> None:
        self.model = ScriptedModel([self._think] * 2, name="openai:gpt-5")

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self.model

    def _think(self, request: ModelRequest) -> ModelTurn:
        if request.messages[-1].role == "user":
            usage = Usage(input=100, output=20, cache_read=60, reasoning=5)
            calls = (ToolCall("c", "words__count", {"text": "one two three"}),)
            return ModelTurn("I count.", calls, usage, "tools", response_id="r-1")
        end = {"answer": "three", "deliverables": {"n": {"$from": "c"}}}
        return ModelTurn("", (ToolCall("f", "finish", end),), Usage(input=150, output=10), "tools")


class Handy(LLMAgent):
    """You use tools."""

    def __init__(self, *turns: Any) -> None:
        self.model, self.tried = ScriptedModel(turns), 0

    def make_model(self, spec: str) -> Model:
        return self.model

    @topic("handy.do")
    async def do(self, text: str, ctx: Context) -> str:
        """Do something."""
        return await self.think(ctx, text)

    @tool
    async def key(self, of: str) -> str:
        """A key."""
        return f"{of}: {SECRET}"

    @tool
    async def later(self) -> str:
        """Works the second time."""
        self.tried += 1
        if self.tried == 1:
            raise Retry("not yet", after_s=0.01)
        return "now"

    @tool
    async def broken(self) -> str:
        """Never works."""
        raise ValueError("out of order")


def _call(name: str, **arguments: Any) -> ModelTurn:
    return ModelTurn("", (ToolCall(f"c-{name}", name, arguments),), Usage(input=10, output=5), "tools")


async def _handled(serve: Serve, peer: Peer, *turns: Any, **env: str) -> tuple[Collector, Any]:
    spans = made()
    replica = await serve(Handy(*turns))
    spans.trace(peer, replica.peer, **env)
    outcome = await peer.caller.ask("handy.do", {"text": f"Use {SECRET} well."})
    return spans, outcome


async def test_one_trace_goes_from_a_goal_over_the_model_and_other_agents_to_the_answer(
    serve: Serve, peer: Peer
) -> None:
    spans, told = made(), Inbox()
    words, boss = await serve(Words(), name="words"), await serve(Boss(), name="boss")
    spans.trace(peer, words.peer, boss.peer)
    listening = await peer.bus.subscribe(peer.subjects.event("words.counted"), told)

    # As in a notebook that traces itself.
    with spans.provider.get_tracer("mine").start_as_current_span("a cell of a notebook"):
        outcome = await peer.caller.ask("goal.pursue", {"goal": "Count the words of: one two three."})
    assert outcome.ok, outcome.reason
    (work,) = await spans.have("process goal.pursue")
    root, agent = spans.one("ask goal.pursue"), spans.one("invoke_agent supervisor")
    first, second = spans.named("chat gpt-5")
    ask, child = spans.one("ask words.count"), spans.one("process words.count")

    cell = spans.one("a cell of a notebook")
    (note,) = [span for span in spans.spans if span.name.startswith("publish ") and ".lite." in span.name]
    assert {trace_of(span) for span in spans.spans} == {trace_of(cell)}
    assert is_child(root, cell)
    assert is_child(note, child)
    # How long each waited in its mailbox.
    assert all(float(str(attributes_of(each)["squadron.waited_s"])) >= 0 for each in (work, child))
    assert attributes_of(root)["squadron.outcome"] == "result"
    assert is_child(work, spans.one("publish goal.pursue"))
    assert is_child(agent, work)
    assert all(is_child(each, agent) for each in (first, second, ask))
    assert is_child(child, spans.one("publish words.count"))
    assert is_child(spans.one("publish words.counted"), child)
    assert (await told.next()).headers["traceparent"].startswith(f"00-{trace_of(root)}-")

    assert (first.kind, agent.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    said = attributes_of(first)
    assert said.pop("squadron.cost_usd") > 0  # type: ignore[operator]
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.agent.name": "supervisor",
        "gen_ai.conversation.id": outcome.task_id,
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.response.model": "gpt-5",
        "gen_ai.response.id": "r-1",
        "gen_ai.response.finish_reasons": ("tools",),
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 60,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "squadron.round": 1,
        "squadron.try": 1,
    }
    whole = attributes_of(agent)
    assert whole["gen_ai.operation.name"] == "invoke_agent"
    assert (whole["gen_ai.usage.input_tokens"], whole["gen_ai.usage.output_tokens"]) == (250, 30)
    assert (whole["squadron.epoch"], whole["squadron.stopped"]) == (1, "finished")
    # Nothing of what was said is kept, unless somebody asks for it.
    assert "three" not in str([attributes_of(span) for span in spans.spans])
    await listening.aclose()


async def test_each_try_at_a_model_has_a_span(serve: Serve, peer: Peer) -> None:
    spans, outcome = await _handled(serve, peer, ModelError("busy", kind="passing"), "done")
    assert outcome.unwrap() == "done"
    await spans.have("process handy.do")

    first, second = spans.named("chat test")
    assert (attributes_of(first)["squadron.try"], attributes_of(second)["squadron.try"]) == (1, 2)
    assert attributes_of(first)["error.type"] == "passing"
    assert first.status.status_code is StatusCode.ERROR
    assert "busy" in str(first.status.description)
    assert second.status.status_code is StatusCode.UNSET


async def test_a_tool_of_its_own_has_a_span(serve: Serve, peer: Peer) -> None:
    spans, outcome = await _handled(serve, peer, _call("key", of="desk"), _call("broken"), "done")
    assert outcome.unwrap() == "done"
    await spans.have("process handy.do")

    ran, broken = spans.one("execute_tool key"), spans.one("execute_tool broken")
    assert is_child(ran, spans.one("invoke_agent handy"))
    said = attributes_of(ran)
    assert str(said.pop("gen_ai.tool.call.id")).startswith("r1c1-")
    assert said == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "key",
        "gen_ai.tool.type": "function",
        "gen_ai.agent.name": "handy",
        "squadron.outcome": "result",
    }
    assert attributes_of(broken)["error.type"] == "failed"
    assert "out of order" in str(broken.status.description)


async def test_a_run_that_goes_on_is_linked_to_how_far_it_came(serve: Serve, peer: Peer) -> None:
    spans, outcome = await _handled(serve, peer, _call("later"), "done")
    assert outcome.unwrap() == "done"
    first_work, second_work = await spans.have("process handy.do", 2)

    first, second = spans.named("invoke_agent handy")
    assert (is_child(first, first_work), is_child(second, second_work)) == (True, True)
    assert links_of(second) == [("earlier epoch", id_of(first))]
    assert (attributes_of(first)["squadron.end"], attributes_of(second)["squadron.epoch"]) == ("again", 2)
    assert next(event.name for event in second.events) == "run goes on"
    assert {trace_of(span) for span in spans.spans} == {trace_of(first)}


@pytest.mark.parametrize(
    ("value", "attributes", "events"),
    [
        ("SPAN_ONLY", True, False),
        ("event_only", False, True),
        ("SPAN_AND_EVENT", True, True),
        ("true", True, False),
    ],
)
async def test_contents_are_kept_where_they_are_asked_for_and_without_secrets(
    serve: Serve, peer: Peer, value: str, attributes: bool, events: bool
) -> None:
    spans, outcome = await _handled(serve, peer, _call("key", of="desk"), "that is all", **{VARIABLE: value})
    assert outcome.unwrap() == "that is all"
    await spans.have("process handy.do")

    told = {
        span.name: [attributes_of(span), *(dict(event.attributes or {}) for event in span.events)]
        for span in spans.spans
    }
    found = str(told)
    assert SECRET not in found
    assert f"Use {STRUCK} well." in found
    first, *told_events = told["execute_tool key"]
    assert ("gen_ai.tool.call.arguments" in first) is attributes
    assert any("gen_ai.tool.call.arguments" in each for each in told_events) is events
    last = told["chat test"][0] if attributes else told["chat test"][1]
    assert "that is all" in str(last["gen_ai.output.messages"])
    assert f"desk: {STRUCK}" in str(last["gen_ai.input.messages"])


@pytest.mark.parametrize("value", ["", "NO_CONTENT", "rubbish"])
async def test_contents_are_kept_nowhere_by_default(serve: Serve, peer: Peer, value: str) -> None:
    spans, outcome = await _handled(serve, peer, _call("key", of="desk"), "that is all", **{VARIABLE: value})
    assert outcome.ok
    await spans.have("process handy.do")

    found = [(span.name, span.attributes, [event.attributes for event in span.events]) for span in spans.spans]
    assert not any(text in str(found) for text in ("desk: ", "that is all", "well"))
