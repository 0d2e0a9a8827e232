"""How a turn may end without an outcome: the task goes on elsewhere, or later."""

from __future__ import annotations

from dataclasses import dataclass

from squadron.runtime.errors import Park


@dataclass(frozen=True, slots=True)
class Again:
    """The task is handed back for another attempt; `error` says in a line why."""

    after_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class LetGo:
    """Another attempt has taken over, and ends the task."""


@dataclass(frozen=True, slots=True)
class HandOn:
    """The task is for one of these replicas, or for whoever is delivered it next if there are none."""

    replicas: list[str]


@dataclass(frozen=True, slots=True)
class Later:
    """The task waits for people."""

    park: Park
