"""Whether this process may ask a topic, or publish on it, told before anything is sent."""

from __future__ import annotations

from squadron.runtime.errors import ForbiddenError
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.behalf import BEHALF, DELEGATES, joined, name_of


def forbidden_here(
    ports: Ports, topic: str, behalf: tuple[str, ...], allow: tuple[str, ...] = ()
) -> ForbiddenError | None:
    """Why it would be refused, as far as this process knows: None where it has no credential, or only warns.

    Args:
        behalf: on whose behalf it is.
        allow: that of the topic's card.
    """
    me = ports.principal
    if me is None or (ports.guard is not None and not ports.guard.requires):
        return None
    if behalf and me.role not in DELEGATES:
        return ForbiddenError(f"{name_of(me)} may act on behalf of nobody", field=f"metadata.{BEHALF}")
    ruling = ports.policy.rule_on(joined(behalf, name_of(me)), topic, allow)
    return None if ruling.allowed else ForbiddenError(ruling.reason, field=ruling.by)
