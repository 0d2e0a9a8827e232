"""A keyed log that can be read again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from squadron.runtime.ports.bus import Subscription

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a journal.

    Attributes:
        seq: its place in the whole journal; it grows.
        time: when it was stored, in seconds since the epoch.
        previous: as it was stored, the sequence of the key's newest entry before it, 0 if there was none. Only
            `Journal.follow` knows it; -1 if unknown.
        got_at: when this process got it, by `time.monotonic`.
    """

    seq: int
    key: str
    data: bytes
    headers: Headers = field(default_factory=dict)
    time: float = 0.0
    previous: int = -1
    got_at: float = field(default_factory=monotonic, compare=False)


#: Whether an entry counts.
Counts = Callable[[Entry], Awaitable[bool]]


class Journal(Protocol):
    """A keyed log that can be read again: lite topics, the registry and dead letters are views of one."""

    async def append(
        self,
        key: str,
        data: bytes,
        *,
        ttl_s: float | None = None,
        msg_id: str | None = None,
        expect_seq: int | None = None,
        headers: Headers | None = None,
        counts: Counts | None = None,
    ) -> int:
        """Append one entry and return its sequence; it is stored when this returns.

        Args:
            ttl_s: life of the entry, rounded up to whole seconds (NATS ADR-43); None keeps it for the
                journal's own limit.
            msg_id: the same id for the same key is stored once within two minutes.
            expect_seq: refuse unless the key's last entry has this sequence (0: the key is empty).
            headers: that the entry has beside those of the journal's own.
            counts: whether what is stored under `msg_id` is what that id is for; if not, anybody could keep this
                one away by it, and it is stored beside it. Without it, whatever is there counts.

        Raises:
            FencedError: `expect_seq` did not fit.
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time.
        """
        ...

    async def last(self, key: str) -> Entry | None:
        """The newest entry of one key, or of all that match a pattern."""
        ...

    async def count(self, pattern: str) -> int:
        """How many entries have a key that matches; takes the longer the more there are: 0.3 s for a million."""
        ...

    async def latest(self, pattern: str) -> list[Entry]:
        """The newest entry of each key that matches, oldest first."""
        ...

    def read(
        self, pattern: str, *, from_seq: int = 1, from_time: float | None = None
    ) -> AsyncGenerator[Entry, None]:
        """What is stored, in order, from `from_seq` on; nothing is skipped or repeated, over reconnects too.

        Args:
            from_time: instead, those stored at this time or later, in seconds since the epoch.
        """
        ...

    async def follow(
        self, pattern: str, sink: Callable[[Entry], None], *, lost: Callable[[], None] | None = None
    ) -> Subscription:
        """Hear of each entry right after it was stored, with `Entry.previous`; active on return.

        At most once: what is missed shows as an entry whose `previous` was never heard, and can be read. Only of
        lite topics and the registry; `sink` must not block.

        Args:
            lost: called when the connection is lost, before anything that came after it is heard: what is stored
                until it is back is not heard. It must not block.

        Raises:
            InvalidSubjectError: `pattern` is of neither.
            BusUnavailableError: the server can't be reached.
        """
        ...

    async def erase(self, key: str, *, through_seq: int | None = None) -> None:
        """Remove all entries of one key, or those up to and with `through_seq`: what came since stays.

        Raises:
            BusUnavailableError: not acknowledged in time.
        """
        ...
