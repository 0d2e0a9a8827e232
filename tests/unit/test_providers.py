"""Both providers over real HTTP: the official SDKs against servers that speak the wire formats."""

from __future__ import annotations

import pickle
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.thinking import providers
from squadron.actors.thinking.anthropic_messages import DEFAULT_ANTHROPIC_MAX_TOKENS
from squadron.actors.thinking.credentials import remember_keys
from squadron.actors.thinking.model import (
    ChatMessage,
    ModelRequest,
    ModelTurn,
    ToolCall,
    ToolDefinition,
    Usage,
)
from squadron.actors.thinking.openai_chat import ChatWire
from squadron.actors.thinking.openai_responses import ResponsesWire
from squadron.actors.thinking.providers import (
    AnthropicModel,
    OpenAIModel,
    default_model_spec,
    model_from,
    model_key,
)
from squadron.runtime.errors import ConfigError, ModelError
from squadron.testing import ScriptedModel
from tests.llm_playing import SCHEMA, TIME, TOOLS, TURN, USER, WEATHER, Provider, said
from tests.llm_servers import (
    Broken,
    ScriptedAnthropicServer,
    ScriptedOpenAIServer,
)

pytestmark = pytest.mark.usefixtures("no_keys")


# A turn


async def test_text_streams_in_pieces_and_tokens_are_counted(play: Any) -> None:
    played = play([TURN])
    assert said(await played.think()) == TURN
    assert "".join(played.text) == TURN.text
    assert len(played.text) == 6


async def test_text_arrives_before_the_answer_is_over(play: Any) -> None:
    heard = threading.Event()

    def hold_back(number: int) -> None:
        if number == 10:
            assert heard.wait(5), "the client heard nothing of the first ten events"

    played = play([ModelTurn("a long answer, said in many many small pieces")], before_event=hold_back)
    await played.model.think(ModelRequest(tuple(USER)), lambda piece: heard.set())
    assert heard.is_set()


async def test_parallel_calls_are_put_together_from_pieces(play: Any) -> None:
    turn = ModelTurn("I look.", (WEATHER, TIME), Usage(5, 6))
    played = play([turn], piece_chars=3)
    assert said(await played.think(USER, TOOLS)) == replace(turn, stop="tools")


@pytest.mark.parametrize("raw", ['{"city": "Zür', "[1, 2]", "nonsense", '"a string"', "[" * 100_000])
async def test_bad_arguments_are_a_problem_of_that_call_alone(play: Any, raw: str) -> None:
    played = play([ModelTurn("", (ToolCall("call_b", "weather", problem=raw), TIME))], piece_chars=5_000)
    bad, good = (await played.think(USER, TOOLS)).tool_calls
    assert (bad.id, bad.name, bad.arguments, bad.raw) == ("call_b", "weather", {}, raw)
    assert "JSON" in bad.problem
    assert good == TIME


async def test_an_error_of_the_listener_is_not_taken_for_one_of_the_provider(play: Any) -> None:
    with pytest.raises(ValueError, match="Grüez"):
        await play([TURN]).model.think(ModelRequest(tuple(USER)), int)


async def test_a_call_cut_off_by_the_token_limit_is_not_run_with_half_its_arguments(play: Any) -> None:
    played = play([Broken(ModelTurn("", (TIME, ToolCall("call_b", "weather", problem=" "))), "length")])
    whole, cut = (await played.think(USER, TOOLS)).tool_calls
    assert whole == TIME
    assert "tokens ran out" in cut.problem


async def test_a_text_cut_off_by_the_token_limit_is_still_an_answer(play: Any) -> None:
    played = play([Broken(TURN, "length"), Broken(ModelTurn(usage=Usage(11, 90)), "length")])
    assert said(await played.think()) == replace(TURN, stop="length")
    # All thought and no text: a turn, too, and it was paid.
    assert said(await played.think()) == ModelTurn("", (), Usage(11, 90), "length")


async def test_a_refusal_is_an_error_and_its_beginning_no_answer(play: Any) -> None:
    error = await play([Broken(TURN, "refusal")]).error()
    assert "refused" in str(error)
    assert (error.kind, error.retryable, error.tokens, error.began) == ("refusal", False, TURN.tokens, True)


# A conversation


async def test_several_rounds_with_tools_make_a_valid_conversation(play: Any) -> None:
    played = play([ModelTurn("", (WEATHER, TIME)), ModelTurn("again", (ToolCall("call_3", "time"),)), TURN])
    chat = [ChatMessage("system", "Be kind."), *USER]
    for _ in range(2):
        turn = await played.think(chat, TOOLS)
        chat.append(turn.as_message())
        chat += [ChatMessage("tool", "sunny", tool_call_id=call.id) for call in turn.tool_calls]
    chat.append(ChatMessage("user", "and now answer"))
    assert said(await played.think(chat, TOOLS)) == TURN


async def test_openai_gets_the_conversation_in_its_own_format() -> None:
    chat = [
        ChatMessage("system", "Be kind."),
        *USER,
        ChatMessage("assistant", "", (WEATHER,)),
        ChatMessage("tool", "no such city", tool_call_id="call_w", is_error=True),
    ]
    with ScriptedOpenAIServer([TURN]) as server:
        model = OpenAIModel("gpt-4.1-mini", api_key="k", base_url=server.base_url)
        await model.think(ModelRequest(tuple(chat), tuple(TOOLS[:1]), 99, 0.0))
        await model.aclose()
    body = server.requests[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert body["messages"][2]["content"] is None
    assert body["messages"][2]["tool_calls"][0]["id"] == "call_w"
    assert body["messages"][3]["content"] == "Error: no such city"
    assert body["tools"][0]["function"]["parameters"] == SCHEMA
    assert body["stream_options"] == {"include_usage": True}
    assert (body["max_completion_tokens"], body["temperature"]) == (99, 0.0)
    assert "reasoning_effort" not in body


async def test_anthropic_gets_the_conversation_in_its_own_format() -> None:
    chat = [
        ChatMessage("system", "Be kind."),
        ChatMessage("user", " "),
        *USER,
        ChatMessage("user", "there"),
        ChatMessage("assistant", "", (WEATHER, TIME)),
        ChatMessage("tool", "no such city", tool_call_id="call_w", is_error=True),
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "well?"),
        ChatMessage("tool", "", tool_call_id="call_t"),
    ]
    with ScriptedAnthropicServer([TURN]) as server:
        model = AnthropicModel(api_key="k", base_url=server.base_url)
        await model.think(ModelRequest(tuple(chat), tuple(TOOLS)))
        await model.aclose()
    body = server.requests[0].body
    marked = {"cache_control": {"type": "ephemeral"}}
    assert body["system"] == [{"type": "text", "text": "Be kind.\n\nBe brief.", **marked}]
    assert body["messages"][0]["content"][-1] == {"type": "text", "text": "there", **marked}
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert [block["text"] for block in body["messages"][0]["content"]] == ["hello", "there"]
    assert [block["type"] for block in body["messages"][1]["content"]] == ["tool_use", "tool_use"]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "call_w", "content": "no such city", "is_error": True},
        {"type": "tool_result", "tool_use_id": "call_t"},
        {"type": "text", "text": "well?"},
    ]
    assert body["tools"][0]["input_schema"] == SCHEMA
    assert body["max_tokens"] == DEFAULT_ANTHROPIC_MAX_TOKENS


async def test_nothing_optional_is_sent_unasked(play: Any) -> None:
    played = play([TURN])
    await played.think()
    required = {"model", "messages", "stream", "stream_options", "max_tokens", "input", "store"}
    assert played.body.keys() <= required


async def test_a_temperature_and_a_limit_reach_the_server(play: Any) -> None:
    played = play([TURN])
    await played.think(temperature=0.5, max_tokens=20)
    assert played.body["temperature"] == 0.5
    assert 20 in [played.body.get(f"max_{kind}tokens") for kind in ("completion_", "output_", "")]


@pytest.mark.parametrize(
    ("model", "effort"),
    [
        *[("gpt-6.1-terra", "none"), ("gpt-5.6", "none"), ("gpt-5.10", "none"), ("gpt-10", "none")],
        *[("gpt-5.4-mini", None), ("gpt-5", None), ("gpt-4o", None), ("llama-6", None)],
    ],
)
async def test_openai_models_that_refuse_tools_while_reasoning_do_not_reason(
    model: str, effort: str | None
) -> None:
    with ScriptedOpenAIServer([TURN, TURN]) as server:
        llm = OpenAIModel(model, api_key="k", base_url=server.base_url)
        await llm.think(ModelRequest(tuple(USER), tuple(TOOLS)))
        await llm.think(ModelRequest(tuple(USER)))
        await llm.aclose()
    efforts = [request.body.get("reasoning_effort") for request in server.requests]
    assert efforts == [effort, None]


# Errors


@pytest.mark.parametrize(
    ("status", "retryable", "hint"),
    [
        *[(400, False, "its message says"), (401, False, "_API_KEY"), (402, False, "credit")],
        *[(403, False, "may not use"), (404, False, "model name"), (413, False, "shorten")],
        *[(429, True, "rate limit"), (500, True, "later"), (503, True, "later"), (529, True, "later")],
    ],
)
async def test_each_status_says_what_to_do(
    play: Any, provider: Provider, status: int, retryable: bool, hint: str
) -> None:
    played = play([status])
    error = await played.error()
    assert error.retryable is retryable
    assert hint in error.hint
    assert played.model.name in str(error)
    assert f"the script says {status}" in str(error)
    assert provider.prefix in error.hint or "_API_KEY" not in error.hint
    assert pickle.loads(pickle.dumps(error)).retryable is retryable


async def test_nothing_is_tried_again_by_itself(play: Any) -> None:
    played = play([503, TURN])
    assert (await played.error()).kind == "passing"
    assert len(played.server.requests) == 1


async def test_a_wrong_key_is_named(play: Any, provider: Provider) -> None:
    error = await play([TURN], api_key="sk-other").error()
    assert f"check {provider.prefix}_API_KEY" in error.hint


@pytest.mark.parametrize("how", ["cut", "end", "error"])
async def test_a_broken_stream_is_retryable_and_what_came_was_heard(play: Any, how: Any) -> None:
    played = play([Broken(TURN, how), TURN])
    error = await played.error()
    assert error.retryable
    assert "again" in error.hint
    assert played.text
    assert said(await played.think()) == TURN  # and the model still works


async def test_no_server_is_retryable_and_names_the_address(provider: Provider) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    model = provider.model(api_key="k", base_url=url)
    with pytest.raises(ModelError, match=r"127\.0\.0\.1") as caught:
        await model.think(ModelRequest(tuple(USER)))
    await model.aclose()
    assert caught.value.retryable
    assert f"{provider.prefix}_BASE_URL" in caught.value.hint


async def test_a_refused_temperature_says_so(play: Any) -> None:
    def refuse(body: dict[str, Any]) -> ModelTurn:
        raise ValueError("temperature is deprecated for this model")

    error = await play(refuse).error(temperature=0.1)
    assert "leave it unset" in error.hint


async def test_the_servers_notice_a_malformed_conversation(play: Any) -> None:
    played = play([TURN])
    orphan = ChatMessage("tool", "sunny", tool_call_id="call_x")
    unanswered = ChatMessage("assistant", "", (WEATHER,))
    for chat in ([*USER, orphan], [*USER, unanswered, *USER], []):
        error = await played.error(chat)
        assert "answered HTTP 400" in str(error)
    error = await played.error(USER, [ToolDefinition("bad name!", "", {"type": "object"})])
    assert "answered HTTP 400" in str(error)
    assert said(await played.think()) == TURN  # bad requests used up no turn


# Keys and names


def test_a_missing_key_is_an_error_at_once(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")  # good for the SDK, not for chatting
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    with pytest.raises(ModelError, match="no API key") as caught:
        provider.model()
    assert f"set {provider.prefix}_API_KEY" in caught.value.hint
    assert not caught.value.retryable


async def test_key_and_address_come_from_the_environment(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider.server([TURN], api_key="sk-env") as server:
        monkeypatch.setenv(f"{provider.prefix}_API_KEY", "sk-env")
        monkeypatch.setenv(f"{provider.prefix}_BASE_URL", server.base_url)
        model = model_from(f"{provider.name}:m")
        assert said(await model.think(ModelRequest(tuple(USER)))) == TURN
        await model.aclose()


def test_a_spec_names_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    assert model_from("openai").name == f"openai:{providers.DEFAULT_OPENAI_MODEL}"
    assert model_from("anthropic").name == f"anthropic:{providers.DEFAULT_ANTHROPIC_MODEL}"
    assert model_from("openai:llama3:8b").name == "openai:llama3:8b"
    assert model_from(" anthropic:claude-x ").name == "anthropic:claude-x"
    for spec in ("", "gemini", "gemini:x", "openai:", ":x", "offline", "gpt-5"):
        with pytest.raises(ConfigError, match="names no model") as caught:
            model_from(spec)
        assert "openai:NAME" in caught.value.hint
        assert "offline" in caught.value.hint


@pytest.mark.parametrize(
    ("env", "spec"),
    [
        ({}, "offline"),
        ({"ANTHROPIC_API_KEY": "k"}, "anthropic"),
        ({"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}, "openai"),
        ({"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": ""}, "anthropic"),
        ({"SQUADRON_MODEL": "anthropic:x", "OPENAI_API_KEY": "k"}, "anthropic:x"),
        ({"SQUADRON_MODEL": ""}, "offline"),
    ],
)
def test_the_default_model_follows_the_keys(env: dict[str, str], spec: str) -> None:
    assert default_model_spec(env) == spec


@pytest.mark.parametrize(
    ("spec", "address", "api"),
    [
        ("openai:m", None, "responses"),
        ("openai:m", "https://api.openai.com/v1", "responses"),
        ("openai:m", "http://127.0.0.1:1/v1", "chat"),
        ("openai-chat:m", None, "chat"),
        ("openai-responses:m", "http://127.0.0.1:1/v1", "responses"),
    ],
)
async def test_the_api_follows_the_spec_and_the_address(
    spec: str, address: str | None, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    if address:
        monkeypatch.setenv("OPENAI_BASE_URL", address)
    model = model_from(spec)
    assert isinstance(model, OpenAIModel)
    assert isinstance(model._wire, {"responses": ResponsesWire, "chat": ChatWire}[api])
    assert model.name == "openai:m"
    await model.aclose()


def test_a_key_of_a_model_changes_with_what_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> tuple[str, str]:
        return model_key("openai-chat:m"), model_key("anthropic:m")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-first-of-all")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-other")
    openai, anthropic = keys()
    assert keys() == (openai, anthropic)
    assert "sk-first" not in openai
    assert openai != model_key("openai:m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-second")
    rotated, same = keys()
    assert (rotated != openai, same) == (True, anthropic)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-second\n")  # which is stripped when a model is made
    assert keys()[0] == rotated
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    assert keys()[0] not in (openai, rotated)


def test_a_key_that_was_left_for_local_agents_is_picked_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SQUADRON_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-first")
    before = model_key("openai:m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-second")
    remember_keys(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-first")  # a program's own, whoever ran a goal before
    assert model_key("openai:m") == before
    monkeypatch.delenv("OPENAI_API_KEY")  # as it is for agents on the local cluster
    assert model_key("openai:m") != before


# Caching


async def test_what_comes_back_is_marked_for_the_cache(play: Any, provider: Provider) -> None:
    played = play([TURN, TURN, TURN])
    await played.think()
    assert "cache_control" not in played.body  # a question that stands alone would only cost more
    for options in ({"cache_key": "run-1"}, {"tools": TOOLS}):
        await played.think(USER, **options)
        assert (played.body.get("cache_control") == {"type": "ephemeral"}) is (provider.name == "anthropic")


@pytest.mark.parametrize("key", ["run-1", "r" * 200])
async def test_a_key_for_the_cache_goes_to_openai(play: Any, provider: Provider, key: str) -> None:
    played = play([TURN])
    await played.think(cache_key=key)
    sent = played.body.get("prompt_cache_key", "")
    # Compatible servers may refuse what they don't know.
    assert (sent != "") is (provider.name == "openai-responses")
    assert sent in ("", key) or len(key) > 64 == len(sent)


# The script


async def test_a_scripted_model_plays_and_records() -> None:
    def echo(request: ModelRequest) -> str:
        return f"{request.messages[-1].content} with {len(request.tools)} tools"

    model, heard = ScriptedModel([TURN, echo]), list[str]()
    chat = (*USER, ChatMessage("user", "more"))
    assert await model.think(ModelRequest(tuple(USER)), heard.append) == TURN
    assert (await model.think(ModelRequest(chat, tuple(TOOLS)))).text == "more with 2 tools"
    assert "".join(heard) == TURN.text
    assert model.seen == [ModelRequest(tuple(USER)), ModelRequest(chat, tuple(TOOLS))]
    with pytest.raises(ModelError, match="the script is over") as caught:
        await model.think(ModelRequest(chat))
    assert not caught.value.retryable
    await model.aclose()
