"""A part of a conversation in few words: by a model, or, without one, by what stands out in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic_core import to_json

from squadron.actors.thinking.fence import FENCE_RULE, Fence
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn
from squadron.actors.thinking.tokens import Family, text_tokens
from squadron.actors.thinking.window import SHARE, Summary, ToSummarize, level_of, shortened

#: Tokens beyond those of the summary itself for models that think before they write it.
THINKING_TOKENS = 2_000
#: Longest and shortest line of an extract, and longest arguments in one, in characters.
_MOST_LINE, _LEAST_LINE, _MOST_ARGUMENTS = 300, 60, 120
#: Share of an extract that what was summarized before may have.
_EARLIER_SHARE = 0.4

_PROMPT = f"""You summarize a part of a conversation between a user and an assistant that calls tools, so that the
assistant can go on without that part. Keep what the user wants, decisions and their reasons, facts, numbers, names
and ids exactly as they are, what failed and why, and questions that are open. Leave out greetings and repetitions.
Answer with the summary alone, in at most {{words}} words. {FENCE_RULE}"""

_SENTENCE = re.compile(r"(?<=[.!?\u2026\u3002\uff01\uff1f])\s+|\n+")
_QUESTION = ("?", "\uff1f")
#: What a decision is told with; of other languages the first sentence of a message has to do.
_DECIDED = re.compile(
    r"\b(decid\w*|chose\w*|choos\w*|will|shall|plan\w*|because|therefore|instead|conclu\w*|agreed?|must)\b",
    re.IGNORECASE,
)


async def summarize(
    model: Model, span: ToSummarize, fence: Fence, *, window_tokens: int, family: Family = "unknown"
) -> tuple[Summary, ModelTurn]:
    """Have a model summarize, and what that used; for those who keep no books of their own.

    Raises:
        ModelError: it can't be asked; `extract` needs none.
    """
    turn = await model.think(summary_request(span, fence, window_tokens=window_tokens, family=family))
    return summary_of_turn(span, turn, fence), turn


def summary_request(
    span: ToSummarize, fence: Fence, *, window_tokens: int, family: Family = "unknown"
) -> ModelRequest:
    """What to ask a model for a summary. It fits into the window of that model, however long the part is."""
    most = span.max_tokens + THINKING_TOKENS
    system = ChatMessage("system", _PROMPT.format(words=max(20, span.max_tokens // 2)))
    frame = text_tokens(system.content, family) + 200
    room = max(0, int(SHARE * window_tokens) - most - frame)
    earlier = f"Summary of what was before:\n{span.earlier}\n\n" if span.earlier else ""
    lines = [earlier, *_transcript(span.messages)]
    # The longest lines give first: they are results, of which the beginning tells most.
    text = "\n\n".join(_within(lines, room, family))
    asked = f"{fence.around(shortened(text, room, family), 'conversation')}\n\nSummarize this part."
    return ModelRequest((system, ChatMessage("user", asked)), max_tokens=most)


def summary_of_turn(span: ToSummarize, turn: ModelTurn, fence: Fence) -> Summary:
    """The summary that a model wrote; an extract if it wrote none to its end."""
    return span.summary(turn.text.strip(), fence) if is_summary(turn) else extract(span, fence)


def is_summary(turn: ModelTurn) -> bool:
    """Whether a model wrote one; cut at its end it is one still."""
    return bool(turn.text.strip()) and turn.stop in ("end", "length")


def extract(span: ToSummarize, fence: Fence) -> Summary:
    """A summary by no model: what the user said, decisions, open questions, and what calls came to."""
    return span.summary(extracted(span.messages, span.earlier, span.max_tokens, span.family), fence)


def extracted(messages: Sequence[ChatMessage], earlier: str, most_tokens: int, family: Family) -> str:
    """What stands out in these messages and in the summary of those before, in at most so many tokens.

    What the user said comes first, then decisions and questions, then what calls came to; of each the newest.
    """
    before = shortened(earlier, int(most_tokens * _EARLIER_SHARE), family) if earlier else ""
    left = most_tokens - text_tokens(before, family)
    # So long that all that the user said has room, if it can: three characters are about a token.
    asked = sum(message.role == "user" for message in messages)
    longest = min(_MOST_LINE, max(_LEAST_LINE, 3 * left // max(1, asked)))
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    lines = [
        (rank, at, line if len(line) <= longest else f"{line[: longest - 1]}…")
        for at, message in enumerate(messages)
        for rank, line in _lines(message, names)
    ]
    chosen = set[tuple[int, int, str]]()
    for each in sorted(lines, key=lambda each: (each[0], -each[1])):
        # The newline may be a token of its own.
        cost = text_tokens(each[2], family) + 2
        if cost <= left and each not in chosen:
            chosen.add(each)
            left -= cost
    told = [each[2] for each in dict.fromkeys(lines) if each in chosen]
    return shortened("\n".join([before, *told] if before else told), most_tokens, family)


def _lines(message: ChatMessage, names: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """The lines that a message gives to an extract, and the rank of each: 0 is what is kept first."""
    if message.role == "user":
        yield 0, f"User: {_line(message.content)}"
    elif message.role == "tool":
        name = names.get(message.tool_call_id, "a tool")
        ended = "failed" if message.is_error else "came to"
        yield 2, f"Call {message.tool_call_id} of {name} {ended}: {_line(message.content)}"
    elif message.role == "assistant":
        sentences = [each.strip() for each in _SENTENCE.split(message.content) if each.strip()]
        for at, sentence in enumerate(sentences):
            if sentence.endswith(_QUESTION):
                yield 1, f"Assistant asked: {_line(sentence)}"
            elif _DECIDED.search(sentence):
                yield 1, f"Assistant: {_line(sentence)}"
            elif at == 0:
                yield 3, f"Assistant: {_line(sentence)}"
        for call in message.tool_calls:
            yield 2, f"Assistant called {call.name} ({call.id}): {_json(call.arguments)[:_MOST_ARGUMENTS]}"


def _transcript(messages: Sequence[ChatMessage]) -> Iterator[str]:
    for message in messages:
        if message.content.strip():
            whose = (
                f"Result of call {message.tool_call_id}" if message.role == "tool" else message.role.capitalize()
            )
            failed = " (failed)" if message.is_error else ""
            yield f"{whose}{failed}: {message.content}"
        for call in message.tool_calls:
            yield f"Call {call.id} of {call.name}: {call.raw or _json(call.arguments)}"


def _within(texts: list[str], room: int, family: Family) -> list[str]:
    """The texts with the longest ones shortened to one size, so that all together fit if they can."""
    sizes = [text_tokens(text, family) + 2 for text in texts]
    excess = sum(sizes) - room
    if excess <= 0:
        return texts
    level = level_of(sizes, excess)
    return [shortened(text, max(20, level - 2), family) for text in texts]


def _line(text: str) -> str:
    # Of a long text only so much is looked at as can be shown.
    return " ".join(text[: 4 * _MOST_LINE].split())


def _json(value: object) -> str:
    return to_json(value, fallback=str, inf_nan_mode="null").decode()
