"""OpenAI's Responses API on localhost, as strict about items as the real one, and stricter about their order."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar
from urllib.parse import parse_qs

from squadron.actors.thinking.model import ModelTurn
from tests.llm_schemas import NAME, check_attachment, check_schema, check_strict, require
from tests.llm_script import Json, ScriptedServer, pieces, raw_arguments


class Kept:
    """An answer that is made in the background, whoever listens."""

    def __init__(self) -> None:
        self.is_over = False
        self._events: list[str] = []
        self._grown = threading.Condition()

    def add(self, event: str) -> None:
        with self._grown:
            if not self.is_over:
                self._events.append(event)
            self._grown.notify_all()

    def end(self) -> None:
        with self._grown:
            self.is_over = True
            self._grown.notify_all()

    def after(self, number: int) -> Iterator[str]:
        """The events after the nth, each as soon as it is there."""
        while True:
            with self._grown:
                while not self.is_over and len(self._events) <= number + 1:
                    self._grown.wait()
                coming = self._events[number + 1 :]
            if not coming:
                return
            yield from coming
            number += len(coming)


class ScriptedResponsesServer(ScriptedServer):
    """`POST /v1/responses`, streaming, of a model that thinks before whatever it says.

    What is asked for in the background is kept, and goes on when nobody listens.

    Attributes:
        asked_for: the requests for kept answers, as method, id and query.
        knows_positions: whether such a stream may go on in the middle.
    """

    path = "/responses"
    prefix = "/v1"
    known: ClassVar[re.Pattern[str]] = re.compile(
        "model|input|stream|store|tools|temperature|max_output_tokens|text|prompt_cache_key|background|include"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        #: What follows each thought: the id of a call, or "message"; and the model that had it.
        self._followed: dict[str, tuple[str, str]] = {}
        self.answers: dict[str, Kept] = {}
        self.asked_for: list[str] = []
        self.knows_positions = True
        self._ids = count(1)

    def check(self, headers: dict[str, str], body: Json) -> None:
        for key in body:
            require(self.known.fullmatch(key), f"Unknown parameter: '{key}'.")
        require(isinstance(body.get("model"), str) and body["model"], "Missing required parameter: 'model'")
        require(body.get("stream") is True, "this server only streams")
        require(body.get("store") is body.get("background", False), "this server keeps what it has to")
        require(set(body.get("include", ())) <= {"reasoning.encrypted_content"}, "Invalid value: 'include'")
        require(body.get("max_output_tokens", 16) >= 16, "Invalid 'max_output_tokens': below minimum value")
        require(len(body.get("prompt_cache_key", "")) <= 64, "Invalid 'prompt_cache_key': string too long")
        if form := body.get("text", {}).get("format"):
            require(
                form["type"] == "json_schema" and form["strict"] and NAME.fullmatch(form["name"]), "bad format"
            )
            check_strict(form["schema"], "Invalid schema for response_format")
        tools = body.get("tools")
        require(tools is None or tools, "[] is too short - 'tools'")
        for tool in tools or ():
            require(tool["type"] == "function" and NAME.fullmatch(tool["name"]), "Invalid 'tools[0].name'")
            require(tool.get("strict", True) is False, "Missing required parameter: 'tools[0].strict'")
            check_schema(tool["parameters"], f"Invalid schema for function {tool['name']!r}")
        self._check_items(body.get("input"), body["model"])

    def _check_items(self, items: Any, model: str) -> None:
        require(isinstance(items, list) and items, "[] is too short - 'input'")
        open_calls: set[str] = set()
        for number, item in enumerate(items):
            following = items[number + 1] if number + 1 < len(items) else {}
            before = items[number - 1] if number else {}
            require("id" not in item, f"Item with id '{item.get('id')}' not found: `store` is set to false")
            match item.get("type", "message"):
                case "message":
                    require(not open_calls, f"No tool output found for function call {sorted(open_calls)}")
                    self._check_message(item)
                case "reasoning":
                    self._check_thought(item, following, model)
                case "function_call":
                    require(NAME.fullmatch(item["name"]), "Invalid 'input[0].name'")
                    require(isinstance(item["arguments"], str), "Invalid 'arguments'")
                    open_calls.add(item["call_id"])
                    thought = [t for t, said in self._followed.items() if said == (item["call_id"], model)]
                    whole = not thought or before.get("encrypted_content") in thought
                    require(whole, "'function_call' was provided without its required 'reasoning' item")
                case "function_call_output":
                    known = item.get("call_id") in open_calls
                    require(known, f"No tool call found for function call output {item.get('call_id')}")
                    open_calls.remove(item["call_id"])
                    output = item["output"]
                    for part in [] if isinstance(output, str) else output:
                        check_attachment(part, {"input_text", "input_image", "input_file"})
                case kind:
                    require(False, f"Invalid value: '{kind}'")
        require(not open_calls, f"No tool output found for function call {sorted(open_calls)}")

    def _check_message(self, item: Json) -> None:
        role, content = item.get("role"), item.get("content")
        require(role in ("system", "developer", "user", "assistant"), f"Invalid role {role!r}")
        if isinstance(content, str):
            return
        require(role == "user" and content, "Invalid type for 'content'")
        for part in content or ():
            check_attachment(part, {"input_text", "input_image", "input_file"})

    def _check_thought(self, item: Json, following: Json, model: str) -> None:
        require("summary" in item, "Missing required parameter: 'input[0].summary'")
        follows, who = self._followed.get(item.get("encrypted_content", ""), ("", ""))
        require(follows and who == model, "The encrypted content could not be verified")
        is_next = following.get("call_id") == follows or (follows == "message" and following.get("role"))
        require(is_next, "'reasoning' was provided without its required following item")

    def events(self, turn: ModelTurn, body: Json, how: str) -> Iterator[str]:
        number, output, id = iter(range(100_000)), list[Json](), f"resp_{next(self._ids)}"
        # Thoughts that are kept are told in full to who asks for that alone.
        sealed = not body.get("store") or "reasoning.encrypted_content" in body.get("include", ())

        def event(kind: str, **data: Any) -> str:
            told = {"type": kind, "sequence_number": next(number)} | data
            return f"event: {kind}\ndata: {json.dumps(told)}\n\n"

        def response(status: str, **more: Any) -> Json:
            about = {"object": "response", "created_at": 1, "error": None, "incomplete_details": None}
            return about | {"id": id, "model": body["model"], "status": status, "output": output} | more

        yield event("response.created", response=response("in_progress"))
        if body.get("background"):
            yield event("response.queued", response=response("queued"))
        yield event("response.in_progress", response=response("in_progress"))
        for item in self._output(turn, body["model"], how):
            if not sealed:
                item.pop("encrypted_content", None)
            at: Json = {"output_index": len(output), "item_id": item["id"]}
            empty = (
                {"content": []} if item["type"] == "message" else {"arguments": "", "encrypted_content": "half"}
            )
            empty = {key: value for key, value in empty.items() if key in item}
            added = item | {"status": "in_progress"} | empty
            yield event("response.output_item.added", output_index=len(output), item=added)
            for kind, data in self._deltas(item):
                yield event(kind, **at, **data)
            output.append(item)
            yield event("response.output_item.done", output_index=len(output) - 1, item=item)
        usage = {"usage": self._usage(turn)} if self.tells_usage else {}
        if how == "length":
            why = {"incomplete_details": {"reason": "max_output_tokens"}}
            yield event("response.incomplete", response=response("incomplete", **usage, **why))
        else:
            yield event("response.completed", response=response("completed", **usage))

    def said(self, events: list[str], body: Json) -> Iterator[str]:
        if not body.get("background"):
            return super().said(events, body)
        kept = Kept()
        self.answers[json.loads(events[0].partition("data: ")[2])["response"]["id"]] = kept
        threading.Thread(target=self._make, args=(kept, events), daemon=True).start()
        return kept.after(-1)

    def _make(self, kept: Kept, events: list[str]) -> None:
        for number, event in enumerate(events):
            self.before_event(number)
            kept.add(event)
        kept.end()

    def kept(self, method: str, path: str) -> Json | Iterator[str]:
        address, _, query = path.removeprefix(f"{self.prefix}{self.path}/").partition("?")
        id, _, what = address.partition("/")
        self.asked_for.append(" ".join(filter(None, [what or method, id, *sorted(query.split("&"))])))
        require(id in self.answers, f"Response with id '{id}' not found.", status=404)
        kept = self.answers[id]
        if what == "cancel":
            was_over = kept.is_over
            kept.end()
            return {"id": id, "object": "response", "status": "completed" if was_over else "cancelled"}
        asked = parse_qs(query)
        require(asked.get("stream") == ["true"], "this server only streams")
        require("reasoning.encrypted_content" in query, "it is taken up without its thoughts")
        return kept.after(int(asked.get("starting_after", ["-1"])[0]) if self.knows_positions else -1)

    def _output(self, turn: ModelTurn, model: str, how: str) -> list[Json]:
        said: list[Json] = []
        if turn.text:
            refused = {"type": "refusal", "refusal": turn.text}
            text = {"type": "output_text", "text": turn.text, "annotations": [], "logprobs": []}
            content = [refused if how == "refusal" else text]
            said.append({"type": "message", "role": "assistant", "content": content})
        for call in turn.tool_calls:
            arguments = {"arguments": raw_arguments(call)}
            said.append({"type": "function_call", "call_id": call.id, "name": call.name} | arguments)
        with self._lock:
            thought = f"gAAA{len(self._followed):04}"
            self._followed[thought] = ((said[0].get("call_id") or "message") if said else "nothing", model)
        first = {"type": "reasoning", "summary": [], "encrypted_content": thought}
        return [
            item | {"id": f"{item['type'][:2]}_{n}", "status": "completed"}
            for n, item in enumerate([first, *said])
        ]

    def _deltas(self, item: Json) -> Iterator[tuple[str, Json]]:
        match item["type"]:
            case "message" if item["content"][0]["type"] == "refusal":
                for piece in pieces(item["content"][0]["refusal"], self.piece_chars):
                    yield "response.refusal.delta", {"content_index": 0, "delta": piece}
            case "message":
                for piece in pieces(item["content"][0]["text"], self.piece_chars):
                    yield "response.output_text.delta", {"content_index": 0, "delta": piece, "logprobs": []}
            case "function_call":
                for piece in pieces(item["arguments"], self.piece_chars):
                    yield "response.function_call_arguments.delta", {"delta": piece}
            case _:
                for piece in pieces(self.thought, self.piece_chars):
                    yield "response.reasoning_summary_text.delta", {"summary_index": 0, "delta": piece}

    def _usage(self, turn: ModelTurn) -> Json:
        read = {"cached_tokens": turn.usage.cache_read, "cache_write_tokens": turn.usage.cache_write}
        counts = {"input_tokens": turn.usage.input, "output_tokens": turn.usage.output}
        counts |= {"total_tokens": turn.tokens}
        details = {"input_tokens_details": read}
        return counts | details | {"output_tokens_details": {"reasoning_tokens": turn.usage.reasoning}}

    def error_body(self, status: int, message: str, code: str | None = None) -> Json:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def error_event(self) -> str:
        told = {"type": "error", "code": "server_error", "message": "the server had an error", "param": None}
        return f"event: error\ndata: {json.dumps(told | {'sequence_number': 9})}\n\n"
