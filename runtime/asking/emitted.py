"""What a task has emitted so far, for who wants to see it and not to wait."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from typing import Any

from squadron.runtime.asking.handle import Handle
from squadron.runtime.errors import StreamGapError
from squadron.runtime.streams.writer import Chunk, Restarted


async def emitted_so_far(handle: Handle) -> list[Chunk]:
    """The chunks of a task's newest attempt, as far as they are stored without a gap.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    reader, found = handle._reader(handle.reply_to), list[Chunk]()
    reader.wind_up()
    with contextlib.suppress(StreamGapError):
        async with aclosing(reader.events()) as events:
            async for event in events:
                if isinstance(event, Restarted):
                    found.clear()
                elif isinstance(event, Chunk):
                    found.append(event)
    return found


async def newest_emitted(handle: Handle) -> Any:
    """The last chunk of a task, if nothing else was stored after it; None if there is none.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    entry = await handle._lite.last(handle.reply_to)
    payload = None if entry is None else await handle._reader(handle.reply_to).read_alone(entry)
    return None if payload is None else payload["chunk"]
