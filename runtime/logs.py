"""Structured logs: lines for people on a terminal, JSON everywhere else."""

from __future__ import annotations

import logging
import sys
import threading
from functools import cache
from typing import Any

import structlog
from structlog.dev import RichTracebackFormatter
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer

from squadron.runtime.redact import scrub
from squadron.runtime.retries import traceback_of


def configure_logs(level: str = "INFO", *also: structlog.typing.Processor) -> None:
    """Send all logs to standard error at `level` and above; standard output stays free for results.

    For programs of our own: it also takes the secrets out of what others log here by `logging`, as asyncio does of
    tasks that nobody awaits, and out of what is said of threads that broke.

    Args:
        also: get each line before it is written, with what may be a secret still in it.
    """
    _scrub_others()
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
            *also,
            renderer,
            _scrubbed,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _scrubbed(_: Any, __: str, line: Any) -> Any:
    return scrub(line)


@cache
def _scrub_others() -> None:
    make = logging.getLogRecordFactory()

    def make_clean(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        try:
            message = record.getMessage()
        except Exception:
            # Its arguments don't fit; `logging` would show them.
            message = f"{record.msg} {record.args}"
        if (clean := scrub(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[1]:
            record.exc_text = traceback_of(record.exc_info[1]).rstrip()
        return record

    def tell(broke: threading.ExceptHookArgs) -> None:
        if broke.exc_value is not None and broke.exc_type is not SystemExit:
            name = broke.thread.name if broke.thread is not None else ""
            sys.stderr.write(f"Exception in thread {name}:\n{traceback_of(broke.exc_value)}")

    logging.setLogRecordFactory(make_clean)
    threading.excepthook = tell
