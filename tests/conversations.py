"""Conversations for property tests: as runs and chats make them, and broken ones."""

from __future__ import annotations

from hypothesis import strategies as st

from squadron.actors.thinking.model import Attachment, ChatMessage, ToolCall

WORDS = ("the lease of", "a replica", "ends;", "why?", "We decided", "to wait.", "42", "日本", "für")


def texts(most_words: int = 240) -> st.SearchStrategy[str]:
    """Texts of very different lengths, cheap to make: a few words, again and again."""
    some = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
    return st.builds(lambda text, often: " ".join([text] * often), some, st.integers(1, max(1, most_words // 6)))


_PICTURE = Attachment("image/png", data="iVBORw0KGgo=" * 8)
_BLOCKS = st.builds(
    lambda text: (
        {"type": "thinking", "thinking": text, "signature": "c2ln" * 40},
        {"type": "text", "text": text},
    ),
    texts(120),
)


@st.composite
def conversations(draw: st.DrawFn, *, pending: bool = True) -> list[ChatMessage]:
    """A good conversation of a run: a system part, a goal, rounds of calls with results, some of them open."""
    messages = [ChatMessage("system", draw(texts(60)))] if draw(st.booleans()) else []
    messages.append(ChatMessage("user", draw(texts(60)), attachments=(_PICTURE,) if draw(st.booleans()) else ()))
    for round in range(draw(st.integers(0, 9))):
        if draw(st.integers(0, 5)) == 0:
            messages.append(ChatMessage("user", draw(texts(100))))
        many = draw(st.sampled_from((0, 1, 1, 1, 3)))
        calls = tuple(ToolCall(f"r{round}k{k}", "look_up", {"word": draw(texts(12))}) for k in range(many))
        blocks = draw(st.one_of(st.just(()), _BLOCKS))
        model = "anthropic:claude-sonnet-5-5" if blocks else ""
        messages.append(ChatMessage("assistant", draw(texts(40)), calls, blocks=blocks, model=model))
        for call in calls:
            if pending and draw(st.integers(0, 19)) == 0:
                continue
            failed = draw(st.integers(0, 4)) == 0
            pictures = (_PICTURE,) if draw(st.integers(0, 9)) == 0 else ()
            messages.append(ChatMessage("tool", draw(texts()), (), call.id, failed, pictures))
    return messages


@st.composite
def broken_conversations(draw: st.DrawFn) -> list[ChatMessage]:
    """A conversation of which messages were lost, doubled or put elsewhere, as crashes and callers leave them."""
    messages = draw(conversations())
    for _ in range(draw(st.integers(0, 5))):
        if not messages:
            break
        at = draw(st.integers(0, len(messages) - 1))
        match draw(st.sampled_from(("lose", "double", "move", "cut", "blank"))):
            case "lose":
                del messages[at]
            case "double":
                messages.insert(draw(st.integers(0, len(messages))), messages[at])
            case "move":
                messages.insert(draw(st.integers(0, len(messages) - 1)), messages.pop(at))
            case "cut":
                del messages[:at]
            case "blank":
                messages.insert(at, ChatMessage(draw(st.sampled_from(("user", "assistant", "tool"))), "  "))
    return messages
