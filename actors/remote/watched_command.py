"""Runs a command in the place of whoever reads its standard error, and ends it when that one is gone.

A server that is in a call may look at no other message, not even at the end of them: of a replica that was killed
it would know nothing for as long as the call takes. Started as a program of its own, at the head of a process
group, `python watched_command.py COMMAND ARGUMENT…`, so it imports nothing of ours.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time

#: How long a command may take to end by itself when its reader is gone, and again when it was asked to, in
#: seconds: as the SDK gives it when it leaves.
GRACE_S = 2.0
_STDERR = 2
#: Of shells, for what can't be started.
_NOT_FOUND = 127


def end_without_reader() -> None:
    """Wait until nobody reads the standard error any more, and then end the whole group."""
    gone = select.poll()
    # Of errors, as this is one, everybody hears.
    gone.register(_STDERR, 0)
    gone.poll()
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the command; returns how it ended, as a shell would say it."""
    # Who ends a command tells its group: it is the command that decides what to do about it.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: None)
    try:
        child = subprocess.Popen(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return _NOT_FOUND
    # It has them: as long as they are open here, too, nobody learns that it closed them.
    for stream in (0, 1):
        os.close(stream)
    threading.Thread(target=end_without_reader, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # The interpreter would flush what was closed.
    os._exit(main())
