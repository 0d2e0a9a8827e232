"""Several dead letters, as a notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from squadron.runtime.html_table import ShownAsTable

if TYPE_CHECKING:
    from squadron.runtime.store.dead_letters import DeadLetter


class LetterList(ShownAsTable, tuple["DeadLetter", ...]):
    """Dead letters, the newest first."""

    HEADER, NONE = ("id", "agent", "topic", "attempts", "why it was given up"), "Nothing was given up."

    @staticmethod
    def _row(each: Any, /) -> Sequence[object]:
        return each.id, each.agent, each.topic, each.attempts, each.reason
