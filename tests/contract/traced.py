"""Spans as tests look at them."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler

from squadron.bridge.otel import names
from squadron.bridge.otel.contents import Contents
from squadron.bridge.otel.traces import Traces
from tests.contract.conftest import Peer, until


class Collector:
    """Spans of all who are traced by it, as they end."""

    def __init__(self, sampler: Sampler) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def trace(self, *peers: Peer, **env: str) -> None:
        for peer in peers:
            tracer = self.provider.get_tracer("test")
            traces = Traces(tracer, replica=peer.ports.identity.id, contents=Contents.of(env))
            peer.ports.observers.add(traces)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    async def have(self, name: str, count: int = 1) -> list[ReadableSpan]:
        async def are_there() -> bool:
            return len(self.named(name)) >= count

        await until(are_there)
        return self.named(name)


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def made(sampler: Sampler = ALWAYS_ON) -> Collector:
    return Collector(ParentBased(sampler))


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    return child.parent is not None and child.parent.span_id == id_of(parent)


def header_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{trace_of(span)}-{id_of(span):016x}-{span.context.trace_flags:02x}"


def links_of(span: ReadableSpan) -> list[tuple[str, int]]:
    return [(str((link.attributes or {})[names.LINK]), link.context.span_id) for link in span.links]
