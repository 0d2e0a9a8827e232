"""Tasks that are for one replica, brought straight to it by whichever was delivered them."""

from __future__ import annotations

import asyncio
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
from squadron.runtime.retries import backoff_s
from squadron.runtime.running.no_outcome import HandOn
from squadron.runtime.running.pump import Pump, free_slot
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.carried import CARRIED_HEADER, Carried, carry
from squadron.runtime.trust.may_say import only_agent
from squadron.runtime.wire.outcome import Undeliverable
from squadron.runtime.wire.route import Route
from squadron.runtime.wire.subjects import TaskSubject, is_foreign

#: How long a replica may take to promise that it takes a task, in seconds, and how many are asked.
TAKE_WITHIN_S, MOST_ASKED = 1.0, 3
#: One that did not answer is asked nothing for so long, in seconds, and then by one task at a time: each that asks
#: waits, and what blocks an event loop takes seconds mostly.
SILENT_S = 2.0
#: A promise stands for this share of a lease, from when it was given: its giver was told to go on by who extended
#: that lease up to then, so the task is with nobody else yet.
STANDS_FOR = 2 / 3
#: Pause before a task that nobody took is delivered again, in seconds, and the longest one; see `backoff_s`.
HAND_ON_S, LONGEST_HAND_ON_S = 0.07, 4.0
#: How long a task waits for replicas of the version that serves its topic, in seconds: those may have packages to
#: install, which takes minutes.
NEW_VERSION_WITHIN_S = 600.0
#: What a replica answers that would take a task, and what then tells it that the task is its own.
_TAKEN, _GO = b"taken", b"go"
#: Headers of a task that is handed over: the message id that it was put with, and when it was stored.
_PUT_WITH, _STORED_AT = "Squadron-Put-With", "Squadron-Stored-At"


def hand_on(
    registry: Registry, agent: str, route: Route, reason: str, common: dict[str, Any]
) -> Undeliverable | HandOn:
    """Not for this replica (`common["source"]`): on to another that lives and may run it."""
    others = registry.replicas(agent)
    # Which tasks a canary gets is decided by whom this is handed to; but who names a replica means that one.
    fit = [
        name
        for name, them in others.items()
        if not route.misfit(agent, name, them.capabilities) and (not them.canary or route.target == name)
    ]
    if fit:
        return HandOn(fit)
    details = {"replicas": sorted({*others, common["source"]})}
    return Undeliverable(reason=f"no replica may run it: {reason}", details=details, **common)


def hand_back(
    ports: Ports, registry: Registry, agent: str, delivery: Delivery, common: dict[str, Any]
) -> Undeliverable | HandOn:
    """A topic that this replica does not serve: what its agent serves by its card waits for a newer replica."""
    topic, card = common["topic"], registry.card(agent)
    if card is None or not card.serves(topic):
        return Undeliverable(reason=f"{agent} does not serve {topic!r} any more", **common)
    if ports.clock.time() < delivery.stored_at + NEW_VERSION_WITHIN_S:
        return HandOn([])
    reason = f"no replica of {agent} that serves {topic!r} took it within {NEW_VERSION_WITHIN_S:g} s"
    return Undeliverable(reason=reason, **common)


class Courier:
    """The giving side: brings tasks to replicas of the same agent, of which exactly one gets each.

    A replica that is asked promises to take a task, and takes it once it is told to go on. Who heard no promise in
    time tells it nothing: one that comes too late is for nothing, and can't have the task run twice.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        #: Replicas that did not answer, and when one may be asked again, by the loop's clock.
        self._silent: dict[str, float] = {}

    async def pass_on(self, delivery: Delivery, replicas: Sequence[str]) -> None:
        """Give a delivery to one of these replicas; if none takes it, it is delivered again after a pause."""
        # Whether they answer is no matter of the slot: it is for what is to run here.
        free_slot()
        if not await self.hand_over(delivery, replicas):
            await delivery.lease.release(backoff_s(delivery.lease.delivered, HAND_ON_S, LONGEST_HAND_ON_S))

    async def hand_over(self, delivery: Delivery, replicas: Sequence[str]) -> bool:
        """Give a delivery, lease and all, to one of these replicas; whether one took it."""
        if not delivery.lease.token:
            return False
        place = delivery.place or delivery.subject
        headers = {
            **sent_with(delivery.headers),
            **carry(delivery.headers, place, at=delivery.stored_at),
            _PUT_WITH: delivery.headers.get("Nats-Msg-Id", ""),
            _STORED_AT: repr(delivery.stored_at),
        }
        asked = f"{delivery.lease.token} {delivery.seq} {delivery.subject}\n".encode() + delivery.data
        for replica in random.sample(replicas, min(len(replicas), MOST_ASKED)):
            if await self._promises(replica, asked, headers):
                # If it never hears that, nobody has the lease, and it runs out.
                told = f"{_GO.decode()}\n{delivery.lease.token}".encode()
                with contextlib.suppress(BusUnavailableError):
                    await self._ports.bus.publish(self._ports.subjects.hand(replica), told)
                return True
        return False

    async def _promises(self, replica: str, asked: bytes, headers: dict[str, str]) -> bool:
        now, until = asyncio.get_running_loop().time, self._silent.get(replica)
        if until is not None:
            if now() < until:
                return False
            # This one finds out, and none beside it.
            self._silent[replica] = now() + SILENT_S
        subject = self._ports.subjects.hand(replica)
        try:
            answer = await self._ports.bus.request(subject, asked, within_s=TAKE_WITHIN_S, headers=headers)
        except MessageTooLargeError:
            return False
        except BusUnavailableError:
            self._silent = {name: at for name, at in self._silent.items() if at > now() - LONGEST_HAND_ON_S}
            self._silent[replica] = now() + SILENT_S
            return False
        self._silent.pop(replica, None)
        return answer == _TAKEN


class Handovers:
    """The receiving side: what others hand to this replica goes to its pump."""

    def __init__(self, ports: Ports, pump: Pump) -> None:
        self._ports, self._pump = ports, pump
        self._ear: Subscription | None = None
        #: What was promised, by the token of its lease, and up to when, by the loop's clock.
        self._promised: dict[str, tuple[Delivery, float]] = {}
        self._all_kept = asyncio.Event()
        self._is_closing = False

    async def start(self) -> None:
        """Begin to take tasks; once the pump has started."""
        subject = self._ports.subjects.hand(self._ports.identity.id)
        self._ear = await self._ports.bus.subscribe(subject, self._hear)

    async def aclose(self) -> None:
        """Take no more, but for what was promised. May be called twice."""
        self._is_closing = True
        self._forget()
        if self._promised:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKE_WITHIN_S):
                    await self._all_kept.wait()
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
        if head == _GO:
            return self._go(data.decode(errors="replace"))
        try:
            token, seq, subject = head.decode().split(" ")
            TaskSubject.parse(subject)
            lease = self._ports.queue.take_over(token)
            headers = {**note.headers, "Nats-Msg-Id": note.headers.get(_PUT_WITH, "")}
            at, place = float(headers.pop(_STORED_AT, 0.0)), ""
            if carried := headers.pop(CARRIED_HEADER, ""):
                # From here on it is as whoever hands it over had it.
                how = Carried.parse(carried)
                headers, at, place = {**headers, **how.headers}, how.at, how.subject
            came = Entry(int(seq), subject, data, headers)
            delivery = Delivery(subject, data, lease, int(seq), came, at, place)
        except (ValueError, SquadronError):
            # Anybody may write there.
            return
        answer = _TAKEN if self._promise(token, delivery) else b""
        if is_foreign(note.reply) and self._ports.subjects.is_outside(note.reply):
            spawn(self._ports.bus.publish(note.reply, answer), "hand over")

    def _promise(self, token: str, delivery: Delivery) -> bool:
        self._forget(delivery.seq)
        if self._is_closing or not self._pump.has_room(delivery, beside=len(self._promised)):
            return False
        until = asyncio.get_running_loop().time() + self._pump.lease_s * STANDS_FOR
        self._promised[token] = delivery, until
        self._all_kept.clear()
        return True

    def _forget(self, seq: int | None = None) -> None:
        """Forget what was promised and is over, or is promised anew."""
        now = asyncio.get_running_loop().time()
        for token, (delivery, until) in list(self._promised.items()):
            if delivery.seq == seq or until < now:
                del self._promised[token]

    def _go(self, token: str) -> None:
        delivery, until = self._promised.pop(token, (None, 0.0))
        if not self._promised:
            self._all_kept.set()
        if delivery is None or until < asyncio.get_running_loop().time():
            # Our event loop was blocked for so long that its lease has run out, or is about to.
            return
        if self._pump.offer(delivery):
            spawn(self._extend(delivery), "lease handed over")
        else:
            spawn(delivery.lease.release(), "hand back")

    @staticmethod
    async def _extend(delivery: Delivery) -> None:
        with contextlib.suppress(BusUnavailableError):
            await delivery.lease.extend()
