"""`Vault` in memory."""

from __future__ import annotations

import copy
import math
import uuid
from typing import Self

from squadron.bridge.memory.common import now_s
from squadron.bridge.memory.line import PERSIST_S, Line
from squadron.runtime.errors import ClaimLostError
from squadron.runtime.ports.vault import name_of


class MemoryVault:
    """`Vault` in one process."""

    def __init__(self, line: Line | None = None) -> None:
        self._line = line or Line()
        self._held: dict[str, tuple[float, bytes]] = {}

    def over(self, line: Line) -> Self:
        """The same, as one process sees it over its own line."""
        view = copy.copy(self)
        view._line = line
        return view

    async def store(self, data: bytes, *, keep_s: float, key: str = "") -> str:
        await self._line.answer(PERSIST_S)
        name = name_of(key or uuid.uuid4().hex)
        self._held[name] = now_s() + max(1, math.ceil(keep_s)), data
        return name

    async def fetch(self, name: str) -> bytes:
        await self._line.answer()
        if name not in self.names():
            raise ClaimLostError(f"the vault holds nothing under {name!r}")
        return self._held[name][1]

    async def drop(self, name: str, key: str = "") -> None:
        await self._line.answer()
        self._held.pop(name, None)

    def names(self) -> list[str]:
        """What it holds now, oldest first."""
        now = now_s()
        for name in [name for name, (until, _) in self._held.items() if until <= now]:
            del self._held[name]
        return list(self._held)
