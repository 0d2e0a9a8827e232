"""The W3C trace context in the headers of messages: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from squadron.runtime.ports.queue import EARLIER_TRACE

_propagator = TraceContextTextMapPropagator()
#: The only version there is, as all write it: read by hand in a third of the time that the propagator takes.
_KNOWN = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)


def write(context: SpanContext, headers: MutableMapping[str, str]) -> None:
    """Have a message carry this context; an invalid one is left out."""
    if not context.is_valid:
        return
    # By hand: the propagator takes three times as long, for each message.
    headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    if context.trace_state:
        headers["tracestate"] = context.trace_state.to_header()


def read(headers: Mapping[str, str]) -> Context:
    """The context that a message carries; an empty one, which begins a trace, if it carries none that is valid."""
    if "traceparent" not in headers:
        # Names of headers have no case, says the specification; the server keeps them as they were written.
        headers = {name.lower(): value for name, value in headers.items() if name.lower().startswith("trace")}
        if "traceparent" not in headers:
            return Context()
    if "tracestate" not in headers and (known := _KNOWN.fullmatch(headers["traceparent"])):
        trace_id, span_id, flags = (int(part, 16) for part in known.groups())
        context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
        return set_span_in_context(NonRecordingSpan(context), Context()) if context.is_valid else Context()
    return _propagator.extract(headers, Context())


def is_unsampled(context: Context) -> bool:
    """Whether it has a span, and whoever began the trace said that it is not to be recorded."""
    found = span_context(context)
    return found.is_valid and not found.trace_flags.sampled


def earlier(headers: Mapping[str, str]) -> SpanContext | None:
    """The context of the earlier life of a message that was a dead letter meanwhile."""
    found = headers.get(EARLIER_TRACE)
    context = span_context(read({"traceparent": found})) if found else None
    return context if context is not None and context.is_valid else None


def span_context(context: Context) -> SpanContext:
    """That of the span in a context; invalid if there is none."""
    return get_current_span(context).get_span_context()


def within(span: Span) -> Context:
    """A context in which this is the current span, and nothing else."""
    return set_span_in_context(span, Context())
