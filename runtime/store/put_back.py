"""A message that was dead-lettered, as it is put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.ports.queue import EARLIER_TRACE
from squadron.runtime.trust.carried import CARRIED_HEADER, Carried
from squadron.runtime.wire.envelope import AgentMessage

#: Stands in the message id of a letter that is put back, between the task's and the letter's number.
PUT_BACK = ".redriven."


def put_back(message: bytes, carried: str, headers: Mapping[str, str], now: float) -> tuple[bytes, dict[str, str]]:
    """The bytes and headers of a message that is put back.

    Args:
        carried: how it came into the mailbox if it was signed, see `Carried`; else empty.
        headers: of its letter.
        now: seconds since the epoch.

    Raises:
        UntrustedError: `carried` is malformed.
    """
    more = {EARLIER_TRACE: headers["traceparent"]} if "traceparent" in headers else {}
    if carried:
        # What is signed stays as it is; whoever takes it up reads it so.
        origin = Carried.parse(carried).origin()
        back = replace(origin, redriven=origin.redriven + 1, put_at=now)
        return message, more | {CARRIED_HEADER: back.encode()}
    try:
        read = AgentMessage.decode(message)
    except InvalidMessageError:
        # We can't read it. A newer version may, and gets it as it was sent.
        return message, more
    return read.put_back(read.redriven + 1, now).encode(), more


def as_put_back(message: AgentMessage, headers: Mapping[str, str]) -> AgentMessage:
    """A message that was delivered with these headers: as signed, and with what putting it back changed.

    Raises:
        UntrustedError: the header is malformed.
    """
    carried = headers.get(CARRIED_HEADER)
    while carried:
        how = Carried.parse(carried)
        if how.redriven:
            return message.put_back(how.redriven, how.put_at)
        carried = how.carried
    return message
