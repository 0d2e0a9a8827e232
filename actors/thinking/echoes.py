"""What a model said, on its way back to it: the ids of its calls there, and whether its blocks still fit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from squadron.actors.thinking.model import ChatMessage, ToolCall

#: The tool through which a model answers when its provider has no format for the schema; see `AnswerForm`.
ANSWER_TOOL = "give_answer"
#: What both providers take as the id of a call; OpenAI's chat completions take 40 characters.
_ID = re.compile("[a-zA-Z0-9_-]{1,40}")
#: What all of them take as the name of a tool: at most 64 characters, and none of these.
_LONGEST_NAME, _NOT_IN_NAMES = 64, re.compile("[^a-zA-Z0-9_-]")


@dataclass(frozen=True, slots=True)
class Echo:
    """One assistant message on its way back.

    Attributes:
        ids: the id on the wire for each id of a call of the message.
        verbatim: whether its blocks go back as they are.
        answered: ids of calls that were the answer itself, which have no result of their own.
    """

    ids: dict[str, str] = field(default_factory=dict)
    verbatim: bool = False
    answered: tuple[str, ...] = ()

    def id_of(self, call_id: str) -> str:
        """A call's id on the wire; that of a call which the message did not make stays."""
        return self.ids.get(call_id) or safe_id(call_id)


def echo_of(message: ChatMessage, who: str, said: Sequence[tuple[str, str]]) -> Echo:
    """How a message goes back to the model `who`; `said` are id and name of the calls in its blocks.

    Whoever keeps the conversation may have given the calls other ids, or left one out. In the first case the
    results get the ids of the blocks; in the second the blocks don't fit any more, and text and calls go back.
    """
    rebuilt = Echo({call.id: safe_id(call.id) for call in message.tool_calls})
    if message.model != who or not message.blocks:
        return rebuilt
    names = [call.name for call in message.tool_calls]
    answered = () if len(said) == len(names) else tuple(each for each, name in said if name == ANSWER_TOOL)
    ours = [one for one in said if one[0] not in answered]
    if [name for _, name in ours] != names:
        return rebuilt
    ids = {call.id: wire for call, (wire, _) in zip(message.tool_calls, ours, strict=True)}
    return Echo(ids, True, answered)


def safe_id(call_id: str) -> str:
    """The id as every provider takes it; the same for the same."""
    return call_id if _ID.fullmatch(call_id) else f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:16]}"


def safe_name(name: str) -> str:
    """The name of a called tool as every provider takes it, because models make some up."""
    return _NOT_IN_NAMES.sub("_", name)[:_LONGEST_NAME] or "unnamed"


def shown(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call as a JSON object; what was none is shown as the text it was."""
    return {"malformed": call.raw} if call.problem and call.raw else call.arguments
