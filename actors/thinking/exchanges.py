"""What an agent that thinks remembers of a conversation: its newest exchanges, and what the older ones came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from squadron.actors.thinking.fence import Fence
from squadron.actors.thinking.model import ChatMessage
from squadron.actors.thinking.repair import repaired
from squadron.actors.thinking.summarize import extracted
from squadron.actors.thinking.tokens import MESSAGE_TOKENS, Family, conversation_tokens, text_tokens
from squadron.actors.thinking.window import shortened
from squadron.runtime.errors import FencedError
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.running.context import MEMORY_TTL_S, TurnContext
from squadron.runtime.store.own_journal import talk_owner
from squadron.runtime.texts import encoded, whole
from squadron.runtime.wire.subjects import token_of

T = TypeVar("T")

#: Share of a model's window for what was said before: the rest is for the work at hand.
EARLIER_SHARE = 0.4
#: Share of that for what the older exchanges came to.
_SUMMARY_SHARE = 0.2
#: Longest prompt or answer that is remembered, in tokens: about 60,000 characters; the middle is left out.
MOST_SAID_TOKENS = 16_000
#: So many exchanges, or characters, are kept in full; with twice as many, the older ones become a summary.
KEPT_EXCHANGES, KEPT_CHARS = 40, 250_000
#: Room for that summary, in tokens.
KEPT_SUMMARY_TOKENS = 4_000

_HEAD = "Earlier in this conversation, in short:"


@dataclass(frozen=True, slots=True)
class _Exchange:
    seq: int
    message: str
    number: int
    prompt: str
    answer: str

    @property
    def pair(self) -> list[ChatMessage]:
        return [ChatMessage("user", self.prompt), ChatMessage("assistant", self.answer)]

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(slots=True)
class _Remembered:
    """What the journal holds: `through` is the last entry that the summary covers, `last` the last there is."""

    summary: str = ""
    through: int = 0
    last: int = 0
    exchanges: list[_Exchange] = field(default_factory=list)


class Exchanges:
    """The memory of one agent in one conversation, for the `number`th time that a task of it thinks.

    It is shared by all replicas, and keeps each exchange for a week. What it gives never outgrows the room that it
    is given, and what it holds is bounded, however long the conversation gets.

    Args:
        remembers: false for an agent that shall not: then it gives what the caller tells, and holds nothing.
    """

    def __init__(self, ctx: TurnContext, number: int = 1, *, remembers: bool = True) -> None:
        ports, context = ctx.caller.ports, ctx.message.context
        self._lite = ctx.own
        self._message, self._number, self._context = ctx.message.id, number, context
        # A message that names no conversation is one of its own, and nobody will ever come back to it.
        self._talks = remembers and context.conversation_id != ctx.message.id
        self._key = ports.subjects.lite(talk_owner(ctx.agent), token_of(context.conversation_id))
        self._fence = Fence.of(context.conversation_id)

    async def earlier(self, *, budget_tokens: int, family: Family = "unknown") -> list[ChatMessage]:
        """The conversation so far, in at most so many tokens: as the caller tells it, else as it is remembered.

        The newest exchanges come as they were, the older ones as an extract. The first message is the user's. What
        this very task left behind in an earlier attempt is not among them.

        Raises:
            BusUnavailableError: the memory can't be read.
        """
        most = self._context.max_history
        if self._context.history is not None:
            told = [read_history(item) for item in _last(self._context.history, most)]
            return self._within(told, "", budget_tokens, family)
        if not self._talks:
            return []
        kept = await self._read()
        if _is_too_much(kept.exchanges):
            await self._fold(kept)
        past = (e for e in kept.exchanges if e.message != self._message or e.number < self._number)
        messages = _last([message for exchange in past for message in exchange.pair], most)
        return self._within(messages, kept.summary if most is None else "", budget_tokens, family)

    async def add(self, prompt: str, answer: str) -> None:
        """Remember one exchange; once, however often this task is tried.

        Raises:
            BusUnavailableError: it is not acknowledged in time.
        """
        if not self._talks:
            return
        said = {
            "message": self._message,
            "number": self._number,
            "prompt": shortened(whole(prompt), MOST_SAID_TOKENS),
            "answer": shortened(whole(answer), MOST_SAID_TOKENS),
        }
        # The server knows an id for two minutes; whoever reads keeps the first of later ones, too.
        msg_id = token_of(f"{self._key} {self._message} {self._number}")
        await self._lite.append(self._key, to_json({"exchange": said}), ttl_s=MEMORY_TTL_S, msg_id=msg_id)

    async def _read(self) -> _Remembered:
        kept, seen = _Remembered(), set[tuple[str, int]]()
        async for entry in self._lite.read(self._key):
            kept.last = entry.seq
            if END_HEADER in entry.headers:
                kept = _Remembered(last=entry.seq)
                continue
            said, summary = _entry(entry.data)
            if summary is not None:
                kept.summary, kept.through = summary
            elif said is not None:
                exchange = _Exchange(entry.seq, *said)
                if (exchange.message, exchange.number) not in seen:
                    seen.add((exchange.message, exchange.number))
                    kept.exchanges.append(exchange)
        kept.exchanges = [exchange for exchange in kept.exchanges if exchange.seq > kept.through]
        return kept

    async def _fold(self, kept: _Remembered) -> None:
        """Put a summary in the place of the older exchanges, unless another replica is at it."""
        stays = _newest(kept.exchanges)
        old = kept.exchanges[: len(kept.exchanges) - len(stays)]
        messages = [message for exchange in old for message in exchange.pair]
        text = extracted(messages, kept.summary, KEPT_SUMMARY_TOKENS, "unknown")
        entry = to_json({"summary": {"text": text, "through": old[-1].seq}})
        try:
            await self._lite.append(self._key, entry, ttl_s=MEMORY_TTL_S, expect_seq=kept.last)
        except FencedError:
            return
        # Should this not come about, readers know by the summary what it covers.
        await self._lite.erase(self._key, through_seq=old[-1].seq)
        kept.summary, kept.exchanges = text, stays

    def _within(
        self, messages: Sequence[ChatMessage], summary: str, budget_tokens: int, family: Family
    ) -> list[ChatMessage]:
        """The newest messages that have room as they are, and an extract of the others."""
        good = repaired(messages)
        if not summary and conversation_tokens(good, family) <= budget_tokens:
            return good
        for_extract = int(_SUMMARY_SHARE * budget_tokens)
        left, newest = budget_tokens - for_extract, list[ChatMessage]()
        for message in reversed(good):
            left -= conversation_tokens([message], family)
            if left < 0:
                break
            newest.insert(0, message)
        older = good[: len(good) - len(newest)]
        while newest and newest[0].role != "user":
            older.append(newest.pop(0))
        if not newest and older:
            # Not even the last exchange has room: its beginning and its end do.
            at = max(n for n, message in enumerate(older) if message.role == "user")
            newest, older = _cut_to(older[at:], budget_tokens - for_extract, family), older[:at]
        frame = text_tokens(f"{_HEAD}\n{self._fence.around('', 'memory')}", family) + 2 * MESSAGE_TOKENS
        text = extracted(older, summary, max(0, for_extract - frame), family)
        told = [ChatMessage("user", f"{_HEAD}\n{self._fence.around(text, 'memory')}")] if text else []
        fitting = ([*told, *newest], newest)
        return next((each for each in fitting if conversation_tokens(each, family) <= budget_tokens), [])


def read_history(item: Any) -> ChatMessage:
    """One entry of a history in whatever shape: `{role, content}`, or anything that the user said.

    What a role other than the assistant's says counts as said by the user: nothing in it gives orders to a model.
    """
    is_assistant = False
    if isinstance(item, dict) and "content" in item:
        is_assistant = item.get("role") in ("assistant", "agent", "model")
        item = item["content"]
    if isinstance(item, list) and item and all(isinstance(part, dict) and "text" in part for part in item):
        item = "\n".join(str(part["text"]) for part in item)
    text = item if isinstance(item, str) else encoded(item).decode()
    return ChatMessage("assistant" if is_assistant else "user", text)


def _entry(data: bytes) -> tuple[tuple[str, int, str, str] | None, tuple[str, int] | None]:
    """The exchange or the summary that an entry holds; nothing if anybody wrote anything else there."""
    try:
        held = from_json(data)
        if "summary" in held:
            return None, (str(held["summary"]["text"]), int(held["summary"]["through"]))
        said = held["exchange"]
        return (str(said["message"]), int(said["number"]), str(said["prompt"]), str(said["answer"])), None
    except (ValueError, TypeError, LookupError):
        return None, None


def _last(items: Sequence[T], most: int | None) -> Sequence[T]:
    return items if most is None else items[max(0, len(items) - most) :]


def _is_too_much(exchanges: Sequence[_Exchange]) -> bool:
    return len(exchanges) > 2 * KEPT_EXCHANGES or sum(e.size for e in exchanges) > 2 * KEPT_CHARS


def _newest(exchanges: Sequence[_Exchange]) -> list[_Exchange]:
    newest, size = list[_Exchange](), 0
    for exchange in reversed(exchanges[-KEPT_EXCHANGES:]):
        size += exchange.size
        if newest and size > KEPT_CHARS:
            break
        newest.insert(0, exchange)
    return newest


def _cut_to(messages: Sequence[ChatMessage], room: int, family: Family) -> list[ChatMessage]:
    each = room // len(messages) - MESSAGE_TOKENS
    return [ChatMessage(m.role, shortened(m.content, max(0, each), family)) for m in messages]
