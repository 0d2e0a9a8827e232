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
from squadron.actors.llm.crew import CREW, FactChecker, Synthesizer
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.llm.tools import ANSWER_TOOL, tool
from squadron.actors.runs.built_in import BUILT_IN
from squadron.actors.thinking.fence import FENCE_RULE
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolCall, Usage
from squadron.actors.thinking.repair import CUT_BEFORE
from squadron.actors.thinking.shapes import InputShape
from squadron.bridge.memory.bus import Headed
from squadron.runtime.calling import Threads
from squadron.runtime.errors import InvalidAgentError, Retry, Terminal
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.context import Context
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, MessageContext
from squadron.runtime.wire.outcome import Failed, Result
from squadron.testing import MemorySquad
from squadron.testing.scripted_model import ScriptedModel, ScriptedTurn


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        yield made


class Noting(ScriptedModel):
    """Keeps whole requests, too."""

    def __init__(self, turns: Sequence[ScriptedTurn]) -> None:
        super().__init__(turns)
        self.requests = list[ModelRequest]()

    async def think(self, request: ModelRequest, on_text: Any = None) -> ModelTurn:
        self.requests.append(request)
        return await super().think(request, on_text)


class Mood(BaseModel):
    """How somebody feels."""

    word: str
    strength: int


class Listener(LLMAgent):
    """You listen well."""

    def __init__(self, *turns: ScriptedTurn) -> None:
        self.model, self.specs = Noting(turns), list[str]()

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


def fenced(content: str) -> str:
    """What stands in the fence of a result."""
    found = re.search(r"<(untrusted-[0-9a-f]{8})>\n(.*)\n</\1>", content, re.DOTALL)
    assert found is not None, content
    return found[2]


def told(messages: Sequence[ChatMessage]) -> dict[str, tuple[str, bool]]:
    return {m.tool_call_id: (m.content, m.is_error) for m in messages if m.role == "tool"}


async def test_the_docstring_is_the_system_prompt_and_tokens_are_charged(squad: MemorySquad) -> None:
    agent = Listener(turn(text="hi", tokens=12))
    await squad.deploy(agent)

    outcome = await squad.ask("talk.reply", {"text": "hello"})

    assert outcome.unwrap() == "hi"
    assert outcome.tokens == 12
    shown, tools = agent.model.seen[0].messages, agent.model.seen[0].tools
    assert shown == (ChatMessage("system", f"You listen well.\n\n{FENCE_RULE}"), ChatMessage("user", "hello"))
    assert [one.name for one in tools] == ["add", "look_up"]
    assert tools[0].description == "Add two numbers."
    assert tools[0].input_schema["required"] == ["a"]
    assert tools[0].input_schema["properties"]["b"]["type"] == "integer"


async def test_text_is_streamed_as_it_comes(squad: MemorySquad) -> None:
    class Typing(Noting):
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

    answers = told(agent.model.seen[1].messages)
    assert {id for id, (_, is_error) in answers.items() if not is_error} == {"sum", "default"}
    said = {id: fenced(content) for id, (content, _) in answers.items()}
    assert (said["sum"], said["default"]) == ("3", "5")
    assert "valid integer" in said["wrong"]
    assert said["raises"] == "KeyError: 'x'"
    assert said["unknown"] == "there is no tool 'sing'; offered are add, look_up"
    assert said["json"] == "the arguments are not valid JSON"


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
    assert "came to no answer: 8 rounds are the limit" in outcome.reason


async def test_a_typed_answer_is_checked_and_corrected(squad: MemorySquad) -> None:
    agent = Listener(
        turn(text="They are sad."),
        turn(text='{"word": "sad"}'),
        turn(text='{"word": "sad", "strength": 3}'),
    )
    await squad.deploy(agent)

    outcome = await squad.ask("talk.mood", {"text": "alas"})

    assert outcome.unwrap() == {"word": "sad", "strength": 3}
    first, second = agent.model.seen[1].messages[-1], agent.model.seen[2].messages[-1]
    assert (first.role, second.role) == ("user", "user")
    assert "Your answer does not fit: the answer: Invalid JSON" in first.content
    assert "Your answer does not fit: strength: Field required" in second.content


async def test_a_typed_answer_that_never_fits_is_no_answer(squad: MemorySquad) -> None:
    agent = Listener(*[turn(text="They are sad.")] * 4)
    await squad.deploy(agent)

    outcome = await squad.ask("talk.mood", {"text": "alas"})

    assert isinstance(outcome, Failed)
    assert "gave no answer that fits" in outcome.reason
    # The first one, and two repairs.
    assert len(agent.model.seen) == 3


async def test_a_typed_answer_may_be_a_list_and_may_stand_in_a_block_of_code(squad: MemorySquad) -> None:
    agent = Listener(
        turn(text='[{"word": "sad", "strength": 1}]'),
        turn(text='```json\n[{"word": "glad", "strength": 2}]\n```'),
    )
    await squad.deploy(agent)

    assert (await squad.ask("talk.moods", {"text": "x"})).unwrap() == [{"word": "sad", "strength": 1}]
    assert (await squad.ask("talk.moods", {"text": "x"})).unwrap() == [{"word": "glad", "strength": 2}]
    assert [request.output_schema["type"] for request in agent.model.requests if request.output_schema] == [
        "array",
        "array",
    ]


async def test_a_conversation_is_remembered_and_others_are_not(squad: MemorySquad) -> None:
    agent = Listener(*(turn(text=f"answer {n}") for n in range(4)))
    await squad.deploy(agent)

    await squad.ask("talk.reply", {"text": "first"}, conversation_id="c1")
    await squad.ask("talk.reply", {"text": "second"}, conversation_id="c1")
    await squad.ask("talk.reply", {"text": "third"}, conversation_id="c2")
    await squad.ask("talk.reply", {"text": "fourth"})

    words = [[message.content for message in asked.messages[1:]] for asked in agent.model.seen]
    assert words == [["first"], ["first", "answer 0", "second"], ["third"], ["fourth"]]


class _Lease:
    delivered, first = 1, True

    async def begin(self) -> int:
        return 1

    async def progressed(self) -> None: ...

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

    subject, headers = caller.ports.subjects.task("talk.reply"), {"Nats-Msg-Id": message.id}
    await turns.run(Delivery(subject, message.encode(), _Lease(), 1, Headed(headers)))

    past = agent.model.seen[0].messages[1:-1]
    everything = [("user", "a"), ("assistant", "b"), ("user", '{"note":1}')]
    # Providers want the first word to be the user's.
    cut = [("user", CUT_BEFORE)] if most == 2 else []
    assert [(message.role, message.content) for message in past] == cut + everything[len(everything) - shown :]


async def test_model_and_sampling_come_from_the_message(squad: MemorySquad) -> None:
    agent = Listener(*[turn(text="ok")] * 2)
    await squad.deploy(agent)
    asked = {"temperature": 0.5, "maxTokens": 100}

    await squad.ask("talk.reply", {"text": "x"}, model="some:model", parameters=asked)
    outcome = await squad.ask("talk.reply", {"text": "x"}, parameters={"temperature": "hot"})

    assert agent.specs[0] == "some:model"
    (request,) = agent.model.requests
    assert (request.temperature, request.max_tokens) == (0.5, 100)
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


@pytest.mark.parametrize("name", ["größe_von", "x" * 65, ANSWER_TOOL, *BUILT_IN])
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
    spec = next(each for each in agent._tools if each.definition.name == "size")
    assert list(spec.definition.input_schema["properties"]) == [SAFE]
    assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", SAFE)
    context: Any = SimpleNamespace(threads=Threads())
    assert await spec.bound(context).run({SAFE: "xy"}) == 2


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
            return ScriptedModel([turn(text='{"verdict": "false", "reasons": ["r1", "r2"], "confidence": 0.9}')])

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


@pytest.mark.parametrize(
    ("chain", "why"), [("a:x,", "a part of it is empty"), ("a:x, a:x", "'a:x' is there twice")]
)
async def test_a_chain_that_can_not_be_meant_is_refused(squad: MemorySquad, chain: str, why: str) -> None:
    await squad.deploy(Listener(turn(text="ok")))

    outcome = await squad.ask("talk.reply", "hi", model=chain)

    assert isinstance(outcome, Failed)
    assert why in outcome.reason


async def test_an_answer_that_was_sent_back_is_not_judged_again_by_the_next_attempt(squad: MemorySquad) -> None:
    def dies(*_: Any) -> ModelTurn:
        raise Retry("the replica is gone")

    agent = Listener(turn(text="They are sad."), dies, turn(text='{"word": "sad", "strength": 3}'))
    await squad.deploy(agent)

    outcome = await squad.ask("talk.mood", {"text": "alas"})

    assert outcome.unwrap() == {"word": "sad", "strength": 3}
    # The same question in the same words: no repair is counted twice.
    assert agent.model.seen[1] == agent.model.seen[2]


@pytest.mark.parametrize("stop", ["length", "overflow"])
async def test_an_answer_that_is_cut_off_is_none(squad: MemorySquad, stop: Any) -> None:
    await squad.deploy(Listener(ModelTurn("I was about to", stop=stop)))

    outcome = await squad.ask("talk.reply", {"text": "x"})

    assert isinstance(outcome, Failed)
    assert "ran out of tokens in the middle of its answer" in outcome.reason
