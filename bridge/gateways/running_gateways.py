"""Which gateways run from a home, so that a status can show them and a stop can end them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from squadron.bridge.daemons import private_dir, stop_processes, write_private
from squadron.bridge.gateways.door_secret import FOLDER

#: How long a gateway may take to end its requests, in seconds, before it is killed.
STOP_WITHIN_S = 8.0


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """One process of a gateway.

    Attributes:
        doors: the protocols that it serves.
        url: where it listens; empty on the standard streams.
        since: when it began, in seconds since the epoch.
        born: when its process began, as the system tells: a pid may come again.
    """

    pid: int
    environment: str
    doors: tuple[str, ...]
    url: str
    since: float
    born: float

    @property
    def kind(self) -> str:
        """What people call it: the console is announced like a gateway, and is none to them."""
        return "console" if self.doors == ("console",) else "gateway"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        told = {"pid": self.pid, "kind": self.kind, "doors": list(self.doors), "url": self.url}
        return told | {"since": self.since}


@contextlib.contextmanager
def announced(home: Path, environment: str, doors: Sequence[str], url: str) -> Iterator[None]:
    """Be known as a gateway that runs, until this ends.

    Raises:
        ConfigError: the home can't be written.
    """
    me = psutil.Process()
    said = RunningGateway(me.pid, environment, tuple(doors), url, time.time(), me.create_time())
    path = private_dir(home / FOLDER) / f"{environment}-{os.getpid()}.json"
    write_private(path, json.dumps(asdict(said)))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running_gateways(home: Path, environment: str) -> list[RunningGateway]:
    """The gateways of an environment that run from this home; what is left of dead ones is taken away."""
    found = []
    for path in sorted((home / FOLDER).glob(f"{environment}-*.json")):
        try:
            raw = json.loads(path.read_text())
            each = RunningGateway(**raw | {"doors": tuple(raw["doors"])})
        except (OSError, ValueError, TypeError, LookupError):
            continue
        if each.environment != environment:
            continue  # of one whose name begins like this one's
        if _process_of(each) is None:
            path.unlink(missing_ok=True)
        else:
            found.append(each)
    return found


def stop_gateways(home: Path, environment: str) -> list[RunningGateway]:
    """Stop the gateways of an environment that run from this home; returns those that there were."""
    running = [(each, process) for each in running_gateways(home, environment) if (process := _process_of(each))]
    stop_processes([process for _, process in running], within_s=STOP_WITHIN_S)
    running_gateways(home, environment)  # takes away what the killed ones left
    return [each for each, _ in running]


def _process_of(gateway: RunningGateway) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(gateway.pid)
        # Both are of the same clock of the system.
        if abs(process.create_time() - gateway.born) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None
