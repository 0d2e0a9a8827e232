"""What an agent remembers of a conversation: on a lite topic of its own, sealed for itself if the task was sealed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from pydantic_core import from_json

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.store.port_set import Ports
from squadron.runtime.texts import whole

#: Life of a conversation's memory after its last entry, in seconds: a working week.
MEMORY_TTL_S = 7 * 24 * 3600.0


async def remember(ports: Ports, key: str, item: Any, *, sealed: bool) -> None:
    """Add one JSON value.

    Raises:
        BusUnavailableError: not acknowledged in time.
    """
    if sealed:
        own = (await ports.claims.seals.ring()).public
        data = await ports.pack_for((own,), key, "event", {"content": whole(item)}, keep_s=MEMORY_TTL_S)
    else:
        data = json.dumps(whole(item)).encode()
    await ports.lite.append(key, data, ttl_s=MEMORY_TTL_S)


async def recall(ports: Ports, key: str) -> list[Any]:
    """All that is remembered, oldest first.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    items = []
    async for entry in ports.lite.read(key):
        # What is no JSON, can't travel or does not open was not remembered here.
        with contextlib.suppress(ValueError, InvalidMessageError):
            if END_HEADER not in entry.headers:
                item = from_json(entry.data)
                items.append((await ports.claims.open(entry.data, key)).payload.content if _is_sealed(item) else item)
    return items


def _is_sealed(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(payload := item.get("payload"), dict) and "sealed" in payload
