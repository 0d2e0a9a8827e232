"""What earlier attempts of a task have spent: kept where the next one finds it."""

from __future__ import annotations

import contextlib
import json

from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import UNLIMITED, Deadline
from squadron.runtime.wire.subjects import token_of

#: How long it is kept beyond the caller's deadline, and at most, in seconds: clocks differ, and a task without a
#: deadline is tried again within a week or never.
KEPT_BEYOND_S, LONGEST_KEPT_S = 60.0, 7 * 24 * 3600.0


async def keep_spent(ports: Ports, message: AgentMessage, ledger: Ledger, deadline: Deadline) -> None:
    """Store what was spent until now, if anything was; a server that is away is not waited for."""
    if carried := ledger.carried():
        ttl_s = min(deadline.remaining_s() + KEPT_BEYOND_S, LONGEST_KEPT_S)
        with contextlib.suppress(BusUnavailableError, MessageTooLargeError):
            await ports.lite.append(_key(ports, message), json.dumps(carried).encode(), ttl_s=ttl_s)


async def open_ledger(ports: Ports, message: AgentMessage, *, again: bool) -> Ledger:
    """The books of a task; if it may have been begun before, with what was spent then.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    limits = message.payload.constraints
    ledger = Ledger(UNLIMITED if limits is None else limits.budget)
    entry = await ports.lite.last(_key(ports, message)) if again else None
    if entry is not None:
        # Anybody may write there.
        with contextlib.suppress(ValueError, RecursionError):
            ledger.take_over(json.loads(entry.data))
    return ledger


def _key(ports: Ports, message: AgentMessage) -> str:
    # A dead letter that was put back is another life, and was told of at the end of the first.
    life = f"spent-{message.redriven}" if message.redriven else "spent"
    return ports.subjects.lite(token_of(message.id), life)
