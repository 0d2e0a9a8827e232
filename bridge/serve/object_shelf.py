"""Large values of one Ray cluster that outlive who made them: an actor owns them, in Ray's object store."""

from __future__ import annotations

import time
import uuid
from typing import Any

import ray


@ray.remote(num_cpus=0)
class ObjectShelf:
    """Keeps values for a while. Those it kept are lost with it, and with the node that holds them."""

    def __init__(self) -> None:
        #: By id: when it is over, by the monotonic clock, and the value.
        self._kept: dict[str, tuple[float, ray.ObjectRef[Any]]] = {}

    def keep(self, value: Any, keep_s: float) -> str:
        """Copy a value into the store as our own; returns its id."""
        # Whoever sent it owns what was sent, and may be gone before somebody reads it.
        id, over_at = uuid.uuid4().hex, time.monotonic() + keep_s
        self._kept[id] = over_at, ray.put(value)
        # The store evicts nothing that is owned.
        self._drop_old()
        return id

    def find(self, id: str) -> list[ray.ObjectRef[Any]]:
        """The value's reference, in a list so that Ray does not resolve it; empty if it is gone."""
        self._drop_old()
        return [self._kept[id][1]] if id in self._kept else []

    def _drop_old(self) -> None:
        now = time.monotonic()
        for id in [id for id, (over_at, _) in self._kept.items() if over_at < now]:
            del self._kept[id]
