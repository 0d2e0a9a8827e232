"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What is found where there is nothing to tell.
WELL = "well"

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing looked at: how it is, and what to do if it isn't well.

    `fail` is what keeps work from being done, `warn` what will, or what people may want to know.
    """

    name: str
    level: Level
    found: str
    fix: str = ""
