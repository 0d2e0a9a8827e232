"""How often a topic or a task goes from squad to squad through doors of ours, so that none goes round for ever.

Two squads may have each other's topics. Each of those would be one more of the other's, and so on; and a task for
one could be handed to and fro.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from squadron.runtime.wire.limits import Budget

if TYPE_CHECKING:
    from squadron.runtime.wire.topics import SemanticTopic

#: Doors that a topic is told of through. Nobody leads further than to a squad's squad's squad.
MOST_DOORS = 3
#: Squads that a task is handed through, if it came with no hops of its own: more than any chain that is meant.
MOST_HOPS = 8
#: The tag of a topic that came through doors, before their number.
_TAG = "doors:"


def doors_to(topic: SemanticTopic) -> int:
    """How many doors a topic has come through for those who are told of it by one more."""
    passed = (_number(tag.removeprefix(_TAG)) for tag in topic.tags if tag.startswith(_TAG))
    return 1 + max(passed, default=0)


def doors_tags(told: Any) -> tuple[str, ...]:
    """The tag of a topic of which a door of ours told this number; none if no door told it.

    Raises:
        ValueError: it came through too many.
    """
    passed = _number(str(told))
    if passed > MOST_DOORS:
        raise ValueError(f"it came through {passed} doors of squads, and may be a topic from here that goes round")
    return (f"{_TAG}{passed}",) if passed else ()


def _number(told: str) -> int:
    """The number that anybody wrote here; 0 if it is none."""
    return int(told) if told.isdecimal() and len(told) < 10 else 0


def hops_after(budget: Budget) -> int:
    """What hops are left to a task that is handed on to another squad; below zero if there are none."""
    return MOST_HOPS if budget.hops is None else min(budget.hops, MOST_HOPS) - 1


def budget_of_hops(told: Any) -> Budget:
    """What a task may spend that was handed on with so many hops.

    Raises:
        ValueError: that is no number of hops.
    """
    if not isinstance(told, int | float) or isinstance(told, bool) or told != told or abs(told) > MOST_HOPS:
        raise ValueError(f"hops are a whole number up to {MOST_HOPS}")
    return Budget(hops=max(-1, int(told)))
