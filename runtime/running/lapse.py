"""Whether the time of a task is over before it runs."""

from __future__ import annotations

from typing import Any

from squadron.runtime.asking.cancel import Cancellations
from squadron.runtime.ports.queue import Lease
from squadron.runtime.running.once import cancelled_with
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Cancelled, Expired, Outcome, TimedOut


async def lapse(
    ports: Ports, cancelled: Cancellations, message: AgentMessage, lease: Lease, common: dict[str, Any]
) -> Outcome | None:
    """The outcome of a task that was cancelled, or comes too late; None if it may run.

    How long it may wait for its start binds only what has not begun: who hears `expired` counts on that, and does
    it elsewhere.

    Raises:
        BusUnavailableError: nobody knows; it is delivered again.
    """
    if any(map(cancelled.includes, cancelled_with(message))):
        return Cancelled(reason="cancelled before it started", **common)
    now, routing, limits = ports.clock.time(), message.routing, message.payload.constraints
    has_waited = routing.timeout is not None and now > message.timestamp + routing.timeout / 1000
    is_over = limits is not None and limits.deadline is not None and now * 1000 > limits.deadline
    if not has_waited and not is_over:
        return None
    if await lease.begun_before():
        reason = "its caller's deadline passed before another attempt at it"
        return TimedOut(reason=reason, **common) if is_over else None
    if routing.timeout is not None and has_waited:
        reason = f"waited longer than its {routing.timeout / 1000:g} s in the mailbox"
        return Expired(reason=reason, **common)
    return Expired(reason="its caller's deadline passed before it started", **common)
