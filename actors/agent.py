"""What an author writes: a class with typed, documented handlers.

class Analyst(Agent):
    \"\"\"Reads numbers and text.\"\"\"

    @topic("analysis.sentiment", examples=["is this review angry?"])
    async def sentiment(self, text: str) -> float:
        \"\"\"Score how positive a text is, from -1 to 1.\"\"\"
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from squadron.actors.decorators import (
    BID,
    DURABLE_EVENT,
    EVENT,
    TOPIC,
    DurableMark,
    EventMark,
    Marked,
    bid_parameters,
    marked,
)
from squadron.actors.handlers import TopicSpec
from squadron.actors.operations import OPERATIONS, Operation
from squadron.runtime.calling import Threads, call
from squadron.runtime.errors import InvalidAgentError, InvalidSubjectError
from squadron.runtime.running.bidding import Answering
from squadron.runtime.running.handler import Handler
from squadron.runtime.wire.bids import Bid, CallForBids
from squadron.runtime.wire.deployment import Resources, RuntimeEnv
from squadron.runtime.wire.subjects import check_token, overlap
from squadron.runtime.wire.topics import AgentCard


class Agent:
    """Base of all agents. One instance per replica; its attributes are that replica's state.

    Attributes:
        name: how it is deployed and listed; kebab-case of the class name by default.
        slots: turns at once per replica.
        min_replicas, max_replicas: bounds of autoscaling; a minimum of 0 lets it go away when idle.
        grace_s: how long running turns may take to end when a replica is stopped, in seconds.
        num_cpus, num_gpus: what Ray reserves per replica.
        resources: custom resources of Ray that it reserves besides, by name.
        runtime_env: what its processes have of their own: `pip`, a list of requirements, and `env_vars`.
        group: agents of one group share processes; each is still addressed, scaled and undeployed as itself.
        ordered_by: "conversation" runs the tasks of one conversation one at a time, in the order in which they
            were published, over all replicas; priorities then don't count.
        capabilities: what its replicas offer to tasks that ask for it; `on_start` may set it per replica.
        mailbox_limit: how many tasks its mailbox may hold, waiting and running; 0 is any number.
        when_full: what becomes of more: the caller waits for room, or the task is rejected.
    """

    name: ClassVar[str] = ""
    slots: ClassVar[int] = 32
    min_replicas: ClassVar[int] = 1
    max_replicas: ClassVar[int] = 4
    grace_s: ClassVar[float] = 20.0
    num_cpus: ClassVar[float] = 0
    num_gpus: ClassVar[float] = 0
    resources: ClassVar[Mapping[str, float]] = MappingProxyType({})
    runtime_env: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    group: ClassVar[str] = ""
    ordered_by: ClassVar[Literal["", "conversation"]] = ""
    capabilities: Collection[str] = frozenset()
    mailbox_limit: ClassVar[int] = 0
    when_full: ClassVar[Literal["wait", "reject"]] = "wait"

    async def on_start(self) -> None:
        """Runs once per replica, before its first task."""

    async def on_stop(self) -> None:
        """Runs once per replica, after its last task, or after its start failed, be it in `on_start`."""


@dataclass(frozen=True)
class AgentSpec:
    """All that a class says about itself as an agent."""

    agent_class: type[Agent]
    name: str
    description: str
    topics: tuple[TopicSpec | Operation, ...]
    events: tuple[tuple[str, EventMark], ...]
    durable_events: tuple[tuple[str, DurableMark], ...]
    #: The method that bids for tasks, if there is one, and what it is told.
    bid: tuple[str, tuple[str, ...]] | None = None

    @classmethod
    def of(cls, agent_class: type[Agent]) -> AgentSpec:
        """Read an agent class.

        Raises:
            InvalidAgentError: it can't be served; the message says what to change.
        """
        if not (isinstance(agent_class, type) and issubclass(agent_class, Agent)):
            raise InvalidAgentError(f"{agent_class!r} is not an agent", hint="derive a class from squadron.Agent")
        served, heard, kept, bids = ([*marked(agent_class, mark)] for mark in (TOPIC, EVENT, DURABLE_EVENT, BID))
        for each in (*served, *heard, *kept, *bids):
            if hasattr(Agent, each.name):
                said = f"{agent_class.__name__}.{each.name}: every agent has a {each.name!r} of its own"
                raise InvalidAgentError(said, hint="rename the handler")
        name = agent_class.name or _kebab(agent_class.__name__)
        try:
            check_token(name, f"name of agent {agent_class.__name__}:")
        except InvalidSubjectError as error:
            raise InvalidAgentError(str(error)) from None
        _check_made(name, agent_class)
        _check_attributes(name, agent_class)
        operations: tuple[Operation, ...] = getattr(agent_class, OPERATIONS, ())
        topics: tuple[TopicSpec | Operation, ...] = (
            *(TopicSpec.of(agent_class, each) for each in served),
            *operations,
        )
        events = tuple((each.name, each.mark) for each in heard)
        durable_events = tuple((each.name, each.mark) for each in kept)
        if not topics and not events and not durable_events:
            raise InvalidAgentError(f"{name} serves nothing", hint='mark a method with @topic("domain.what")')
        _check_disjoint(name, [spec.topic.name for spec in topics])
        bid = _only_bid(name, bids, serves=bool(topics))
        description = inspect.cleandoc(agent_class.__doc__ or "")
        return cls(agent_class, name, description, topics, events, durable_events, bid)

    def card(self) -> AgentCard:
        """The registry's entry for it."""
        mailbox = {
            "mailbox": self.name,
            "mailbox_limit": self.agent_class.mailbox_limit,
            "when_full": self.agent_class.when_full,
        }
        topics = tuple(spec.topic.model_copy(update=mailbox) for spec in self.topics)
        return AgentCard(agent=self.name, description=self.description, topics=topics)

    def handlers(self, agent: Agent) -> Sequence[Handler]:
        """The topics bound to one instance."""
        return [spec.bind(agent) for spec in self.topics]

    def bidder(self, agent: Agent) -> Answering | None:
        """The bid method of one instance, if it has one."""
        if self.bid is None:
            return None
        name, told = self.bid
        method = getattr(agent, name)

        async def answer(asked: CallForBids) -> Bid | str:
            made = await call(Threads(), method, **{each: getattr(asked, each) for each in told})
            if made is None:
                return f"{self.name} declines"
            if not isinstance(made, Bid):
                what = f"{self.name}.{name} returned a {type(made).__name__}, which is no bid"
                raise InvalidAgentError(what, hint="return a Bid, or None")
            return made

        return answer


def specs_of(classes: Iterable[type[Agent]]) -> dict[type[Agent], AgentSpec]:
    """What the classes of one deploy say about themselves.

    Raises:
        InvalidAgentError: one of them can't be served, or two have one name.
    """
    specs: dict[type[Agent], AgentSpec] = {}
    named: dict[str, type[Agent]] = {}
    for each in classes:
        specs[each] = spec = AgentSpec.of(each)
        other = named.setdefault(spec.name, each)
        if other is not each:
            raise InvalidAgentError(
                f"{each.__name__} and {other.__name__} are both named {spec.name!r}", hint="set `name` of one"
            )
    return specs


class _Attributes(BaseModel):
    """What the attributes of an agent may be; each says so where it is wrong."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    slots: Annotated[int, Field(ge=1)]
    min_replicas: Annotated[int, Field(ge=0)]
    max_replicas: Annotated[int, Field(ge=1)]
    grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    resources: Resources
    runtime_env: RuntimeEnv
    group: str
    ordered_by: Literal["", "conversation"]
    mailbox_limit: Annotated[int, Field(ge=0)]
    when_full: Literal["wait", "reject"]


#: What other tools call an attribute of an agent, where letters don't tell.
_ELSEWHERE = {"replicas": "max_replicas", "concurrency": "slots", "workers": "max_replicas", "gpus": "num_gpus"}


def _check_spelling(name: str, agent_class: type[Agent]) -> None:
    """A misspelt attribute would be nobody's: it is told by its likeness to one of `Agent`."""
    known = _Attributes.model_fields.keys() | {"capabilities"}
    for each in agent_class.__mro__[: agent_class.__mro__.index(Agent)]:
        for attribute, value in vars(each).items():
            if attribute.startswith("_") or attribute in known or not isinstance(value, int | float | str):
                continue
            near = _ELSEWHERE.get(attribute) or next(iter(get_close_matches(attribute, known, 1, 0.85)), "")
            if near:
                what = f"{name}: {attribute}={value!r} is no attribute of an agent"
                hint = f"did you mean {near}? What is your own may be called _{attribute}"
                raise InvalidAgentError(what, field=attribute, hint=hint)


def _check_attributes(name: str, agent_class: type[Agent]) -> None:
    _check_spelling(name, agent_class)
    values = {field: getattr(agent_class, field) for field in _Attributes.model_fields}
    values |= {field: _plain(values[field]) for field in ("resources", "runtime_env")}
    try:
        _Attributes(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, where = str(first["loc"][0]), ".".join(map(str, first["loc"]))
        what = f"{name}: {where}={first['input']!r} is no value for that attribute"
        raise InvalidAgentError(what, field=field, hint=first["msg"]) from None
    if agent_class.min_replicas > agent_class.max_replicas:
        what = f"{name}: min_replicas={agent_class.min_replicas} is above max_replicas={agent_class.max_replicas}"
        raise InvalidAgentError(what, field="min_replicas", hint="min_replicas <= max_replicas")
    capabilities = agent_class.capabilities
    # On the class it may be a property, which only an instance has a value of.
    if isinstance(capabilities, str) or (
        isinstance(capabilities, Collection) and not all(isinstance(each, str) for each in capabilities)
    ):
        what = f"{name}: capabilities={capabilities!r} is no value for that attribute"
        raise InvalidAgentError(what, field="capabilities", hint='texts, as in {"gpu", "eu"}')


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _check_made(name: str, agent_class: type[Agent]) -> None:
    """A replica makes its agent without arguments, starts and stops it, and reads the attributes of `Agent`."""
    try:
        if missing := getattr(agent_class, "__abstractmethods__", None):
            raise TypeError(f"it is abstract: {', '.join(sorted(missing))}")
        inspect.signature(agent_class).bind()
    except TypeError as error:
        hint = "a replica makes it without arguments; what it needs is made in on_start"
        raise InvalidAgentError(f"{name}: {agent_class.__name__}() can't be called: {error}", hint=hint) from None
    for hook in ("on_start", "on_stop"):
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(agent_class, hook))):
            raise InvalidAgentError(f"{name}: {hook} is not async", hint=f"async def {hook}(self)")


def _check_disjoint(name: str, patterns: list[str]) -> None:
    for i, one in enumerate(patterns):
        for other in patterns[i + 1 :]:
            # An exact topic inside a family of the same agent is fine: the exact handler gets it.
            if one == other or (overlap(one, other) and "*" in one and "*" in other):
                raise InvalidAgentError(f"{name}: {one!r} and {other!r} would both get the same task")


def _only_bid(name: str, bids: list[Marked], *, serves: bool) -> tuple[str, tuple[str, ...]] | None:
    if len(bids) > 1:
        what = f"{name} bids by {bids[0].name} and by {bids[1].name}"
        raise InvalidAgentError(what, field=bids[1].name, hint="write one @bid method: it is told the topic")
    if bids and not serves:
        what = f"{name} bids by {bids[0].name}, and serves no topic"
        raise InvalidAgentError(what, field=bids[0].name, hint='mark a method with @topic("domain.what")')
    told = ((each.name, bid_parameters(each.function, takes_self=each.takes_self)) for each in bids)
    return next(told, None)


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()
