"""The bus: at most once, to whoever listens now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Subscription(Protocol):
    """A live subscription on the bus."""

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""
        ...


class Carrier(Protocol):
    """What a message came with. Its headers are read when they are looked at: most never are."""

    @property
    def headers(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Note:
    """A message as the bus hands it over; `reply` is empty unless an answer is wanted."""

    subject: str
    data: bytes
    reply: str = ""
    carrier: Carrier | None = field(default=None, compare=False)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that it came with."""
        return self.carrier.headers if self.carrier is not None else {}


class UnreliableBus(Protocol):
    """At most once: who listens now hears it, nobody else ever does."""

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
        signed: bool = True,
    ) -> None:
        """Send to whoever listens now.

        Args:
            reply: where answers are wanted.
            signed: False leaves the headers as they are given in a process that signs, for protocols of others.

        Raises:
            MessageTooLargeError: larger than the server takes.
        """
        ...

    async def subscribe(self, pattern: str, sink: Callable[[Note], None], *, group: str = "") -> Subscription:
        """Hear everything on `pattern`; in a `group` each message reaches one member. Active on return."""
        ...

    async def request(
        self, subject: str, data: bytes, *, within_s: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Send and wait for one answer.

        Raises:
            BusUnavailableError: nobody listens, or no answer in time.
        """
        ...

    async def exchange(
        self, subject: str, data: bytes, *, within_s: float, headers: Mapping[str, str] | None = None
    ) -> Note:
        """As `request`, and the answer with its headers, and where it came."""
        ...

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` each time the connection came back: something may have been missed."""
        ...
