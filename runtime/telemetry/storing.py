"""Storing a message that observers are told of."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from squadron.runtime.retries import summary_of
from squadron.runtime.telemetry.observer import Observers

T = TypeVar("T")


async def told_when_stored(observers: Observers, id: str, storing: Awaitable[T]) -> T:
    """Await what stores a message, and tell how that ended."""
    if not observers.on:
        return await storing
    from squadron.runtime.telemetry.happenings import MessageStored

    error = "cancelled"
    try:
        stored = await storing
        error = ""
        return stored
    except Exception as failure:
        error = summary_of(failure)
        raise
    finally:
        observers.tell(MessageStored(id=id, error=error))
