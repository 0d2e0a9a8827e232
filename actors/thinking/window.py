"""What of a conversation goes to the model: all of it while it fits, else what matters of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from squadron.actors.thinking.fence import Fence
from squadron.actors.thinking.model import ChatMessage
from squadron.actors.thinking.tokens import (
    MESSAGE_TOKENS,
    Family,
    conversation_tokens,
    message_tokens,
    text_tokens,
)
from squadron.runtime.errors import ModelError
from squadron.runtime.texts import encoded

#: Share of a window that a conversation may fill, since counts are estimates; and of a limit that a provider named
#: when it refused one: then the estimate was wrong by more than the other share allows for.
SHARE, SHARE_ONCE_OVERFLOWED = 0.8, 0.6
#: Share of that which is left filled by a summary, so that the next one comes after many rounds.
AIM = 0.625
#: The newest groups, which are worked on: they are neither cleared nor summarized.
KEPT_GROUPS = 3
#: Longest old result that is never cleared, in characters: a stub would save little.
CLEARED_CHARS = 1_000
#: Most tokens of a summary, and the share of a window that it may always have.
SUMMARY_TOKENS, SUMMARY_SHARE = 4_000, 0.05
#: Share of the room that a new part must have, or else results are cut before it is summarized: each summary costs
#: a call, and the cached beginning of the conversation.
WORTH_SHARE = 0.1
#: Fewest tokens that is summarized at all, and to which a result is cut.
LEAST_COVERED, LEAST_RESULT = 100, 100
#: References that a summary lists, the newest.
MOST_REFERENCES = 40

_SUMMARY_HEAD = "An earlier part of this conversation was summarized to save room:"

Step = Literal["summarized", "cleared", "thoughts dropped", "cut"]
Group = tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What stands for a part of a conversation; stored, so that it is made once.

    Attributes:
        text: the message that is shown instead, ready.
        inside: what it says, for the summary that will cover this one.
        through: it reaches over so many groups from the beginning.
        kept: those of them that stay, by number: the system part, the goal, calls that were open.
        digest: of the messages that it covers; it stands for these only.
    """

    text: str
    inside: str
    through: int
    kept: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class ToSummarize:
    """The part of a conversation that is to be summarized: `messages`, and what stood for those before them.

    Attributes:
        earlier: what the newest summary says, which the next one replaces.
        references: under which the results in it can still be passed on.
        max_tokens: room for the summary.
    """

    messages: Group
    earlier: str
    through: int
    kept: tuple[int, ...]
    digest: str
    references: tuple[str, ...]
    max_tokens: int
    family: Family

    def summary(self, text: str, fence: Fence) -> Summary:
        """The summary with this text, cut to its room, and with the references in full."""
        listed = list(self.references[-MOST_REFERENCES:])
        while listed and text_tokens(", ".join(listed), self.family) > self.max_tokens // 2:
            listed = listed[len(listed) // 2 + 1 :]
        passed_on = f"\nResults of that part that can be passed on: {', '.join(listed)}" if listed else ""
        frame = f"{_SUMMARY_HEAD}\n{fence.around('', 'summary')}{passed_on}"
        room = max(0, self.max_tokens - text_tokens(frame, self.family) - MESSAGE_TOKENS)
        while True:
            inside = shortened(text, room, self.family)
            told = f"{_SUMMARY_HEAD}\n{fence.around(inside, 'summary')}{passed_on}"
            # Tokens don't add up: where two texts meet there may be one more.
            over = text_tokens(told, self.family) + MESSAGE_TOKENS - self.max_tokens
            if over <= 0 or room == 0:
                return Summary(told, inside, self.through, self.kept, self.digest)
            room = max(0, room - over)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation as it goes to the model.

    Attributes:
        tokens: how many it will be, an estimate.
        steps: what was done to it, in order; empty if nothing.
        to_summarize: it does not fit yet: have this summarized, store that, and call `fit` again with it.
    """

    messages: Group
    tokens: int
    steps: tuple[Step, ...] = ()
    to_summarize: ToSummarize | None = None


def fit(
    messages: Sequence[ChatMessage],
    *,
    window_tokens: int,
    reserved_tokens: int = 0,
    family: Family = "unknown",
    goal: int | None = None,
    summaries: Sequence[Summary] = (),
    references: Mapping[str, str] | None = None,
    pending: Collection[str] = (),
    overflowed: bool = False,
) -> Fitted:
    """Make a conversation fit into a model's window, by as little as will do.

    It is shown as it is while it fits. Then, in this order: long results of all but the newest groups are cleared,
    the thinking of closed turns is dropped, all between the goal and the newest groups is summarized, and the
    largest results are cut. The same arguments give the same conversation, so a run that is resumed shows what it
    showed.

    Args:
        messages: the whole conversation, each result right after its call.
        window_tokens: what the model takes, input and output; after a refusal, the limit that its provider named.
        reserved_tokens: of these, for the tools that are offered and the answer.
        goal: index of the message that all is about, the first of the user by default; it stays as it is.
        summaries: those that were made of this conversation before, oldest first.
        references: by call id, how a result that the model does not see any more is named in arguments.
        pending: ids of calls that wait for somebody; they stay, as those without a result do.
        overflowed: a provider refused this conversation although it was thought to fit.

    Raises:
        ModelError: of the kind "overflow": the system part, the goal and the newest groups alone are too long.
    """
    share = SHARE_ONCE_OVERFLOWED if overflowed else SHARE
    budget = max(0, int(share * window_tokens) - reserved_tokens)
    conversation = _Conversation(messages, summaries, goal, pending)
    shown, steps = conversation.shown, list[Step](["summarized"] if conversation.summary else [])
    tokens = conversation_tokens(shown, family)
    if tokens > budget or overflowed:
        shown = _noted(shown, _cleared(shown, KEPT_GROUPS, references or {}), "cleared", steps)
        tokens = conversation_tokens(shown, family)
    if tokens > budget:
        shown = _noted(shown, _without_thoughts(shown), "thoughts dropped", steps)
        tokens = conversation_tokens(shown, family)
    if tokens <= budget:
        return Fitted(shown, tokens, tuple(steps))
    span = conversation.span(budget, int(SUMMARY_SHARE * window_tokens), family, references or {})
    if span is None or conversation_tokens(conversation.uncovered, family) < WORTH_SHARE * budget:
        narrow = _noted(shown, _cut(shown, tokens - budget, family, conversation.fixed), "cut", steps)
        if (needed := conversation_tokens(narrow, family)) <= budget:
            return Fitted(narrow, needed, tuple(steps))
    # What stays beside a summary must fit, or else one would be paid for in vain.
    least = conversation_tokens(_cut(conversation.staying, tokens, family, conversation.fixed), family)
    if span is None or least + LEAST_COVERED > budget:
        raise ModelError(
            f"the conversation has about {tokens} tokens, and can't be shortened to the {budget} that have room",
            kind="overflow",
            hint="use a model with a larger window, or give it less at once",
        )
    return Fitted(shown, tokens, tuple(step for step in steps if step != "cut"), span)


def grouped(messages: Iterable[ChatMessage]) -> list[Group]:
    """The conversation in groups: a message of the system or the user, or an assistant's with all its results."""
    groups: list[list[ChatMessage]] = []
    for message in messages:
        if message.role == "tool" and groups and groups[-1][0].role in ("assistant", "tool"):
            groups[-1].append(message)
        else:
            groups.append([message])
    return [tuple(group) for group in groups]


def shortened(text: str, most_tokens: int, family: Family = "unknown") -> str:
    """The text in at most so many tokens: its head and its tail, with a note of what is left out between."""
    tokens = text_tokens(text, family)
    if tokens <= most_tokens:
        return text
    shown = int(len(text) * most_tokens / tokens)
    while True:
        tail = shown // 3
        note = f"\n[… {len(text) - shown} characters are left out here …]\n"
        short = text[: shown - tail] + note + text[len(text) - tail :]
        if shown == 0 or text_tokens(short, family) <= most_tokens:
            return short
        shown = int(shown * 0.85)


def level_of(sizes: Iterable[int], excess: int) -> int:
    """The size to which the largest have to be cut, so that all together have `excess` less."""
    largest_first, level, total = sorted(sizes, reverse=True), 0, 0
    for count, size in enumerate(largest_first, 1):
        total += size
        level = (total - excess) // count
        if count == len(largest_first) or level >= largest_first[count]:
            break
    return level


def digest_of(messages: Sequence[ChatMessage]) -> str:
    """What a part of a conversation is known by; the same for the same messages in any process."""
    return hashlib.sha256(encoded(messages)).hexdigest()


class _Conversation:
    """A conversation in groups, each of which stays or may be summarized."""

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        summaries: Sequence[Summary],
        goal: int | None,
        pending: Collection[str],
    ) -> None:
        self._groups = grouped(messages)
        users = (n for n, group in enumerate(self._groups) if group[0].role == "user")
        self._goal = next(users, 0) if goal is None else len(grouped(messages[: goal + 1])) - 1
        newest = len(self._groups) - KEPT_GROUPS
        self._kept = {
            n
            for n, group in enumerate(self._groups)
            if n == self._goal or n >= newest or group[0].role == "system" or _is_open(group, pending)
        }
        self._through = max(0, newest)
        self.summary = next((each for each in reversed(summaries) if self._fits(each)), None)

    def _fits(self, summary: Summary) -> bool:
        covered = _covered(self._groups, summary.through, summary.kept)
        return summary.through <= len(self._groups) and digest_of(covered) == summary.digest

    def _outline(self, through: int, kept: Collection[int]) -> tuple[list[int], list[int]]:
        """Numbers of the groups that such a summary stays behind, and of those that follow it."""
        covered = [n for n in range(through) if n not in kept]
        first = covered[0] if covered else through
        return list(range(first)), [n for n in range(first, len(self._groups)) if n >= through or n in kept]

    @property
    def shown(self) -> Group:
        """The conversation with its newest summary in place of what that covers."""
        if self.summary is None:
            return _flat(self._groups)
        before, after = self._outline(self.summary.through, self.summary.kept)
        told = ChatMessage("user", self.summary.text)
        return (*self._of(before), told, *self._of(after))

    def _of(self, numbers: Iterable[int]) -> Group:
        return _flat(self._groups[n] for n in numbers)

    @property
    def uncovered(self) -> Group:
        """What could be summarized and is not yet."""
        reached, left = (0, ()) if self.summary is None else (self.summary.through, self.summary.kept)
        return self._of(n for n in range(self._through) if n not in self._kept and (n >= reached or n in left))

    @property
    def fixed(self) -> set[str]:
        """What is never cut of all that the user says: the goal, and the summary."""
        return {group[0].content for group in self._groups[self._goal : self._goal + 1]} | {
            self.summary.text if self.summary else ""
        }

    @property
    def staying(self) -> Group:
        """What no summary will cover."""
        return self._of(n for n in range(len(self._groups)) if n >= self._through or n in self._kept)

    def span(self, budget: int, least: int, family: Family, references: Mapping[str, str]) -> ToSummarize | None:
        """What is to be summarized next, None if there is nothing that is worth it."""
        earlier = "" if self.summary is None else self.summary.inside
        new = self.uncovered
        tokens = text_tokens(earlier, family) + conversation_tokens(new, family)
        if not new or tokens < LEAST_COVERED:
            return None
        kept = tuple(n for n in range(self._through) if n in self._kept)
        covered = _covered(self._groups, self._through, kept)
        named = tuple(references[each.tool_call_id] for each in covered if each.tool_call_id in references)
        room = max(least, int(AIM * budget) - conversation_tokens(self.staying, family))
        room = min(SUMMARY_TOKENS, tokens // 2, room)
        return ToSummarize(new, earlier, self._through, kept, digest_of(covered), named, room, family)


def _flat(groups: Iterable[Group]) -> Group:
    return tuple(message for group in groups for message in group)


def _covered(groups: Sequence[Group], through: int, kept: Collection[int]) -> Group:
    return _flat(group for n, group in enumerate(groups[:through]) if n not in kept)


def _is_open(group: Group, pending: Collection[str]) -> bool:
    answered = {message.tool_call_id for message in group}
    return any(call.id not in answered or call.id in pending for call in group[0].tool_calls)


def _noted(before: Group, after: Group, step: Step, steps: list[Step]) -> Group:
    if after != before:
        steps.append(step)
    return after


def _cleared(messages: Group, newest: int, references: Mapping[str, str]) -> Group:
    """The conversation with a stub for each long result, but for those in the newest groups."""
    groups = grouped(messages)
    old = max(0, len(groups) - newest)
    stubs = (_stub(message, references.get(message.tool_call_id, "")) for message in _flat(groups[:old]))
    return (*stubs, *_flat(groups[old:]))


def _stub(message: ChatMessage, reference: str) -> ChatMessage:
    if message.role != "tool" or not (message.attachments or len(message.content) > CLEARED_CHARS):
        return message
    way = f"It can still be passed on as {reference}." if reference else "If you need it again, call again."
    if len(message.content) <= CLEARED_CHARS:
        content = f"{message.content}\n[{len(message.attachments)} attachments were cleared to save room. {way}]"
        return replace(message, content=content, attachments=())
    size = f"{len(message.content)} characters" + (", and attachments" if message.attachments else "")
    return replace(message, content=f"[This result of {size} was cleared to save room. {way}]", attachments=())


def _without_thoughts(messages: Group) -> Group:
    """The conversation without the providers' own blocks, but for those of the tool loop that is open."""
    at = len(messages)
    while at and messages[at - 1].role != "assistant":
        at -= 1
    # A turn that its provider paused goes back as it is, with nothing behind it.
    if at and (messages[at - 1].tool_calls or at == len(messages)):
        while at and messages[at - 1].role in ("assistant", "tool"):
            at -= 1
    return (*(replace(each, blocks=()) if each.blocks else each for each in messages[:at]), *messages[at:])


def _cut(messages: Group, excess: int, family: Family, fixed: Collection[str]) -> Group:
    """The conversation with its largest results cut to one size, to save `excess` tokens as far as they can.

    What they can't save, later messages of the user have to: in a run these tell what came of calls late.
    """
    for role in ("tool", "user"):
        sizes = [_size_to_cut(each, role, family, fixed) for each in messages]
        level = max(level_of(filter(None, sizes), excess), LEAST_RESULT)
        if excess > 0:
            messages = tuple(
                _cut_to(each, level, family) if size > level else each
                for each, size in zip(messages, sizes, strict=True)
            )
            excess -= sum(max(0, size - level) for size in sizes)
    return messages


def _size_to_cut(message: ChatMessage, role: str, family: Family, fixed: Collection[str]) -> int:
    may = message.role == role and not (role == "user" and message.content in fixed)
    return message_tokens(message, family) if may else 0


def _cut_to(message: ChatMessage, most_tokens: int, family: Family) -> ChatMessage:
    content = message.content
    if message.attachments:
        content += f"\n[{len(message.attachments)} attachments are left out to save room.]"
    return replace(message, content=shortened(content, most_tokens - MESSAGE_TOKENS, family), attachments=())
