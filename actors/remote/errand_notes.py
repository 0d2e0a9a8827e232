"""What a task is called at the server that does it: noted, so that an attempt after this one takes it up there."""

from __future__ import annotations

import json
from collections.abc import Mapping

from squadron.runtime.running.context import TurnContext
from squadron.runtime.store.own_journal import memory_owner
from squadron.runtime.wire.subjects import token_of

#: How long the name of a task there is kept, in seconds: an hour past any run.
KEPT_S = 2 * 3600.0


class ErrandNote:
    """The note about the task of a turn.

    Args:
        protocol: which keeps it, so that no other reads it.
    """

    def __init__(self, ctx: TurnContext, protocol: str) -> None:
        subjects = ctx.caller.ports.subjects
        self._own = ctx.own
        self._key = subjects.lite(memory_owner(ctx.agent), token_of(f"{protocol}-{ctx.message.id}"))

    async def write(self, said: Mapping[str, str]) -> None:
        """Keep it, in the place of what was kept.

        Raises:
            BusUnavailableError: not acknowledged in time.
        """
        await self._own.append(self._key, json.dumps(said).encode(), ttl_s=KEPT_S)

    async def read(self) -> dict[str, str]:
        """What an earlier attempt kept; nothing if none did, or if somebody else wrote there."""
        entry = await self._own.last(self._key)
        try:
            said = {} if entry is None else json.loads(entry.data)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(said, dict):
            return {}
        return {name: value for name, value in said.items() if isinstance(value, str)}
