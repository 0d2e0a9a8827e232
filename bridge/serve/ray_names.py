"""How things of ours are called in Ray."""

from __future__ import annotations

#: Ray namespace of everything of ours.
NAMESPACE = "squadron"


def bridge_name(environment: str) -> str:
    """Name of the environment's bridge actor in Ray."""
    return f"squadron-bridge-{environment}"


def archivist_name(environment: str) -> str:
    """Name of the environment's archivist actor in Ray."""
    return f"squadron-archivist-{environment}"


def shelf_name(environment: str) -> str:
    """Name in Ray of the actor that keeps the environment's large values."""
    return f"squadron-objects-{environment}"
