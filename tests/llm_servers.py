"""LLM providers on localhost: real HTTP servers that speak the wire formats and play a script.

They are as strict about a request as the real APIs are, so a conversation that they take is well formed.
A script is a list of turns, played one per request that is in order, or one function that answers them all.
A `ToolCall` with a `problem` sends that text as its raw arguments.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal, Self

from squadron.actors.thinking.model import ModelTurn, ToolCall
from tests.llm_schemas import NAME, RequestError, check_schema, require

Json = dict[str, Any]


@dataclass(frozen=True)
class Broken:
    """Half of `turn`, and then the connection drops, the body ends too early, or an error event comes.

    With "length" and "refusal" all of `turn` comes, and that as the reason why it is over.
    """

    turn: ModelTurn
    how: Literal["cut", "end", "error", "length", "refusal"] = "cut"


Answer = ModelTurn | Broken | int
Turn = Answer | Callable[[Json], Answer]


@dataclass(frozen=True)
class Received:
    """One request as it came in; header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: Json


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def raw_arguments(call: ToolCall) -> str:
    return call.problem or json.dumps(call.arguments)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # several processes may connect at the same moment
    owner: Any  # a ScriptedOpenAIServer or a ScriptedAnthropicServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """The requests are in `.requests`; stderr stays clean."""

    def do_POST(self) -> None:
        owner = self.server.owner
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body, answer = owner.answer_to(self.path, headers, raw)
        except RequestError as error:
            self._send_error(error.status, str(error))
            return
        if isinstance(answer, int):
            self._send_error(answer, f"the script says {answer}")
            return
        self._stream(answer, body)

    def do_GET(self) -> None:
        self._send_error(404, f"nothing is served at GET {self.path}")

    def _send_error(self, status: int, message: str) -> None:
        body = json.dumps(self.server.owner.error_body(status, message)).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, answer: ModelTurn | Broken, body: Json) -> None:
        owner = self.server.owner
        turn, how = (answer.turn, answer.how) if isinstance(answer, Broken) else (answer, "")
        half = how in ("cut", "end", "error")
        events = list(owner.events(turn, body, how))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(events[: len(events) // 2] if half else events):
            owner.before_event(number)
            self._chunk(event)
        if how == "cut":
            self.close_connection = True
            self.wfile.write(b"40\r\ndata: {")  # 64 bytes announced, 7 sent
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if how == "error":
            self._chunk(owner.error_event())
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@dataclass
class _ScriptedServer:
    """A context manager; `before_event(n)` runs before the nth event of each answer, to hold it back."""

    turns: Sequence[Turn] | Callable[[Json], Answer]
    api_key: str | None = None
    piece_chars: int = 5
    before_event: Callable[[int], None] = lambda number: None
    requests: list[Received] = field(default_factory=list)

    path: ClassVar[str]
    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._played = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        # A short poll, because `shutdown` waits for the next one.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{self.prefix}"

    def answer_to(self, path: str, headers: dict[str, str], raw: bytes) -> tuple[Json, Answer]:
        """The request and the next answer of the script; a request not in order uses up no turn."""
        require(path.partition("?")[0] == self.prefix + self.path, f"nothing is at {path}", status=404)
        try:
            body = json.loads(raw)
        except ValueError as error:
            raise RequestError(f"the body is not JSON: {error}") from error
        require(isinstance(body, dict), "the body is not a JSON object")
        with self._lock:
            self.requests.append(Received(path, headers, body))
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        require(key and key == (self.api_key or key), "the API key is missing or wrong", status=401)
        self.check(headers, body)
        turn = self._next_turn()
        if not callable(turn):
            return body, turn
        try:
            return body, turn(body)
        except Exception as error:  # an assertion of the test: the client gets to see it, and doesn't retry
            raise RequestError(f"the script raised {error!r}") from error

    def _next_turn(self) -> Turn:
        if callable(self.turns):
            return self.turns
        with self._lock:
            require(self._played < len(self.turns), f"the script is over after {len(self.turns)} turns")
            self._played += 1
            return self.turns[self._played - 1]

    def check(self, headers: dict[str, str], body: Json) -> None:
        raise NotImplementedError


class ScriptedOpenAIServer(_ScriptedServer):
    """`POST /v1/chat/completions`, streaming."""

    path = "/chat/completions"
    prefix = "/v1"
    known: ClassVar[re.Pattern[str]] = re.compile(
        "model|messages|stream(_options)?|tools|tool_choice|temperature|max_completion_tokens|reasoning_effort"
    )

    def check(self, headers: dict[str, str], body: Json) -> None:
        for key in body:
            require(self.known.fullmatch(key), f"Unrecognized request argument supplied: {key}")
        require(isinstance(body.get("model"), str) and body["model"], "you must provide a model parameter")
        require(body.get("stream") is True, "this server only streams")
        self._check_tools(body)
        self._check_messages(body.get("messages"))

    def _check_tools(self, body: Json) -> None:
        tools = body.get("tools")
        require(tools is None or tools, "[] is too short - 'tools'")
        for tool in tools or ():
            require(tool.get("type") == "function", "Missing required parameter: 'tools[0].type'")
            function = tool.get("function", {})
            require(NAME.fullmatch(function.get("name", "")), "Invalid 'tools[0].function.name'")
            require(len(function.get("description", "")) <= 1024, "'tools[0].function.description': too long")
            check_schema(function.get("parameters", {}), f"Invalid schema for function {function['name']!r}")
        reasons = re.match(r"gpt-(5\.[6-9]|6)", body["model"]) and body.get("reasoning_effort") != "none"
        require(not (tools and reasons), "Function tools with reasoning_effort are not supported here")

    def _check_messages(self, messages: Any) -> None:
        require(isinstance(messages, list) and messages, "[] is too short - 'messages'")
        open_calls: set[str] = set()
        for message in messages:
            role, content = message.get("role"), message.get("content")
            require(role in ("system", "developer", "user", "assistant", "tool"), f"Invalid role {role!r}")
            if role == "tool":
                known = message.get("tool_call_id") in open_calls
                require(known, "messages with role 'tool' must be a response to a preceding 'tool_calls'")
                require(isinstance(content, str), "Invalid value for 'content': expected a string")
                open_calls.remove(message["tool_call_id"])
                continue
            require(not open_calls, f"'tool_call_id's without a response message: {sorted(open_calls)}")
            calls = message.get("tool_calls")
            require(isinstance(content, str) or calls, "Invalid value for 'content': expected a string")
            require(calls is None or (calls and role == "assistant"), "'tool_calls' is misplaced or empty")
            for call in calls or ():
                require(call.get("type") == "function" and call.get("id"), "Invalid 'tool_calls[0]'")
                require(NAME.fullmatch(call["function"]["name"]), "Invalid 'tool_calls[0].function.name'")
                require(isinstance(call["function"]["arguments"], str), "'arguments' must be a string")
                open_calls.add(call["id"])
        require(not open_calls, f"'tool_call_id's without a response message: {sorted(open_calls)}")

    def events(self, turn: ModelTurn, body: Json, how: str) -> Iterator[str]:
        yield self._delta({"role": "assistant", "content": ""})
        for piece in pieces(turn.text, self.piece_chars):
            yield self._delta({"content": piece})
        for index, call in enumerate(turn.tool_calls):
            function = {"name": call.name, "arguments": ""}
            yield self._call({"index": index, "id": call.id, "type": "function", "function": function})
            for piece in pieces(raw_arguments(call), self.piece_chars):
                yield self._call({"index": index, "function": {"arguments": piece}})
        stop = "tool_calls" if turn.tool_calls else "stop"
        yield self._delta({}, finish_reason={"length": "length", "refusal": "content_filter"}.get(how, stop))
        if (body.get("stream_options") or {}).get("include_usage"):
            counts = {"prompt_tokens": turn.usage.input, "completion_tokens": turn.usage.output}
            yield self._event([], usage=counts | {"total_tokens": turn.tokens})
        yield "data: [DONE]\n\n"

    def _call(self, call: Json) -> str:
        return self._delta({"tool_calls": [call]})

    def _delta(self, delta: Json, *, finish_reason: str | None = None) -> str:
        return self._event([{"index": 0, "delta": delta, "finish_reason": finish_reason}])

    def _event(self, choices: list[Json], *, usage: Json | None = None) -> str:
        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
        return f"data: {json.dumps(base | {'choices': choices, 'usage': usage})}\n\n"

    def error_body(self, status: int, message: str) -> Json:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}

    def error_event(self) -> str:
        return f"data: {json.dumps(self.error_body(500, 'the server had an error'))}\n\n"


class ScriptedAnthropicServer(_ScriptedServer):
    """`POST /v1/messages`, streaming, of API 2026-10-21 and of 2023-06-01."""

    path = "/v1/messages"
    known: ClassVar[re.Pattern[str]] = re.compile(
        "model|messages|max_tokens|stream|system|tools|tool_choice|temperature"
    )

    def check(self, headers: dict[str, str], body: Json) -> None:
        version = headers.get("anthropic-version")
        require(version in ("2023-06-01", "2026-10-21"), "anthropic-version: header is required")
        old = version == "2023-06-01"
        for key in body:
            accepted = self.known.fullmatch(key) and (old or key != "temperature")
            require(accepted, f"{key}: Extra inputs are not permitted")
        require(isinstance(body.get("model"), str) and body["model"], "model: Field required")
        limit = body.get("max_tokens")
        require(isinstance(limit, int) and limit > 0, "max_tokens: Field required")
        require(body.get("stream") is True, "this server only streams")
        require(body.get("system", "x").strip(), "system: text content blocks must be non-empty")
        for tool in body.get("tools", ()):
            require(NAME.fullmatch(tool.get("name", "")), "tools.0.name: String should match pattern")
            check_schema(tool.get("input_schema", {}), f"tools.{tool['name']}.input_schema")
        self._check_messages(body.get("messages"))

    def _check_messages(self, messages: Any) -> None:
        require(isinstance(messages, list) and messages, "messages: at least one message is required")
        open_calls: set[str] = set()
        for number, message in enumerate(messages):
            expected = "assistant" if number % 2 else "user"
            require(message.get("role") == expected, f"messages.{number}: roles must alternate")
            content = message.get("content")
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            require(blocks, f"messages.{number}: content must be non-empty")
            kinds = [block.get("type") for block in blocks]
            results = [block.get("tool_use_id") for block in blocks if block["type"] == "tool_result"]
            # Exactly the calls of the message before, and ahead of anything else.
            paired = set(results) == open_calls and len(results) == len(open_calls)
            require(paired, f"messages.{number}: `tool_use` ids and `tool_result` blocks don't match")
            in_front = kinds[: len(results)] == ["tool_result"] * len(results)
            require(in_front, f"messages.{number}: `tool_result` blocks must come first")
            open_calls = {self._check_block(expected, block) for block in blocks} - {""}
            require(len(open_calls) == kinds.count("tool_use"), "`tool_use` ids must be unique")
        require(messages[-1]["role"] == "user", "the conversation must end with a user message")

    def _check_block(self, role: str, block: Json) -> str:
        """The id of a tool call; empty for the other kinds."""
        kind = block["type"]
        if kind == "text":
            require(block["text"].strip(), "text content blocks must contain non-whitespace text")
        elif kind == "tool_use":
            require(role == "assistant", "`tool_use` blocks can only be in assistant messages")
            in_order = NAME.fullmatch(block["name"]) and isinstance(block["input"], dict)
            require(in_order and re.fullmatch("[a-zA-Z0-9_-]+", block["id"]), "a `tool_use` block is malformed")
            return str(block["id"])
        else:
            require(kind == "tool_result" and role == "user", f"unexpected block {kind!r} of {role}")
            require(isinstance(block.get("content", ""), str), "tool_result.content: not a string")
            require(isinstance(block.get("is_error", False), bool), "tool_result.is_error: not a boolean")
        return ""

    def events(self, turn: ModelTurn, body: Json, how: str) -> Iterator[str]:
        usage = {"input_tokens": turn.usage.input, "output_tokens": 1}
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
        }
        yield self._event("message_start", message=message | {"stop_reason": None, "usage": usage})
        yield self._event("ping")
        # Current models think first, and show none of it.
        signature = {"type": "signature_delta", "signature": "c2lnbmVk"}
        yield from self._block(0, {"type": "thinking", "thinking": "", "signature": ""}, [signature])
        if turn.text:
            texts = [{"type": "text_delta", "text": piece} for piece in pieces(turn.text, self.piece_chars)]
            yield from self._block(1, {"type": "text", "text": ""}, texts)
        for index, call in enumerate(turn.tool_calls, start=2):
            parts = ["", *pieces(raw_arguments(call), self.piece_chars)]
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            yield from self._block(index, block, deltas)
        stop = "tool_use" if turn.tool_calls else "end_turn"
        stop = {"length": "max_tokens", "refusal": "refusal"}.get(how, stop)
        yield self._event("message_delta", delta={"stop_reason": stop}, usage={"output_tokens": turn.usage.output})
        yield self._event("message_stop")

    def _block(self, index: int, block: Json, deltas: Sequence[Json]) -> Iterator[str]:
        yield self._event("content_block_start", index=index, content_block=block)
        for delta in deltas:
            yield self._event("content_block_delta", index=index, delta=delta)
        yield self._event("content_block_stop", index=index)

    def _event(self, kind: str, **data: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n"

    def error_body(self, status: int, message: str) -> Json:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}

    def error_event(self) -> str:
        return self._event("error", error={"type": "overloaded_error", "message": "Overloaded"})
