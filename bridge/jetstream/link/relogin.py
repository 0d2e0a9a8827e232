"""A login anew, with credentials that were renewed: a server ends a connection with those it was made with."""

from __future__ import annotations

import asyncio
import contextlib

import nats.errors

from squadron.bridge.jetstream.link.connect import API_WITHIN_S, Connection


async def log_in_again(connection: Connection) -> None:
    """Connect anew; what was sent has arrived, what is sent meanwhile waits.

    Questions that are open end as with any connection that is lost.

    Raises:
        BusUnavailableError: the connection is not back yet; it goes on trying.
    """
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(API_WITHIN_S):
            await connection.flush()
    back = asyncio.Event()

    async def is_back() -> None:
        back.set()

    connection.on_reconnect(is_back)
    try:
        async with asyncio.timeout(API_WITHIN_S):
            await connection.client.reconnect()
            await back.wait()
    except TimeoutError:
        raise connection.error("the connection is not back with the new credentials") from None
    finally:
        connection.off_reconnect(is_back)
