"""Whether a message of a lite topic is as its source signed it."""

from __future__ import annotations

from squadron.runtime.errors import InvalidMessageError, UntrustedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.trust.guard import Guard, May
from squadron.runtime.trust.may_say import only, speaks_as
from squadron.runtime.trust.principals import ROLES
from squadron.runtime.wire.envelope import AgentMessage


async def is_said(guard: Guard, entry: Entry) -> bool:
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
