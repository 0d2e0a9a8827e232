"""The marks an author puts on methods: `@topic` for tasks, `@on` and `@on_durable` for events, `@bid` for bids."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from squadron.runtime.errors import InvalidAgentError
from squadron.runtime.retries import DEFAULT_MAX_ATTEMPTS, FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Retries
from squadron.runtime.running.event_turns import EVENT_MAX_ATTEMPTS
from squadron.runtime.trust.verify_modes import MODES, VerifyMode
from squadron.runtime.wire.policy import check_who
from squadron.runtime.wire.start import Start, check_start
from squadron.runtime.wire.subjects import check_pattern

F = TypeVar("F", bound=Callable[..., Any])

#: What the marks leave on a method.
TOPIC, EVENT, DURABLE_EVENT, TOOL, BID = (
    "__squadron_topic__",
    "__squadron_event__",
    "__squadron_durable_event__",
    "__squadron_tool__",
    "__squadron_bid__",
)
#: What a `@bid` method may be told; see `CallForBids`.
BID_PARAMETERS = ("topic", "size", "digest", "time_left_s", "tokens", "usd")
#: How long one turn may run, in seconds, unless its topic says otherwise: an LLM call with its retries.
DEFAULT_RUN_TIMEOUT_S = 120.0
#: What people are told of a topic whose author wants its calls approved, and does not say why.
APPROVAL_BY_AUTHOR = "Its author wants each call approved."


@dataclass(frozen=True, slots=True)
class TopicMark:
    """What `@topic` says of a method."""

    name: str
    description: str
    examples: tuple[str, ...]
    tags: tuple[str, ...]
    run_timeout_s: float
    retries: Retries
    approval: str = ""
    allow: tuple[str, ...] = ()
    sealed: bool = False
    verify: VerifyMode = "off"


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
    run_timeout_s: float
    retries: Retries


def topic(
    name: str,
    *,
    description: str = "",
    examples: Iterable[str] = (),
    tags: Iterable[str] = (),
    run_timeout_s: float = DEFAULT_RUN_TIMEOUT_S,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    backoff_s: tuple[float, float] = (FIRST_BACKOFF_S, LONGEST_BACKOFF_S),
    retry_on: tuple[type[BaseException], ...] = (Exception, SystemExit),
    approval: bool | str = False,
    allow: Iterable[str] | None = None,
    sealed: bool = False,
    verify: VerifyMode = "off",
) -> Callable[[F], F]:
    """Serve a semantic topic with this method.

    Args:
        name: `domain.specificity`; `analysis.*` serves a whole family.
        description: what it is good for; the method's docstring by default.
        examples: requests it should be found by.
        tags: words it should be found by.
        run_timeout_s: longest run of one turn, in seconds.
        max_attempts: how often a task is tried before it is dead-lettered.
        backoff_s: pause before the second attempt and the longest, in seconds; doubled each time, with jitter.
        retry_on: exceptions against which another attempt may help; of all others the task fails at once.
        approval: whether a person approves each call that a model makes of it; a text says why.
        allow: who may ask it, as `client:ann`, `agent:*` or `agent:team-*`; by default everybody. It takes
            credentials and `verify`: a replica that can't hold to it does not start.
        verify: what is done at least about messages of this topic that nobody signed who may: "warn" or "require",
            where the environment says less. It takes credentials and `verify`, as `allow`.
        sealed: only this agent can read inputs, and only who asked its answers; what anybody can read is rejected.

    Raises:
        InvalidSubjectError: the name breaks the grammar.
        InvalidAgentError: a number can't be, `allow` is no list of principals, or `verify` no mode.
    """
    check_pattern(name)
    if verify not in MODES:
        raise InvalidAgentError(f"{name}: verify={verify!r} can't be", field="verify", hint="off, warn or require")
    if run_timeout_s <= 0 or max_attempts < 1 or not 0 <= backoff_s[0] <= backoff_s[1]:
        raise InvalidAgentError(
            f"{name}: needs run_timeout_s above 0, max_attempts of at least 1, and backoff_s as (first, longest)"
        )
    retries = Retries(max_attempts, *backoff_s, on=retry_on)
    why = APPROVAL_BY_AUTHOR if approval is True else approval or ""
    who = _allowed(name, allow)
    mark = TopicMark(
        name, description, tuple(examples), tuple(tags), run_timeout_s, retries, why, who, sealed, verify
    )

    def decorate(method: F) -> F:
        if other := getattr(_inner(method), TOPIC, None):
            what = f"{getattr(method, '__qualname__', method)} serves {other.name!r} already"
            raise InvalidAgentError(what, hint=f"write a second method for {name!r} that calls it")
        return _put(method, TOPIC, mark)

    return decorate


def _allowed(name: str, allow: Iterable[str] | None) -> tuple[str, ...]:
    if allow is None:
        return ()
    who = () if isinstance(allow, str) else tuple(allow)
    if not who:
        hint = 'a list like ["client:ann", "agent:*"]; without it everybody may'
        raise InvalidAgentError(f"{name}: allow={allow!r} names nobody", field="allow", hint=hint)
    try:
        return tuple(map(check_who, who))
    except ValueError as error:
        raise InvalidAgentError(f"{name}: allow: {error}", field="allow") from None


def on(pattern: str, *, everyone: bool = False) -> Callable[[F], F]:
    """Hear events with this method: each agent type gets each event once, or `everyone` of its replicas.

    Events are at most once: a replica that is not there misses them.

    Raises:
        InvalidSubjectError: the pattern breaks the grammar.
    """
    mark = EventMark(check_pattern(pattern), everyone)

    return lambda method: _put(method, EVENT, mark)


def on_durable(
    pattern: str,
    *,
    start: Start = "new",
    max_attempts: int = EVENT_MAX_ATTEMPTS,
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
    mark = DurableMark(check_pattern(pattern), start, run_timeout_s, Retries(max_attempts))

    return lambda method: _put(method, DURABLE_EVENT, mark)


def bid(method: F) -> F:
    """Bid for tasks with this method: it returns a `Bid`, or None if the agent had better not get the task.

    It is told what it has parameters for: `topic`; `size` of the input in bytes, and its `digest`; `time_left_s`;
    and what the task may cost, `tokens` and `usd`. A reason for a refusal is raised as `Terminal("…")`. An agent
    without such a method bids from the statistics of its tasks.

    Raises:
        InvalidAgentError: it is no method, or has another parameter.
    """
    function = _inner(method)
    if not callable(function):
        what = f"{function!r:.80} is a {type(method).__name__}, which can't bid"
        raise InvalidAgentError(what, hint="mark a method")
    bid_parameters(function, takes_self=not isinstance(method, staticmethod))
    return _put(method, BID, True)


def bid_parameters(function: Callable[..., Any], *, takes_self: bool) -> tuple[str, ...]:
    """Those of `BID_PARAMETERS` that a bid method takes.

    Raises:
        InvalidAgentError: it can't be called with these, or does not return a bid.
    """
    what = getattr(function, "__qualname__", repr(function))
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise InvalidAgentError(f"{what} yields, and a bid is one answer", hint="return a Bid, or None")
    taken: set[str] = set()
    for each in [*inspect.signature(function).parameters.values()][takes_self:]:
        if each.kind is each.VAR_KEYWORD:
            taken.update(BID_PARAMETERS)
        elif each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL):
            raise InvalidAgentError(f"{what}: parameter {each.name!r} must be passable by name", field=each.name)
        elif each.name in BID_PARAMETERS:
            taken.add(each.name)
        elif each.default is each.empty:
            hint = f"a bid is made from {', '.join(BID_PARAMETERS)}"
            raise InvalidAgentError(f"{what}: nobody tells a bid its {each.name!r}", field=each.name, hint=hint)
    return tuple(name for name in BID_PARAMETERS if name in taken)


def _put(method: F, attribute: str, mark: object) -> F:
    try:
        setattr(_inner(method), attribute, mark)
    except AttributeError:
        name = getattr(getattr(method, "fget", method), "__qualname__", method)
        what = f"{name} is a {type(method).__name__}, which can't be marked"
        raise InvalidAgentError(what, hint="mark a method") from None
    return method


def _inner(value: Any) -> Any:
    """What a static or class method wraps: its mark lies there, whichever stands first."""
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


@dataclass(frozen=True, slots=True)
class Marked:
    """A method that bears a mark, or overrides one that does."""

    name: str
    mark: Any
    #: As it is got from the class, and whether a call of it on an instance puts that before the arguments.
    function: Callable[..., Any]
    takes_self: bool


def marked(owner: type, attribute: str) -> Iterator[Marked]:
    """The methods of a class with this mark, by name; one that overrides another and is None is left out.

    Raises:
        InvalidAgentError: what is marked is no method.
    """
    for name in dir(owner):
        held = [vars(each)[name] for each in owner.__mro__ if name in vars(each)]
        mark = next(filter(None, (_mark_of(each, attribute) for each in held)), None)
        if mark is None or held[0] is None:
            continue
        function = getattr(owner, name)
        if not callable(function):
            what = f"{owner.__name__}.{name} bears a mark, or overrides a method that does, and is no method"
            raise InvalidAgentError(
                what, hint=f"it is a {type(held[0]).__name__}; write a method, or None to leave it out"
            )
        bound = isinstance(held[0], staticmethod | classmethod) or not hasattr(type(held[0]), "__get__")
        yield Marked(name, mark, function, takes_self=not bound)


def _mark_of(value: Any, attribute: str) -> Any:
    holder = getattr(value, "fget", None) if isinstance(value, property) else _inner(value)
    # Not by getattr: there are objects that have any attribute one asks for.
    return getattr(holder, "__dict__", {}).get(attribute)
