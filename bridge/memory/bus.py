"""`UnreliableBus` in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from squadron.bridge.memory.common import check_size, subject_matches
from squadron.runtime.errors import (
    BusUnavailableError,
)
from squadron.runtime.ports.bus import Note, Subscription


@dataclass
class MemoryBus:
    """`UnreliableBus` in one process."""

    _subscriptions: list[_MemorySubscription] = field(default_factory=list)
    _turn: int = 0

    async def publish(self, subject: str, data: bytes) -> None:
        check_size(data)
        self.deliver(Note(subject, data))

    def deliver(self, note: Note) -> int:
        """Hand a note to all who listen; returns how many heard it."""
        heard = [s for s in self._subscriptions if subject_matches(s.pattern, note.subject)]
        groups: dict[str, list[_MemorySubscription]] = {}
        for subscription in heard:
            groups.setdefault(subscription.group or str(id(subscription)), []).append(subscription)
        self._turn += 1
        loop = asyncio.get_running_loop()
        for members in groups.values():
            loop.call_soon(members[self._turn % len(members)].hear, note)
        return len(groups)

    async def subscribe(self, pattern: str, sink: Callable[[Note], None], *, group: str = "") -> Subscription:
        subscription = _MemorySubscription(self, pattern, sink, group)
        self._subscriptions.append(subscription)
        return subscription

    async def request(self, subject: str, data: bytes, *, within_s: float) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        inbox = f"_INBOX.{id(answer)}"

        def hear(note: Note) -> None:
            if not answer.done():
                answer.set_result(note.data)

        listening = await self.subscribe(inbox, hear)
        try:
            if not self.deliver(Note(subject, data, inbox)):
                raise BusUnavailableError(f"nobody listens on {subject}")
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise BusUnavailableError(f"no answer on {subject} within {within_s:g} s") from None
        finally:
            await listening.aclose()

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Nothing to do: it is never disconnected."""

    def remove(self, subscription: _MemorySubscription) -> None:
        """A subscription was closed."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)


class _MemorySubscription:
    def __init__(self, bus: MemoryBus, pattern: str, sink: Callable[[Note], object], group: str) -> None:
        self._bus, self.pattern, self._sink, self.group = bus, pattern, sink, group
        self._closed = False

    def hear(self, note: Note) -> None:
        if not self._closed:
            self._sink(note)

    async def aclose(self) -> None:
        self._closed = True
        self._bus.remove(self)
