"""Turns of servers that deviate: calls are told apart, and nothing that a model says can break the wire."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squadron.actors.thinking.anthropic_messages import MessagesWire
from squadron.actors.thinking.assemble import TurnParts, mended
from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn, ToolCall
from squadron.actors.thinking.openai_responses import ResponsesWire
from squadron.actors.thinking.providers import AnthropicModel, OpenAIModel
from squadron.runtime.errors import ModelError
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Payload

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=20)


def openai() -> OpenAIModel:
    return OpenAIModel(api_key="sk-test", base_url="http://127.0.0.1:1")


def openai_turn(*deltas: dict[str, Any] | None, tools: tuple[str, ...] = ("weather", "time")) -> ModelTurn:
    from openai.types.chat import ChatCompletionChunk

    model, parts = openai(), TurnParts(None, frozenset(tools))
    for delta in deltas:
        choice = {"index": 0, "finish_reason": None} | ({} if delta is None else {"delta": delta})
        model._read(parts, ChatCompletionChunk.construct(**_built({"choices": [choice]})))
    end = _built({"choices": [{"index": 0, "finish_reason": "stop"}]})
    model._read(parts, ChatCompletionChunk.construct(**end))
    return parts.finish("test")


def _built(raw: dict[str, Any]) -> dict[str, Any]:
    # As they come off the wire.
    return json.loads(json.dumps(raw))  # type: ignore[no-any-return]


def piece(name: str | None, arguments: Any, index: int | None = 0, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"name": name, "arguments": arguments}, **more}]}


def calls(turn: ModelTurn) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in turn.tool_calls]


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([piece("weather", '{"a":1}'), piece("time", "{}")], [("weather", {"a": 1}), ("time", {})]),
        (
            [piece("weather", '{"a":1}'), piece("weather", '{"a":2}')],
            [("weather", {"a": 1}), ("weather", {"a": 2})],
        ),
        ([piece("weather", '{"a"'), piece("weather", ":1"), piece("weather", "}")], [("weather", {"a": 1})]),
        ([piece("weather", '{"a":1}'), piece("weather", "")], [("weather", {"a": 1})]),
        ([piece("weather", ""), piece("time", "")], [("weather", {}), ("time", {})]),
        ([piece("wea", ""), piece("ther", "{}")], [("weather", {})]),
        ([piece("wea", ""), piece("weather", "{}")], [("weather", {})]),
        ([piece("weather", "null")], [("weather", {})]),
        ([piece("weather", None)], [("weather", {})]),
        ([piece("weather", {"a": 1})], [("weather", {"a": 1})]),
        ([piece("weather", json.dumps('{"a":1}'))], [("weather", {"a": 1})]),
        ([piece("weather", "{}", None), piece("time", "{}", None)], [("weather", {}), ("time", {})]),
    ],
)
def test_calls_of_compatible_servers_are_told_apart(deltas: list[Any], expected: list[Any]) -> None:
    turn = openai_turn(*deltas)
    assert calls(turn) == expected
    assert len({call.id for call in turn.tool_calls}) == len(expected)


def test_a_choice_without_a_delta_and_text_in_parts_are_read() -> None:
    assert openai_turn({"content": "all"}, None).text == "all"
    assert openai_turn({"content": [{"type": "thinking"}, {"type": "text", "text": "said"}]}).text == "said"


def test_halves_of_a_pair_are_joined_over_pieces_and_lone_ones_replaced() -> None:
    heard: list[str] = []
    parts = TurnParts(heard.append, stop_reason="stop")
    for text in ("a\ud83d", "\ude00b", "\ude00", "c\ud83d"):
        parts.add_text(text)
    assert parts.finish("test").text == "a😀b\ufffdc\ufffd" == "".join(heard)


def ended(reason: str) -> TurnParts:
    parts = TurnParts(None, stop_reason=reason)
    parts.add_text("The answer is 4")
    return parts


@pytest.mark.parametrize(
    "reason",
    [
        *("insufficient_system_resource", "abort", "error", "network_error", "incomplete", "cancelled", "failed"),
        *("function_call_filter: MALFORMED_FUNCTION_CALL", "MALFORMED_FUNCTION_CALL"),
    ],
)
def test_half_an_answer_is_none_where_the_server_says_that_it_broke(reason: str) -> None:
    with pytest.raises(ModelError, match=f"broke off.*{reason}") as caught:
        ended(reason).finish("test")
    assert (caught.value.kind, caught.value.began, caught.value.tokens) == ("passing", True, 5)


@pytest.mark.parametrize(
    "reason", ["content_filter", "content_filter: PROHIBITED_CONTENT", "sensitive", "refusal"]
)
def test_a_refusal_is_one_in_any_words(reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        ended(reason).finish("test")
    assert caught.value.kind == "refusal"


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        *(("model_length", "length"), ("length", "length"), ("max_output_tokens", "length")),
        *(("stop", "end"), ("eos_token", "end"), ("COMPLETE", "end"), ("stop_sequence", "end"), ("load", "end")),
    ],
)
def test_an_end_is_one_in_any_words(reason: str, stop: str) -> None:
    assert ended(reason).finish("test").stop == stop


def test_a_response_that_is_incomplete_and_does_not_say_why_is_no_answer() -> None:
    from openai._models import construct_type
    from openai.types.responses import ResponseIncompleteEvent

    wire, parts = ResponsesWire(), TurnParts(None)
    parts.add_text("The answer")
    response = {"id": "r", "status": "incomplete", "incomplete_details": None, "output": [], "usage": None}
    event = {"type": "response.incomplete", "response": response}
    wire.read(parts, cast("Any", construct_type(value=event, type_=ResponseIncompleteEvent)))
    with pytest.raises(ModelError, match="incomplete"):
        parts.finish("test")


def test_what_a_server_of_anthropics_api_leaves_out_is_not_missed() -> None:
    from anthropic._models import construct_type
    from anthropic.types import RawMessageStreamEvent

    wire, parts = MessagesWire(), TurnParts(None, asked_chars=30)
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"role": "assistant", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": None}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "I look."}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": None}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "name": "weather"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": None}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": None},
        {"type": "message_stop"},
    ]
    for event in events:
        wire.read(parts, cast("Any", construct_type(value=event, type_=cast("Any", RawMessageStreamEvent))))
    turn = parts.finish("test")

    assert (turn.text, calls(turn), turn.stop) == ("I look.", [("weather", {})], "tools")
    assert (turn.usage.input, turn.usage.estimated) == (10, True)
    assert wire.blocks(parts, turn) == ()


@pytest.mark.parametrize("raw", ['{"a": NaN}', '{"a": 1e999}', '{"a":' * 150 + "1" + "}" * 150])
def test_arguments_that_json_cannot_hold_are_a_problem_of_that_call(raw: str) -> None:
    assert "JSON" in openai_turn(piece("weather", raw)).tool_calls[0].problem


@given(st.lists(ANY_TEXT, max_size=5), st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3), ANY_TEXT, ANY_TEXT)
@settings(deadline=None)
def test_nothing_a_model_says_can_break_the_wire(
    texts: list[str], arguments: dict[str, str], name: str, call_id: str
) -> None:
    from anthropic.types import RawContentBlockDeltaEvent, RawContentBlockStartEvent

    raw = json.dumps(arguments)
    openai_said = TurnParts(None, stop_reason="stop")
    anthropic_said = TurnParts(None, stop_reason="stop")
    anthropic = AnthropicModel(api_key="k", base_url="http://127.0.0.1:1")
    block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    for text in texts:
        openai_said.add_text(text)
        delta = {"type": "text_delta", "text": text}
        event = RawContentBlockDeltaEvent.construct(type="content_block_delta", index=0, delta=delta)
        anthropic._read(anthropic_said, event)
    openai_said.add_call(0, call_id, name, raw)
    start = RawContentBlockStartEvent.construct(type="content_block_start", index=1, content_block=block)
    anthropic._read(anthropic_said, start)
    delta = {"type": "input_json_delta", "partial_json": raw}
    anthropic._read(
        anthropic_said, RawContentBlockDeltaEvent.construct(type="content_block_delta", index=1, delta=delta)
    )

    for parts in (openai_said, anthropic_said):
        turn = parts.finish("test")
        call = turn.tool_calls[0]
        content = {"text": turn.text, "name": call.name, "id": call.id, "arguments": call.arguments}
        message = AgentMessage.new("task", AgentIdentity(id="a"), payload=Payload(content=content))
        decoded = AgentMessage.decode(message.encode())
        assert decoded.payload.content == content
        assert call.arguments == mended(arguments)


def test_a_half_that_somebody_else_wrote_does_not_stop_a_request() -> None:
    from squadron.actors.thinking.provider_model import _sendable

    said = [ChatMessage("user", "\ud83d"), ChatMessage("assistant", "", (ToolCall("1", "t", {"a": "\ude00"}),))]
    request = _sendable(openai()._wire.body("m", "openai:m", ModelRequest(tuple(said)), None))
    json.dumps(request, ensure_ascii=False).encode()
