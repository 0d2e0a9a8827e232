"""`UnreliableBus` on core NATS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import nats.errors
from nats.aio.subscription import Subscription as NatsSubscription

from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.runtime.ports.bus import Note, Subscription


class JetStreamSubscription:
    """A live core subscription."""

    def __init__(self, subscription: NatsSubscription, closed: Callable[[], None] | None = None) -> None:
        self._subscription, self._closed = subscription, closed

    async def aclose(self) -> None:
        """Stop listening. May be called twice."""
        if self._closed is not None:
            self._closed()
        try:
            await self._subscription.unsubscribe()
        except (nats.errors.Error, ValueError):
            # Already closed, or the connection is: either way nothing is heard any more.
            return


async def listen(
    connection: Connection,
    pattern: str,
    hear: Callable[[Heard], None],
    *,
    group: str = "",
    lost: Callable[[], None] | None = None,
) -> Subscription:
    """Hear everything on `pattern`, straight from the read loop; the server knows of it when this returns.

    `lost` is called each time the connection is lost, before anything that comes after it is heard.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    try:
        subscription = await connection.listen(pattern, hear, group=group)
        try:
            await connection.flush()
        except BaseException:
            # Or else who tries again hears everything twice.
            await JetStreamSubscription(subscription).aclose()
            raise
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise connection.error(f"can't subscribe to {pattern}: {error}") from None
    if lost is None:
        return JetStreamSubscription(subscription)
    connection.on_disconnect(lost)
    return JetStreamSubscription(subscription, lambda: connection.off_disconnect(lost))


class CoreBus:
    """At most once, on core NATS."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
        signed: bool = True,
    ) -> Coroutine[Any, Any, None]:
        """Send to whoever listens now."""
        given = dict(headers) if headers else None
        return self._connection.publish(subject, data, reply=reply, headers=given, signed=signed)

    async def subscribe(self, pattern: str, sink: Callable[[Note], None], *, group: str = "") -> Subscription:
        """Hear everything on `pattern`; the server knows of it when this returns."""

        def hear(msg: Heard) -> None:
            sink(Note(msg.subject, msg.data, msg.reply, msg))

        return await listen(self._connection, pattern, hear, group=group)

    async def request(
        self, subject: str, data: bytes, *, within_s: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Send and wait for one answer."""
        return (await self.exchange(subject, data, within_s=within_s, headers=headers)).data

    async def exchange(
        self, subject: str, data: bytes, *, within_s: float, headers: Mapping[str, str] | None = None
    ) -> Note:
        """As `request`, and the answer with its headers, and where it came."""
        answer = await self._connection.request(
            subject, data, headers=dict(headers) if headers else None, within_s=within_s
        )
        return Note(answer.subject, bytes(answer.data), answer.reply, answer)

    def on_reconnect(self, sink: Callable[[], Awaitable[None]]) -> None:
        """Call `sink` each time the connection came back."""
        self._connection.on_reconnect(sink)
