"""What real providers sent, read by us over the official SDKs, and read once more here without either."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from squadron.actors.thinking.model import ChatMessage, ModelRequest, ModelTurn, Usage
from squadron.actors.thinking.provider_model import ProviderModel
from squadron.actors.thinking.providers import AnthropicModel, OpenAIModel
from squadron.runtime.errors import ModelError
from tests.llm_requests import check_request

STREAMS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "data" / "streams").glob("*.sse"))}
USER = ChatMessage("user", "hello")
Json = dict[str, Any]


class _Replay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Stderr stays clean."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        # The path starts with the name of the stream.
        body = STREAMS[self.path.split("/")[1]].read_bytes()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Replay)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def model_for(name: str, address: str) -> ProviderModel:
    api = name.partition(".")[0]
    if api == "messages":
        return AnthropicModel("claude-x", api_key="k", base_url=f"{address}/{name}")
    wire: Any = api
    return OpenAIModel("gpt-x", api_key="k", base_url=f"{address}/{name}", api=wire)


@dataclass
class Expected:
    """What the bytes say, by a reader that knows nothing of SDKs."""

    text: str = ""
    calls: tuple[tuple[str, str, Any], ...] = ()
    usage: Usage = field(default_factory=Usage)
    stop: str = ""
    blocks: tuple[Json, ...] = ()
    error: str = ""


def events_of(name: str) -> list[Json]:
    text = STREAMS[name].read_text(encoding="utf-8").replace("\r\n", "\n")
    data = [
        "".join(line[5:].lstrip() for line in block.split("\n") if line.startswith("data:"))
        for block in text.split("\n\n")
    ]
    return [json.loads(one) for one in data if one and one != "[DONE]"]


def read_messages(events: list[Json]) -> Expected:
    blocks: dict[int, Json] = {}
    raw: dict[int, str] = {}
    usage: Json = {}
    stop = ""
    for event in events:
        if event["type"] == "message_start":
            usage |= event["message"]["usage"]
        elif event["type"] == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            for key in ("text", "thinking", "signature", "content"):
                if key in delta:
                    block[key] = (block.get(key) or "") + delta[key]
            if "partial_json" in delta:
                raw[event["index"]] = raw.get(event["index"], "") + delta["partial_json"]
            if "citation" in delta:
                block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        elif event["type"] == "message_delta":
            usage |= {key: value for key, value in event["usage"].items() if value is not None}
            stop = event["delta"]["stop_reason"]
    for index, text in raw.items():
        blocks[index]["input"] = json.loads(text) if text else {}

    def count(key: str) -> int:
        return sum(one.get(key) or 0 for one in usage.get("iterations") or [usage])

    read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    thought = (usage.get("output_tokens_details") or {}).get("thinking_tokens", 0)
    told = Usage(count("input_tokens") + read + written, count("output_tokens"), read, written, thought)
    ordered = [blocks[index] for index in sorted(blocks)]
    return Expected(
        "".join(block["text"] for block in ordered if block["type"] == "text"),
        tuple((b["id"], b["name"], b["input"]) for b in ordered if b["type"] == "tool_use"),
        told,
        {"tool_use": "tools", "end_turn": "end"}.get(stop, stop),
        tuple(block for block in ordered if block["type"] != "text" or block["text"].strip()),
    )


def read_responses(events: list[Json]) -> Expected:
    response = next(
        e["response"] for e in reversed(events) if e["type"] in ("response.completed", "response.incomplete")
    )
    output, usage = response["output"], response["usage"]
    # What is encrypted in the list at the end is encrypted once more; what counts came with the items.
    items = [event for event in events if event["type"] == "response.output_item.done"]
    done = [event["item"] for event in sorted(items, key=lambda event: event["output_index"])]
    texts = [part.get("text", "") for item in output if item["type"] == "message" for part in item["content"]]
    calls = [item for item in output if item["type"] == "function_call"]
    read, wrote = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    told = Usage(
        usage["input_tokens"],
        usage["output_tokens"],
        read.get("cached_tokens", 0),
        read.get("cache_write_tokens", 0),
        wrote.get("reasoning_tokens", 0),
    )
    asked = tuple((item["call_id"], item["name"], json.loads(item["arguments"])) for item in calls)
    return Expected("".join(texts), asked, told, "tools" if calls else "end", tuple(done))


def read_chat(events: list[Json]) -> Expected:
    expected, calls, usage = Expected(), dict[int, Json](), Json()
    for event in events:
        if "error" in event:
            expected.error = event["error"]["message"]
            return expected
        usage = event.get("usage") or (event.get("x_groq") or {}).get("usage") or usage
        for choice in event.get("choices", []):
            delta, content = choice["delta"], choice["delta"].get("content") or ""
            if isinstance(content, list):
                content = "".join(part["text"] for part in content if part["type"] == "text")
            expected.text += content
            for piece in delta.get("tool_calls") or []:
                call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
                call["id"] += piece.get("id") or ""
                call["name"] += piece["function"].get("name") or ""
                call["arguments"] += piece["function"].get("arguments") or ""
            expected.stop = choice.get("finish_reason") or expected.stop
    expected.calls = tuple((c["id"], c["name"], json.loads(c["arguments"] or "{}")) for c in calls.values())
    expected.stop = {"tool_calls": "tools", "stop": "end"}.get(expected.stop, expected.stop)
    read, wrote = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    told = [usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), read.get("cached_tokens") or 0]
    expected.usage = Usage(*told, read.get("cache_write_tokens") or 0, wrote.get("reasoning_tokens") or 0)
    return expected


READERS = {"messages": read_messages, "responses": read_responses, "chat": read_chat}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_recorded_answer_is_read_whole_and_goes_back_as_it_came(name: str, address: str) -> None:
    api = name.partition(".")[0]
    expected = READERS[api](events_of(name))
    model, heard = model_for(name, address), list[str]()
    try:
        if expected.error:
            with pytest.raises(ModelError) as caught:
                await model.think(ModelRequest((USER,)), heard.append)
            assert expected.error[:40] in str(caught.value)
            assert caught.value.tokens > 0
            return
        turn = await model.think(ModelRequest((USER,)), heard.append)
    finally:
        await model.aclose()
    assert turn.text == expected.text == "".join(heard)
    assert tuple((call.id, call.name, call.arguments) for call in turn.tool_calls) == expected.calls
    assert turn.stop == expected.stop
    if expected.usage.total:
        assert turn.usage == expected.usage
    else:
        assert turn.usage.estimated
        assert turn.usage.input > 0 < turn.usage.output
    assert turn.response_id
    if turn.blocks and api != "chat":
        assert turn.blocks == expected.blocks
    else:  # then text and calls are all of it
        kinds = {block["type"] for block in expected.blocks}
        assert kinds <= {"text", "tool_use", "message", "function_call"}
    _check_echo(model, api, turn, expected)


def _check_echo(model: ProviderModel, api: str, turn: ModelTurn, expected: Expected) -> None:
    """The next request has the turn in it, as its provider's own types have it."""
    results = [ChatMessage("tool", "done", tool_call_id=call.id) for call in turn.tool_calls]
    request = ModelRequest((USER, turn.as_message(), *results, ChatMessage("user", "go on")))
    body = model._wire.body("m", model.name, request, None)
    # Tools that only the beta API has are not among the types; nor are those of other servers.
    if not any(
        known in json.dumps(expected.blocks) for known in ("mcp_", "advisor", '"compaction"', "oai-weather")
    ):
        check_request(api, body)
    if api == "messages" and turn.blocks:
        echoed = list(turn.blocks)
        assert body["messages"][1]["content"] == echoed
    if api == "responses":
        items = [item for item in body["input"] if item.get("type") == "reasoning"]
        thoughts = [block for block in turn.blocks if block["type"] == "reasoning"]
        assert [item.get("encrypted_content") for item in items] == [t.get("encrypted_content") for t in thoughts]
        assert not any("id" in item for item in body["input"])
