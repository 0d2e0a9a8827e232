"""Calls that a model makes again and again, and rounds that bring nothing new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from squadron.runtime.wire.path import digest_of

#: How often one call may end in the same way before it is refused: once more may be a slip, or a wait.
MOST_SAME = 2


class Repeats:
    """What was called with which arguments, and how it ended; the same in, the same out.

    A call is told apart by its topic and its arguments, in whichever order they were written and under whichever
    id the model made it.
    """

    def __init__(self) -> None:
        #: Digest of a call → that of its last end, and how often it came in a row.
        self._ends: dict[str, tuple[str, int]] = {}
        self._seen: set[str] = set()
        #: Rounds in a row in which no call ended as none before; rounds without a call do not count.
        self.rounds_without_news = 0

    def refusal(self, topic: str, arguments: Any) -> str:
        """Why a call is not to be made another time, or the empty string."""
        _, times = self._ends.get(digest_of([topic, arguments]), ("", 0))
        if times < MOST_SAME:
            return ""
        return (
            f"{topic} was called with exactly these arguments {times} times and ended in the same way each time; "
            "use what it said, change the arguments, or go another way"
        )

    def note(self, topic: str, arguments: Any, end: Any) -> bool:
        """Write down how a call ended (any JSON value: its data, or why it failed); says whether that is new."""
        call, ended = digest_of([topic, arguments]), digest_of(end)
        before, times = self._ends.get(call, ("", 0))
        self._ends[call] = (ended, times + 1 if before == ended else 1)
        news = digest_of([call, ended])
        is_new = news not in self._seen
        self._seen.add(news)
        return is_new

    def end_round(self, news: Iterable[bool]) -> int:
        """A round is over, with what `note` said of each of its calls; returns `rounds_without_news`."""
        told = list(news)
        if told:
            self.rounds_without_news = 0 if any(told) else self.rounds_without_news + 1
        return self.rounds_without_news
