"""Our clients and the retry loop before a judge from outside: llmock breaks its answers and grades what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from llmock.pytest_plugin import LLMock

from squadron.actors.thinking.model import Model, ModelTurn
from squadron.actors.thinking.tries import TRIES, think_patiently
from squadron.runtime.errors import ModelError
from tests.llmock import QUESTION, TOOL, Told, client

#: More than all pauses of these tests.
PLENTY_S = 60.0


@pytest.fixture(params=["openai", "anthropic", "openai-responses"])
async def model(request: pytest.FixtureRequest, llmock: LLMock) -> AsyncIterator[Model]:
    made = client(llmock, request.param)
    yield made
    await made.aclose()


async def think(*chain: Model, request=QUESTION, within_s: float = PLENTY_S) -> tuple[ModelTurn, Told]:
    told = Told()
    turn = await think_patiently(
        chain, request, books=told, within_s=within_s, on_text=told.on_text, on_event=told.on_event
    )
    assert told.text == turn.text
    return turn, told


Break = Callable[[LLMock], object]
FAULTS: dict[str, Break] = {
    "none": lambda llmock: None,
    "500": lambda llmock: llmock.fail(500),
    "503 twice": lambda llmock: llmock.fail(503, times=2, retry_after=0.2),
    "overloaded": lambda llmock: llmock.fail(529, retry_after=0.1),
    "429": lambda llmock: llmock.rate_limit(retry_after=0.3),
    "429 for long": lambda llmock: llmock.rate_limit(retry_after=2.5),
    "disconnect": lambda llmock: llmock.disconnect(after_chunks=2),
    "disconnect at once": lambda llmock: llmock.disconnect(after_chunks=0),
    "truncate": lambda llmock: llmock.truncate(after_chunks=3),
    # Paced: the judge takes an answer that it sent to its end before the client hung up for a good one.
    "malformed": lambda llmock: llmock.pace(20).corrupt(after_chunks=4),
    "stall": lambda llmock: llmock.stall(after_chunks=2, seconds=30),
    "slow to begin": lambda llmock: llmock.slow_first_token(30),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_judge_finds_nothing(fault: str, llmock: LLMock, model: Model) -> None:
    FAULTS[fault](llmock)

    turn, told = await think(model)

    assert turn.text
    assert turn.model == model.name
    assert told.tries == (1 if fault == "none" else 3 if fault == "503 twice" else 2)
    verdict = llmock.verdict()
    assert len(verdict.calls) == 1
    verdict.assert_ok(strict=True)


async def test_broken_arguments_of_a_tool_call_are_the_trouble_of_that_call_alone(
    llmock: LLMock, model: Model
) -> None:
    llmock.call_tool("moons_of", {"planet": "Mars"}).break_tool_call("malformed_arguments")

    turn, told = await think(model, request=replace(QUESTION, tools=(TOOL,)))

    assert [(call.name, bool(call.problem)) for call in turn.tool_calls] == [("moons_of", True)]
    assert told.tries == 1
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_no_retry_mends_is_asked_once(status: int, llmock: LLMock, model: Model) -> None:
    llmock.fail(status, times=None)

    with pytest.raises(ModelError):
        await think(model, client(llmock, "openai"))

    assert len(llmock.requests) == 1
    llmock.assert_resilient(strict=True)


async def test_a_lasting_outage_costs_three_requests_and_no_storm(llmock: LLMock, model: Model) -> None:
    llmock.outage(status=500)

    with pytest.raises(ModelError, match="500"):
        await think(model)

    assert len(llmock.requests) == TRIES
    llmock.assert_resilient()


async def test_an_outage_of_one_provider_is_answered_by_the_other(llmock: LLMock) -> None:
    llmock.outage(status=500, provider="anthropic")
    first, second = client(llmock, "anthropic"), client(llmock, "openai")

    turn, told = await think(first, second)

    assert turn.model == second.name
    assert [event["event"] for event in told.events] == ["fallback"]
    assert [record.provider for record in llmock.requests] == ["anthropic"] * TRIES + ["openai"]
    llmock.assert_resilient()
    for model in (first, second):
        await model.aclose()
