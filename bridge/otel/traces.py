"""The observer that turns what happens to messages into spans; `run_spans` has those of models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from opentelemetry.context import Context, attach
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from squadron.bridge.otel import headers, names
from squadron.bridge.otel.contents import Contents
from squadron.bridge.otel.run_spans import RunSpans
from squadron.runtime.redact import scrub
from squadron.runtime.telemetry.happenings import (
    Buried,
    Happening,
    MessagePut,
    MessageStored,
    PersonAnswered,
    PersonAsked,
    RunGrew,
    TaskEnded,
    TurnBegun,
    TurnEnded,
)
from squadron.runtime.texts import one_line
from squadron.runtime.wire.outcome import Outcome

V = TypeVar("V")

#: Most asks and questions whose end is waited for, and most attempts that a later one may be linked to: where
#: nobody waits for a handle no end is told. A span has some 2 KB.
MOST_OPEN = 10_000
#: Characters of an error's type: outcomes of others say what they like.
LONGEST_ERROR_TYPE = 128


@dataclass(slots=True)
class Turn:
    """An attempt that goes on: its span, and those of the runs that it hosts."""

    span: Span
    agent: str
    message: str
    conversation: str
    runs: dict[str, RunSpans] = field(default_factory=dict)
    people: dict[str, Span] = field(default_factory=dict)


#: The attempt that this asyncio task is a part of.
_turn: ContextVar[Turn | None] = ContextVar("squadron_turn", default=None)


class Traces:
    """An observer that makes spans of what it hears.

    Args:
        tracer: which makes them.
        replica: the name of this process on the bus.
        contents: what of prompts, completions and arguments is kept.
        close: awaited at the end: sends what is left.
    """

    def __init__(
        self,
        tracer: Tracer,
        *,
        replica: str = "",
        contents: Contents | None = None,
        close: Callable[[], Any] | None = None,
    ) -> None:
        self._tracer, self._replica, self._close = tracer, replica, close
        self._follows = _follows(tracer)
        self._contents = contents or Contents.of({})
        self._puts: OrderedDict[str, Span] = OrderedDict()
        self._asks: OrderedDict[str, Span] = OrderedDict()
        self._people: OrderedDict[str, Span] = OrderedDict()
        #: Where the last attempt at a message was traced, and the last epoch of a run, if that was here.
        self._attempts: OrderedDict[str, SpanContext] = OrderedDict()
        self._epochs: OrderedDict[str, SpanContext] = OrderedDict()
        self._hear: Mapping[type, Callable[[Any], None]] = {
            MessagePut: self._put,
            MessageStored: self._stored,
            TaskEnded: self._task_ended,
            TurnBegun: self._begun,
            TurnEnded: self._ended,
            Buried: self._buried,
            RunGrew: self._run_grew,
            PersonAsked: self._asked,
            PersonAnswered: self._answered,
        }

    def hear(self, happening: Happening) -> None:
        """Take in what happened."""
        if (hear := self._hear.get(type(happening))) is not None:
            hear(happening)

    async def aclose(self) -> None:
        """End what is open, and have all spans sent, within some seconds."""
        for span in (*self._puts.values(), *self._asks.values(), *self._people.values()):
            span.end()
        self._puts.clear()
        self._asks.clear()
        self._people.clear()
        if self._close is not None:
            await self._close()

    # --- what goes out -------------------------------------------------------------------------------

    def _put(self, put: MessagePut) -> None:
        if (within := self._unseen()) is not None:
            return headers.write(within, put.headers)
        common: dict[str, Any] = {
            names.SYSTEM: names.NATS,
            names.MESSAGE_ID: put.id,
            names.CONVERSATION: put.conversation_id,
            names.CLIENT_ID: self._replica,
        }
        current = None
        if put.kind == "lite":
            # There are more of them than a name may have values.
            place = put.topic.split(".")
            topic = ".".join([*place[:3], "{owner}", "{id}"])
            common |= {names.TEMPLATE: topic, names.TEMPORARY: True}
        else:
            topic = put.topic
            common[names.DESTINATION] = topic
        if put.kind == "task":
            ask = self._asks.get(put.id)
            if ask is None:
                ask = self._tracer.start_span(f"ask {topic}", kind=SpanKind.CLIENT, attributes=common)
            if not ask.is_recording():
                # Nobody will see a span within one that is not sampled.
                return headers.write(ask.get_span_context(), put.headers)
            _keep(self._asks, put.id, ask)
            current = set_span_in_context(ask)
        attributes = {**common, names.OPERATION_NAME: "publish", names.OPERATION_TYPE: "send"}
        span = self._tracer.start_span(f"publish {topic}", current, kind=SpanKind.PRODUCER, attributes=attributes)
        headers.write(span.get_span_context(), put.headers)
        if span.is_recording():
            _keep(self._puts, put.id, span)
        return None

    def _stored(self, stored: MessageStored) -> None:
        span = self._puts.pop(stored.id, None)
        if span is not None:
            if stored.error:
                _fail(span, "not_stored", stored.error)
            span.end()
        if stored.error == "cancelled" and (ask := self._asks.pop(stored.id, None)) is not None:
            # Nobody has its handle.
            _fail(ask, "cancelled", "cancelled before it was sent")
            ask.end()

    def _task_ended(self, ended: TaskEnded) -> None:
        ask = self._asks.pop(ended.id, None)
        if ask is None and ended.refused and self._unseen() is None:
            ask = self._refused(ended)
        if ask is not None:
            _tell(ask, ended.outcome)
            ask.end()

    def _refused(self, ended: TaskEnded) -> Span:
        # What is no topic may be anything, and of any length.
        is_topic = ended.outcome.details.get("field") != "topic"
        attributes = {names.SYSTEM: names.NATS, names.MESSAGE_ID: ended.id, names.CLIENT_ID: self._replica}
        if is_topic:
            attributes[names.DESTINATION] = ended.topic
        name = f"ask {ended.topic}" if is_topic else "ask"
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)

    def _unseen(self) -> SpanContext | None:
        """What all that happens here goes on with, if that is not sampled, and so nothing within it will be."""
        within = get_current_span().get_span_context() if self._follows else INVALID_SPAN_CONTEXT
        return within if within.is_valid and not within.trace_flags.sampled else None

    # --- what is worked on ---------------------------------------------------------------------------

    def _begun(self, begun: TurnBegun) -> None:
        parent = headers.read(begun.headers)
        if self._follows and headers.is_unsampled(parent):
            # Most turns, where few are sampled: all that they need is to say so to those that they ask.
            attach(parent)
            _turn.set(None)
            if begun.outcome_headers is not None:
                headers.write(headers.span_context(parent), begun.outcome_headers)
            return
        span = self._process(begun, parent, begun.attempt, begun.waited_s)
        message = begun.message
        # It goes with the task of the handler: none has to be detached.
        attach(headers.within(span))
        _turn.set(Turn(span, begun.agent, message.id, message.context.conversation_id or message.id))
        if begun.outcome_headers is not None:
            headers.write(span.get_span_context(), begun.outcome_headers)
        if span.is_recording():
            structlog.contextvars.bind_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}")

    def _process(self, of: TurnBegun | TurnEnded, parent: Context, attempt: int, waited_s: float | None) -> Span:
        message = of.message
        attributes: dict[str, Any] = {
            names.SYSTEM: names.NATS,
            names.OPERATION_NAME: "process",
            names.OPERATION_TYPE: "process",
            names.DESTINATION: of.topic,
            names.MESSAGE_ID: message.id,
            names.CORRELATION_ID: message.correlation_id or message.id,
            names.CONVERSATION: message.context.conversation_id or message.id,
            names.CONSUMER_GROUP: of.agent,
            names.CLIENT_ID: self._replica,
            names.REPLICA: self._replica,
            names.ATTEMPT: attempt,
        }
        if of.served and of.served != of.topic:
            attributes[names.TEMPLATE] = of.served
        if waited_s is not None:
            attributes[names.WAITED_S] = round(waited_s, 6)
        links = _earlier(of.headers)
        if (last := self._attempts.pop(_life(of), None)) is not None:
            links.append(Link(last, {names.LINK: "earlier attempt"}))
        elif attempt > 1 and (sent := headers.span_context(parent)).is_valid:
            # It was tried by another process, which may have died.
            links.append(Link(sent, {names.LINK: "redelivery"}))
        name = f"process {of.served or of.topic}"
        return self._tracer.start_span(name, parent, kind=SpanKind.CONSUMER, attributes=attributes, links=links)

    def _ended(self, ended: TurnEnded) -> None:
        turn = _turn.get()
        if ended.attempt and turn is not None and turn.message == ended.message.id:
            for run in turn.runs.values():
                run.close(ended.end)
            for query, waiting in turn.people.items():
                self._people.pop(query, None)
                waiting.set_attribute(names.END, ended.end)
                waiting.end()
            span = turn.span
        else:
            parent = headers.read(ended.headers)
            if self._follows and headers.is_unsampled(parent):
                return
            span = self._process(ended, parent, 0, None)
        if ended.end not in ("outcome", "handled"):
            _keep(self._attempts, _life(ended), span.get_span_context())
        if span.is_recording():
            span.set_attributes({names.END: ended.end, names.SECONDS: round(ended.seconds, 6)})
            if ended.end == "again":
                span.set_attribute(names.AFTER_S, ended.after_s)
            if ended.error:
                _fail(span, ended.error.partition(":")[0], ended.error)
            if ended.outcome is not None:
                _tell(span, ended.outcome)
        span.end()

    def _buried(self, buried: Buried) -> None:
        # It is told within the attempt that gives up.
        get_current_span().add_event("dead letter", {names.REASON: scrub(buried.reason)})

    # --- runs and people -----------------------------------------------------------------------------

    def _run_grew(self, grew: RunGrew) -> None:
        turn = _turn.get()
        if turn is None:
            return
        run = turn.runs.get(grew.run)
        if run is None:
            earlier = self._epochs.get(grew.run)
            run = RunSpans(self._tracer, self._contents, grew, turn.agent, turn.conversation, earlier)
            turn.runs[grew.run] = run
            _keep(self._epochs, grew.run, run.span.get_span_context())
            # All that the run does, it does in this task or in those that begin in it.
            attach(set_span_in_context(run.span))
        run.grow(grew.entries)

    def _asked(self, asked: PersonAsked) -> None:
        if self._unseen() is not None:
            return
        attributes = {names.QUERY: asked.query, names.ABOUT: asked.about}
        span = self._tracer.start_span("await person", attributes=attributes)
        _keep(self._people, asked.query, span)
        if (turn := _turn.get()) is not None:
            turn.people[asked.query] = span

    def _answered(self, answered: PersonAnswered) -> None:
        span = self._people.pop(answered.query, None)
        # Of one that was asked by an earlier attempt there is none.
        (span or get_current_span()).add_event(
            "answer", {names.QUERY: answered.query, names.BY: answered.by, names.ACTION: answered.action}
        )
        if span is not None:
            span.end()
        if (turn := _turn.get()) is not None:
            turn.people.pop(answered.query, None)


def _follows(tracer: Tracer) -> bool:
    """Whether the sampler never takes what is within a span that it left out, as the default one does."""
    said = str(getattr(getattr(tracer, "sampler", None), "get_description", str)())
    return all(f"{whose}ParentNotSampled:AlwaysOffSampler" in said for whose in ("remote", "local"))


def _life(of: TurnBegun | TurnEnded) -> str:
    """A message, once more each time that it was a dead letter."""
    return f"{of.agent} {of.message.id} {of.message.redriven}"


def _earlier(given: Mapping[str, str]) -> list[Link]:
    context = headers.earlier(given)
    return [] if context is None else [Link(context, {names.LINK: "redriven"})]


def _keep(kept: OrderedDict[str, V], key: str, value: V) -> None:
    """Remember it, and let go of the oldest where there are too many."""
    before = kept.pop(key, None)
    if before is None and len(kept) >= MOST_OPEN:
        _, before = kept.popitem(last=False)
    if isinstance(before, Span):
        before.end()
    kept[key] = value


def _tell(span: Span, outcome: Outcome) -> None:
    """How it ended."""
    if not span.is_recording():
        return
    span.set_attribute(names.OUTCOME, outcome.kind)
    if outcome.attempt:
        span.set_attribute(names.ATTEMPT, outcome.attempt)
    if outcome.source:
        span.set_attribute(names.REPLICA, outcome.source)
    if outcome.version:
        span.set_attribute(names.VERSION, outcome.version)
    if outcome.spent.tokens:
        span.set_attribute(names.TOKENS, outcome.spent.tokens)
    if outcome.spent.usd_micros:
        span.set_attribute(names.COST_USD, outcome.spent.usd)
    if not outcome.ok:
        raised = outcome.details.get("type") or str(outcome.details.get("last_error", "")).partition(":")[0]
        _fail(span, str(raised or outcome.kind), outcome.reason)


def _fail(span: Span, error_type: str, description: str) -> None:
    span.set_attribute(names.ERROR_TYPE, one_line(scrub(error_type), LONGEST_ERROR_TYPE))
    span.set_status(Status(StatusCode.ERROR, scrub(description)))
