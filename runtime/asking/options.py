"""How a task is to be sent: one set of options for every way of asking."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.texts import encoded
from squadron.runtime.wire.envelope import MAX_NAME
from squadron.runtime.wire.limits import UNLIMITED, Budget
from squadron.runtime.wire.policy import PRINCIPAL
from squadron.runtime.wire.route import Route
from squadron.runtime.wire.subjects import NORMAL_PRIORITY

#: How long a caller waits for an outcome when it does not say; no call is without an end.
DEFAULT_WITHIN_S = 60.0
#: How long bids are waited for when the caller does not say, in seconds: an agent may ask a model for its bid.
BIDS_WITHIN_S = 2.0
#: Longest time, in seconds: a hundred years. A server takes no life of a message beyond 292, and a deadline after
#: `LAST_MS` can't be read.
MAX_WITHIN_S = 100 * 365.25 * 24 * 3600
#: What an ask has when it says nothing: any replica may run it.
ANYBODY = Route()
#: What other tools, and our own command line, call an option, where letters don't tell.
_ELSEWHERE = {
    "timeout": "within_s",
    "timeout_s": "within_s",
    "deadline": "within_s",
    "ttl": "start_within_s",
    "ttl_s": "start_within_s",
    "id": "task_id",
    "message_id": "task_id",
    "correlation_id": "conversation_id",
    "conversation": "conversation_id",
    "session_id": "conversation_id",
    "target": "route",
    "capability": "route",
    "capabilities": "route",
    "exclude": "route",
    "exclusions": "route",
    "tokens": "budget",
    "max_tokens": "budget",
    "hops": "budget",
    "usd": "budget",
    "cost": "budget",
    "rounds": "budget",
    "tasks": "budget",
    "max_hops": "budget",
    "temperature": "parameters",
    "encrypt": "sealed",
    "encrypted": "sealed",
    "sensitive": "sealed",
    "confidential": "sealed",
}


class AskKeywords(TypedDict, total=False):
    """The options as keywords, for type checkers; see `AskOptions`."""

    within_s: float
    start_within_s: float | None
    route: Route
    priority: int
    conversation_id: str
    task_id: str
    model: str | None
    parameters: Mapping[str, Any] | None
    budget: Budget
    nested: bool
    bid: str
    on_behalf_of: str
    sealed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """How a task is to be sent; everything has a default.

    Attributes:
        within_s: how long the whole call may take, in seconds; at most a hundred years.
        start_within_s: how long it may wait for a replica, in seconds; it expires then and is not run.
        route: which replicas may run it.
        priority: 0 to 9; higher ones start first.
        conversation_id: what it belongs to; agents remember by it, ordered ones keep its order.
        task_id: an id of your own; asking twice under the same one is one task, and each who asks waits for it as
            long as they said. With another topic or another input it is rejected.
        model: which LLM an agent that thinks is to use.
        parameters: how that is to answer, as `{"temperature": 0.2}`.
        budget: what it may spend, with all that it asks of others.
        nested: its stream holds the chunks of the tasks that it asks, too.
        bid: the id of a bid that is accepted by this task; it goes to the replica that gave it (`route`).
        on_behalf_of: whose wish it is, as `client:ann`, if a gateway or an agent asks: what that one may not ask,
            is refused.
        sealed: only the agent can read the input, and only who asks the answer; topics may say so for all.

    Raises:
        InvalidInputError: an option has a value that it can't have.
    """

    within_s: float = DEFAULT_WITHIN_S
    start_within_s: float | None = None
    route: Route = ANYBODY
    priority: int = NORMAL_PRIORITY
    conversation_id: str = ""
    task_id: str = ""
    model: str | None = None
    parameters: Mapping[str, Any] | None = None
    budget: Budget = UNLIMITED
    nested: bool = False
    bid: str = ""
    on_behalf_of: str = ""
    sealed: bool = False

    def __post_init__(self) -> None:
        if not _is_time(self.within_s):
            raise _bad("within_s", self.within_s, _A_TIME)
        if self.start_within_s is not None and not _is_time(self.start_within_s):
            raise _bad("start_within_s", self.start_within_s, _A_TIME)
        if type(self.priority) is not int or not 0 <= self.priority <= 9:
            raise _bad("priority", self.priority, "a whole number from 0 to 9")
        if not isinstance(self.route, Route):
            raise _bad("route", self.route, 'Route(target="analyst"), for example')
        if not isinstance(self.budget, Budget):
            raise _bad("budget", self.budget, "Budget(tokens=10_000), for example")
        for name, text in (
            ("conversation_id", self.conversation_id),
            ("task_id", self.task_id),
            ("bid", self.bid),
        ):
            if not isinstance(text, str) or len(text) > MAX_NAME:
                raise _bad(name, text, f"a text of at most {MAX_NAME:,} characters")
        if self.model is not None and not isinstance(self.model, str):
            raise _bad("model", self.model, '"openai:NAME", for example')
        if self.parameters is not None and not _is_json(self.parameters):
            raise _bad("parameters", self.parameters, 'JSON: {"temperature": 0.2}, for example')
        if self.on_behalf_of and not (
            isinstance(self.on_behalf_of, str) and PRINCIPAL.fullmatch(self.on_behalf_of)
        ):
            raise _bad("on_behalf_of", self.on_behalf_of, '"client:ann", for example')
        for name, flag in (("nested", self.nested), ("sealed", self.sealed)):
            if not isinstance(flag, bool):
                raise _bad(name, flag, "True or False")

    @staticmethod
    def of(given: Mapping[str, Any]) -> AskOptions:
        """The options that a caller gave as keywords.

        Raises:
            InvalidInputError: one of them is none; names the nearest.
        """
        if not given:
            return NO_OPTIONS
        if unknown := given.keys() - _NAMES:
            raise _unknown(min(unknown))
        return AskOptions(**given)


_NAMES = frozenset(field.name for field in fields(AskOptions))


_A_TIME = f"seconds, as a number up to {MAX_WITHIN_S:,.0f} (a hundred years)"


def _is_time(seconds: Any) -> bool:
    # What lies before now is a call that comes too late, and no mistake.
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and abs(seconds) <= MAX_WITHIN_S


#: Made and checked once, for all who say nothing.
NO_OPTIONS = AskOptions()


def _is_json(parameters: Any) -> bool:
    try:
        encoded(dict(parameters))
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(parameters, Mapping)


def _bad(name: str, value: Any, hint: str) -> InvalidInputError:
    try:
        shown = reprlib.repr(value)
    except ValueError:
        shown = "a number of thousands of digits"
    return InvalidInputError(f"{name} can't be {shown}", field=name, hint=hint)


def _unknown(name: str) -> InvalidInputError:
    near = _ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, _NAMES, n=1)), "")
    inputs = f'the input goes in one piece behind the topic: ask("some.topic", {{"{name}": …}})'
    hint = f"did you mean {near}? If it is a field, {inputs}" if near else inputs
    return InvalidInputError(f"{name!r} is not an option of asking", field=name, hint=hint)
