"""Anthropic's messages API on localhost, which wants back what it said, signatures included."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from squadron.actors.thinking.model import ModelTurn
from tests.llm_prompt_cache import PromptCache, check_marks, tokens_in
from tests.llm_schemas import NAME, check_attachment, check_schema, check_strict, require
from tests.llm_script import Json, ScriptedServer, pieces, raw_arguments


def _without_raw(block: Json) -> Json:
    return {key: value for key, value in block.items() if key != "raw"}


def _is_echo(block: Json, said: Json) -> bool:
    """What was said; of a call that was no JSON, or has a name that is none, only the rest."""
    free = {key for key in ("input",) if said.get(key, 0) is None}
    free |= {key for key in ("name",) if said["type"] == "tool_use" and not NAME.fullmatch(said[key])}
    return block | dict.fromkeys(free) == said | dict.fromkeys(free)


@dataclass
class ScriptedAnthropicServer(ScriptedServer):
    """`POST /v1/messages`, streaming, of API 2026-10-21 and of 2023-06-01.

    With a `cache` it counts tokens itself; else a turn of the script says what they were.
    """

    cache: PromptCache | None = None

    path = "/v1/messages"
    _stops: ClassVar[dict[str, str]] = {
        "length": "max_tokens",
        "refusal": "refusal",
        "pause": "pause_turn",
        "overflow": "model_context_window_exceeded",
    }
    known: ClassVar[re.Pattern[str]] = re.compile(
        "model|messages|max_tokens|stream|system|tools|tool_choice|temperature|output_config|cache_control"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        #: Model, content and stop reason of each answer.
        self._said: list[tuple[str, list[Json], str]] = []

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
        system = body.get("system", "x")
        texts = [system] if isinstance(system, str) else [block["text"] for block in system]
        require(all(text.strip() for text in texts), "system: text content blocks must be non-empty")
        for tool in body.get("tools", ()):
            require(NAME.fullmatch(tool.get("name", "")), "tools.0.name: String should match pattern")
            check_schema(tool.get("input_schema", {}), f"tools.{tool['name']}.input_schema")
        if form := body.get("output_config", {}).get("format"):
            require(form["type"] == "json_schema", "output_config.format.type: invalid")
            check_strict(form["schema"], "output_config.format.schema")
        self._check_messages(body.get("messages"), body["model"])
        check_marks(body)

    def _check_messages(self, messages: Any, model: str) -> None:
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
            if expected == "assistant":
                self._check_echo(number, blocks, model)
        paused = any(messages[-1]["content"] == content and why == "pause_turn" for _, content, why in self._said)
        require(messages[-1]["role"] == "user" or paused, "the conversation must end with a user message")

    def _check_echo(self, number: int, blocks: list[Json], model: str) -> None:
        """An assistant message with calls is what this model said; a thought is one of this model's."""
        own = [content for who, content, _ in self._said if who == model]
        for block in blocks:
            if block["type"] in ("thinking", "redacted_thinking"):
                known = any(block in content for content in own)
                require(known, f"messages.{number}: Invalid `signature` in `thinking` block")
        require(blocks[-1]["type"] != "thinking", f"messages.{number}: The final block cannot be `thinking`")
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        said = [one for one in own if [each["id"] for each in one if each["type"] == "tool_use"] == calls != []]
        # A call that was no JSON can't come back as it was.
        same = any(len(one) == len(blocks) and all(map(_is_echo, blocks, one)) for one in said)
        why = "`thinking` blocks in the latest assistant message cannot be modified"
        require(same or not said, f"messages.{number}: {why}")

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
        elif kind == "tool_result":
            require(role == "user", f"unexpected block {kind!r} of {role}")
            content = block.get("content", "x")
            require(content, "tool_result.content: empty")
            for part in [] if isinstance(content, str) else content:
                check_attachment(part, {"text", "image", "document"})
            require(isinstance(block.get("is_error", False), bool), "tool_result.is_error: not a boolean")
        elif role == "user":
            check_attachment(block, {"image", "document"})
        else:
            known = any(block in content for _, content, _ in self._said)
            require(known, f"unexpected block {kind!r} of {role}")
        return ""

    def _content(self, turn: ModelTurn) -> list[Json]:
        """What this turn is made of. Current models think first, and show little of it."""
        if turn.blocks:
            return list(turn.blocks)
        signed = {"type": "thinking", "thinking": self.thought, "signature": f"c2lnbmVk{len(self._said):04}"}
        text = [{"type": "text", "text": turn.text}] if turn.text else []
        calls: list[Json] = [
            {"type": "tool_use", "id": call.id, "name": call.name}
            | {"input": None if call.problem else call.arguments, "raw": raw_arguments(call)}
            for call in turn.tool_calls
        ]
        return [signed, *text, *calls]

    def events(self, turn: ModelTurn, body: Json, how: str) -> Iterator[str]:
        read, written = turn.usage.cache_read, turn.usage.cache_write
        plain, output = turn.usage.input - read - written, turn.usage.output
        content, stop = self._content(turn), "tool_use" if turn.tool_calls else "end_turn"
        if self.cache is not None:
            read, written, plain = self.cache.count(body)
            output = tokens_in(len(json.dumps([_without_raw(block) for block in content])))
        usage: Json = {"input_tokens": plain, "output_tokens": 1, "cache_read_input_tokens": read}
        usage |= {"cache_creation_input_tokens": written}
        details = {"output_tokens_details": {"thinking_tokens": turn.usage.reasoning}}
        end: Json = {"output_tokens": output} | details
        if not self.tells_usage:
            usage = end = {"input_tokens": 0, "output_tokens": 0}
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
        }
        yield self._event("message_start", message=message | {"stop_reason": None, "usage": usage})
        yield self._event("ping")
        stop = self._stops.get(how, stop)
        for index, block in enumerate(content):
            yield from self._streamed(index, block)
        with self._lock:
            self._said.append((body["model"], [_without_raw(block) for block in content], stop))
        yield self._event("message_delta", delta={"stop_reason": stop}, usage=end)
        yield self._event("message_stop")

    def _streamed(self, index: int, block: Json) -> Iterator[str]:
        match block["type"]:
            case "thinking":
                thoughts = pieces(block["thinking"], self.piece_chars)
                deltas = [{"type": "thinking_delta", "thinking": piece} for piece in thoughts]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
                yield from self._block(index, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
            case "text":
                texts = pieces(block["text"], self.piece_chars)
                deltas = [{"type": "text_delta", "text": piece} for piece in texts]
                yield from self._block(index, {"type": "text", "text": ""}, deltas)
            case "tool_use" | "server_tool_use":
                raw = block.get("raw", json.dumps(block["input"]))
                parts = ["", *pieces(raw, self.piece_chars)]
                deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
                yield from self._block(index, _without_raw(block) | {"input": {}}, deltas)
            case _:
                yield from self._block(index, block, [])

    def _block(self, index: int, block: Json, deltas: Sequence[Json]) -> Iterator[str]:
        yield self._event("content_block_start", index=index, content_block=block)
        for delta in deltas:
            yield self._event("content_block_delta", index=index, delta=delta)
        yield self._event("content_block_stop", index=index)

    def _event(self, kind: str, **data: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n"

    def error_body(self, status: int, message: str, code: str | None = None) -> Json:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = code or kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}

    def error_event(self) -> str:
        return self._event("error", error={"type": "overloaded_error", "message": "Overloaded"})
