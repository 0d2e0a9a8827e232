"""What is handed out of a lite topic: what its source signed, and opened what is sealed for this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from squadron.runtime.errors import (
    BusUnavailableError,
    ClaimLostError,
    InvalidMessageError,
    MessageTooLargeError,
    UntrustedError,
)
from squadron.runtime.ports.journal import Entry
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.sealed import is_sealed
from squadron.runtime.trust.guard import Guard, May
from squadron.runtime.trust.may_say import only, speaks_as
from squadron.runtime.trust.principals import ROLES
from squadron.runtime.wire.envelope import AgentMessage

#: Pause before a large payload, or the key to it, is looked for again while who has it is away, in seconds.
AGAIN_S = 0.25
#: How an entry is taken: as its bytes, or not at all.
TakeEntry = Callable[[Entry], Awaitable[bytes | None]]


async def taken_by(ports: Ports, entry: Entry) -> bytes | None:
    """The bytes of a message, opened if it is sealed for this process; None if it does not count.

    What does not open is taken as it is stored: it holds nothing for this reader.

    Raises:
        BusUnavailableError: nobody says who signed it.
        ConfigError: the keys of this process can't be read.
    """
    if ports.guard is not None and not await _is_said(ports.guard, entry):
        return None
    # Nearly all are not sealed, and are not read here.
    return await _opened(ports, entry) if b'"sealed"' in entry.data else entry.data


async def _opened(ports: Ports, entry: Entry) -> bytes:
    while True:
        try:
            message = AgentMessage.decode(entry.data)
            if not is_sealed(message):
                return entry.data
            return (await ports.claims.resolve(message, entry.key, got_at=entry.got_at)).encode()
        except (InvalidMessageError, ClaimLostError, MessageTooLargeError):
            return entry.data
        except BusUnavailableError:
            await asyncio.sleep(AGAIN_S)


async def _is_said(guard: Guard, entry: Entry) -> bool:
    """Whether a message counts: that of an envelope says who it is, and of bytes anybody but an observer.

    Raises:
        BusUnavailableError: nobody says who signed it.
    """
    try:
        may: May = speaks_as(AgentMessage.decode(entry.data).source.id)
    except InvalidMessageError:
        may = only(*(role for role in ROLES if role != "observer"))
    try:
        await guard.admit("lite", entry.key, entry.data, entry.headers, at=entry.time, may=may)
    except UntrustedError:
        return False
    return True
