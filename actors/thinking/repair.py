"""Conversations from callers and from memory as providers take them; a broken one would stay broken for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from squadron.actors.thinking.model import ChatMessage, ToolCall

#: Stands for the result of a call that has none.
INTERRUPTED = "There is no result: the call was interrupted. Whether it had an effect is not known."
#: Stands before a conversation whose beginning was cut off.
CUT_BEFORE = "[The conversation began before this.]"


def repaired(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The conversation as providers take it, as it is where it was good already.

    Each call has one result right after it, in the order of the calls: one that stands elsewhere is moved, one
    that is missing is closed as interrupted, and results without a call, or one too many, are dropped. So are
    messages that say nothing. The first message after the system part is the user's. Repairing it again changes
    nothing.
    """
    spoken = [message for message in map(_with_unique_calls, messages) if _says_something(message)]
    used: set[int] = set()
    whole = list[ChatMessage]()
    for at, message in enumerate(spoken):
        if message.role != "tool":
            whole.append(message)
        for call in message.tool_calls:
            found = _result_of(call, at, spoken, used)
            if found is None:
                whole.append(ChatMessage("tool", INTERRUPTED, tool_call_id=call.id, is_error=True))
            else:
                used.add(found)
                whole.append(spoken[found])
    first = next((at for at, message in enumerate(whole) if message.role != "system"), None)
    if first is not None and whole[first].role != "user":
        whole.insert(first, ChatMessage("user", CUT_BEFORE))
    return whole


def _with_unique_calls(message: ChatMessage) -> ChatMessage:
    if message.role != "assistant":
        return replace(message, tool_calls=()) if message.tool_calls else message
    calls = {call.id: call for call in reversed(message.tool_calls)}
    if len(calls) == len(message.tool_calls):
        return message
    # The provider's blocks would still hold what is left out.
    return replace(message, tool_calls=tuple(reversed(calls.values())), blocks=())


def _says_something(message: ChatMessage) -> bool:
    said = message.content.strip() or message.tool_calls or message.attachments or message.blocks
    return bool(said) or message.role == "tool"


def _result_of(call: ToolCall, at: int, messages: Sequence[ChatMessage], used: set[int]) -> int | None:
    """Where the result of a call at `at` is: after it, up to the next call of that id, else before it."""
    for n in range(at + 1, len(messages)):
        if messages[n].role == "tool" and messages[n].tool_call_id == call.id and n not in used:
            return n
        if any(other.id == call.id for other in messages[n].tool_calls):
            break
    before = (n for n in range(at) if messages[n].role == "tool" and messages[n].tool_call_id == call.id)
    return next((n for n in before if n not in used), None)
