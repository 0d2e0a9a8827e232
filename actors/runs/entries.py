"""What stands in the log of a run. Each entry is stored before what it tells of takes effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from squadron.actors.thinking.model import Attachment, ChatMessage, ModelTurn, ToolDefinition
from squadron.actors.thinking.window import Summary
from squadron.runtime.wire.bids import Bids, Offer
from squadron.runtime.wire.topics import SemanticTopic

#: When the model is asked again while calls still run: when all have ended, more than half of them, or so many.
GatherAfter = Literal["all", "quorum"] | Annotated[int, Field(ge=1, le=1_000)]


class Gather(BaseModel):
    """When the model is asked again after it made calls, be they all over or not.

    Attributes:
        after: how many of the calls that run must have ended.
        within_s: so many seconds after they were sent one is enough.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: GatherAfter = "all"
    within_s: float | None = Field(default=None, gt=0)


class _Entry(BaseModel):
    """Times are in seconds since the epoch, by the clock of the replica that wrote it.

    Attributes:
        seen: of what the loop decided, how many entries of the log it had seen when it did; more may have come
            before its own was stored. None of what came from elsewhere, and in older logs. See ADR 0031.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: float
    seen: int | None = None


class Epoch(_Entry):
    """An attempt takes the run over; no older one can append any more.

    Attributes:
        number: the how manieth attempt it is.
        task: whose attempt it is: that which began the run, or one that goes on with it.
        redriven, delivered: which delivery of the task: of two attempts the one with the older has lost.
        deadline_at: when the run ends, in seconds since the epoch.
        max_rounds: the last round there may be.
        grant: what its task may still spend, as `payload.constraints` has it, without what the log itself tells.
        sampling: `temperature` and `max_tokens` of the model.
        tools: the agent's own. With these, whoever has nothing but the log knows what a model was asked.
        output_schema: what its answer is to fit.
    """

    kind: Literal["epoch"] = "epoch"
    number: int
    task: str = ""
    redriven: int
    delivered: int
    replica: str
    deadline_at: float
    max_rounds: int
    grant: dict[str, Any] = Field(default_factory=dict)
    sampling: dict[str, Any] = Field(default_factory=dict)
    tools: tuple[ToolDefinition, ...] = ()
    output_schema: dict[str, Any] | None = None


class Started(_Entry):
    """What the run is to do.

    Attributes:
        opening: how the conversation begins: all else of it is rebuilt from the log.
        terms: what its task said beside the goal and the limits; who has it go on is held to them.
    """

    kind: Literal["started"] = "started"
    agent: str
    topic: str
    task: str
    title: str
    opening: tuple[ChatMessage, ...]
    models: tuple[str, ...]
    gather: Gather = Gather()
    terms: dict[str, Any] = Field(default_factory=dict)


class Offered(_Entry):
    """Topics that the model may call from now on, in this order, as their cards were.

    Attributes:
        left_out: topics that would have fitted but can't be offered, and why.
    """

    kind: Literal["offered"] = "offered"
    cards: tuple[SemanticTopic, ...]
    left_out: dict[str, str] = Field(default_factory=dict)


class Asking(_Entry):
    """The model is about to be asked.

    Attributes:
        number: the how manieth try of this round.
        digest: of the request, SHA-256 in hex; the request itself is never kept.
        tokens, usd_micros: what was set aside for it; without a budget, what it is likely to cost.
        covers: digest of the part of the conversation that it is to summarize; empty if it is asked for a turn.
    """

    kind: Literal["asking"] = "asking"
    round: int
    number: int
    model: str
    digest: str
    tokens: int = 0
    usd_micros: int = 0
    covers: str = ""


class Accepted(_Entry):
    """The provider answers a try, and goes on with that when its replica dies.

    Attributes:
        response_id: under which the next attempt takes the answer up.
    """

    kind: Literal["accepted"] = "accepted"
    round: int
    number: int
    response_id: str


class TryFailed(_Entry):
    """A try ended without a turn.

    Attributes:
        spent: what it cost all the same, as outcomes tell it on the wire.
        limit: the most tokens that the model takes, if the conversation was too long; 0 if it was not, -1 if the
            provider did not say.
        retry_after_s: when the provider says that the call may work, in seconds.
    """

    kind: Literal["failed"] = "failed"
    round: int
    number: int
    model: str
    error: str
    reason: str
    spent: dict[str, Any] | None = None
    limit: int = 0
    retry_after_s: float | None = None


class Refused(_Entry):
    """The model's account did not let it be asked: another one is, or the run is over."""

    kind: Literal["refused"] = "refused"
    round: int
    model: str
    error: str
    reason: str
    retry_after_s: float | None = None


class Thought(_Entry):
    """The model's turn, as its provider gave it; `spent` as outcomes tell it on the wire."""

    kind: Literal["thought"] = "thought"
    round: int
    turn: ModelTurn
    spent: dict[str, Any] | None = None
    seconds: float


class Nudge(_Entry):
    """Said to the model in answer to a turn that was no answer."""

    kind: Literal["nudge"] = "nudge"
    text: str


class Dispatch(BaseModel):
    """One call that goes out.

    Attributes:
        call: its id in this run.
        kind: to a topic, or to a tool of the agent's own.
        first: index of its first task: above 0 where those before it were tried in vain.
        tasks: how many there are, one for each item; see `references.task_id`.
        deadline_ms: when nobody waits any more, in unix milliseconds.
        share: what each task may spend, as `payload.constraints` has it; empty without a budget.
        digest: of what its tasks are given, SHA-256 in hex: with the topic, what a replay knows the call by.
            Empty where agents have bid for it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    call: str
    kind: Literal["topic", "tool"]
    topic: str
    first: int = 0
    tasks: int = 1
    deadline_ms: int
    share: dict[str, Any] = Field(default_factory=dict)
    digest: str = ""


class Awarded(_Entry):
    """Agents have bid for a call: its tasks are tried one after the other, in the order of their offers.

    Attributes:
        topics: that were called for bids; without an offer the first of them is asked plainly.
        order: positions in `bids.offers`, the best first.
    """

    kind: Literal["awarded"] = "awarded"
    call: str
    topics: tuple[str, ...]
    bids: Bids
    order: tuple[int, ...] = ()

    @property
    def offers(self) -> list[Offer]:
        """The offers in the order in which they are tried."""
        return [self.bids.offers[position] for position in self.order]

    def offer(self, index: int) -> Offer | None:
        """The offer that a task accepts; None if it accepts none."""
        return self.offers[index] if index < len(self.order) else None

    @property
    def most_tasks(self) -> int:
        """How many tasks are tried at most."""
        return max(1, len(self.order))


class Sending(_Entry):
    """Calls that are about to go out."""

    kind: Literal["sending"] = "sending"
    calls: tuple[Dispatch, ...]


class Sent(_Entry):
    """All tasks of these calls are stored in the queue."""

    kind: Literal["sent"] = "sent"
    calls: tuple[str, ...]


class Withdrawn(_Entry):
    """These calls are as if they had never gone out: what ran them says that it did nothing."""

    kind: Literal["withdrawn"] = "withdrawn"
    calls: tuple[str, ...]


class CallEnd(BaseModel):
    """How one task, tool or refused call ended; `outcome` is its kind, `spent` as outcomes tell it on the wire."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    call: str
    index: int = 0
    topic: str = ""
    outcome: str
    data: Any = None
    attachments: tuple[Attachment, ...] = ()
    reason: str = ""
    confidence: float | None = None
    reasoning: str | None = None
    source: str = ""
    attempt: int = 1
    latency_ms: float = 0.0
    spent: dict[str, Any] | None = None


class CallsEnded(_Entry):
    """What came of calls; those that end together stand together."""

    kind: Literal["ended"] = "ended"
    ends: tuple[CallEnd, ...]


class Query(_Entry):
    """A person is about to be asked, because a call is to be approved or the model wants to know something.

    Attributes:
        query: the id of the question; see `runtime.asking.people`.
        approval: whether it is asked if the call may go out.
        deadline_ms: when nobody waits for an answer any more, in unix milliseconds.
    """

    kind: Literal["query"] = "query"
    call: str
    query: str
    approval: bool
    deadline_ms: int


class Answered(_Entry):
    """What a person said; `arguments` are those that they approved, perhaps changed, of a call to one task."""

    kind: Literal["answer"] = "answer"
    call: str
    by: str
    arguments: Any = None
    always: bool = False


class Waiting(_Entry):
    """The model wants the ends of these calls before it goes on, but no longer than until `until`."""

    kind: Literal["waiting"] = "waiting"
    calls: tuple[str, ...]
    until: float


class Summarized(_Entry):
    """A part of the conversation is shown as a summary from here on; see `window.Summary`.

    Attributes:
        messages: how many are in it that no summary before had.
        model: who wrote it, when asked to; empty for an extract.
        tokens: what that used.
        spent: the same as outcomes tell it on the wire.
    """

    kind: Literal["summarized"] = "summarized"
    summary: Summary
    messages: int = 0
    model: str = ""
    tokens: int = 0
    spent: dict[str, Any] | None = None
    seconds: float = 0.0


class Finished(_Entry):
    """The end of the run; `value` is what its task returns. `stopped` says why, as in `RunReport`."""

    kind: Literal["finished"] = "finished"
    stopped: str
    value: Any = None
    error: str = ""


Entry = Annotated[
    Epoch
    | Started
    | Offered
    | Asking
    | Accepted
    | TryFailed
    | Refused
    | Thought
    | Nudge
    | Awarded
    | Sending
    | Sent
    | Withdrawn
    | CallsEnded
    | Query
    | Answered
    | Waiting
    | Summarized
    | Finished,
    Field(discriminator="kind"),
]
#: What one message of the log holds: entries that were stored together.
ENTRIES: TypeAdapter[tuple[Entry, ...]] = TypeAdapter(tuple[Entry, ...])


def calls_of(entry: Entry) -> set[str]:
    """The calls that an entry names."""
    match entry:
        case Sending():
            return {dispatch.call for dispatch in entry.calls}
        case Sent() | Withdrawn():
            return set(entry.calls)
        case CallsEnded():
            return {end.call for end in entry.ends}
        case Query() | Answered():
            return {entry.call}
        case _:
            return set()
