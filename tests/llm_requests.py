"""Requests, held against the types of the official SDKs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter

#: Items of which the types ask for an id.
_WITH_ID = frozenset(
    {"reasoning", "web_search_call", "file_search_call", "code_interpreter_call", "mcp_call", "mcp_list_tools"}
)


@cache
def _adapter(api: str) -> TypeAdapter[Any]:
    from anthropic.types import message_create_params as messages
    from openai.types.chat import completion_create_params as chat
    from openai.types.responses import response_create_params as responses

    kinds = {
        "messages": messages.MessageCreateParamsStreaming,
        "responses": responses.ResponseCreateParamsStreaming,
        "chat": chat.CompletionCreateParamsStreaming,
    }
    return TypeAdapter(kinds[api])


def check_request(api: str, body: dict[str, Any]) -> None:
    """Raise `pydantic.ValidationError` unless the body is one of `messages`, `responses` or `chat`."""
    if api == "responses":  # the types ask for ids, under which a server that stores nothing finds nothing
        ided = [{"id": "x"} | item if item.get("type") in _WITH_ID else item for item in body["input"]]
        body = body | {"input": ided}
    whole = {"model": "m", "stream": True} | {k: v for k, v in body.items() if not k.startswith("extra_")}
    _exhaust(_adapter(api).validate_python(whole))


def _exhaust(value: Any) -> None:
    # An `Iterable` is only validated while it is read.
    if isinstance(value, Mapping):
        value = value.values()
    elif isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return
    for part in value:
        _exhaust(part)
