"""The journal of lite topics, whose keys can end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from squadron.runtime.ports.journal import Headers, Journal

#: Header of the entry that ends a lite topic: "closed" or "expired".
END_HEADER = "Squadron-End"


class LiteJournal(Journal, Protocol):
    """The journal of lite topics: keys can end, and a stream is sent ahead of its acknowledgements."""

    def append_soon(
        self, key: str, entries: Sequence[tuple[bytes, str]], *, ttl_s: float | None = None
    ) -> asyncio.Future[int]:
        """Send entries, each with its message id, without waiting until they are stored.

        The future ends with how many of them are stored, from the first on, and fails with a `BusUnavailableError`
        if that is not known in time. Any that is left out may be stored all the same: sent again with the same id,
        it is stored once. What one process sends is stored in that order, until its connection breaks.

        Raises:
            MessageTooLargeError: one is larger than the server takes; none was sent.
        """
        ...

    async def end(self, key: str, data: bytes, *, keep_s: float, expect_seq: int | None = None) -> int:
        """Append an end marker ("closed") and drop what the key held, in one step; returns its sequence.

        Args:
            keep_s: how long the marker itself is kept.
            expect_seq: as in `append`.

        Raises:
            FencedError: `expect_seq` did not fit.
            StorageFullError: the marker could not be stored; what the key held is dropped all the same.
            BusUnavailableError: not acknowledged in time; ending it again is safe.
        """
        ...

    async def end_at(
        self, key: str, data: bytes, *, at: float, keep_s: float, expect_seq: int | None = None
    ) -> int:
        """Have the store do that by itself ("expired") at a time, in seconds since the epoch.

        The order is the one entry of `life_of(key)`, with `data`: another one replaces it, to erase it revokes it.
        Servers before 2.14 keep what is before the marker.

        Raises:
            FencedError: the order there is not the one of `expect_seq`.
            BusUnavailableError: not acknowledged in time; ordering it again is safe.
        """
        ...

    async def append_and_end(
        self,
        key: str,
        data: bytes,
        order: bytes,
        *,
        at: float,
        keep_s: float,
        msg_id: str | None = None,
        headers: Headers | None = None,
    ) -> int:
        """`end_at` with `order`, then `append` of `data`, in this order, for the price of little more than one.

        Raises:
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time.
        """
        ...

    async def keys(self) -> int:
        """How many keys there are, those of orders included; known at once, however many there are."""
        ...
