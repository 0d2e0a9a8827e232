"""Durable events: kept, and delivered at least once to every group that wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from squadron.runtime.ports.queue import Delivery, Feed
from squadron.runtime.wire.groups import EventGroup


class EventLog(Protocol):
    """Durable events: each is kept for a week, and delivered at least once to every group that wants it."""

    async def append(
        self, topic: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> int:
        """Store one event and return its sequence; once per `msg_id` within two minutes.

        Whoever listens on the bus for plain events of this topic hears it as well (at most once).

        Args:
            headers: that its deliveries have.

        Raises:
            MessageTooLargeError: larger than the server takes.
            BusUnavailableError: not acknowledged in time; appending it again with the same `msg_id` is safe.
        """
        ...

    async def consume(self, group: EventGroup, sink: Callable[[Delivery], None]) -> Feed:
        """Pull as a member of the group, which is made if it is new; `sink` gets each delivery and must not block.

        Events that wait are delivered in order; one that is delivered again may come behind newer ones. The
        newest pattern and lease count for all members. `Delivery.seq` is the event's sequence.

        Raises:
            BusUnavailableError: the server can't be reached, or refuses the group.
        """
        ...

    async def forget(self, name: str) -> None:
        """Delete a group with its place in the log; its members hear nothing more. Unknown names are fine."""
        ...
