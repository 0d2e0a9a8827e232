"""LLM providers on localhost: real HTTP servers that speak the wire formats and play a script.

They are as strict about a request as the real APIs are, so a conversation that they take is well formed. What
they said has to come back as they said it, thoughts included.
A script is a list of turns, played one per request that is in order, or one function that answers them all.
A `ToolCall` with a `problem` sends that text as its raw arguments.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any, ClassVar, Literal, Self

from squadron.actors.thinking.model import ModelTurn, ToolCall
from tests.llm_schemas import RequestError, require

Json = dict[str, Any]


@dataclass(frozen=True)
class Broken:
    """Half of `turn`, and then the connection drops, the body ends too early, or an error event comes.

    With the others all of `turn` comes, and that as the reason why it is over.
    """

    turn: ModelTurn
    how: Literal["cut", "end", "error", "length", "refusal", "pause", "overflow"] = "cut"


@dataclass(frozen=True)
class HttpError:
    """An answer that is none."""

    status: int
    message: str = ""
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


Answer = ModelTurn | Broken | HttpError | int
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
        if self.path.partition("?")[0] != owner.prefix + owner.path:
            self._send_kept()
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body, answer = owner.answer_to(self.path, headers, raw)
        except RequestError as error:
            self._send_error(HttpError(error.status, str(error)))
            return
        if isinstance(answer, int):
            answer = HttpError(answer, f"the script says {answer}")
        if isinstance(answer, HttpError):
            self._send_error(answer)
            return
        self._stream(answer, body)

    def do_GET(self) -> None:
        self._send_kept()

    def _send_kept(self) -> None:
        try:
            kept = self.server.owner.kept(self.command, self.path)
        except RequestError as error:
            self._send_error(HttpError(error.status, str(error)))
            return
        if isinstance(kept, dict):
            self._send_json(200, kept, {})
        else:
            self._send_events(kept, "")

    def _send_error(self, error: HttpError) -> None:
        told = self.server.owner.error_body(error.status, error.message, error.code)
        self._send_json(error.status, told, error.headers)

    def _send_json(self, status: int, told: Json, headers: dict[str, str]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, answer: ModelTurn | Broken, body: Json) -> None:
        owner = self.server.owner
        turn, how = (answer.turn, answer.how) if isinstance(answer, Broken) else (answer, "")
        half = how in ("cut", "end", "error")
        events = list(owner.events(turn, body, how))
        self._send_events(islice(owner.said(events, body), len(events) // 2 if half else None), how)

    def _send_events(self, events: Iterator[str], how: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            self._chunk(event)
        if how == "cut":
            self.close_connection = True
            self.wfile.write(b"40\r\ndata: {")  # 64 bytes announced, 7 sent
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if how == "error":
            self._chunk(self.server.owner.error_event())
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@dataclass
class ScriptedServer:
    """A context manager; `before_event(n)` runs before the nth event of each answer, to hold it back.

    `thought` is what it shows of its thinking; without `tells_usage` it keeps what it used to itself.
    """

    turns: Sequence[Turn] | Callable[[Json], Answer]
    api_key: str | None = None
    piece_chars: int = 5
    before_event: Callable[[int], None] = lambda number: None
    thought: str = ""
    tells_usage: bool = True
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

    def said(self, events: list[str], body: Json) -> Iterator[str]:
        """The events of an answer, each when it is made."""
        for number, event in enumerate(events):
            self.before_event(number)
            yield event

    def kept(self, method: str, path: str) -> Json | Iterator[str]:
        """What is at any other address: JSON, or events."""
        raise RequestError(f"nothing is served at {method} {path}", 404)

    def check(self, headers: dict[str, str], body: Json) -> None:
        raise NotImplementedError
