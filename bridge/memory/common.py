"""What the ports in memory share with a server: its limits, its matching, its memory of message ids."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from squadron.runtime.errors import (
    MessageTooLargeError,
)

#: As in the embedded server's configuration.
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
#: As JetStream's default duplicate window, in seconds.
DUPLICATE_WINDOW_S = 120.0
#: Seconds since the epoch at which the clock of event loops began.
_BEGAN_AT_S = time.time() - time.monotonic()


def now_s() -> float:
    """The time of the running event loop, which is that of its timers."""
    return asyncio.get_running_loop().time()


def wall_s() -> float:
    """Seconds since the epoch by the running event loop: who turns its time turns the ports in memory, too."""
    return _BEGAN_AT_S + now_s()


class LoopClock:
    """A `Clock` by the running event loop, as the ports in memory have it."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return wall_s()


class Seen:
    """Message ids of the last two minutes, each with the sequence it was stored under."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def seq(self, msg_id: str | None) -> int | None:
        """The sequence of a message id that was seen before."""
        now = now_s()
        while self._ids and next(iter(self._ids.values()))[0] < now - DUPLICATE_WINDOW_S:
            self._ids.popitem(last=False)
        known = None if msg_id is None else self._ids.get(msg_id)
        return None if known is None else known[1]

    def add(self, msg_id: str | None, seq: int) -> None:
        """Remember a message id."""
        if msg_id is not None:
            self._ids[msg_id] = now_s(), seq


def check_size(data: bytes) -> None:
    """Refuse what the server would refuse.

    Raises:
        MessageTooLargeError: it is larger.
    """
    if len(data) > MAX_PAYLOAD_BYTES:
        raise MessageTooLargeError(f"{len(data)} bytes are more than {MAX_PAYLOAD_BYTES}")
