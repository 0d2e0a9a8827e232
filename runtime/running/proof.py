"""Whether a task is as somebody signed it who may ask, and what becomes of one that is not."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

from squadron.runtime.errors import MessageTooLargeError, UntrustedError
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.told import Told
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.agent_sender import SENDER_HEADER
from squadron.runtime.trust.guard import May, anybody
from squadron.runtime.trust.may_say import check_carriers, check_source
from squadron.runtime.trust.signature_check import Signed
from squadron.runtime.trust.verify_modes import VerifyMode
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import LITE_TTL_S, Rejected, outcome_msg_id
from squadron.runtime.wire.replies import unfit_reply
from squadron.runtime.wire.subjects import token_of


async def check_task(
    ports: Ports, agent: str, delivery: Delivery, message: AgentMessage, topic: str, least: VerifyMode
) -> Signed | None:
    """How a task was signed; None where nothing is checked, or it failed and is taken all the same.

    Args:
        least: the mildest mode that the author of its topic wants.

    Raises:
        UntrustedError: it is refused.
        BusUnavailableError: nobody says who signed it; it is delivered again.
    """

    def may(signed: Signed) -> None:
        check_source(signed, message.source.id)
        check_carriers(signed, agent)

    return await _admit(ports, delivery, may, topic, least)


async def check_signed(ports: Ports, delivery: Delivery) -> Signed | None:
    """How somebody signed what nobody can read; see `check_task`.

    Raises:
        UntrustedError: nobody did, and that is required.
        BusUnavailableError: nobody says who signed it.
    """
    return await _admit(ports, delivery, anybody)


async def _admit(
    ports: Ports, delivery: Delivery, may: May, topic: str = "", least: VerifyMode = "off"
) -> Signed | None:
    guard = ports.guard
    if guard is None:
        return None
    said = delivery.place or delivery.subject, delivery.data, delivery.headers
    return await guard.admit("task", *said, at=delivery.stored_at, may=may, topic=topic, least=least)


def answers(ports: Ports, delivery: Delivery, signed: Signed | None) -> dict[str, Any] | None:
    """What an outcome says of the task that it answers: so it is the outcome of no other.

    Its digest, and who sent it if that was checked; nothing from who does not sign.
    """
    if signed is not None:
        return {"by": signed.author.name, "sha256": signed.digest}
    if ports.principal is None or SENDER_HEADER not in delivery.headers:
        return None
    return {"sha256": hashlib.sha256(delivery.data).hexdigest()}


async def refuse(
    ports: Ports, agent: str, delivery: Delivery, message: AgentMessage, topic: str, error: UntrustedError
) -> Rejected:
    """Tell whoever sent a task that it was refused, and settle it.

    It is not the outcome of its id: anybody may send a task under the id of another's.
    """
    told = Told(ports, "task", agent, message, topic, "", delivery)
    reason = f"it was not taken: {error}"
    outcome = Rejected(
        task_id=message.id,
        topic=topic,
        source=ports.identity.id,
        attempt=1,
        reason=reason,
        details={"field": SENDER_HEADER},
    )
    to, subjects = message.reply_to, ports.subjects
    if to is None or unfit_reply(message, subjects) or not subjects.has_lite(to):
        to = subjects.lite("outcome", token_of(message.id))
    data = ports.pack(
        "result",
        {"content": outcome.to_content()},
        conversation_id=message.context.conversation_id,
        parent=message.id,
        correlation_id=message.correlation_id or message.id,
        metadata={"refused": True},
    )
    msg_id = f"{outcome_msg_id(message.id, to)}.refused.{delivery.seq}"
    with contextlib.suppress(MessageTooLargeError):
        await ports.lite.append(to, data, ttl_s=LITE_TTL_S, msg_id=msg_id)
    await delivery.lease.settle()
    told.ended("outcome", outcome=outcome)
    return outcome
