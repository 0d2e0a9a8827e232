"""What a recording knows of the world: what came of calls, by what was asked and not by when."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import Answered, CallEnd, CallsEnded, Entry, Offered, Sending
from squadron.actors.runs.state import RunState
from squadron.replay.fork import Fork
from squadron.replay.recording import RecordedRun
from squadron.runtime.registry.search import Index, terms
from squadron.runtime.texts import digest_of
from squadron.runtime.wire.outcome import KINDS, Outcome, Result
from squadron.runtime.wire.spent import Spent
from squadron.runtime.wire.topics import SemanticTopic

#: How many topics one search by intent finds, as a supervisor's.
FOUND = 12


class KnownWorld:
    """Ends of tasks and tools, answers of people, and topics, as they are recorded.

    The same question has as many answers as it was asked, in this order.
    """

    def __init__(self, recorded: RecordedRun, state: RunState, cut: Fork) -> None:
        self._cut, self._run = cut, state
        self._ends: dict[tuple[str, str], deque[CallEnd]] = defaultdict(deque)
        self._people: dict[tuple[str, str], deque[Call]] = defaultdict(deque)
        self._cards = {
            card.name: card for entry in recorded.entries if isinstance(entry, Offered) for card in entry.cards
        }
        past = {end.call for entry in cut.entries if isinstance(entry, CallsEnded) for end in entry.ends}
        past |= {entry.call for entry in cut.entries if isinstance(entry, Answered)}
        out = {each.call for entry in cut.entries if isinstance(entry, Sending) for each in entry.calls}
        for call in state.calls.values():
            # What is in the part that stands is over; but a tool or a question that was under way begins again.
            if call.query is not None and call.id not in past:
                self._people[_asked(call)].append(call)
            over = past if call.dispatch is not None and call.dispatch.kind == "tool" else out
            if call.dispatch is not None and call.ready is not None and call.id not in over:
                first = call.dispatch.first
                for index, end in sorted(call.ends.items()):
                    if first <= index < first + len(call.ready.contents):
                        content = call.ready.contents[index - first]
                        end = cut.ends.get((call.id, index), end)
                        self._ends[call.dispatch.topic, digest_of(content)].append(end)

    def end_of(self, call: str, index: int) -> CallEnd | None:
        """How a task ended that was under way where the recording is left."""
        return self._cut.ends.get((call, index))

    def end(self, topic: str, content: Any) -> CallEnd | None:
        """What came of a task or a tool that was asked the same; each once."""
        known = self._ends.get((topic, digest_of(content)))
        return known.popleft() if known else None

    def answer(self, call: Call, at: float) -> list[Entry]:
        """What a person said to the same question; nothing, if nobody was asked it."""
        known = self._people.get(_asked(call))
        if not known:
            return []
        then = known.popleft()
        entries: list[Entry] = []
        if then.answer is not None:
            entries.append(then.answer.model_copy(update={"at": at, "call": call.id}))
        if then.ends and then.dispatch is None:
            ends = tuple(end.model_copy(update={"call": call.id}) for end in then.ends.values())
            entries.append(CallsEnded(at=at, ends=ends))
        return entries

    def find(self, intent: str) -> list[SemanticTopic]:
        """The recorded topics that fit an intent, the best first."""
        cards = list(self._cards.values())
        scores = Index(terms(f"{card.name} . {card.description}") for card in cards).scores(intent)
        ranked = sorted(zip(scores, cards, strict=True), key=lambda row: (-row[0], row[1].name))
        return [card for score, card in ranked if score > 0][:FOUND]


def _asked(call: Call) -> tuple[str, str]:
    return call.said.name, digest_of(call.said.arguments)


def outcome_of(end: CallEnd) -> Outcome:
    """A recorded end as the outcome that it was."""
    common: dict[str, Any] = {
        "topic": end.topic,
        "source": end.source,
        "attempt": end.attempt,
        "reason": end.reason,
    }
    common |= {"latency_ms": end.latency_ms, "spent": Spent.of_wire(end.spent)}
    if end.outcome == "result":
        return Result(data=end.data, confidence=end.confidence, reasoning=end.reasoning, **common)
    return KINDS.get(end.outcome, KINDS["failed"])(**common)
