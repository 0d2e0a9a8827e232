"""Where payloads wait that are too large for a message."""

from __future__ import annotations

import hashlib
from typing import Protocol

#: Above the first a payload travels as a claim, above the second not at all; settings may say otherwise.
OVER_BYTES, MOST_BYTES = 512 * 1024, 128 * 1024 * 1024


def name_of(key: str) -> str:
    """The name of what is stored with a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Vault(Protocol):
    """Where payloads wait that are too large for a message: the message carries only the name (a claim check)."""

    async def store(self, data: bytes, *, keep_s: float, key: str = "") -> str:
        """Keep `data` for `keep_s` seconds (rounded up to whole ones) and return its name; stored on return.

        Args:
            key: what it can be dropped by, and makes its name: nobody finds another one for that. By default a
                random one that nobody knows.

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

    async def drop(self, name: str, key: str = "") -> None:
        """Forget it now. Unknown names are fine.

        Args:
            key: that it was stored with. A process that may not remove anything has it done by the bridge, which
                looks whether this is the key; without it what was stored ends with its time there.
        """
        ...
