"""How the command line begins and ends as a program; it loads next to nothing, for the sake of `--help`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

INTERRUPTED = 130
#: What a shell reports of a program that wrote to a closed pipe (128 + SIGPIPE).
PIPE_CLOSED = 141


def start(app: Callable[[], Any]) -> None:
    """Run the command line; the last line of defence against tracebacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A package's summary may hold any character, and a terminal need not be able to show it.
            stream.reconfigure(errors="replace")
    try:
        app()
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
        sys.exit(PIPE_CLOSED)
    except KeyboardInterrupt:
        vanish(INTERRUPTED)


def vanish(code: int) -> NoReturn:
    """Leave now. A thread that reads the terminal can't be interrupted, and a normal exit would wait for it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def drop_stdout() -> None:
    """Whoever read our output went away; the interpreter's own flush at exit must not trip over that."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
