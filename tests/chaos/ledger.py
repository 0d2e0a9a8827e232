"""Files that many processes append to and an accountant reads: one JSON object per line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Ledger:
    """A file to append to. What `write` was called for is in it, whoever is killed afterwards."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **facts: Any) -> None:
        """Append a line: what happened, in which process, and when (monotonic seconds, of one clock for all)."""
        line = json.dumps({"what": what, "at": round(time.monotonic(), 4), "pid": os.getpid(), **facts})
        # One write for each line: lines of different processes don't mix, and SIGKILL tears none.
        os.write(self._file, line.encode() + b"\n")


def read(path: Path) -> list[Line]:
    """All lines of a ledger, in the order they were written; none if nobody wrote."""
    # A reader may see the first half of the line that is being written.
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]
