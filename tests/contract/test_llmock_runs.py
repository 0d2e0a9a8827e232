"""Whole runs before a judge from outside: llmock thinks for supervisors and LLM agents, and breaks each round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from llmock.pytest_plugin import LLMock

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.planner import Plan
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.llm.llm_agent import LLMAgent
from squadron.actors.runs.entries import Entry
from squadron.actors.runs.log import entries_of, read
from squadron.actors.thinking.model import Model
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import Context
from squadron.runtime.wire.outcome import Outcome
from squadron.testing.scripted_model import ScriptedModel
from tests.contract.conftest import ON_NATS, Peer, Serve
from tests.llmock import client

#: More than all pauses of one run.
PLENTY = AskOptions(within_s=90.0)
PROVIDERS = ("anthropic", "openai", "openai-responses")
#: llmock calls, once, the tool whose name has most of the words that it is told, system prompt and all.
COUNT = "words.count_all_of_those_in_this_text_and_tell_me_how_many"
PROMPT = COUNT.translate(str.maketrans("._", "  "))


class Thinker(Supervisor):
    """The supervisor, at llmock."""

    name = "supervisor"

    def __init__(self, make: Callable[[], Model] = ScriptedModel) -> None:
        self._make = make

    def make_model(self, spec: str, plan: Plan | None) -> Model:
        return self._make()


class Writer(LLMAgent):
    """You write."""

    asks: ClassVar[tuple[str, ...]] = (COUNT,)

    def __init__(self, make: Callable[[], Model] = ScriptedModel) -> None:
        self._make = make

    def make_model(self, spec: str) -> Model:
        return self._make()

    @topic("texts.write")
    async def write(self, ctx: Context, text: str) -> str:
        """Write a text."""
        return await self.think(ctx, text)


class Words(Agent):
    """Counts words; while it does, something breaks."""

    def __init__(self, meanwhile: Callable[[], object] = list) -> None:
        self._meanwhile = meanwhile
        self.asked: list[str] = []

    @topic(COUNT)
    async def count(self, text: str) -> int:
        """Count the words of a text."""
        self.asked.append(text)
        self._meanwhile()
        return len(text.split())


THINKERS: dict[str, tuple[Callable[[Callable[[], Model]], Agent], str, dict[str, Any]]] = {
    "supervisor": (Thinker, "goal.pursue", {"goal": PROMPT, "topics": [COUNT]}),
    "agent": (Writer, "texts.write", {"text": PROMPT}),
}
#: Lease of whoever has a task here, in seconds: what stalls for longer than a short one has it run twice.
PATIENT_S = 30.0
#: What breaks one request; and those of which a run survives more in `make test-slow`.
Break = Callable[[LLMock], object]
QUICK: dict[str, Break] = {
    "none": lambda llmock: None,
    "overloaded": lambda llmock: llmock.fail(529, retry_after=0.1),
    "disconnect": lambda llmock: llmock.disconnect(after_chunks=2),
}
MORE: dict[str, Break] = {
    "500": lambda llmock: llmock.fail(500),
    "503 twice": lambda llmock: llmock.fail(503, times=2, retry_after=0.2),
    "429": lambda llmock: llmock.rate_limit(retry_after=0.3),
    "429 for long": lambda llmock: llmock.rate_limit(retry_after=2.5),
    "disconnect at once": lambda llmock: llmock.disconnect(after_chunks=0),
    "truncate": lambda llmock: llmock.truncate(after_chunks=1),
    # Slowly, as the judge takes what was sent as a whole for what was taken.
    "malformed": lambda llmock: llmock.pace(50).corrupt(after_chunks=1),
    "stall": lambda llmock: llmock.stall(after_chunks=1, seconds=30),
    "slow to begin": lambda llmock: llmock.slow_first_token(30),
}


@pytest.fixture(params=THINKERS)
def thinker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def think(
    peer: Peer, serve: Serve, llmock: LLMock, thinker: str, provider: str, fault: Break
) -> tuple[Outcome, Words, list[Entry]]:
    """One run in which this breaks in both of its rounds."""
    make, name, content = THINKERS[thinker]
    words = Words(lambda: fault(llmock))
    await serve(words, name="words", lease_s=PATIENT_S)
    await serve(make(lambda: client(llmock, provider)), lease_s=PATIENT_S)
    fault(llmock)
    outcome = await peer.caller.ask(name, content, PLENTY)
    log = [entries_of(message) async for _, message in read(peer.ports, peer.subjects.run())]
    return outcome, words, [entry for entries in log for entry in entries]


async def check(
    peer: Peer, serve: Serve, llmock: LLMock, thinker: str, provider: str, faults: dict[str, Break], fault: str
) -> None:
    outcome, words, log = await think(peer, serve, llmock, thinker, provider, faults[fault])

    assert outcome.ok, outcome.reason
    assert len(words.asked) == 1
    kinds = Counter(entry.kind for entry in log)
    in_vain = {"none": 0, "503 twice": 4}.get(fault, 2)
    assert (kinds["thought"], kinds["failed"], kinds["asking"]) == (2, in_vain, 2 + in_vain)
    assert outcome.spent.rounds == kinds["asking"] == len(llmock.requests)
    verdict = llmock.verdict()
    assert len(verdict.calls) == 2
    verdict.assert_ok(strict=True)


@ON_NATS
@pytest.mark.parametrize("fault", QUICK)
async def test_the_judge_finds_nothing_in_a_run(
    peer: Peer, serve: Serve, llmock: LLMock, thinker: str, provider: str, fault: str
) -> None:
    await check(peer, serve, llmock, thinker, provider, QUICK, fault)


@pytest.mark.slow
@ON_NATS
@pytest.mark.parametrize("fault", MORE)
async def test_the_judge_finds_nothing_whatever_breaks(
    peer: Peer, serve: Serve, llmock: LLMock, thinker: str, provider: str, fault: str
) -> None:
    await check(peer, serve, llmock, thinker, provider, MORE, fault)


@ON_NATS
async def test_what_no_retry_mends_ends_a_run_with_what_it_has(
    peer: Peer, serve: Serve, llmock: LLMock, thinker: str, provider: str
) -> None:
    calls = 0

    def refuse(llmock: LLMock) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            llmock.fail(400, times=None)

    outcome, words, _ = await think(peer, serve, llmock, thinker, provider, refuse)

    assert len(words.asked) == 1
    assert len(llmock.requests) == 2
    if thinker == "supervisor":
        report = outcome.unwrap()
        assert report["stopped"] == "model"
        assert len(report["deliverables"]) == 1
    else:
        assert outcome.kind == "failed"
        assert "came to no answer" in outcome.reason
    llmock.assert_resilient(strict=True)
