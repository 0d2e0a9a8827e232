"""Structured logs: lines for people on a terminal, JSON everywhere else."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from squadron.runtime.loaded_later import LoadedLater
from squadron.runtime.redact import scrub
from squadron.runtime.retries import traceback_of
from squadron.runtime.texts import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import Processor

#: What is to be done before the first line.
_waiting: list[Callable[[], None]] = []
#: Held by the thread that logs first, whatever it logs by itself meanwhile.
_settling = threading.RLock()


class LazyLogger:
    """A structlog logger, made when it is first used.

    structlog brings Rich along, which is a quarter of what a `squadron ask` loads; and that logs nothing.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            # As who copies asks for, or pickles.
            raise AttributeError(method)
        settle_logs()
        import structlog

        return getattr(structlog.get_logger(self._name), method)


def load_structlog_alone() -> None:
    """Load structlog without Rich, which it needs for tracebacks on a terminal only: 3 MB of each replica.

    For processes of our own, before there are threads that may load Rich meanwhile. Who prints such a traceback
    still can: then it is loaded.
    """
    if {"structlog", "rich"} & sys.modules.keys():
        return
    rich = {name: ModuleType(name) for name in ("rich", "rich.console", "rich.traceback")}
    vars(rich["rich.console"])["Console"] = LoadedLater("rich.console", "Console")
    vars(rich["rich.traceback"])["Traceback"] = LoadedLater("rich.traceback", "Traceback")
    sys.modules |= rich
    try:
        importlib.import_module("structlog")
    finally:
        for name in rich:
            del sys.modules[name]


def get_logger(name: str) -> Any:
    """The logger of a part of ours."""
    return LazyLogger(name)


def configure_logs_later(level: str) -> None:
    """As `configure_logs`, but structlog is loaded for the first line, or by `settle_logs`."""
    _scrub_others()
    _waiting.append(partial(configure_logs, level))


def settle_logs() -> None:
    """Configure now what was to be configured later: code that is not ours comes, and may log by itself."""
    with _settling:
        while _waiting:
            _waiting.pop(0)()


def configure_logs(level: str = "INFO", *also: Processor) -> None:
    """Send all logs to standard error at `level` and above; standard output stays free for results.

    For programs of our own: it also takes the secrets out of what others log here by `logging`, as asyncio does of
    tasks that nobody awaits, and out of what is said of threads that broke.

    Args:
        also: get each line before it is written, with what may be a secret still in it.
    """
    # Loaded here: most of what imports this module never logs.
    import structlog
    from structlog.dev import RichTracebackFormatter
    from structlog.processors import ExceptionRenderer
    from structlog.tracebacks import ExceptionDictTransformer

    _scrub_others()
    pretty = sys.stderr.isatty()
    renderer: Processor = (
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
            *([_printable] if pretty else []),
            renderer,
            _scrubbed,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _printable(_: Any, __: str, said: Any) -> Any:
    # Names and errors are as others wrote them; what is no text is shown by its `repr`, which escapes.
    return {name: printable(each) if isinstance(each, str) else each for name, each in said.items()}


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
