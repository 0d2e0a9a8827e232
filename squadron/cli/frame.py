"""What all commands share: exit codes, errors in one line, a quiet end at Ctrl-C, the way to a squad.

All that a command says goes out here: anybody may have written it, and nothing of it may move a terminal's cursor.
Nothing here imports ray or nats before a command needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from squadron.cli.ending import INTERRUPTED, PIPE_CLOSED, drop_stdout, vanish
from squadron.config import Settings
from squadron.runtime import errors
from squadron.runtime.errors import SquadronError
from squadron.runtime.retries import summary_of, traceback_of
from squadron.runtime.texts import json_text
from squadron.runtime.texts import printable as printable

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from squadron.cli.progress import Watch
    from squadron.client.squad import Squad

OK, ENDED_OTHERWISE, BAD_USAGE, NOT_RUNNING = 0, 1, 2, 3

#: Spaces of all widths, and what joins signs into one: Python calls them unprintable, but people write them, and
#: no terminal obeys them.
SPACES = "\xa0\u1680\u202f\u205f\u3000\u200c\u200d" + "".join(map(chr, range(0x2000, 0x200B)))

_CODES: dict[type[SquadronError], int] = {
    errors.ConfigError: BAD_USAGE,
    errors.InvalidAgentError: BAD_USAGE,
    errors.InvalidInputError: BAD_USAGE,
    errors.InvalidSubjectError: BAD_USAGE,
    errors.RecordingError: BAD_USAGE,
    errors.UnknownLetterError: BAD_USAGE,
    errors.CutLetterError: BAD_USAGE,
    errors.UnknownQuestionError: BAD_USAGE,
    errors.BusUnavailableError: NOT_RUNNING,
    errors.BridgeUnavailableError: NOT_RUNNING,
    errors.ClusterUnavailableError: NOT_RUNNING,
}


class NotRunning(SquadronError):  # noqa: N818 - how a command ends, not an error of the runtime
    """There is no squad to talk to; wraps what was in the way."""


def execute(work: Coroutine[Any, Any, int], *, as_json: bool = False, fast: bool = False) -> NoReturn:
    """Run a command's work to its end, and leave with its exit code; errors become one line.

    Args:
        fast: whether it serves others, for whom a quicker loop is worth what it takes to load.
    """
    try:
        with asyncio.Runner(loop_factory=_fast_loop if fast else None) as runner:
            code = runner.run(_until_signal(work))
        sys.stdout.flush()
    except SquadronError as error:
        if as_json:
            print_json({"error": error.to_dict()})
        complain(error)
        code = _code_of(error)
    except BrokenPipeError:
        drop_stdout()
        code = PIPE_CLOSED
    except KeyboardInterrupt:
        # The second Ctrl-C: do not wait for the clean-up either.
        vanish(INTERRUPTED)
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if os.environ.get("SQUADRON_LOG_LEVEL", "").upper() == "DEBUG":
            sys.stderr.write(printable(traceback_of(error)))
        hint = "this is a bug in squadron; SQUADRON_LOG_LEVEL=DEBUG shows where"
        complain(SquadronError(summary_of(error), hint=hint))
        code = ENDED_OTHERWISE
    raise typer.Exit(code)


def _fast_loop() -> asyncio.AbstractEventLoop:
    """That of libuv, which Ray Serve brings along and replicas have too; asyncio's own where there is none."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """The work's exit code; at Ctrl-C or a request to terminate it is cancelled, cleans up, and that is all."""
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None
    received = [signal.SIGINT]

    def stop(number: signal.Signals) -> None:
        received[0] = number
        me.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` has it ignored
            loop.add_signal_handler(number, stop, number)
    try:
        code = await work
    except asyncio.CancelledError:
        vanish(128 + received[0])
    return 128 + received[0] if me.cancelling() else code


def _code_of(error: SquadronError) -> int:
    if isinstance(error, NotRunning):
        return NOT_RUNNING
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), ENDED_OTHERWISE)


def complain(error: SquadronError) -> None:
    """Say an error on stderr, with what to do about it."""
    from rich.text import Text

    console = err()
    console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=not console.is_terminal)


def tell(text: str) -> None:
    """Say something to a person on stderr."""
    console = err()
    console.print(text, soft_wrap=not console.is_terminal, markup=False)


#: That of the pane which is on the terminal, if there is one.
_shown: Console | None = None


def err() -> Console:
    """The console for people; it has no colours where nobody sees them (no terminal, `NO_COLOR`)."""
    from squadron.cli.clean_console import CleanConsole

    return _shown or CleanConsole(stderr=True, highlight=False, emoji=False)


@contextlib.contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Say everything on this console: one that draws a pane would wipe away what others write."""
    global _shown
    _shown = console
    try:
        yield
    finally:
        _shown = None


@contextlib.contextmanager
def progress(title: str, *, many: bool) -> Iterator[Callable[[int, int], Any]]:
    """A bar on a terminal if there are many, else nothing; it is gone when all is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = err()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (many and console.is_terminal)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def out() -> Console:
    """The console for results. In a pipe lines are as long as they are: a program reads them."""
    from squadron.cli.clean_console import CleanConsole

    return CleanConsole(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)


def write(text: str) -> None:
    """Lines on stdout, without what could move a cursor: they may come to a terminal by a pipe, too."""
    sys.stdout.write(printable(text, f"\n\t{SPACES}"))


def write_row(*cells: str) -> None:
    """A line on stdout of cells with tabs between: none of them holds a tab or the end of a line."""
    sys.stdout.write("\t".join(printable(each, SPACES) for each in cells) + "\n")


def write_whole(text: str) -> None:
    """What somebody asked for on stdout: to a file it goes as it is, and on a terminal as `write` has it."""
    if sys.stdout.isatty():
        write(text.replace("\r\n", "\n"))
    else:
        sys.stdout.write(text)


def _json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON for people to read, too: what a terminal might obey stands in it as JSON escapes it."""
    text = json_text(value, indent)
    if text.isprintable():
        return text
    # The ends of lines stand between texts, never in one; of DEL alone JSON makes no escape.
    return "".join(
        each if each.isprintable() or each == "\n" or each in SPACES else json.dumps(each)[1:-1] for each in text
    ).replace("\x7f", "\\u007f")


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON value on stdout: one line for a program, and indented so much for a person."""
    sys.stdout.write(_json_text(value, indent if sys.stdout.isatty() else None) + "\n")
    sys.stdout.flush()


def when(at: float) -> str:
    """A time in UTC, to the second; `?` where there is none. Anybody may have sent one that has no date."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(at, UTC).isoformat(" ", "seconds").removesuffix("+00:00") if at else "?"
    return "?"


@contextlib.contextmanager
def writing(path: Path, option: str = "--out") -> Iterator[None]:
    """Say of a file that it can't be written.

    Args:
        option: what names it.

    Raises:
        ConfigError: it can't.
    """
    try:
        yield
    except OSError as error:
        raise errors.ConfigError(
            f"{path} can't be written: {error.strerror}", hint=f"give another {option}"
        ) from None


def check_file(path: Path, option: str = "--out") -> None:
    """Look, before all the work, whether what comes of it can be written.

    Raises:
        ConfigError: it can't.
    """
    with writing(path, option):
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        # With the slash it is no file.
        os.stat(f"{path.parent}/")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def ask(text: str, **how: Any) -> str:
    """What the person at the terminal says to that."""
    said: str = typer.prompt(printable(text, ""), err=True, **how)
    return said


def confirm(text: str) -> bool:
    """Whether the person at the terminal says yes to that."""
    return typer.confirm(printable(text, ""), err=True)


def settings_of(ctx: typer.Context) -> Settings:
    """The settings of this command line, with the logs set up as they say.

    Raises:
        ConfigError: one of them is wrong.
    """
    from squadron.runtime.logs import configure_logs_later

    settings = Settings.load(**ctx.obj)
    configure_logs_later(settings.log_level)
    # It logs a traceback when a call is cancelled just as its answer comes; what matters is raised to us.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    return settings


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Squad]:
    """A squad that runs already.

    Raises:
        NotRunning: there is none; says how to start it.
    """
    from squadron.client.squad import Squad

    try:
        squad = await Squad.connect(settings)
    except SquadronError as error:
        raise NotRunning(str(error.args[0]), hint=error.hint) from None
    try:
        yield squad
    finally:
        await squad.aclose()


@contextlib.asynccontextmanager
async def opened(settings: Settings, watch: Watch, *, keep: bool = False) -> AsyncIterator[Squad]:
    """A squad that is brought up if it doesn't run; what was started here is stopped again unless `keep`."""
    from squadron.client.squad import Squad

    me = asyncio.current_task()
    assert me is not None
    squad = await Squad.up(settings, on_step=watch.phase)
    if keep:
        squad.keep_running()
    try:
        if me.cancelling():
            # Libraries below lose a cancellation now and then; it counts all the same.
            raise asyncio.CancelledError
        yield squad
    finally:
        if squad.started_here:
            watch.phase("stop")
        await squad.aclose()


def telling_apart(ids: Sequence[str]) -> int:
    """How much of the ids tells them apart, at least eight characters."""
    longest = max(map(len, ids))
    return next((n for n in range(8, longest) if len({id[:n] for id in ids}) == len(set(ids))), longest)
