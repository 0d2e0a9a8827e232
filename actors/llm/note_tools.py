"""Notes as tools of one turn's model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from squadron.actors.thinking.model import ToolDefinition
from squadron.actors.thinking.notes import Notes


@dataclass(frozen=True, slots=True)
class NoteTool:
    """One of `NOTE_TOOLS`; see `runs.acting.Tool`."""

    definition: ToolDefinition
    notes: Notes
    #: The same note is kept once.
    may_repeat: ClassVar[bool] = True
    within_s: ClassVar[float] = 60.0

    async def run(self, arguments: Any) -> str:
        """Save, find or forget."""
        return await self.notes.call(self.definition.name, arguments)
