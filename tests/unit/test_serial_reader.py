"""Readers of a serial mailbox, on a server that gives out what it likes to whom it likes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from squadron.bridge.jetstream import serial_feed
from squadron.bridge.jetstream.lease import JetStreamLease
from squadron.bridge.jetstream.serial_feed import SerialReader
from squadron.runtime.ports.queue import Delivery

MESSAGES, AT_ONCE, LEASE_S = 60, 8, 3.0


@dataclass
class _Consumer:
    """What the server knows: whose turn it is, who has what, and what nobody has any more."""

    readers: list[_Member] = field(default_factory=list)
    dead: list[_Member] = field(default_factory=list)
    given: dict[int, tuple[_Member, float]] = field(default_factory=dict)
    lapsed: list[int] = field(default_factory=list)
    now: float = 0.0
    next_seq: int = 1
    nth: int = 0
    #: What readers made of them, each once: in the order in which they did so first.
    done: list[int] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)

    async def taken(self) -> int:
        await asyncio.sleep(0)
        self.lapse(lambda _, at: self.now - at >= LEASE_S)
        return len(self.given) + len(self.lapsed)

    def give(self, member: _Member, chance: random.Random) -> None:
        self.lapse(lambda _, at: self.now - at >= LEASE_S)
        new = self.next_seq <= MESSAGES and len(self.given) + len(self.lapsed) < AT_ONCE
        if self.lapsed and (chance.random() < 0.5 or not new):
            seq = self.lapsed.pop(chance.randrange(len(self.lapsed)))
        elif new:
            seq, self.next_seq = self.next_seq, self.next_seq + 1
        else:
            return
        self.nth += 1
        self.given[seq] = member, self.now
        reply = f"$JS.ACK.stream.reader.1.{seq}.{self.nth}.1.0"
        lease = JetStreamLease(_NOWHERE, _NOWHERE, "", reply)
        member.reader.arrived(Delivery("", b"", lease, seq))

    def die(self, member: _Member) -> None:
        self.readers.remove(member)
        self.dead.append(member)
        member.reader.sink = lambda _: None
        self.lapse(lambda whose, _: whose is member)

    def lapse(self, which: Callable[[_Member, float], bool]) -> None:
        over = [seq for seq, given in self.given.items() if which(*given)]
        for seq in over:
            del self.given[seq]
        self.lapsed += over


async def _nothing(*_: Any, **__: Any) -> None:
    """All that is settled here is settled with the consumer, and nothing is sent."""


_NOWHERE: Any = SimpleNamespace(connected_at=0.0, publish=_nothing, last=_nothing, append=_nothing)


class _Member:
    def __init__(self, consumer: _Consumer) -> None:
        self.consumer, self.in_hand = consumer, list[Delivery]()
        self.reader = SerialReader(self._came, consumer.taken, LEASE_S, lambda: consumer.now)
        consumer.readers.append(self)

    def _came(self, delivery: Delivery) -> None:
        self.in_hand.append(delivery)

    def work(self, chance: random.Random) -> None:
        """Do what came first, and settle it, or be interrupted in between."""
        if self.in_hand[0].seq not in self.consumer.done:
            self.consumer.done.append(self.in_hand[0].seq)
        if chance.random() < 0.5:
            self.settle(self.in_hand.pop(0))

    def settle(self, delivery: Delivery) -> None:
        lease = delivery.lease
        assert isinstance(lease, JetStreamLease)
        assert lease.let_go is not None
        lease.let_go(True)
        self.consumer.given.pop(delivery.seq, None)
        if delivery.seq in self.consumer.lapsed:
            self.consumer.lapsed.remove(delivery.seq)
        self.consumer.settled.add(delivery.seq)


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_dies_and_whoever_reads_nothing_overtakes_what_came_before(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_feed, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(serial_feed, "LOOK_S", 0.0)
    chance, consumer = random.Random(seed), _Consumer()
    pinned = _Member(consumer)

    while len(consumer.settled) < MESSAGES:
        dice = chance.random()
        if dice < 0.02:
            # Forgotten: he stays, with what he has.
            pinned = _Member(consumer)
        elif dice < 0.05:
            member = chance.choice(consumer.readers)
            consumer.die(member)
            pinned = _Member(consumer) if member is pinned else pinned
        elif dice < 0.5:
            consumer.give(pinned, chance)
        else:
            busy = [each for each in consumer.readers if each.in_hand]
            if busy:
                chance.choice(busy).work(chance)
        consumer.now += 0.01
        await asyncio.sleep(0)

    assert consumer.done == list(range(1, MESSAGES + 1))
    for each in (*consumer.readers, *consumer.dead):
        await each.reader.aclose()
