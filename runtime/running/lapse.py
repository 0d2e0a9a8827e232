"""Whether the time of a task is over before it starts."""

from __future__ import annotations

from typing import Any

from squadron.runtime.asking.cancel import Cancellations
from squadron.runtime.running.once import cancelled_with
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Cancelled, Expired, Outcome


def lapse(
    ports: Ports, cancelled: Cancellations, message: AgentMessage, common: dict[str, Any], *, was_parked: bool
) -> Outcome | None:
    """The outcome of a task that was cancelled, or came too late; None if it may start."""
    if any(map(cancelled.includes, cancelled_with(message))):
        return Cancelled(reason="cancelled before it started", **common)
    now, routing, limits = ports.clock.time(), message.routing, message.payload.constraints
    # One that was parked had started in time.
    if routing.timeout is not None and not was_parked and now > message.timestamp + routing.timeout / 1000:
        reason = f"waited longer than its {routing.timeout / 1000:g} s in the mailbox"
        return Expired(reason=reason, **common)
    if limits is not None and limits.deadline is not None and now * 1000 > limits.deadline:
        return Expired(reason="its caller's deadline passed before it started", **common)
    return None
