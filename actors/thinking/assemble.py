"""A model turn while it streams in, from whatever sort of server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from squadron.actors.thinking.model import ModelTurn, Stop, ToolCall, Usage
from squadron.runtime.errors import ModelError
from squadron.runtime.texts import whole

#: Most levels of a call's arguments: the parser of messages takes 200, and those around the arguments count.
MAX_DEPTH = 100


def mended(value: Any, depth: int = 0) -> Any:
    """A JSON value whose texts can be encoded: halves of surrogate pairs are joined, a lone one is U+FFFD.

    Raises:
        ValueError: it is nested too deep, or holds a number without end.
    """
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number in it is not finite")
    if not isinstance(value, dict | list):
        return value
    if depth == MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, list):
        return [mended(part, depth + 1) for part in value]
    return {mended(name): mended(part, depth + 1) for name, part in value.items()}


def as_sent(value: Any) -> dict[str, Any]:
    """A value of an SDK as the provider sent it, also where its types don't know it; empty if it sent none."""
    if value is None or isinstance(value, dict):
        return value or {}
    sent: dict[str, Any] = value.to_dict(mode="json", warnings=False)
    return sent


def mended_turn(turn: ModelTurn) -> ModelTurn:
    """A turn of any model, also of one that somebody wrote, as it can be kept and sent."""
    return replace(turn, text=whole(turn.text), tool_calls=tuple(map(_mended_call, turn.tool_calls)))


def _mended_call(call: ToolCall) -> ToolCall:
    said = {name: whole(getattr(call, name)) for name in ("id", "name", "problem", "raw")}
    try:
        return replace(call, arguments=mended(call.arguments), **said)
    except ValueError as error:
        return replace(call, arguments={}, **said | {"problem": f"the arguments are not valid JSON: {error}"})


class Pieces:
    """A text that comes in pieces; half a surrogate pair at the end of one waits for the other half."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text, self._half = on_text, ""

    def add(self, piece: str) -> None:
        """The next piece."""
        piece, self._half = self._half + piece, ""
        if piece and "\ud800" <= piece[-1] <= "\udbff":
            piece, self._half = piece[:-1], piece[-1]
        if piece:
            self._on_text(whole(piece))

    def end(self) -> None:
        """No other half comes."""
        if self._half:
            self._on_text(whole(self._half))
        self._half = ""


@dataclass(slots=True)
class CallParts:
    """A tool call while its pieces come in."""

    index: int | None
    id: str = ""
    name: str = ""
    arguments: str = ""

    def assemble(self, position: int, *, cut: bool) -> ToolCall:
        # A few OpenAI-compatible servers send no id; the answer still needs one to refer to.
        call_id, name = mended(self.id) or f"call_{position}", mended(self.name)
        try:
            arguments = _read(self.arguments) if self.arguments.strip() or cut else {}
        except (ValueError, RecursionError) as error:
            why = "the tokens ran out" if cut else str(error)
            problem = mended(f"the arguments are not valid JSON: {why}")
            return ToolCall(call_id, name, problem=problem, raw=mended(self.arguments))
        if isinstance(arguments, dict):
            return ToolCall(call_id, name, arguments)
        problem = "the arguments are not a JSON object"
        return ToolCall(call_id, name, problem=problem, raw=mended(self.arguments))

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are a JSON object already."""
        try:
            return isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            return False


def _read(raw: str) -> Any:
    arguments = mended(json.loads(mended(raw)))
    if isinstance(arguments, str):  # some servers encode twice
        arguments = mended(json.loads(arguments))
    return {} if arguments is None else arguments


#: Reasons of both providers why a model stopped, but for those that follow from what it said.
_STOPS: dict[str, Stop] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",  # Mistral
    "model_context_window_exceeded": "overflow",
    "pause_turn": "pause",
}
#: That it does not want to, or may not; Gemini's compatible API says why behind a colon. `sensitive`: Zhipu.
_REFUSED = re.compile(r"(refusal|content_filter|sensitive)\b", re.IGNORECASE)
#: That something broke: what it said until then is no answer. So say DeepSeek (`insufficient_system_resource`),
#: vLLM, SGLang (`abort`), Gemini (`function_call_filter: MALFORMED_FUNCTION_CALL`), Zhipu (`network_error`), and
#: the Responses API where it tells no details. Any other word is a good end: many servers have their own.
_BROKEN = re.compile("abort|cancel|error|fail|incomplete|insufficient|malformed|timeout", re.IGNORECASE)


def roughly(chars: int) -> int:
    """About how many tokens that many characters are: one for three, between what OpenAI and Claude need."""
    return math.ceil(chars / 3)


@dataclass(slots=True)
class TurnParts:
    """A model turn while it streams in. `tools` are the names that are on offer.

    Attributes:
        asked_chars: how long the request was, for servers that don't tell what they used.
        blocks: the blocks or items of the provider by their index, for wires that have them.
        inputs: JSON that streams into blocks that are no calls of ours, by index.
        broken_by: the error of `on_text`, if that is what ended it.
    """

    on_text: Callable[[str], None] | None
    tools: frozenset[str] = frozenset()
    asked_chars: int = 0
    text: str = ""
    calls: list[CallParts] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    stop_reason: str = ""
    refusal: str = ""
    response_id: str = ""
    blocks: dict[int, dict[str, Any]] = field(default_factory=dict)
    inputs: dict[int, str] = field(default_factory=dict)
    thought_chars: int = 0
    broken_by: Exception | None = None
    _pieces: Pieces = field(init=False)

    def __post_init__(self) -> None:
        self._pieces = Pieces(self._say)

    def add_text(self, piece: str | None) -> None:
        """Take in a piece of text."""
        self._pieces.add(piece or "")

    def _say(self, piece: str) -> None:
        self.text += piece
        if self.on_text is None:
            return
        try:
            self.on_text(piece)
        except Exception as error:
            self.broken_by = error
            raise

    @property
    def began(self) -> bool:
        """Whether the model has said or thought anything."""
        return bool(self.text or self.calls or self.blocks or self.thought_chars)

    def call_at(self, index: int | None, call_id: str = "") -> CallParts:
        """The call that a piece belongs to, a new one for a new id or index."""
        # A new id starts a new call: some compatible servers send every parallel call with index 0.
        for call in reversed(self.calls):
            if call.index == index and call_id in ("", call.id):
                return call
        self.calls.append(CallParts(index, call_id))
        return self.calls[-1]

    def add_call(self, index: int | None, call_id: str, name: str, arguments: str) -> None:
        """Take in a piece of a call, of a server that may send one index for all, no ids, and names again."""
        call = self.call_at(index, call_id)
        # Nothing follows a whole object, so this is the next call; and so is another name after arguments.
        another = bool(name) and name != call.name and (call.arguments != "" or {name, call.name} <= self.tools)
        if call.name and (another or (arguments.lstrip().startswith("{") and call.is_whole)):
            call = CallParts(index, call_id, "" if name else call.name)
            self.calls.append(call)
        if name.startswith(call.name):  # the first piece, or it is told again
            call.name = name or call.name
        else:
            call.name += name
        call.arguments += arguments

    def spent(self) -> Usage:
        """What it used as far as the provider told, and for the rest about as much as was asked and said."""
        said = len(self.text) + self.thought_chars + sum(len(call.arguments) for call in self.calls)
        read, wrote = self.usage.input or roughly(self.asked_chars), self.usage.output
        if not self.stop_reason or not wrote:  # what is told at the beginning is not the end of it
            wrote = max(wrote, roughly(said))
        estimated = (read, wrote) != (self.usage.input, self.usage.output)
        return replace(self.usage, input=read, output=wrote, estimated=estimated)

    def finish(self, who: str) -> ModelTurn:
        """The whole turn but for its blocks.

        Raises:
            ModelError: the stream ended early, the model refused, or the server says that it broke.
        """
        self._pieces.end()
        usage = self.spent()
        if not self.stop_reason:
            message = f"{who} broke off in the middle of its answer"
            raise ModelError(message, hint="try again", kind="passing", tokens=usage.total, began=self.began)
        # What came before a refusal is to be thrown away, says Anthropic's guide; half a call is no call.
        reason: str = mended(str(self.stop_reason))
        if self.refusal or _REFUSED.match(reason):
            message = f"{who} refused to answer: {mended(self.refusal) or reason}"
            hint = "rephrase, or use another model"
            raise ModelError(message, hint=hint, kind="refusal", tokens=usage.total, began=self.began)
        if _BROKEN.search(reason):
            message = f"{who} broke off in the middle of its answer: {reason}"
            raise ModelError(message, hint="try again", kind="passing", tokens=usage.total, began=self.began)
        stop = _STOPS.get(reason)
        last = len(self.calls) - 1
        cut = stop in ("length", "overflow")
        calls = tuple(call.assemble(i, cut=cut and i == last) for i, call in enumerate(self.calls))
        stop = stop or ("tools" if calls else "end")
        return ModelTurn(self.text, calls, usage, stop, model=who, response_id=mended(self.response_id))
