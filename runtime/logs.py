"""Structured logs: lines for people on a terminal, JSON everywhere else."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.dev import RichTracebackFormatter
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer

from squadron.runtime.redact import scrub


def configure_logs(level: str = "INFO") -> None:
    """Send all logs to standard error at `level` and above; standard output stays free for results."""
    pretty = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=RichTracebackFormatter(show_locals=False))
        if pretty
        else structlog.processors.JSONRenderer()
    )
    # Without the locals of the frames: they hold keys and passwords.
    exceptions = [] if pretty else [ExceptionRenderer(ExceptionDictTransformer(show_locals=False))]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
            _scrubbed,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _scrubbed(_: Any, __: str, line: Any) -> Any:
    return scrub(line)
