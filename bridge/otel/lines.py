"""Log lines over OTLP, for who asks for it: without secrets, in the trace that they belong to."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from pydantic_core import to_json

from squadron.bridge.otel import names
from squadron.bridge.otel.provider import hide_headers, log_exporter, resource_of
from squadron.runtime.redact import scrub, scrub_all
from squadron.runtime.retries import traceback_of
from squadron.runtime.wire.envelope import AgentIdentity

_SEVERITY = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
#: What a record says in fields of its own.
_OWN = ("event", "level", "timestamp", "trace_id", "exc_info", "exception", "stack_info")


class Lines:
    """A processor of structlog that sends each line, and passes it on as it was."""

    def __init__(self, provider: LoggerProvider) -> None:
        self.provider = provider
        self._logger: Logger = provider.get_logger(names.SCOPE)

    def __call__(self, _: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Send it; what goes wrong there must not keep it off standard error."""
        try:
            level = str(line.get("level", "info"))
            self._logger.emit(
                timestamp=time.time_ns(),
                severity_number=_SEVERITY.get(level, SeverityNumber.INFO),
                severity_text=level,
                body=scrub(str(line.get("event", ""))),
                attributes=_attributes(line),
            )
        except Exception as error:
            return {**line, "not_sent": type(error).__name__}
        return line


def lines_to(exporters: Sequence[str], identity: AgentIdentity, environment: str, env: Mapping[str, str]) -> Lines:
    """Lines to exporters; batches, resource and addresses are as the variables of OpenTelemetry's SDK say.

    Raises:
        ImportError: what an exporter needs is not installed.
        ValueError: an exporter or a protocol is unknown.
    """
    hide_headers(env)
    provider = LoggerProvider(resource=resource_of(identity, environment))
    for name in exporters:
        # The end of the process sends what is left.
        provider.add_log_record_processor(BatchLogRecordProcessor(log_exporter(name, env)))
    return Lines(provider)


def _attributes(line: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in line.items():
        if name not in _OWN:
            plain = value if isinstance(value, str | bool | int | float) else to_json(value, fallback=str).decode()
            found[name] = scrub_all(plain)
    if isinstance(raised := line.get("exc_info"), BaseException):
        found["exception.type"] = type(raised).__name__
        found["exception.stacktrace"] = traceback_of(raised)
    elif "exception" in line:
        # As structlog has rendered it, without the locals of its frames.
        found["exception.stacktrace"] = scrub(to_json(line["exception"], fallback=str).decode())
    return found
