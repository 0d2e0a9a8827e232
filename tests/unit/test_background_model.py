"""Answers that are made in the background, over real HTTP: nothing that happens to the connection ends them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from squadron.actors.thinking.in_background import MOST_BREAKS
from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn, Resumable, ToolCall, Usage
from squadron.actors.thinking.providers import AnthropicModel, BackgroundModel, OpenAIModel, model_from
from squadron.runtime.errors import ModelError
from tests.llm_playing import TOOLS, TURN, USER, WEATHER, said
from tests.llm_requests import check_request
from tests.llm_responses_server import ScriptedResponsesServer
from tests.llm_script import Broken

REQUEST = ModelRequest(tuple(USER), tuple(TOOLS))
CALLS = ModelTurn("I look.", (WEATHER,), Usage(11, 7), "tools")

Start = Callable[..., tuple[ScriptedResponsesServer, BackgroundModel]]


@pytest.fixture
async def start(no_keys: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    monkeypatch.setattr("squadron.actors.thinking.in_background.backoff_s", lambda _: 0.01)
    open_now = list[tuple[ScriptedResponsesServer, BackgroundModel]]()

    def begin(turns: Any, **options: Any) -> tuple[ScriptedResponsesServer, BackgroundModel]:
        server = ScriptedResponsesServer(turns, **options).__enter__()
        open_now.append((server, BackgroundModel("m", api_key="sk-test", base_url=server.base_url)))
        return open_now[-1]

    yield begin
    for server, model in open_now:
        await model.aclose()
        server.__exit__(None, None, None)


@pytest.fixture
def ids() -> list[str]:
    """Under which ids calls were accepted."""
    return []


def noting(ids: list[str]) -> Callable[[str], Any]:
    async def note(response_id: str) -> None:
        ids.append(response_id)

    return note


async def test_a_call_is_accepted_before_it_is_answered(start: Start, ids: list[str]) -> None:
    accepted = threading.Event()

    def hold_back(number: int) -> None:
        if number == 1:
            assert accepted.wait(20), "its id was not told with the first event"

    server, model = start([CALLS], before_event=hold_back)

    async def note(response_id: str) -> None:
        ids.append(response_id)
        accepted.set()

    text = list[str]()
    turn = await model.think_resumably(REQUEST, text.append, note)

    assert (said(turn), "".join(text)) == (CALLS, CALLS.text)
    assert ids == [turn.response_id] == ["resp_1"]
    body = server.requests[0].body
    assert (body["background"], body["store"], body["stream"]) == (True, True, True)
    check_request("responses", body)


async def test_another_process_takes_a_call_up_from_its_start(start: Start, ids: list[str]) -> None:
    heard, go_on = asyncio.Event(), threading.Event()

    def hold_back(number: int) -> None:
        if number == 8:
            assert go_on.wait(20), "nobody took it up"

    server, model = start([CALLS], before_event=hold_back)
    asking = asyncio.create_task(model.think_resumably(REQUEST, lambda _: heard.set(), noting(ids)))
    await heard.wait()
    # Whoever asked is gone in the middle, without a word
    asking.cancel()
    await asyncio.wait([asking])
    other = BackgroundModel("m", api_key="sk-test", base_url=server.base_url)
    text = list[str]()

    def hear(piece: str) -> None:
        text.append(piece)
        go_on.set()

    turn = await other.take_up(ids[0], REQUEST, hear)

    assert (said(turn), "".join(text)) == (CALLS, CALLS.text)
    assert len(server.requests) == 1
    assert [each.split()[:2] for each in server.asked_for] == [["GET", ids[0]]]
    assert "starting_after" not in server.asked_for[0]
    # Its thoughts are whole: they may go back.
    assert [block["encrypted_content"] for block in turn.blocks if block["type"] == "reasoning"] == ["gAAA0000"]
    await other.aclose()


@pytest.mark.parametrize("how", ["cut", "end"])
async def test_a_stream_that_breaks_goes_on_where_it_was(start: Start, how: Any) -> None:
    server, model = start([Broken(TURN, how)])
    text = list[str]()

    turn = await model.think(ModelRequest(tuple(USER)), text.append)

    assert (said(turn), "".join(text)) == (TURN, TURN.text)
    assert len(server.requests) == 1
    assert len(server.asked_for) == 1
    assert "starting_after=" in server.asked_for[0]


class _BusyError(Exception):
    status_code, response = 429, SimpleNamespace(headers={"retry-after": "3600"})


async def test_who_is_to_stay_away_for_an_hour_looks_again_before(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squadron.actors.thinking.in_background.LONGEST_BACKOFF_S", 0.01)
    server, model = start([Broken(TURN, "cut")])
    told, refused = model._told, 0

    async def busy(response_id: str, **after: int) -> Any:
        nonlocal refused
        if (refused := refused + 1) < MOST_BREAKS:
            raise _BusyError
        return await told(response_id, **after)

    monkeypatch.setattr(model, "_told", busy)

    assert said(await model.think(ModelRequest(tuple(USER)))) == TURN
    assert (refused, len(server.asked_for)) == (MOST_BREAKS, 1)


async def test_a_server_that_begins_anew_is_not_heard_twice(start: Start) -> None:
    server, model = start([Broken(TURN, "cut")])
    server.knows_positions = False
    text = list[str]()

    turn = await model.think(ModelRequest(tuple(USER)), text.append)

    assert (said(turn), "".join(text)) == (TURN, TURN.text)


async def test_a_call_that_the_provider_forgot_is_given_up_at_once(start: Start) -> None:
    server, model = start([])

    with pytest.raises(ModelError, match="not found") as caught:
        await model.take_up("resp_9", REQUEST)

    assert (caught.value.kind, caught.value.tokens, len(server.asked_for)) == ("request", 0, 1)


async def test_a_call_that_was_cancelled_there_is_given_up_after_a_few_looks(start: Start, ids: list[str]) -> None:
    accepted = threading.Event()
    server, model = start([TURN], before_event=lambda number: accepted.wait(20 * (number == 5)))

    async def cancel(response_id: str) -> None:
        await model.give_up(response_id)
        accepted.set()

    with pytest.raises(ModelError, match="broke off") as caught:
        await model.think_resumably(REQUEST, lambda _: None, cancel)

    assert caught.value.retryable
    assert [each.split()[0] for each in server.asked_for] == ["cancel", *["GET"] * MOST_BREAKS]


async def test_a_call_that_could_not_be_noted_is_ended_there(start: Start) -> None:
    server, model = start([TURN])

    async def fail(response_id: str) -> None:
        raise RuntimeError("another attempt has it")

    with pytest.raises(RuntimeError):
        await model.think_resumably(REQUEST, lambda _: None, fail)

    assert server.asked_for == ["cancel resp_1"]


async def test_a_typed_answer_is_taken_up_as_one(start: Start, ids: list[str]) -> None:
    # Given a schema that OpenAI does not hold a model to, so that the answer comes by a tool
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    request = ModelRequest(tuple(USER), output_schema=schema)
    server, model = start(
        lambda body: ModelTurn("", (ToolCall("c", body["tools"][0]["name"], {"a": 1}),), Usage(1, 1))
    )
    asked = await model.think_resumably(request, lambda _: None, noting(ids))

    taken = await model.take_up(ids[0], request)

    assert taken == asked
    assert (json.loads(taken.text), taken.tool_calls, len(server.requests)) == ({"a": 1}, (), 1)


async def test_giving_up_does_not_raise(start: Start) -> None:
    server, model = start([])

    await model.give_up("resp_9")

    assert server.asked_for == ["cancel resp_9"]


async def test_what_it_thought_goes_back_to_it(start: Start) -> None:
    _, model = start([CALLS, TURN])
    first = await model.think(REQUEST)
    chat = [*USER, first.as_message(), ChatMessage("tool", "sunny", tool_call_id=WEATHER.id)]

    assert said(await model.think(ModelRequest(tuple(chat), tuple(TOOLS)))) == TURN


def test_it_is_an_option_and_the_same_model(no_keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    model = model_from("openai-background:gpt-x")
    assert isinstance(model, BackgroundModel)
    assert isinstance(model, Resumable)
    # Prices, limits and thoughts are those of the model, however it is asked.
    assert model.name == "openai:gpt-x"
    for other in (OpenAIModel(), AnthropicModel(api_key="k")):
        assert not isinstance(other, Resumable)
