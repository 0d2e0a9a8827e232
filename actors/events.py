"""How a method says which events it wants: `@on` at most once, `@on_durable` at least once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from squadron.runtime.durable import DEFAULT_MAX_ATTEMPTS, DEFAULT_RUN_TIMEOUT_S, Start, check_start
from squadron.runtime.errors import InvalidAgentError
from squadron.runtime.subjects import check_pattern

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class EventMark:
    """An event handler's wish: `pattern` of events, and whether every replica gets each one."""

    pattern: str
    everyone: bool


@dataclass(frozen=True, slots=True)
class DurableMark:
    """A durable event handler's wish: see `on_durable`."""

    pattern: str
    start: Start
    max_attempts: int
    run_timeout_s: float


def on(pattern: str, *, everyone: bool = False) -> Callable[[F], F]:
    """Hear events with this method: each agent type gets each event once, or `everyone` of its replicas.

    Events are at most once: a replica that is not there misses them.

    Raises:
        InvalidSubjectError: the pattern breaks the grammar.
    """
    mark = EventMark(check_pattern(pattern), everyone)

    def decorate(method: F) -> F:
        method.__squadron_event__ = mark  # type: ignore[attr-defined]
        return method

    return decorate


def on_durable(
    pattern: str,
    *,
    start: Start = "new",
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    run_timeout_s: float = DEFAULT_RUN_TIMEOUT_S,
) -> Callable[[F], F]:
    """Handle durable events with this method, at least once: one replica of the agent gets each event.

    What was published while no replica was there is handled when one is back. A handler that raises is tried
    again with growing pauses; after its last attempt the event is buried among the dead letters.

    Args:
        pattern: `news.sport`, or `news.*` for a family.
        start: where the agent's first deploy begins: "new", "first", a sequence (int), or a time (an aware
            datetime, or a float of seconds since the epoch). Later deploys go on where the last one was.
        max_attempts: how often an event is tried before it is buried.
        run_timeout_s: longest run of one attempt, in seconds.

    Raises:
        InvalidSubjectError: the pattern breaks the grammar.
        InvalidInputError: `start` is not a place in the log.
        InvalidAgentError: `max_attempts` or `run_timeout_s` is too small.
    """
    check_start(start)
    if run_timeout_s <= 0 or max_attempts < 1:
        raise InvalidAgentError(f"{pattern}: run_timeout_s must be above 0 and max_attempts at least 1")
    mark = DurableMark(check_pattern(pattern), start, max_attempts, run_timeout_s)

    def decorate(method: F) -> F:
        method.__squadron_durable_event__ = mark  # type: ignore[attr-defined]
        return method

    return decorate
