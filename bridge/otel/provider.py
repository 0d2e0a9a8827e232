"""Where spans go: the program's own provider, or one as the environment says. Needs the extra `otel`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.trace import ProxyTracerProvider, TracerProvider, get_tracer_provider
from opentelemetry.util.re import parse_env_headers

from squadron.bridge.otel import names
from squadron.bridge.otel.contents import Contents
from squadron.bridge.otel.traces import Traces
from squadron.runtime.errors import ConfigError
from squadron.runtime.logs import get_logger
from squadron.runtime.redact import keep_secret
from squadron.runtime.secret import resolved
from squadron.runtime.wire.envelope import AgentIdentity

#: Spans that may wait to be sent, where OTEL_BSP_MAX_QUEUE_SIZE says nothing. Of a burst of 20,000 its default of
#: 2048 lost 9,101 (measured, OpenTelemetry 1.45); a span that waits has some 2 KB.
QUEUE = 32_768
#: How long the end of a process waits until its last spans are sent, in seconds.
FLUSH_WITHIN_S = 5.0

_log = get_logger("squadron.traces")


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
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider

    from squadron.bridge.otel.sending import Batches

    processors = [Batches(_exporter(name, env), _queue(env)) for name in exporters]
    provider = SdkProvider(resource=resource_of(identity, environment))
    for processor in processors:
        provider.add_span_processor(processor)

    async def close() -> None:
        if not await _within(provider.shutdown, FLUSH_WITHIN_S):
            _log.warning("traces.not_sent", within_s=FLUSH_WITHIN_S)
        for processor in processors:
            processor.tell_lost()

    tracer = provider.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)
    return Traces(tracer, replica=identity.id, contents=Contents.of(env), close=close)


def resource_of(identity: AgentIdentity, environment: str) -> Any:
    """Who we are, as OpenTelemetry says it; what its variables say of that counts more."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {
        "service.name": identity.type,
        "service.namespace": "squadron",
        "service.instance.id": identity.id,
        "deployment.environment.name": environment,
    }
    said = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in said})


def _queue(env: Mapping[str, str]) -> int:
    text = env.get("OTEL_BSP_MAX_QUEUE_SIZE", "").strip()
    if not text:
        return QUEUE
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"OTEL_BSP_MAX_QUEUE_SIZE: {text!r} is no number of spans")
    return int(text)


def _exporter(name: str, env: Mapping[str, str]) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER: {name!r} is not known; use otlp, console or none")
    headers, is_grpc = _headers("TRACES", env), _is_grpc("TRACES", env)
    if is_grpc:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(headers=tuple(headers.items()))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(headers=headers)


def log_exporter(name: str, env: Mapping[str, str]) -> Any:
    """What sends log lines.

    Raises:
        ImportError: what it needs is not installed.
        ValueError: it, or its protocol, is unknown.
    """
    if name != "otlp":
        raise ValueError(f"OTEL_LOGS_EXPORTER: {name!r} is not known; use otlp or none")
    headers, is_grpc = _headers("LOGS", env), _is_grpc("LOGS", env)
    if is_grpc:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter

        return GrpcExporter(headers=tuple(headers.items()))
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter

    return HttpExporter(headers=headers)


def _is_grpc(signal: str, env: Mapping[str, str]) -> bool:
    given = env.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    protocol = given.strip().lower() or "http/protobuf"
    if protocol not in ("http/protobuf", "grpc"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not known; use http/protobuf or grpc")
    return protocol == "grpc"


def _headers(signal: str, env: Mapping[str, str]) -> dict[str, str]:
    """What opens the collector's door, which may be kept at a place, see `Secret`; struck out from now on.

    Raises:
        ValueError: it can't be had there.
    """
    names = (f"OTEL_EXPORTER_OTLP_{signal}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
    given = next((env[name] for name in names if env.get(name, "").strip()), "")
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
