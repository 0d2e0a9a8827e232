"""Where payloads wait that are too large for a message."""

from __future__ import annotations

from typing import Protocol

#: Above the first a payload travels as a claim, above the second not at all; settings may say otherwise.
OVER_BYTES, MOST_BYTES = 512 * 1024, 128 * 1024 * 1024


class Vault(Protocol):
    """Where payloads wait that are too large for a message: the message carries only the name (a claim check)."""

    async def store(self, data: bytes, *, keep_s: float, name: str = "") -> str:
        """Keep `data` for `keep_s` seconds (rounded up to whole ones) and return its name; stored on return.

        Args:
            name: that nobody can have taken; by default a random one. 1 to 128 letters, digits, `_` and `-`.

        Raises:
            BusUnavailableError: not acknowledged in time; nothing will be found under any name.
        """
        ...

    async def fetch(self, name: str) -> bytes:
        """What was stored under the name.

        Raises:
            ClaimLostError: it was dropped, its time is over, or it was never there.
            BusUnavailableError: no answer in time.
        """
        ...

    async def drop(self, name: str) -> None:
        """Forget it now. Unknown names are fine."""
        ...
