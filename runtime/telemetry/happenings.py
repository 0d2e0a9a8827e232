"""What observers hear of: each is told where and when it happens, and holds what was at hand there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from squadron.runtime.ports.bus import Carrier
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Outcome

#: How a turn ended: with an outcome that is stored; to be tried again, or taken up when a person has answered;
#: given to another replica, or back to the mailbox as this one is drained; or left to a later attempt at its run.
#: An event is `handled`; else a durable one ends with the `outcome` of its dead letter, and a plain one is `lost`.
TurnEnd: TypeAlias = Literal[
    "outcome", "handled", "again", "parked", "handed_on", "handed_back", "superseded", "lost"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePut:
    """A message is about to be sent: a task, a durable event, a plain event, or one on a lite topic.

    Attributes:
        topic: of a task or an event, as it is addressed; of a lite topic its subject.
        headers: go along with it; an observer may add to them.
        bytes: of the envelope.
    """

    kind: Literal["task", "durable", "event", "lite"]
    id: str
    topic: str
    conversation_id: str
    parent_id: str | None = None
    bytes: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStored:
    """What was put is stored, or was sent if it is a plain event; or, with an `error`, it is not."""

    id: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnded:
    """Whoever asked knows the outcome; told in the asker's process.

    Attributes:
        refused: it was never sent: it was refused where it was asked, in the asker's task; else outside of it.
    """

    id: str
    topic: str
    outcome: Outcome
    refused: bool = False


class TurnBegun(NamedTuple):
    """An attempt at a message begins, in the asyncio task in which its handler runs.

    Told of each task, as is its end: a frozen dataclass of that size takes 3 µs to make, a tuple 1 (measured).

    Attributes:
        agent: the agent, or `agent.method` of a durable event.
        topic: as the message is addressed.
        served: the topic or pattern that the handler serves: of these there are few.
        attempt: which attempt it is, from 1.
        waited_s: seconds since the message was sent, by the clocks of two hosts.
        outcome_headers: go along with the outcome, if this attempt has one; an observer may add to them.
    """

    kind: Literal["task", "durable", "event"]
    agent: str
    topic: str
    served: str
    message: AgentMessage
    attempt: int
    waited_s: float
    carrier: Carrier | None = None
    outcome_headers: dict[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that came with the message, which are read when somebody looks."""
        return self.carrier.headers if self.carrier is not None else {}


class TurnEnded(NamedTuple):
    """An attempt has ended, or a message was refused before one began; in the same asyncio task.

    Attributes:
        outcome: if it is the end of the message.
        attempt: 0 if none began.
        seconds: that the handler ran; 0 if it did not.
        after_s: seconds until the next attempt, if there is one.
        error: what the handler raised, in a line.
    """

    kind: Literal["task", "durable", "event"]
    agent: str
    topic: str
    served: str
    message: AgentMessage
    end: TurnEnd
    outcome: Outcome | None = None
    attempt: int = 0
    seconds: float = 0.0
    after_s: float = 0.0
    error: str = ""
    carrier: Carrier | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that came with the message, which are read when somebody looks."""
        return self.carrier.headers if self.carrier is not None else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Buried:
    """A message became a dead letter."""

    agent: str
    topic: str
    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGrew:
    """Something was stored in the log of a run, by the attempt that goes on with it.

    Attributes:
        run: its id.
        entries: what was stored together, see `squadron.actors.runs.entries`; each has a `kind` and `at`.
    """

    run: str
    entries: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAdmitted:
    """A provider's account allows a call of a model.

    Attributes:
        account: whose limit it is, as it is set: a model, its beginning, or a provider.
        waited_s: seconds that the call waited for it.
    """

    model: str
    account: str
    waited_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonAsked:
    """A question to people is stored.

    Attributes:
        about: the run or task that waits for the answer; may be empty.
    """

    query: str
    message: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonAnswered:
    """Whoever asked knows the answer that counts; `by` is who gave it."""

    query: str
    by: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operated:
    """Somebody had something done: deploy, undeploy, scale, redrive, drop, cancel, answer, purge.

    Attributes:
        verb: what was done.
        on: to what: an agent, a task, a question.
        by: who had it done, and from where, as far as they say.
        details: what was said of it.
    """

    verb: str
    on: str
    by: str
    details: Mapping[str, Any] = field(default_factory=dict)


Happening: TypeAlias = (
    MessagePut
    | MessageStored
    | TaskEnded
    | TurnBegun
    | TurnEnded
    | Buried
    | RunGrew
    | CallAdmitted
    | PersonAsked
    | PersonAnswered
    | Operated
)
