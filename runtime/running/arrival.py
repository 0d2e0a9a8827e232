"""What is found out about a delivery before it runs: where its answer goes, and whether it was here before."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from squadron.runtime.asking.believing import Awaited
from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError
from squadron.runtime.ports.queue import Delivery, sent_with
from squadron.runtime.running.once import is_copy
from squadron.runtime.running.reports import Reports
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.put_back import PUT_BACK
from squadron.runtime.trust.carried import carry
from squadron.runtime.trust.sealing import SealKey
from squadron.runtime.wire.envelope import LAST_MS, AgentMessage
from squadron.runtime.wire.limits import Budget, Clock, Deadline
from squadron.runtime.wire.replies import is_own_id, principal_of, unfit_reply
from squadron.runtime.wire.subjects import token_of

#: Who looked longer ago than this, in seconds, looks again before it begins: an attempt whose lease had lapsed may
#: have come to its end elsewhere.
STALE_S = 0.5
#: A second outcome is dropped by its message id if it comes within this time, in seconds: half of JetStream's
#: duplicate window. Past it, whoever stores one has to look whether one is there.
ALONE_S = 60.0


@dataclass(slots=True)
class Arrival:
    """A task that is to run.

    Attributes:
        task: what its outcome is held against.
        answers: what its outcome says of it; see `proof.answers`.
        readers: for whom its answers are sealed; nobody before it is opened, or if it was not sealed.
        lite_key, announce: where its outcome goes; see `Reports.address`.
        unfit: why it can't go where the sender wants it, or the empty string.
        looked_at: up to when no outcome of it was stored, in seconds since the epoch.
        was_here: whether it may have been here before, so that somebody else may be at work on it.
    """

    task: Awaited
    answers: dict[str, Any] | None
    lite_key: str
    announce: str
    unfit: str
    looked_at: float
    was_here: bool
    clock: Clock
    readers: tuple[SealKey, ...] = ()

    async def ended_meanwhile(
        self, reports: Reports, delivery: Delivery, message: AgentMessage, *, after_s: float
    ) -> bool:
        """Whether another attempt has ended it since one was looked for, if that is this long ago; it is settled.

        Raises:
            BusUnavailableError: nobody knows; it is delivered again.
        """
        if self.clock.time() <= self.looked_at + after_s:
            return False
        return await reports.settle_if_stored(delivery, message, self.task, self.lite_key, self.announce)


async def arrive(
    ports: Ports,
    reports: Reports,
    delivery: Delivery,
    message: AgentMessage,
    topic: str,
    answers: dict[str, Any] | None,
) -> Arrival | None:
    """Look at a delivery; None if it is not to run here and now, and is settled.

    What comes at once, for the first time and under its own message id, is the only one of its kind: the queue has
    seen to that. Of that nothing is read.

    Raises:
        BusUnavailableError: nobody knows; it is delivered again.
    """
    unfit, msg_id, now = unfit_reply(message, ports.subjects), token_of(message.id), ports.clock.time()
    # One that may have been here before: after a death, as a dead letter, or sent again.
    is_back = bool(message.redriven) or PUT_BACK in delivery.headers.get("Nats-Msg-Id", "")
    late = is_back or not delivery.lease.first or now > message.timestamp + ALONE_S
    is_lapsed, sender = False, message.source.id
    own = not unfit and is_own_id(message, ports.subjects)
    if own:
        asked = await reports.asked(delivery, message, topic)
        if asked is None and message.redriven:
            # Put back so late that nobody remembers what the id stands for, or waits under it.
            is_lapsed = True
        elif asked is None:
            unfit = f"no answers are sent to {message.reply_to!r}: the id stands for another task, or for none"
        else:
            # Several may ask under it, and be answered at once: as who did so first.
            msg_id, sender = asked.msg_id or msg_id, asked.source or sender
            if answers and "by" in answers:
                answers = answers | {"by": principal_of(sender)}
    lite_key, announce = reports.address(message, topic, elsewhere=bool(unfit) or is_lapsed)
    task = Awaited(topic, sender, "" if own or message.once or not answers else answers["sha256"])
    if (late or own) and await reports.settle_if_stored(delivery, message, task, lite_key, announce):
        return None
    alone = not late and not message.once and not unfit
    if alone and delivery.headers.get("Nats-Msg-Id") != msg_id:
        # Without its id the queue takes it as often as it comes. Under it, it is there already, or comes once.
        with contextlib.suppress(MessageTooLargeError):
            headers = sent_with(delivery.headers) | carry(
                delivery.headers, delivery.subject, at=delivery.stored_at
            )
            await ports.queue.put(delivery.subject, delivery.data, msg_id=msg_id, headers=headers)
            await delivery.lease.settle()
            return None
        alone = False
    if not alone and not unfit and await is_copy(ports, delivery, message):
        await delivery.lease.settle()
        return None
    was_here = late or own
    looked_at = now if was_here else min(now, message.timestamp)
    return Arrival(task, answers, lite_key, announce, unfit, looked_at, was_here, ports.clock)


def deadline_of(message: AgentMessage, grant: Budget, clock: Clock) -> Deadline:
    """When a task has to have ended; without a word of its caller only its handler's own limit counts."""
    limits = message.payload.constraints
    at_ms = limits.deadline if limits is not None and limits.deadline is not None else LAST_MS
    if grant.seconds is not None:
        at_ms = min(at_ms, Deadline.after(grant.seconds, clock).at_ms)
    return Deadline(at_ms, clock)


def mark_when_late(ports: Ports, delivery: Delivery, message: AgentMessage) -> asyncio.TimerHandle:
    """Leave the mark of a task that runs long: one that is sent again then does not run beside it."""

    async def mark() -> None:
        with contextlib.suppress(BusUnavailableError):
            await is_copy(ports, delivery, message)

    return asyncio.get_running_loop().call_later(ALONE_S, lambda: spawn(mark(), f"mark {message.id}"))
