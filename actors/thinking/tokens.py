"""How many tokens a text, a message or a tool will be, before a provider has counted them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic_core import to_json

from squadron.actors.thinking.model import Attachment, ChatMessage, ToolDefinition

#: Tokenizers that weigh alike: OpenAI since gpt-4o, Claude up to 4.6, Claude from 4.7 on; `unknown` counts as the
#: dearest of them.
Family = Literal["o200k", "claude", "claude-4.7", "unknown"]

#: What tokenizers tell apart: an ASCII word, each of its letters past the 4th, digits, newlines, blanks, one
#: punctuation mark, one CJK, Hangul, accented Latin or Cyrillic character, one sign or emoji, any other character.
#: A single blank goes with its word.
_CLASSES = re.compile(
    r"([A-Za-z]{1,4})([A-Za-z]*)|([0-9]{1,6})|([\r\n]+)|([ \t]{2,})|([!-/:-@\[-`{-~])"
    r"|([\u2e80-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff])|([\u1100-\u11ff\uac00-\ud7af])"
    r"|([\u00c0-\u024f\u1e00-\u1eff])|([\u0400-\u052f])"
    r"|([\u20a0-\u20bf\u2190-\u2bff\U0001f000-\U0001faff])|([^ \t])"
)
#: Tokens for each, in the order of the groups. The first nine: least squares over 252 texts (documentation, code,
#: 19 languages, JSON, logs, CSV) against the real vocabularies; the last three from `tests/data/tokens`, as those
#: nine leave them. The mean error is 6 to 7 %; 20 % and more too low are base64, shell scripts and emoji.
_WEIGHTS: dict[Family, tuple[float, ...]] = {
    "o200k": (0.94, 0.18, 2.18, 0.98, 1.20, 0.36, 0.78, 0.78, 0.78, 0.34, 1.80, 0.38),
    "claude": (0.99, 0.28, 2.15, 1.22, 2.13, 0.38, 1.03, 1.51, 1.60, 0.48, 3.30, 0.86),
    "claude-4.7": (1.22, 0.60, 2.26, 0.49, 2.81, 0.39, 1.07, 1.58, 1.80, 0.48, 3.30, 0.86),
}
#: Tokens around one message: role and separators, from recorded usage.
MESSAGE_TOKENS = 6
#: Tokens that any tools cost at all, the dearest that was recorded: a provider adds a prompt for them.
_TOOLS_TOKENS: dict[Family, int] = {"o200k": 0, "claude": 560, "claude-4.7": 2_370, "unknown": 2_370}
#: Tokens of an image, as the dearest of the providers' documentations has it for its largest size.
IMAGE_TOKENS = 4_784
#: Of a file by its address nothing else is known; of one that is sent along it is one token for so many characters
#: of base64, as of what providers encrypted: four of them are three bytes.
FILE_TOKENS, ENCODED_CHARS = 10_000, 4
#: Tokens of a field's name with its marks.
_FIELD_TOKENS = 3
#: Fields of a provider's own blocks that are no text of a language.
_ENCODED = frozenset({"signature", "encrypted_content", "data"})
#: The window in a provider's words when a conversation was too long for it: those of OpenAI, Anthropic, Gemini,
#: Grok, Mistral, vLLM, SGLang and llama.cpp.
_LIMITS = (
    re.compile(r"> *([0-9][0-9,_]*)"),
    re.compile(
        r"(?:maximum|max|context|available|allowed|limit)"
        r"(?: (?:context|prompt|input|model|length|size|window|number|of|tokens?|allowed))*"
        r"(?: is| of|:)?(?: only)? \(?([0-9][0-9,_]*)"
    ),
    re.compile(r"([0-9][0-9,_]*) maximum"),
    re.compile(r"n_ctx\W+([0-9]+)"),
)
#: No window is smaller, so a number below is something else.
_LEAST_LIMIT = 128
#: How many texts are remembered with their counts, about 10 MB at most: short ones, in characters, as they are.
_MOST_KNOWN, _SHORT = 16_384, 128


def family_of(model: str) -> Family:
    """The tokenizer of a model, by its name, with or without the provider before it."""
    # Others sell them, too, under names such as `us.anthropic.claude-opus-4-6-v1:0`.
    _, claude, version_of = model.lower().rpartition("claude")
    if claude:
        version = re.search(r"(?<![0-9])([0-9])(?:[.-]([0-9]{1,2}))?(?![0-9])", version_of)
        known = version is not None and (int(version[1]), int(version[2] or 0)) <= (4, 6)
        return "claude" if known else "claude-4.7"
    if re.search(r"(?:^|[:/])(chatgpt|gpt-(4o|4\.1|4\.5|[5-9]|[1-9][0-9]|oss)|o[1-9](-|$))", model.lower()):
        return "o200k"
    return "unknown"


def text_tokens(text: str, family: Family = "unknown") -> int:
    """Tokens of a text. It takes 0.15 ms per 1,000 characters the first time, and nearly nothing later."""
    return _counts.of(text)[family]


def message_tokens(message: ChatMessage, family: Family = "unknown") -> int:
    """Tokens of a message with its calls, its attachments, and what its provider wrote beside them."""
    parts = [message.content]
    parts += [f"{call.name} {call.id} {call.raw or _json(call.arguments)}" for call in message.tool_calls]
    said = sum(text_tokens(part, family) + MESSAGE_TOKENS * bool(at) for at, part in enumerate(parts))
    # The blocks go out instead of text and calls, but to another model those do.
    blocks = sum(_block_tokens(block, family) for block in message.blocks)
    return MESSAGE_TOKENS + max(said, blocks) + sum(map(_attachment_tokens, message.attachments))


def conversation_tokens(messages: Iterable[ChatMessage], family: Family = "unknown") -> int:
    """Tokens of all the messages."""
    return sum(message_tokens(message, family) for message in messages)


def tools_tokens(tools: Sequence[ToolDefinition], family: Family = "unknown") -> int:
    """Tokens of the tools that are offered."""
    each = (f"{tool.name} {tool.description} {_json(tool.input_schema)}" for tool in tools)
    written = sum(MESSAGE_TOKENS + text_tokens(text, family) for text in each)
    return _TOOLS_TOKENS[family] + written if tools else 0


def limit_named(refusal: str) -> int | None:
    """The window in tokens that a provider names when it refuses a conversation as too long, or None."""
    named = (found[1] for pattern in _LIMITS if (found := pattern.search(refusal)))
    limits = (int(re.sub("[,_]", "", number)) for number in named)
    return next((limit for limit in limits if limit >= _LEAST_LIMIT), None)


def _block_tokens(block: object, family: Family, name: str = "") -> int:
    if isinstance(block, dict):
        return sum(_FIELD_TOKENS + _block_tokens(part, family, key) for key, part in block.items())
    if isinstance(block, list | tuple):
        return sum(_block_tokens(part, family, name) for part in block)
    if isinstance(block, str) and name in _ENCODED:
        return len(block) // ENCODED_CHARS
    return text_tokens(block if isinstance(block, str) else _json(block), family)


def _attachment_tokens(attachment: Attachment) -> int:
    if attachment.media_type.startswith("image/"):
        return IMAGE_TOKENS
    return len(attachment.data) // ENCODED_CHARS if attachment.data else FILE_TOKENS


def _json(value: object) -> str:
    try:
        return to_json(value).decode()
    except ValueError:
        return json.dumps(value, default=str)


class _Counts:
    """The tokens of texts, kept since a conversation is counted anew in each round; long texts by their digest."""

    def __init__(self, most: int = _MOST_KNOWN) -> None:
        self._known: dict[str | bytes, dict[Family, int]] = {}
        self._most = most

    def of(self, text: str) -> dict[Family, int]:
        key = text if len(text) <= _SHORT else _digest(text)
        found = self._known.get(key)
        if found is None:
            found = _estimates(text)
            if len(self._known) >= self._most:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = found
        return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _estimates(text: str) -> dict[Family, int]:
    counts = _count(text)
    known = {f: round(sum(w * n for w, n in zip(each, counts, strict=True))) for f, each in _WEIGHTS.items()}
    return {**known, "unknown": max(known.values())}


def _count(text: str) -> tuple[int, ...]:
    counts = [0] * _CLASSES.groups
    for match in _CLASSES.finditer(text):
        group = match.lastindex or 0
        if group == 2:
            # A word: it matched the group for its later letters, too, though they may be none.
            counts[0] += 1
            counts[1] += len(match[2])
        else:
            counts[group - 1] += 1
    return tuple(counts)


_counts = _Counts()
