"""What a model said goes back to it as it said it, and to another model as text and calls."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from squadron.actors.thinking.assemble import TurnParts
from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn, ToolCall
from squadron.actors.thinking.openai_chat import ChatWire
from squadron.actors.thinking.openai_responses import ResponsesWire
from tests.llm_playing import (
    ANTHROPIC,
    CHAT,
    ON_ANTHROPIC,
    RESPONSES,
    TIME,
    TOOLS,
    TURN,
    USER,
    WEATHER,
    Provider,
    said,
)
from tests.llm_requests import check_request
from tests.llm_servers import Broken

LOOK = ModelTurn("I look.", (WEATHER, TIME))
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}


def results(turn: ModelTurn) -> list[ChatMessage]:
    return [ChatMessage("tool", f"of {call.name}", tool_call_id=call.id) for call in turn.tool_calls]


def api_of(provider: Provider) -> str:
    return {CHAT: "chat", RESPONSES: "responses", ANTHROPIC: "messages"}[provider]


@pytest.mark.parametrize("thought", ["", "It is about Zürich."])
async def test_thoughts_go_back_with_the_results(play: Any, provider: Provider, thought: str) -> None:
    played = play([LOOK, TURN], thought=thought)
    turn = await played.think(USER, TOOLS)
    assert said(turn) == replace(LOOK, stop="tools", usage=turn.usage)
    assert bool(turn.blocks) is (provider is not CHAT)
    assert said(await played.think([*USER, turn.as_message(), *results(turn)], TOOLS)) == TURN
    check_request(api_of(provider), played.body)


@pytest.mark.parametrize("provider", [RESPONSES, ANTHROPIC], indirect=True, ids=lambda one: one.name)
@pytest.mark.parametrize("without", ["thought", "signature", "message"])
async def test_the_doubles_notice_when_thoughts_do_not_come_back(
    play: Any, provider: Provider, without: str
) -> None:
    played = play([LOOK if without == "message" else replace(LOOK, text=""), TURN])
    turn = await played.think(USER, TOOLS)
    blocks = list(turn.blocks)
    if without == "signature":
        key = "signature" if provider is ANTHROPIC else "encrypted_content"
        blocks[0] = blocks[0] | {key: "other"}
    else:
        blocks = blocks[1:] if without == "thought" else [blocks[0], *blocks[2:]]
    message = replace(turn.as_message(), blocks=tuple(blocks))
    error = await played.error([*USER, message, *results(turn)], TOOLS)
    assert "HTTP 400" in str(error)


async def test_another_model_gets_text_and_calls_alone(play: Any) -> None:
    played = play([LOOK, TURN])
    turn = await played.think(USER, TOOLS)
    message = replace(turn.as_message(), model="elsewhere:x")
    # The doubles would not know what another model thought; a fresh one knows nothing at all.
    fresh = play([TURN])
    assert said(await fresh.think([*USER, message, *results(turn)], TOOLS)) == TURN
    assert not {"thinking", "reasoning"} & {part.get("type") for part in _parts(fresh.body)}
    assert "I look." in json.dumps(fresh.body)


def _parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages") or body["input"]
    nested = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return [*messages, *(part for parts in nested for part in parts)]


async def test_calls_may_get_other_ids_and_still_go_back_under_their_own(play: Any) -> None:
    played = play([LOOK, TURN])
    turn = await played.think(USER, TOOLS)
    calls = tuple(replace(call, id=f"r1c{n}") for n, call in enumerate(turn.tool_calls))
    renamed = replace(turn, tool_calls=calls)
    assert said(await played.think([*USER, renamed.as_message(), *results(renamed)], TOOLS)) == TURN


async def test_a_message_that_lost_a_call_goes_back_as_text_and_calls(play: Any) -> None:
    played = play([LOOK])
    turn = await played.think(USER, TOOLS)
    fewer = replace(turn, tool_calls=turn.tool_calls[:1])
    fresh = play([TURN])
    assert said(await fresh.think([*USER, fewer.as_message(), *results(fewer)], TOOLS)) == TURN


@pytest.mark.parametrize("call_id", ["functions.weather:0", "x" * 200, "ü"])
async def test_ids_of_other_servers_fit_every_wire(play: Any, call_id: str) -> None:
    turn = ModelTurn("", (replace(WEATHER, id=call_id), replace(TIME, id=f"{call_id}1")), model="openai:other")
    assert said(await play([TURN]).think([*USER, turn.as_message(), *results(turn)], TOOLS)) == TURN


@pytest.mark.parametrize("name", ["multi_tool_use.parallel", "weather now", "", "w" * 65])
@pytest.mark.parametrize("thought", ["", "I need a tool."])
async def test_a_tool_that_the_model_made_up_goes_back_under_a_name_that_is_taken(
    play: Any, name: str, thought: str
) -> None:
    played = play([ModelTurn("", (ToolCall("call_m", name), TIME)), TURN], thought=thought)
    turn = await played.think(USER, TOOLS)
    assert turn.tool_calls[0].name == name
    assert said(await played.think([*USER, turn.as_message(), *results(turn)], TOOLS)) == TURN


async def test_a_malformed_call_is_shown_as_the_model_wrote_it(play: Any, provider: Provider) -> None:
    raw = '{"city": "Zür'
    played = play([ModelTurn("", (ToolCall("call_b", "weather", problem=raw), TIME)), TURN])
    turn = await played.think(USER, TOOLS)
    assert turn.tool_calls[0].raw == raw
    assert said(await played.think([*USER, turn.as_message(), *results(turn)], TOOLS)) == TURN
    told = json.dumps(played.body, ensure_ascii=False)
    assert "Zür" in told
    assert "\\u00fc" not in told


async def test_letters_of_all_languages_go_back_as_they_are(play: Any) -> None:
    turn = ModelTurn("", (ToolCall("call_w", "weather", {"city": "東京"}),))
    played = play([TURN])
    await played.think([*USER, turn.as_message(), *results(turn)], TOOLS)
    assert "東京" in json.dumps(played.body, ensure_ascii=False)


@pytest.mark.parametrize(
    "chat",
    [
        [ChatMessage("assistant", "as I said"), *USER],
        [ChatMessage("system", "Be kind."), ChatMessage("assistant", "as I said"), *USER],
        [*USER, *USER, ChatMessage("assistant", "a"), ChatMessage("assistant", "b"), *USER],
        [ChatMessage("user", ""), ChatMessage("assistant", ""), *USER],
        [*USER, ChatMessage("assistant", "", (TIME,)), ChatMessage("tool", "", tool_call_id="call_t")],
    ],
)
async def test_histories_of_any_form_are_taken(play: Any, provider: Provider, chat: list[ChatMessage]) -> None:
    played = play([TURN])
    assert said(await played.think(chat)) == TURN
    check_request(api_of(provider), played.body)


@ON_ANTHROPIC
async def test_a_paused_turn_goes_on_when_it_is_sent_back_as_it_is(play: Any, provider: Provider) -> None:
    signed = {"type": "thinking", "thinking": "hm", "signature": "abc"}
    blocks = (signed, {"type": "text", "text": "Let me look."}, SEARCH)
    played = play([Broken(ModelTurn(blocks=blocks), "pause"), TURN])
    turn = await played.think()
    # A call that the server makes is none of ours.
    assert (turn.stop, turn.text, turn.tool_calls, turn.blocks) == ("pause", "Let me look.", (), blocks)
    assert said(await played.think([*USER, turn.as_message()])) == TURN
    assert played.body["messages"][-1] == {"role": "assistant", "content": list(blocks)}


@ON_ANTHROPIC
async def test_what_the_server_looked_up_itself_makes_no_calls_and_goes_back(
    play: Any, provider: Provider
) -> None:
    tool_use = {"type": "tool_use", "id": "call_t", "name": "time", "input": {}}
    blocks = (SEARCH, FOUND, {"type": "redacted_thinking", "data": "xyz"}, tool_use)
    played = play([ModelTurn(blocks=blocks, tool_calls=(TIME,)), TURN])
    turn = await played.think(USER, TOOLS)
    assert (turn.tool_calls, turn.stop, turn.blocks) == ((TIME,), "tools", blocks)
    assert said(await played.think([*USER, turn.as_message(), *results(turn)], TOOLS)) == TURN


async def test_a_thought_that_led_nowhere_stays_away(play: Any, provider: Provider) -> None:
    played = play([Broken(ModelTurn(), "length"), TURN])
    turn = await played.think()
    assert turn.stop == "length"
    assert said(await played.think([*USER, turn.as_message(), ChatMessage("user", "go on")])) == TURN


def test_the_phase_of_a_message_is_kept_and_no_item_has_its_id() -> None:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "phase": "commentary"}
    message["content"] = [{"type": "output_text", "text": "I look.", "annotations": []}]  # type: ignore[assignment]
    thought = {"id": "rs_1", "type": "reasoning", "encrypted_content": "gAAA", "status": None}
    call = {"id": "fc_1", "type": "function_call", "call_id": "call_t", "name": "time", "arguments": "{}"}
    turn = ModelTurn("I look.", (TIME,), blocks=(thought, message, call), model="openai:m")
    request = ModelRequest((*USER, turn.as_message(), *results(turn)))
    body = ResponsesWire().body("m", "openai:m", request, None)
    assert body["input"][1:4] == [
        {"type": "reasoning", "encrypted_content": "gAAA", "summary": []},
        {"type": "message", "role": "assistant", "content": "I look.", "phase": "commentary"},
        {"type": "function_call", "call_id": "call_t", "name": "time", "arguments": "{}"},
    ]


TEXT = {"type": "reasoning.text", "index": 0}
CRYPT = {"type": "reasoning.encrypted", "index": 1, "data": "gAAA"}


@pytest.mark.parametrize(
    ("key", "pieces", "expected"),
    [
        ("reasoning_content", ["Wh", "en?"], "When?"),
        (
            "reasoning_details",
            [[TEXT | {"text": "Wh"}], [TEXT | {"text": "en?"}], [TEXT | {"signature": "abc"}, CRYPT], [CRYPT]],
            [TEXT | {"text": "When?", "signature": "abc"}, CRYPT, CRYPT],
        ),
    ],
)
def test_thoughts_that_a_chat_server_tells_go_back_in_a_tool_loop(key: str, pieces: Any, expected: Any) -> None:
    wire, parts = ChatWire(is_official=False), TurnParts(None)
    call = {"index": 0, "id": "call_t", "function": {"name": "time", "arguments": "{}"}}
    for delta in (*({key: piece} for piece in pieces), {"tool_calls": [call]}):
        choice = {"index": 0, "delta": delta, "finish_reason": "tool_calls"}
        wire.read(parts, ChatCompletionChunk.construct(**json.loads(json.dumps({"choices": [choice]}))))
    turn = parts.finish("openai:m")
    turn = replace(turn, blocks=wire.blocks(parts, turn))
    for model, back in (("openai:m", expected), ("openai:other", None)):
        body = wire.body("m", model, ModelRequest((*USER, turn.as_message(), *results(turn))), None)
        assert body["messages"][1].get(key) == back
