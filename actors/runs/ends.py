"""How calls end, as the log keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from squadron.actors.runs.call import Call
from squadron.actors.runs.entries import CallEnd
from squadron.actors.runs.prepare import Ready, Unsendable
from squadron.actors.thinking.model import Attachment
from squadron.runtime.wire.outcome import Outcome, Result


def unsendable(call: Call, ready: Ready) -> Iterable[CallEnd]:
    """The ends of items for which no task can be made."""
    for index, content in enumerate(ready.contents):
        if isinstance(content, Unsendable):
            yield CallEnd(call=call.id, index=index, topic=ready.topic, outcome="rejected", reason=content.reason)


def attached(data: Any) -> tuple[Attachment, ...]:
    """The attachments that a tool returned, if it returned nothing else."""
    given = data if isinstance(data, list) else [data]
    return tuple(given) if all(isinstance(each, Attachment) for each in given) else ()


def refusal(call: Call, reason: str) -> CallEnd:
    """The end of a call that is not carried out."""
    return CallEnd(call=call.id, topic=call.said.name, outcome="rejected", reason=reason)


def answer(call: Call, data: Any) -> CallEnd:
    """The end of a call that is answered on the spot."""
    return CallEnd(call=call.id, topic=call.said.name, outcome="result", data=data)


def end_of(call: Call, index: int, outcome: Outcome) -> CallEnd:
    """How a task ended, as the log keeps it."""
    rest: dict[str, Any] = {}
    if isinstance(outcome, Result):
        rest = {"data": outcome.data, "confidence": outcome.confidence, "reasoning": outcome.reasoning}
    return CallEnd(
        call=call.id,
        index=index,
        topic=outcome.topic,
        outcome=outcome.kind,
        reason=outcome.reason,
        source=outcome.source,
        attempt=outcome.attempt,
        latency_ms=outcome.latency_ms,
        spent=outcome.spent.to_wire(),
        **rest,
    )
