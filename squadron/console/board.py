"""What the console shows now, as rows by section, and how each change of it reaches all who look."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from squadron.runtime.texts import json_text

#: Frames that wait for a slow browser at most; one that has more is shown everything anew.
MOST_WAITING = 256


def frame(event: str, data: Any) -> bytes:
    """One server-sent event."""
    return f"event: {event}\ndata: {json_text(data)}\n\n".encode(errors="replace")


class Onlooker:
    """One who looks: first all, then each change. A slow one misses steps, never the state."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._waiting, self._changed, self._behind = deque[bytes](), asyncio.Event(), True
        self._changed.set()

    def tell(self, data: bytes) -> None:
        """Have it told one change."""
        if self._behind:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.clear()
            self._behind = True
        else:
            self._waiting.append(data)
        self._changed.set()

    async def next(self) -> bytes:
        """What is new, as frames; waits until something is."""
        await self._changed.wait()
        self._changed.clear()
        if self._behind:
            self._behind = False
            return frame("all", self._board.rows)
        told = b"".join(self._waiting)
        self._waiting.clear()
        return told


class Board:
    """Rows by section and key. A change is encoded once, however many look."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._onlookers: set[Onlooker] = set()
        self._watched = asyncio.Event()

    @property
    def onlookers(self) -> int:
        """How many look."""
        return len(self._onlookers)

    def enter(self) -> Onlooker:
        """Somebody begins to look."""
        onlooker = Onlooker(self)
        self._onlookers.add(onlooker)
        self._watched.set()
        return onlooker

    def leave(self, onlooker: Onlooker) -> None:
        """Somebody has seen enough."""
        self._onlookers.discard(onlooker)
        if not self._onlookers:
            self._watched.clear()

    async def watched(self) -> None:
        """Wait until somebody looks: nothing is fetched for nobody."""
        await self._watched.wait()

    def put(self, section: str, rows: Mapping[str, Any]) -> None:
        """A section as it is now."""
        before = self.rows.get(section)
        changed = {key: row for key, row in rows.items() if before is None or before.get(key) != row}
        gone = [key for key in before or () if key not in rows]
        self.rows[section] = dict(rows)
        if changed or gone or before is None:
            self._tell({"section": section, "set": changed, "gone": gone})

    def add(self, section: str, rows: Iterable[tuple[str, Any]], *, most: int) -> None:
        """Rows beside those that are there; of more than `most` the oldest go."""
        kept, added = self.rows.setdefault(section, {}), dict(rows)
        for key in added:
            kept.pop(key, None)
        kept.update(added)
        gone = list(kept)[: max(0, len(kept) - most)]
        for key in gone:
            del kept[key]
        if added:
            self._tell({"section": section, "set": added, "gone": gone})

    def _tell(self, change: dict[str, Any]) -> None:
        data = frame("change", change) if self._onlookers else b""
        for onlooker in self._onlookers:
            onlooker.tell(data)
