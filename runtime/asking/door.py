"""What is told before anything is sent: that a call is hopeless, or that this process may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ForbiddenError, InvalidSubjectError
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.behalf import BEHALF, DELEGATES, joined, name_of
from squadron.runtime.wire.outcome import Rejected
from squadron.runtime.wire.subjects import check_topic


def hopeless_anywhere(topic: str, ask: AskOptions, common: Mapping[str, Any]) -> Rejected | None:
    """What comes of a call that nobody could serve, whoever is there; None if somebody could."""
    try:
        check_topic(topic)
    except InvalidSubjectError as error:
        return Rejected(reason=str(error), details={"field": "topic"}, **common)
    for limit in ("within_s", "start_within_s"):
        if (seconds := getattr(ask, limit)) is not None and seconds <= 0:
            reason = f"no time left for the call: {limit} is {seconds:g}"
            return Rejected(reason=reason, details={"field": limit}, **common)
    if exhausted := ask.budget.exhausted:
        reason = f"the budget of {exhausted} is used up"
        return Rejected(reason=reason, details={"field": exhausted}, **common)
    return None


def forbidden_here(
    ports: Ports, topic: str, behalf: tuple[str, ...], allow: tuple[str, ...] = ()
) -> ForbiddenError | None:
    """Why it would be refused, as far as this process knows: None where it has no credential, or only warns.

    Args:
        behalf: on whose behalf it is.
        allow: that of the topic's card.
    """
    me = ports.principal
    if me is None or (ports.guard is not None and ports.guard.mode(topic) != "require"):
        return None
    if behalf and me.role not in DELEGATES:
        return ForbiddenError(f"{name_of(me)} may act on behalf of nobody", field=f"metadata.{BEHALF}")
    ruling = ports.policy.rule_on(joined(behalf, name_of(me)), topic, allow)
    return None if ruling.allowed else ForbiddenError(ruling.reason, field=ruling.by)
