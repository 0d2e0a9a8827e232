"""Where the console of an environment runs on this machine, for those who show a link to it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil

from squadron.bridge.daemons import private_dir, write_private
from squadron.config import Settings


@dataclass(frozen=True, slots=True)
class ConsolePlace:
    """The address of a console, and the process that serves it."""

    url: str
    pid: int
    read_only: bool

    @classmethod
    def find(cls, settings: Settings) -> Self | None:
        """The one that runs, if there is one."""
        try:
            found = cls(**json.loads(_file(settings).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if psutil.pid_exists(found.pid) else None

    def write(self, settings: Settings) -> None:
        """Tell where it is."""
        private_dir(settings.home / "console")
        write_private(_file(settings), json.dumps(asdict(self)))

    def forget(self, settings: Settings) -> None:
        """It is gone; another one that came since stays told."""
        if self.find(settings) == self:
            with contextlib.suppress(OSError):
                _file(settings).unlink()


def _file(settings: Settings) -> Path:
    return settings.home / "console" / f"{settings.env}.json"
