"""A receiver of spans and log lines over OTLP, by HTTP or gRPC: what a collector does first."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Received:
    """What came.

    Attributes:
        spans, lines: with the attributes of the service that sent each.
        headers: of the requests.
    """

    address: str = ""
    protocol: str = ""
    spans: list[tuple[dict[str, str], Span]] = field(default_factory=list)
    lines: list[tuple[dict[str, str], LogRecord]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        """What makes a program send its spans here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.address,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
        }

    def named(self, name: str) -> list[Span]:
        return [span for _, span in list(self.spans) if span.name == name]

    def take(self, request: ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        for resource in request.resource_spans:
            said = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.spans += ((said, span) for scope in resource.scope_spans for span in scope.spans)

    def take_lines(self, request: ExportLogsServiceRequest, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        for resource in request.resource_logs:
            said = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.lines += ((said, line) for scope in resource.scope_logs for line in scope.log_records)


@contextmanager
def http_receiver() -> Iterator[Received]:
    """OTLP over HTTP, as protobuf."""
    received = Received(protocol="http/protobuf")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            headers = dict(self.headers.items())
            if self.path == "/v1/logs":
                received.take_lines(ExportLogsServiceRequest.FromString(body), headers)
                answer = ExportLogsServiceResponse().SerializeToString()
            else:
                assert self.path == "/v1/traces"
                received.take(ExportTraceServiceRequest.FromString(body), headers)
                answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield received
    server.shutdown()
    server.server_close()


@contextmanager
def grpc_receiver() -> Iterator[Received]:
    """OTLP over gRPC."""
    received = Received(protocol="grpc")

    class Service(TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            headers = {str(name): str(value) for name, value in context.invocation_metadata()}
            received.take(request, headers)
            return ExportTraceServiceResponse()

    class Lines(LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            headers = {str(name): str(value) for name, value in context.invocation_metadata()}
            received.take_lines(request, headers)
            return ExportLogsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    add_LogsServiceServicer_to_server(Lines(), server)
    add_TraceServiceServicer_to_server(Service(), server)
    received.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield received
    server.stop(None)


RECEIVERS = {"http": http_receiver, "grpc": grpc_receiver}
