"""The two LLM providers, OpenAI and Anthropic, as `Model`s over their official SDKs."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from squadron.actors.thinking.assemble import TurnParts, mended
from squadron.actors.thinking.credentials import clean_key, tidy_variables
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, ToolDefinition
from squadron.runtime.errors import ConfigError, ModelError
from squadron.runtime.redact import keep_secret, scrub

if TYPE_CHECKING:  # the SDKs take a second to import, so they load when a model is made
    from anthropic.types import MessageDeltaUsage, RawMessageStreamEvent, Usage
    from openai.types.chat import ChatCompletionChunk

#: The current mid-size model in the SDK's `ChatModel` (openai 3.54): half the price of the Sol tier.
DEFAULT_OPENAI_MODEL = "gpt-6.1-terra"

#: The current mid-size model in the SDK's `Model` (anthropic 2.12): half the price of Opus 5.5.
DEFAULT_ANTHROPIC_MODEL = "claude-sonnet-5-5"

#: Anthropic requires `max_tokens`, and thinking counts against it. 16 Ki leaves room for thought and a
#: long answer, and is under the output limit of every current model (the smallest: 64 K, Haiku 4.5).
DEFAULT_ANTHROPIC_MAX_TOKENS = 16_384

#: Retries inside the SDK for a request that got no stream (429, 5xx, no connection): the SDKs' default.
DEFAULT_MAX_RETRIES = 2

#: Anthropic's API 2026-10-21, the SDK's default, answers 400 to any `temperature`; the version before
#: still takes it for the models that have one.
_ANTHROPIC_VERSION_WITH_TEMPERATURE = "2023-06-01"

#: OpenAI's chat completions refuse function tools for these models (gpt-5.6 and later) unless
#: `reasoning_effort` is "none", also when it is left out.
_NO_REASONING_WITH_TOOLS = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9]|\d\d)(?!\d)")

#: Errors inside a stream carry a type instead of an HTTP status; these pass with time.
_PASSING_ERRORS = re.compile("(api|overloaded|rate_limit|server|timeout)_(error|exceeded)")

_Messages = Sequence[ChatMessage]
_Tools = Sequence[ToolDefinition]

_HINTS = {  # by HTTP status
    400: "the provider did not accept this request: its message says which part",
    401: "check {prefix}_API_KEY",
    402: "add credit to the account of {prefix}_API_KEY",
    403: "{prefix}_API_KEY may not use this model: check its project, region and permissions",
    404: "check the model name, and {prefix}_BASE_URL if you set it",
    413: "shorten the conversation",
    429: "the rate limit of {prefix}_API_KEY is reached: wait, or send less at once",
    500: "the provider has a problem on its side: try again later",
}


class _ProviderModel(ABC):
    """What both providers share: the streaming loop and the errors."""

    _provider: ClassVar[str]
    _default_model: ClassVar[str]
    _create: Callable[..., Awaitable[Any]]

    def __init__(
        self,
        model: str = "",
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
    ) -> None:
        self._model = model or self._default_model
        self._prefix = self._provider.upper()
        tidy_variables(self._prefix)
        key = clean_key("api_key", api_key or "")
        keep_secret(key)
        try:  # the SDKs read the environment for None only, and an empty key or address is none
            address = (base_url or "").strip() or None
            self._client = self._connect(api_key=key or None, base_url=address, max_retries=max_retries)
        except ModelError:
            raise
        except Exception as error:
            hint = f"check the {self._prefix}_* variables"
            raise ModelError(
                f"the {self._provider} client can't be set up: {scrub(str(error))}", hint=hint
            ) from error

    @property
    def name(self) -> str:
        """The provider and the model, as in `openai:gpt-5`."""
        return f"{self._provider}:{self._model}"

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """Run one model turn; see `Model.think`."""
        turn = TurnParts(on_text, frozenset(tool.name for tool in request.tools))
        asked = _sendable(self._request(request.messages, request.tools, request.max_tokens, request.temperature))
        async with aclosing(self._events(asked)) as events:
            async for event in events:
                self._read(turn, event)
        return turn.finish(self.name)

    async def aclose(self) -> None:
        """Close the connections to the provider. May be called twice."""
        await self._client.close()

    @abstractmethod
    def _connect(self, **options: Any) -> Any: ...

    @abstractmethod
    def _request(
        self, messages: _Messages, tools: _Tools, max_tokens: int | None, temperature: float | None
    ) -> dict[str, Any]: ...

    @abstractmethod
    def _read(self, turn: TurnParts, event: Any) -> None: ...

    async def _events(self, request: dict[str, Any]) -> AsyncGenerator[Any, None]:
        try:
            async with await self._create(model=self._model, stream=True, **request) as stream:
                async for event in stream:
                    yield event
        # Nothing but SDK code raises in here, so whatever it is, the call failed: besides their own errors
        # the SDKs let httpx2, ssl and JSON errors through once the stream has begun.
        except Exception as error:
            raise self._error(error) from error

    def _error(self, cause: Exception) -> ModelError:
        body = getattr(cause, "body", None)
        detail = body.get("error", body) if isinstance(body, dict) else None
        detail = detail if isinstance(detail, dict) else {}
        kinds = {str(detail.get("code")), str(detail.get("type"))}
        said = detail.get("message") or str(cause) or type(cause).__name__
        status: int = getattr(cause, "status_code", 0)
        answered = f"HTTP {status}" if status >= 400 else "an error"
        if not status and not detail:
            # The SDKs say "Connection error." and keep the reason (refused, DNS, TLS) in the cause.
            message = scrub(
                f"the call of {self.name} at {self._client.base_url} failed: {cause.__cause__ or said}"
            )
            hint = f"check the network, and {self._prefix}_BASE_URL if you set it, then try again"
            return ModelError(scrub(message), hint=hint, kind="passing")
        if status < 400:  # it came inside a stream that had begun well
            status = 500 if any(map(_PASSING_ERRORS.fullmatch, kinds)) else 400
        if "insufficient_quota" in kinds:  # OpenAI says it with 429, but waiting doesn't help
            status = 402
        retryable = status >= 500 or status in (408, 409, 429)
        hint = _HINTS.get(status, _HINTS[500 if retryable else 400]).format(prefix=self._prefix)
        if status == 400 and "temperature" in said:
            hint = "this model takes no such temperature: leave it unset"
        kind = (
            ("limit" if status == 429 else "passing")
            if retryable
            else "key"
            if status in (401, 402, 403)
            else "request"
        )
        return ModelError(scrub(f"{self.name} answered {answered}: {said}"), hint=hint, kind=kind)


class OpenAIModel(_ProviderModel):
    """A model behind OpenAI's chat completions, or any server that speaks them.

    Reads `OPENAI_API_KEY` and `OPENAI_BASE_URL` where no argument is given; without a key it raises
    `ModelError`. No `model` means `DEFAULT_OPENAI_MODEL`. Models that can't both reason and call tools on
    this API (gpt-5.6 and later) are told not to reason when there are tools.
    """

    _provider = "openai"
    _default_model = DEFAULT_OPENAI_MODEL

    def _connect(self, **options: Any) -> Any:
        # Checked here, because the SDK is content with an admin key, which can't chat.
        if not (options["api_key"] or os.environ.get("OPENAI_API_KEY")):
            raise ModelError("there is no API key for OpenAI", hint="set OPENAI_API_KEY")
        import openai

        client = openai.AsyncOpenAI(**options)
        self._create = client.chat.completions.create
        return client

    def _request(
        self, messages: _Messages, tools: _Tools, max_tokens: int | None, temperature: float | None
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "messages": [_to_openai(message) for message in messages],
            "stream_options": {"include_usage": True},
        }
        if tools:
            request["tools"] = [{"type": "function", "function": _tool(t, "parameters")} for t in tools]
            if _NO_REASONING_WITH_TOOLS.match(self._model):
                request["reasoning_effort"] = "none"
        optional = {"max_completion_tokens": max_tokens, "temperature": temperature}
        return request | {key: value for key, value in optional.items() if value is not None}

    def _read(self, turn: TurnParts, event: ChatCompletionChunk) -> None:
        if event.usage is not None:  # the last chunk, and it has no choices
            turn.input_tokens = event.usage.prompt_tokens or 0
            turn.output_tokens = event.usage.completion_tokens or 0
        for choice in event.choices or ():
            # Compatible servers leave it out of their last chunk, or send a whole message instead.
            delta = getattr(choice, "delta", None) or getattr(choice, "message", None)
            if delta is not None:
                turn.add_text(_text_of(getattr(delta, "content", None)))
                turn.refusal += getattr(delta, "refusal", None) or ""
                for piece in getattr(delta, "tool_calls", None) or ():
                    said = piece.function
                    arguments = (said and said.arguments) or ""
                    if not isinstance(arguments, str):  # a few servers send the object itself
                        arguments = json.dumps(arguments)
                    turn.add_call(piece.index, piece.id or "", (said and said.name) or "", arguments)
            turn.stop_reason = choice.finish_reason or turn.stop_reason


class AnthropicModel(_ProviderModel):
    """A Claude model behind Anthropic's messages API.

    Reads `ANTHROPIC_API_KEY` and `ANTHROPIC_BASE_URL` where no argument is given; without a key it raises
    `ModelError`, but the SDK's other ways to sign in (auth token, profile, workload identity) count as one.
    No `model` means `DEFAULT_ANTHROPIC_MODEL`.
    """

    _provider = "anthropic"
    _default_model = DEFAULT_ANTHROPIC_MODEL

    def _connect(self, **options: Any) -> Any:
        import anthropic

        client = anthropic.AsyncAnthropic(**options)
        # The SDK itself would only notice at the first request.
        if not (client.api_key or client.auth_token or client.credentials):
            raise ModelError("there is no API key for Anthropic", hint="set ANTHROPIC_API_KEY")
        # Not `messages.stream`: its accumulator raises when the arguments of a tool call are bad JSON.
        self._create = client.messages.create
        return client

    def _request(
        self, messages: _Messages, tools: _Tools, max_tokens: int | None, temperature: float | None
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "messages": _to_anthropic(messages),
            "max_tokens": DEFAULT_ANTHROPIC_MAX_TOKENS if max_tokens is None else max_tokens,
        }
        if system := "\n\n".join(m.content for m in messages if m.role == "system" and m.content.strip()):
            request["system"] = system
        if tools:
            request["tools"] = [_tool(tool, "input_schema") for tool in tools]
        if temperature is not None:
            request["extra_body"] = {"temperature": temperature}  # no longer a parameter of the SDK
            request["extra_headers"] = {"anthropic-version": _ANTHROPIC_VERSION_WITH_TEMPERATURE}
        return request

    def _read(self, turn: TurnParts, event: RawMessageStreamEvent) -> None:
        match event.type:
            case "message_start":
                _count_anthropic(turn, event.message.usage)
            case "content_block_start" if event.content_block.type == "tool_use":
                turn.call_at(event.index, event.content_block.id).name = event.content_block.name
            case "content_block_delta" if event.delta.type == "text_delta":
                turn.add_text(event.delta.text)
            case "content_block_delta" if event.delta.type == "input_json_delta":
                turn.call_at(event.index).arguments += event.delta.partial_json
            case "message_delta":
                _count_anthropic(turn, event.usage)
                turn.stop_reason = event.delta.stop_reason or turn.stop_reason
                details = event.delta.stop_details
                turn.refusal = (details.explanation if details else None) or turn.refusal


def model_from(spec: str) -> Model:
    """The model that `spec` names: `openai`, `openai:NAME`, `anthropic` or `anthropic:NAME`.

    Raises:
        ConfigError: `spec` has another form.
        ModelError: there is no API key for the provider.
    """
    models: dict[str, Callable[[str], Model]] = {"openai": OpenAIModel, "anthropic": AnthropicModel}
    provider, colon, model = spec.strip().partition(":")
    if provider in models and bool(colon) == bool(model):
        return models[provider](model)
    hint = "use openai, openai:NAME, anthropic, anthropic:NAME, or offline for no LLM at all"
    raise ConfigError(f"{spec!r} names no model", hint=hint)


def default_model_spec(env: Mapping[str, str]) -> str:
    """The model to use when none is named: `SQUADRON_MODEL`, else the provider with a key, else `offline`."""
    with_key = (name for name in ("openai", "anthropic") if env.get(f"{name.upper()}_API_KEY", "").strip())
    return env.get("SQUADRON_MODEL", "").strip() or next(with_key, "offline")


def _sendable(request: dict[str, Any]) -> dict[str, Any]:
    try:
        sendable: dict[str, Any] = mended(request)
    except ValueError as error:
        raise ModelError(f"the conversation can't be sent: {error}", hint="send plain JSON values") from None
    return sendable


def _text_of(content: Any) -> str:
    """The text of a message's content, which some servers send as a list of parts."""
    if not isinstance(content, list):
        return content or ""
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _tool(tool: ToolDefinition, schema_key: str) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, schema_key: tool.input_schema}


def _to_openai(message: ChatMessage) -> dict[str, Any]:
    if message.role == "tool":
        # There is no error flag on this wire, so the text has to say it.
        content = f"Error: {message.content}" if message.is_error else message.content
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content}
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
        for c in message.tool_calls
    ]
    return {"role": "assistant", "content": message.content or None, "tool_calls": calls}


def _to_anthropic(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The conversation without its system part, with the roles in turn as the API wants them."""
    blocks = [(message.role, block) for message in messages for block in _anthropic_blocks(message)]
    groups = groupby(blocks, lambda block: "assistant" if block[0] == "assistant" else "user")
    merged = [(role, [block for _, block in group]) for role, group in groups]
    # Tool results must come before any text of the same message; the sort keeps the rest in order.
    for _, content in merged:
        content.sort(key=lambda block: block["type"] != "tool_result")
    return [{"role": role, "content": content} for role, content in merged]


def _anthropic_blocks(message: ChatMessage) -> list[dict[str, Any]]:
    if message.role == "tool":
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.tool_call_id}
        if message.content.strip():
            result["content"] = message.content
        if message.is_error:
            result["is_error"] = True
        return [result]
    # The API answers 400 to a text block without text; the system part has a place of its own.
    spoken = message.role != "system" and message.content.strip()
    text = [{"type": "text", "text": message.content}] if spoken else []
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
        for call in message.tool_calls
    ]
    return [*text, *calls]


def _count_anthropic(turn: TurnParts, usage: Usage | MessageDeltaUsage) -> None:
    turn.output_tokens = usage.output_tokens or 0
    # What was read from or written to the cache is not in `input_tokens`, but was input all the same.
    parts = (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
    # A `message_delta` repeats the totals, or leaves some of them out.
    turn.input_tokens = max(turn.input_tokens, sum(part or 0 for part in parts))
