"""Negotiations as they pass: who was called, what was bid, who got the task, and how that ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from squadron.views.passing import Passing

#: Rounds that are kept.
ROUNDS_KEPT = 200
#: Calls whose answers are waited for.
CALLS_KEPT = 2000
#: A call of the same caller so long after the first, in seconds, begins another round.
SILENCE_S = 5.0


@dataclass(slots=True)
class BidRound:
    """One call for bids and what came of it."""

    id: str
    at: float
    caller: str
    conversation: str
    called: list[str] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    bids: list[dict[str, Any]] = field(default_factory=list)
    task: str = ""
    awarded: str = ""
    outcome: str = ""


class BidRounds:
    """The latest negotiations, from what passes."""

    def __init__(self) -> None:
        self._rounds: OrderedDict[str, BidRound] = OrderedDict()
        #: Of each call and each task that was given, the round that it is of.
        self._of_call: OrderedDict[str, str] = OrderedDict()

    def hear(self, it: Passing) -> bool:
        """Take in one message, and say whether it is of a negotiation; most are not."""
        match it.kind:
            case "bids?":
                self._call(it)
                return True
            case "bid" if (found := self._rounds.get(self._of_call.get(it.parent, ""))) is not None:
                found.bids.append(
                    {"agent": it.agent, "replica": it.sender, "said": it.said, **_figures(it.content)}
                )
                return True
            case "task" if (found := self._asked_for(it)) is not None:
                found.task, found.awarded = it.id, it.agent
                return True
            case "result":
                found = next((each for each in self._rounds.values() if each.task == it.id and it.id), None)
                if found is not None:
                    found.outcome = it.outcome
                    return True
        return False

    def _call(self, it: Passing) -> None:
        talk = (it.sender, it.conversation)
        # One round calls all whom it calls at once.
        mine = [each for each in reversed(self._rounds.values()) if (each.caller, each.conversation) == talk]
        if mine and not mine[0].bids and not mine[0].task and it.at - mine[0].at < SILENCE_S:
            newest = mine[0]
        else:
            newest = BidRound(it.id, it.at, it.sender, it.conversation)
            self._rounds[it.id] = newest
            if len(self._rounds) > ROUNDS_KEPT:
                self._rounds.popitem(last=False)
        newest.called.append(it.agent)
        if isinstance(it.content, Mapping) and isinstance(topic := it.content.get("topic"), str):
            newest.topics.append(topic)
        self._of_call[it.id] = newest.id
        if len(self._of_call) > CALLS_KEPT:
            self._of_call.popitem(last=False)

    def _asked_for(self, it: Passing) -> BidRound | None:
        """The round that this task was given by: its caller asks who bid for this topic."""
        for each in reversed(self._rounds.values()):
            if each.caller == it.sender and it.topic in each.topics and it.at >= each.at:
                bid = any(one["agent"] == it.agent and "confidence" in one for one in each.bids)
                return each if bid and each.outcome != "result" else None
        return None

    def rows(self) -> dict[str, dict[str, Any]]:
        """All that are kept, by the id of their first call."""
        return {id: asdict(each) for id, each in self._rounds.items()}


def _figures(content: Any) -> dict[str, Any]:
    """The figures of a bid, whoever made it."""
    if not isinstance(content, Mapping):
        return {}
    return {
        name: value for name, value in content.items() if isinstance(value, int | float | str) and name != "bid"
    }
