"""`Vault` in memory."""

from __future__ import annotations

import math
import uuid

from squadron.bridge.memory.common import now_s
from squadron.runtime.errors import (
    ClaimLostError,
)


class MemoryVault:
    """`Vault` in one process."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[float, bytes]] = {}

    async def store(self, data: bytes, *, keep_s: float) -> str:
        name = uuid.uuid4().hex
        self._held[name] = now_s() + max(1, math.ceil(keep_s)), data
        return name

    async def fetch(self, name: str) -> bytes:
        if name not in self.names():
            raise ClaimLostError(f"the vault holds nothing under {name!r}")
        return self._held[name][1]

    async def drop(self, name: str) -> None:
        self._held.pop(name, None)

    def names(self) -> list[str]:
        """What it holds now, oldest first."""
        now = now_s()
        self._held = {name: held for name, held in self._held.items() if held[0] > now}
        return list(self._held)
