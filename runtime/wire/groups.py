"""Groups of durable subscribers: what they hear, and from where on."""

from __future__ import annotations

from dataclasses import dataclass

from squadron.runtime.wire.start import Start, check_start
from squadron.runtime.wire.subjects import check_pattern, check_token


@dataclass(frozen=True, slots=True)
class EventGroup:
    """Those who share a durable subscription: each event that matches goes to one of them, at least once.

    `start` counts when the group is made; later it goes on where it was. `lease_s` is how long a silent member
    keeps an event before it is given to another.

    Raises:
        InvalidSubjectError: `name` is not a token (an agent's: `agent.method`), or `pattern` breaks the grammar.
        InvalidInputError: `start` is not a place in the log.
    """

    name: str
    pattern: str
    start: Start = "new"
    lease_s: float = 2.5

    def __post_init__(self) -> None:
        check_group(self.name)
        check_pattern(self.pattern)
        check_start(self.start)


def check_group(name: str) -> str:
    """Return `name` if a group can be called so.

    Raises:
        InvalidSubjectError: it is not a token, nor two of them with a dot between.
    """
    for token in name.split(".", 1) if isinstance(name, str) else [name]:
        check_token(token, f"subscription {name!r}:")
    return name
