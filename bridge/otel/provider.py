"""Where spans go: the program's own provider, or one as the environment says. Needs the extra `otel`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from opentelemetry.trace import ProxyTracerProvider, TracerProvider, get_tracer_provider
from opentelemetry.util.re import parse_env_headers

from squadron.actors.thinking.credentials import HEADERS
from squadron.bridge.otel import names
from squadron.bridge.otel.contents import Contents
from squadron.bridge.otel.traces import Traces
from squadron.runtime.errors import ConfigError
from squadron.runtime.redact import keep_secret
from squadron.runtime.secret import resolved
from squadron.runtime.wire.envelope import AgentIdentity

#: Spans that may wait to be sent, where OTEL_BSP_MAX_QUEUE_SIZE says nothing. Of a burst of 20,000 its default of
#: 2048 lost 9,101 (measured, OpenTelemetry 1.45); a span that waits has some 2 KB.
QUEUE = 32_768
#: How long the end of a process waits until its last spans are sent, in seconds.
FLUSH_WITHIN_S = 5.0

_log = structlog.get_logger("squadron.traces")


def of_program() -> TracerProvider | None:
    """The provider that the program has set; None if it has set none."""
    provider = get_tracer_provider()
    return None if isinstance(provider, ProxyTracerProvider) else provider


def traces_by(provider: TracerProvider, identity: AgentIdentity, env: Mapping[str, str]) -> Traces:
    """Traces by the program's own provider, which it closes itself."""
    tracer = provider.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)
    return Traces(tracer, replica=identity.id, contents=Contents.of(env))


def traces_to(
    exporters: Sequence[str], identity: AgentIdentity, environment: str, env: Mapping[str, str]
) -> Traces:
    """Traces to exporters, by the variables of OpenTelemetry's SDK: sampler, resource, batches, addresses.

    Raises:
        ImportError: what an exporter needs is not installed.
        ValueError: an exporter or a protocol is unknown.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider

    from squadron.bridge.otel.sending import Batches

    processors = [Batches(_exporter(name, env), _queue(env)) for name in exporters]
    ours = {
        "service.name": identity.type,
        "service.namespace": "squadron",
        "service.instance.id": identity.id,
        "deployment.environment.name": environment,
    }
    # What the variables say counts more.
    said = OTELResourceDetector().detect().attributes
    unsaid = {name: value for name, value in ours.items() if name not in said}
    provider = SdkProvider(resource=Resource.create(unsaid))
    for processor in processors:
        provider.add_span_processor(processor)

    async def close() -> None:
        if not await _within(provider.shutdown, FLUSH_WITHIN_S):
            _log.warning("traces.not_sent", within_s=FLUSH_WITHIN_S)
        for processor in processors:
            processor.tell_lost()

    tracer = provider.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)
    return Traces(tracer, replica=identity.id, contents=Contents.of(env), close=close)


def _queue(env: Mapping[str, str]) -> int:
    text = env.get("OTEL_BSP_MAX_QUEUE_SIZE", "").strip()
    if not text:
        return QUEUE
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"OTEL_BSP_MAX_QUEUE_SIZE: {text!r} is no number of spans")
    return int(text)


def _exporter(name: str, env: Mapping[str, str]) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER: {name!r} is not known; use otlp, console or none")
    given = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    protocol = given.strip().lower() or "http/protobuf"
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(headers=_headers(env))
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(headers=tuple(_headers(env).items()))
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not known; use http/protobuf or grpc")


def _headers(env: Mapping[str, str]) -> dict[str, str]:
    """What opens the collector's door, which may be kept at a place, see `Secret`; struck out from now on.

    Raises:
        ValueError: it can't be had there.
    """
    given = next((env[name] for name in reversed(HEADERS) if env.get(name, "").strip()), "")
    try:
        headers = dict(parse_env_headers(resolved(given.strip()), liberal=True))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    keep_secret(*headers.values())
    return headers


async def _within(work: Any, seconds: float) -> bool:
    """Have work done in a thread that nothing waits for at the end of the process; whether it was done in time."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            # The loop may be gone by then.
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="traces", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            await done.wait()
    except TimeoutError:
        return False
    return True
