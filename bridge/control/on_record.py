"""What operators have the bridge do, on the record."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any

from squadron.runtime.store.operating import operating
from squadron.runtime.store.port_set import Ports

#: Calls that change nothing.
_LOOKS = ("status", "ping", "nodes", "search", "lessons", "track")


async def on_record(
    ports: Ports, verb: str, arguments: Mapping[str, Any], by: str, work: Coroutine[Any, Any, dict[str, Any]]
) -> dict[str, Any]:
    """Do one call; see `operating` for how it is told.

    Raises:
        BusUnavailableError: it can't be recorded, so it is not done.
    """
    with contextlib.closing(work):
        if verb in _LOOKS:
            return await work
        details = dict(arguments)
        # Not the whole: code is identified by its version.
        on = str(details.pop("agent", "")) or ",".join(_named(details.pop("deployments", ())))
        async with operating(ports, verb, on, by=by or "unknown", **details):
            return await work


def _named(deployments: Any) -> list[str]:
    named = []
    # Whoever calls may send anything; it is checked where it is done.
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        named = [f"{each['card']['agent']}@{each['code']['version']}" for each in deployments]
    return named
