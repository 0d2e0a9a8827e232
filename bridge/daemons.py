"""What every daemon of a home needs, be it nats-server or Ray: private files, a lock, an end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from squadron.runtime.errors import BusUnavailableError, ConfigError, SquadronError

if TYPE_CHECKING:
    import psutil

#: Local work is polled at this step.
_POLL_S = 0.01


def never() -> bool:
    """Nobody gives up."""
    return False


def private_dir(path: Path) -> Path:
    """Make a directory that only this user can enter (0700), with its parents.

    Raises:
        ConfigError: it can't be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be used: {error.strerror}", hint="set SQUADRON_HOME to a folder of yours"
        ) from error
    return path


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only this user can read (0600)."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    within_s: float,
    error: type[SquadronError] = BusUnavailableError,
    given_up: Callable[[], bool] = never,
) -> Iterator[None]:
    """Hold an exclusive lock among processes; the kernel frees it when its holder dies.

    Raises:
        error: somebody else held it for all of `within_s` seconds, or until it was given up.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "w") as file:
        deadline = time.monotonic() + within_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline or given_up():
                    raise error(
                        f"another process held {path} for {within_s:g} s", hint="is a start or stop hanging?"
                    ) from None
                time.sleep(_POLL_S)
        yield


@contextlib.contextmanager
def marked(path: Path) -> Iterator[None]:
    """Have `is_marked` say so meanwhile; any number of processes may, and the kernel forgets those that die."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            # Not by closing the file: a process that was forked meanwhile has it open, too, and would keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


def is_marked(path: Path) -> bool:
    """Whether a process has marked it, or looks at this very moment; not, where that can't be told."""
    try:
        # For writing: NFS gives nobody else an exclusive lock.
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # Most often it is not there. Who asks has an error to tell already, which this must not take the place of.
        return False
    return False


def stop_processes(processes: list[psutil.Process], *, within_s: float) -> bool:
    """SIGTERM, then SIGKILL for those still there after `within_s` seconds; whether there were any.

    psutil compares start times before it signals, so a pid that was reused meanwhile is left alone.
    """
    import psutil

    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal_number)
        deadline = time.monotonic() + within_s
        while any(map(is_alive, processes)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    return bool(processes)


def command_line(pid: int) -> list[str]:
    """How this process was called; empty if there is none."""
    with contextlib.suppress(OSError):
        # Without psutil where that goes: every command looks whether a server runs, and few do more.
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]
    import psutil

    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs. A zombie does not: some init processes take seconds to reap (measured)."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def tail(path: Path, *, lines: int = 15) -> str:
    """The last lines of a log file; empty if there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
