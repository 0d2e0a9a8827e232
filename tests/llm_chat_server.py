"""OpenAI's chat completions on localhost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from squadron.actors.thinking.model import ModelTurn
from tests.llm_schemas import NAME, check_attachment, check_schema, check_strict, require
from tests.llm_script import Json, ScriptedServer, pieces, raw_arguments


def check_json(text: Any) -> None:
    """Arguments as servers read them that put them into a template, and refuse what they can't."""
    require(isinstance(text, str), "'arguments' must be a string")
    try:
        read = json.loads(text)
    except ValueError:
        read = None
    require(isinstance(read, dict), "'arguments' must be a JSON object")


class ScriptedOpenAIServer(ScriptedServer):
    """`POST /v1/chat/completions`, streaming."""

    path = "/chat/completions"
    prefix = "/v1"
    known: ClassVar[re.Pattern[str]] = re.compile(
        "model|messages|stream(_options)?|tools|tool_choice|temperature|max_completion_tokens|reasoning_effort"
        "|response_format|prompt_cache_key"
    )

    def check(self, headers: dict[str, str], body: Json) -> None:
        for key in body:
            require(self.known.fullmatch(key), f"Unrecognized request argument supplied: {key}")
        require(isinstance(body.get("model"), str) and body["model"], "you must provide a model parameter")
        require(body.get("stream") is True, "this server only streams")
        if form := body.get("response_format"):
            require(form["type"] == "json_schema" and form["json_schema"]["strict"], "Invalid 'response_format'")
            check_strict(form["json_schema"]["schema"], "Invalid schema for response_format")
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
            if isinstance(content, list) and role == "user":
                require(content, "Invalid value for 'content': too short")
                for part in content:
                    check_attachment(part, {"text", "image_url", "file"})
            else:
                require(isinstance(content, str) or calls, "Invalid value for 'content': expected a string")
            require(calls is None or (calls and role == "assistant"), "'tool_calls' is misplaced or empty")
            for call in calls or ():
                require(call.get("type") == "function" and call.get("id"), "Invalid 'tool_calls[0]'")
                require(NAME.fullmatch(call["function"]["name"]), "Invalid 'tool_calls[0].function.name'")
                require(len(call["id"]) <= 40, "Invalid 'tool_calls[0].id': string too long")
                check_json(call["function"]["arguments"])
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
            counts |= {"total_tokens": turn.tokens}
            read = {"prompt_tokens_details": {"cached_tokens": turn.usage.cache_read}}
            wrote = {"completion_tokens_details": {"reasoning_tokens": turn.usage.reasoning}}
            if self.tells_usage:
                yield self._event([], usage=counts | read | wrote)
        yield "data: [DONE]\n\n"

    def _call(self, call: Json) -> str:
        return self._delta({"tool_calls": [call]})

    def _delta(self, delta: Json, *, finish_reason: str | None = None) -> str:
        return self._event([{"index": 0, "delta": delta, "finish_reason": finish_reason}])

    def _event(self, choices: list[Json], *, usage: Json | None = None) -> str:
        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
        return f"data: {json.dumps(base | {'choices': choices, 'usage': usage})}\n\n"

    def error_body(self, status: int, message: str, code: str | None = None) -> Json:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def error_event(self) -> str:
        return f"data: {json.dumps(self.error_body(500, 'the server had an error'))}\n\n"
