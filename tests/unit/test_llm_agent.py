"""Agents that think with an LLM: prompts, tools, typed answers, memory, streams, and the crew."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from squadron.actors.agent import AgentSpec
from squadron.actors.decorators import topic
from squadron.actors.thinking.crew import CREW, FactChecker, Synthesizer
from squadron.actors.thinking.llm import ANSWER_TOOL, LLMAgent, tool
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.actors.thinking.scripted import ScriptedModel, ScriptedTurn
from squadron.actors.thinking.shapes import InputShape
from squadron.runtime.calling import Threads
from squadron.runtime.errors import InvalidAgentError, Terminal
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.context import Context
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, MessageContext
from squadron.runtime.wire.outcome import Failed, Result
from squadron.testing import MemorySquad


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        yield made


class Mood(BaseModel):
    """How somebody feels."""

    word: str
    strength: int


class Listener(LLMAgent):
    """You listen well."""

    def __init__(self, *turns: ScriptedTurn) -> None:
        self.model, self.specs = ScriptedModel(turns), list[str]()

    def make_model(self, spec: str) -> Model:
        self.specs.append(spec)
        return self.model

    @topic("talk.reply")
    async def reply(self, text: str, ctx: Context) -> str:
        """Reply to a text."""
        return await self.think(ctx, text)

    @topic("talk.mood")
    async def mood(self, text: str, ctx: Context) -> Mood:
        """Tell the mood of a text."""
        return await self.think_as(ctx, text, Mood)

    @topic("talk.moods")
    async def moods(self, text: str, ctx: Context) -> list[Mood]:
        """Tell all moods of a text."""
        return await self.think_as(ctx, text, list[Mood])

    @tool
    def add(self, a: int, b: int = 1) -> int:
        """Add two numbers."""
        return a + b

    @tool
    async def look_up(self, word: str) -> str:
        """Look up a word."""
        if word == "end":
            raise Terminal("the dictionary is closed")
        raise KeyError(word)


def call(id: str, name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id, name, arguments)


def turn(*calls: ToolCall, text: str = "", tokens: int = 0) -> ModelTurn:
    return ModelTurn(text, calls, Usage(tokens))


def told(messages: Sequence[ChatMessage]) -> dict[str, tuple[str, bool]]:
    return {m.tool_call_id: (m.content, m.is_error) for m in messages if m.role == "tool"}


async def test_the_docstring_is_the_system_prompt_and_tokens_are_charged(squad: MemorySquad) -> None:
    agent = Listener(turn(text="hi", tokens=12))
    await squad.deploy(agent)

    outcome = await squad.ask("talk.reply", {"text": "hello"})

    assert outcome.unwrap() == "hi"
    assert outcome.tokens == 12
    shown, tools = agent.model.seen[0]
    assert shown == (ChatMessage("system", "You listen well."), ChatMessage("user", "hello"))
    assert [one.name for one in tools] == ["add", "look_up"]
    assert tools[0].description == "Add two numbers."
    assert tools[0].input_schema["required"] == ["a"]
    assert tools[0].input_schema["properties"]["b"]["type"] == "integer"


async def test_text_is_streamed_as_it_comes(squad: MemorySquad) -> None:
    class Typing(ScriptedModel):
        async def think(self, request: ModelRequest, on_text: Any = None) -> ModelTurn:
            for piece in ("one ", "two ", "three"):
                on_text(piece)
            return await super().think(request)

    agent = Listener()
    agent.model = Typing([turn(text="one two three")])
    await squad.deploy(agent)

    handle = await squad.submit("talk.reply", {"text": "x"})
    chunks = [chunk async for chunk in handle.chunks()]

    assert "".join(chunks) == "one two three"
    assert (await handle.outcome()).unwrap() == "one two three"


async def test_tools_are_called_and_their_failures_told(squad: MemorySquad) -> None:
    calls = [
        call("sum", "add", a=1, b=2),
        call("default", "add", a="4"),
        call("wrong", "add", a="four"),
        call("raises", "look_up", word="x"),
        call("unknown", "sing"),
        ToolCall("json", "add", problem="the arguments are not valid JSON"),
    ]
    agent = Listener(turn(*calls), turn(text="3"))
    await squad.deploy(agent)

    assert (await squad.ask("talk.reply", {"text": "x"})).unwrap() == "3"

    answers = told(agent.model.seen[1][0])
    assert answers["sum"] == ("3", False)
    assert answers["default"] == ("5", False)
    assert answers["wrong"][1]
    assert "valid integer" in answers["wrong"][0]
    assert answers["raises"] == ("KeyError: 'x'", True)
    assert answers["unknown"] == ("there is no tool 'sing'; there are: add, look_up", True)
    assert answers["json"] == ("the arguments are not valid JSON", True)


async def test_a_tool_may_end_the_task(squad: MemorySquad) -> None:
    await squad.deploy(Listener(turn(call("l", "look_up", word="end"))))

    outcome = await squad.ask("talk.reply", {"text": "x"})

    assert isinstance(outcome, Failed)
    assert outcome.reason == "the dictionary is closed"


async def test_a_model_that_only_calls_tools_is_stopped(squad: MemorySquad) -> None:
    agent = Listener(*(turn(call(f"c{n}", "add", a=n)) for n in range(20)))
    await squad.deploy(agent)

    outcome = await squad.ask("talk.reply", {"text": "x"})

    assert isinstance(outcome, Failed)
    assert "came to no answer in 8 turns" in outcome.reason


async def test_a_typed_answer_is_checked_and_corrected(squad: MemorySquad) -> None:
    agent = Listener(
        turn(text="They are sad."),
        turn(call("a", ANSWER_TOOL, word="sad")),
        turn(call("b", ANSWER_TOOL, word="sad", strength=3)),
    )
    await squad.deploy(agent)

    outcome = await squad.ask("talk.mood", {"text": "alas"})

    assert outcome.unwrap() == {"word": "sad", "strength": 3}
    assert agent.model.seen[1][0][-1].content.startswith(f"Call {ANSWER_TOOL}")
    content, is_error = told(agent.model.seen[2][0])["a"]
    assert is_error
    assert "strength" in content
    assert agent.model.seen[0][1][-1].input_schema["required"] == ["word", "strength"]


async def test_a_typed_answer_may_be_a_list_and_may_come_as_text(squad: MemorySquad) -> None:
    agent = Listener(
        turn(call("a", ANSWER_TOOL, value=[{"word": "sad", "strength": 1}])),
        turn(text='```json\n[{"word": "glad", "strength": 2}]\n```'),
    )
    await squad.deploy(agent)

    assert (await squad.ask("talk.moods", {"text": "x"})).unwrap() == [{"word": "sad", "strength": 1}]
    assert (await squad.ask("talk.moods", {"text": "x"})).unwrap() == [{"word": "glad", "strength": 2}]
    schema = agent.model.seen[0][1][-1].input_schema
    assert schema["type"] == "object"
    assert "Mood" in schema["$defs"]


async def test_a_conversation_is_remembered_and_others_are_not(squad: MemorySquad) -> None:
    agent = Listener(*(turn(text=f"answer {n}") for n in range(4)))
    await squad.deploy(agent)

    await squad.ask("talk.reply", {"text": "first"}, conversation_id="c1")
    await squad.ask("talk.reply", {"text": "second"}, conversation_id="c1")
    await squad.ask("talk.reply", {"text": "third"}, conversation_id="c2")
    await squad.ask("talk.reply", {"text": "fourth"})

    words = [[message.content for message in shown[1:]] for shown, _ in agent.model.seen]
    assert words == [["first"], ["first", "answer 0", "second"], ["third"], ["fourth"]]


class _Lease:
    delivered, first = 1, True

    async def begin(self) -> int:
        return 1

    async def settle(self, *, confirmed: bool = False) -> None: ...

    async def extend(self) -> None: ...

    async def release(self, after_s: float = 0.0) -> None: ...


@pytest.mark.parametrize(("most", "shown"), [(None, 3), (2, 2), (0, 0), (9, 3)])
async def test_the_callers_own_history_counts_before_memory(
    squad: MemorySquad, most: int | None, shown: int
) -> None:
    agent = Listener(turn(text="ok"))
    caller = squad._wiring.caller
    turns = Turns("listener", AgentSpec.of(Listener).handlers(agent), caller)
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"note": 1}]
    context = MessageContext(conversation_id="c", history=history, max_history=most)
    message = AgentMessage.new("task", AgentIdentity(id="x"), {"text": "now"}).model_copy(
        update={"context": context}
    )

    await turns.run(Delivery(caller.ports.subjects.task("talk.reply"), message.encode(), _Lease(), 1))

    past = agent.model.seen[0][0][1:-1]
    everything = [("user", "a"), ("assistant", "b"), ("user", '{"note": 1}')]
    assert [(message.role, message.content) for message in past] == everything[len(everything) - shown :]


async def test_model_and_sampling_come_from_the_message(squad: MemorySquad) -> None:
    class Noting(ScriptedModel):
        options: dict[str, Any]

        async def think(self, request: ModelRequest, on_text: Any = None) -> ModelTurn:
            self.options = {"max_tokens": request.max_tokens, "temperature": request.temperature}
            return await super().think(request)

    agent = Listener()
    noting = Noting([turn(text="ok")] * 2)
    agent.model = noting
    await squad.deploy(agent)
    asked = {"temperature": 0.5, "maxTokens": 100}

    await squad.ask("talk.reply", {"text": "x"}, model="some:model", parameters=asked)
    outcome = await squad.ask("talk.reply", {"text": "x"}, parameters={"temperature": "hot"})

    assert agent.specs[0] == "some:model"
    assert (noting.options["temperature"], noting.options["max_tokens"]) == (0.5, 100)
    assert outcome.reason == "payload.parameters.temperature: 'hot' is not a number"


async def test_offline_an_agent_says_what_it_needs(squad: MemorySquad, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "SQUADRON_MODEL"):
        monkeypatch.delenv(name, raising=False)
    await squad.deploy(Synthesizer())

    outcome = await squad.ask("synthesis.compose", {"purpose": "x", "material": []})

    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("Synthesizer needs an LLM and none is configured: set OPENAI_API_KEY")


async def test_models_are_made_once_and_closed_at_the_end(squad: MemorySquad) -> None:
    agent = Listener(turn(text="a"), turn(text="b"))
    await squad.deploy(agent)

    await squad.ask("talk.reply", {"text": "x"}, model="m")
    await squad.ask("talk.reply", {"text": "x"}, model="m")

    assert agent.specs == ["m"]
    await agent.on_stop()
    await agent.on_stop()


def test_a_tool_must_be_typed_and_described() -> None:
    with pytest.raises(InvalidAgentError, match="parameter 'a' has no type"):

        @tool
        def untyped(self: Any, a) -> int:  # type: ignore[no-untyped-def]
            """Text."""
            return 1

    with pytest.raises(InvalidAgentError, match="no docstring"):

        @tool
        def undescribed(self: Any, a: int) -> int:
            return a


@pytest.mark.parametrize("name", ["größe_von", "x" * 65, ANSWER_TOOL])
def test_a_tool_whose_name_providers_refuse_is_refused_with_the_fix(name: str) -> None:
    def method(self: Any, a: int) -> int:
        """Text."""
        return a

    method.__name__ = name
    with pytest.raises(InvalidAgentError, match=rf"{name}.*rename the method"):
        tool(method)


class Actor(LLMAgent):
    """You act."""

    def __init__(self) -> None:
        self.went_on, self.began = False, asyncio.Event()

    def make_model(self, spec: str) -> Model:
        return ScriptedModel([turn(call("a", "slow"), call("b", "stop"), call("c", "size", **{SAFE: "xy"}))])

    @topic("act.now")
    async def act(self, text: str, ctx: Context) -> str:
        """Act."""
        return await self.think(ctx, text)

    @tool
    async def slow(self) -> None:
        """Act slowly."""
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.went_on = True
            raise

    @tool
    async def stop(self) -> None:
        """Stop."""
        await self.began.wait()
        raise Terminal("enough")

    @tool
    async def size(self, größe: str) -> int:
        """Measure."""
        return len(größe)


SAFE = next(iter(InputShape({"properties": {"größe": {}}}).schema["properties"]))


async def test_a_tool_that_raises_stops_its_siblings(squad: MemorySquad) -> None:
    agent = Actor()
    await squad.deploy(agent)

    outcome = await squad.ask("act.now", {"text": "x"})

    assert isinstance(outcome, Failed)
    assert outcome.reason == "enough"
    assert agent.went_on


async def test_a_parameter_that_providers_refuse_is_offered_under_another_name() -> None:
    agent = Actor()
    definition, _, _ = agent._tools["size"]
    assert list(definition.input_schema["properties"]) == [SAFE]
    assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", SAFE)
    context: Any = SimpleNamespace(threads=Threads())
    assert (await agent._call(context, call("c", "size", **{SAFE: "xy"}), None)).content == "2"


def test_the_crew_describes_itself() -> None:
    cards = [AgentSpec.of(member).card() for member in CREW]

    assert {topic.name for card in cards for topic in card.topics} == {
        "research.investigate",
        "analysis.examine",
        "code.write",
        "facts.check",
        "review.critique",
        "synthesis.compose",
    }
    for card in cards:
        assert card.description.startswith("You ")
        assert all(topic.description and topic.examples and topic.tags for topic in card.topics)


async def test_the_fact_checker_says_how_sure_it_is(squad: MemorySquad) -> None:
    class Checker(FactChecker):
        name = "fact-checker"

        def make_model(self, spec: str) -> Model:
            return ScriptedModel(
                [turn(call("a", ANSWER_TOOL, verdict="false", reasons=["r1", "r2"], confidence=0.9))]
            )

    await squad.deploy(Checker())

    outcome = await squad.ask("facts.check", {"claim": "the earth is flat", "material": {"earth": "round"}})

    assert isinstance(outcome, Result)
    assert outcome.data["verdict"] == "false"
    assert (outcome.confidence, outcome.reasoning) == (0.9, "r1; r2")


async def test_a_rotated_key_is_picked_up(squad: MemorySquad, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Listener(*[turn(text="ok")] * 3)
    await squad.deploy(agent)
    for key in ("sk-first-key", "sk-first-key", "sk-second-key"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        outcome = await squad.ask("talk.reply", "hi", model="openai:m")
        assert outcome.unwrap() == "ok"
    assert agent.specs == ["openai:m"] * 2  # made once for each key
