"""Tasks that are for one replica, brought straight to it by whichever was delivered them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError, SquadronError
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import Delivery, sent_with
from squadron.runtime.registry.registry import Registry
from squadron.runtime.running.no_outcome import HandOn
from squadron.runtime.running.pump import Pump
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.authority import only_agent
from squadron.runtime.trust.carried import CARRIED_HEADER, Carried, carry
from squadron.runtime.wire.outcome import Outcome, Undeliverable
from squadron.runtime.wire.route import Route
from squadron.runtime.wire.subjects import TaskSubject, is_foreign

#: How long a replica may take to say that it takes a task, in seconds, and how many are asked.
TAKE_WITHIN_S, MOST_ASKED = 1.0, 3
#: Pause before a task that nobody took is delivered again, in seconds, and the longest one; see `backoff_s`.
HAND_ON_S, LONGEST_HAND_ON_S = 0.07, 4.0
_TAKEN = b"taken"
#: Header of a task that is handed over: the message id that it was put with.
_PUT_WITH = "Squadron-Put-With"


async def hand_over(ports: Ports, delivery: Delivery, replicas: Sequence[str]) -> bool:
    """Give a delivery, lease and all, to one of these replicas; whether one took it."""
    if not delivery.lease.token:
        return False
    head = f"{delivery.lease.token} {delivery.seq} {delivery.subject}\n".encode()
    for replica in random.sample(replicas, min(len(replicas), MOST_ASKED)):
        with contextlib.suppress(BusUnavailableError, MessageTooLargeError):
            subject = ports.subjects.hand(replica)
            place = delivery.place or delivery.subject
            headers = {
                **sent_with(delivery.headers),
                **carry(delivery.headers, place, at=delivery.stored_at),
                _PUT_WITH: delivery.headers.get("Nats-Msg-Id", ""),
            }
            answer = await ports.bus.request(
                subject, head + delivery.data, within_s=TAKE_WITHIN_S, headers=headers
            )
            if answer == _TAKEN:
                return True
    return False


def hand_on(registry: Registry, agent: str, route: Route, reason: str, common: dict[str, Any]) -> Outcome | HandOn:
    """What becomes of a task that is not for this replica: on to another that lives and may run it.

    Args:
        reason: why it is not.
        common: what all outcomes of this replica have.
    """
    others = registry.replicas(agent)
    fit = [name for name, them in others.items() if not route.misfit(agent, name, them.capabilities)]
    if fit:
        return HandOn(fit)
    details = {"replicas": sorted({*others, common["source"]})}
    return Undeliverable(reason=f"no replica may run it: {reason}", details=details, **common)


class Handovers:
    """The receiving side: what others hand to this replica goes to its pump."""

    def __init__(self, ports: Ports, pump: Pump) -> None:
        self._ports, self._pump = ports, pump
        self._ear: Subscription | None = None

    async def start(self) -> None:
        """Begin to take tasks; once the pump has started."""
        subject = self._ports.subjects.hand(self._ports.identity.id)
        self._ear = await self._ports.bus.subscribe(subject, self._hear)

    async def aclose(self) -> None:
        """Take no more. May be called twice."""
        if self._ear is not None:
            await self._ear.aclose()

    def _hear(self, note: Note) -> None:
        guard = self._ports.guard
        if guard is None:
            return self._take(note)
        said = note.subject, note.data, note.headers
        guard.hear("hand", *said, lambda _: self._take(note), at=None, may=only_agent(guard.me), carrier=True)

    def _take(self, note: Note) -> None:
        head, _, data = note.data.partition(b"\n")
        try:
            token, seq, subject = head.decode().split(" ")
            TaskSubject.parse(subject)
            lease = self._ports.queue.take_over(token)
            headers = {**note.headers, "Nats-Msg-Id": note.headers.get(_PUT_WITH, "")}
            at, place = 0.0, ""
            if carried := headers.pop(CARRIED_HEADER, ""):
                # From here on it is as whoever hands it over had it.
                how = Carried.parse(carried)
                headers, at, place = {**headers, **how.headers}, how.at, how.subject
            came = Entry(int(seq), subject, data, headers)
            delivery = Delivery(subject, data, lease, int(seq), came, at, place)
        except (ValueError, SquadronError):
            # Anybody may write there.
            return
        answer = _TAKEN if self._pump.offer(delivery) else b""
        if is_foreign(note.reply) and self._ports.subjects.is_outside(note.reply):
            spawn(self._ports.bus.publish(note.reply, answer), "hand over")
