"""Whoever names keys that nobody has does not hold up those who read."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from squadron.actors.runs.log import read
from squadron.bridge.memory import MemoryServer
from squadron.bridge.place import Place
from squadron.config import Settings
from squadron.runtime.lite.believed import taken_by
from squadron.runtime.store.own_journal import OwnJournal, seal_own
from squadron.runtime.store.seals import AGAIN_S, Seals
from squadron.runtime.texts import encoded
from squadron.runtime.trust.sealing import KeyRing
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.testing import turned_time

FLOOD = 200


class Rings:
    """Who has the ring, and counts who asks for it."""

    def __init__(self) -> None:
        self.ring, self.looks = KeyRing.create(), 0

    async def load(self) -> KeyRing:
        self.looks += 1
        return self.ring


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with turned_time():
        made = MemoryServer("test").place(AgentIdentity(id="reader"), Settings(env="test"))
        await made.start()
        yield made
        await made.aclose()


async def test_a_flood_of_unknown_keys_costs_a_reader_one_look(place: Place) -> None:
    rings, ports = Rings(), place.ports
    topic, memory, run = (
        ports.subjects.lite("talk", "c"),
        ports.subjects.lite("memory-a", "c"),
        ports.subjects.run("r"),
    )
    for _ in range(FLOOD):
        for key in (topic, run):
            reader = (KeyRing.create().public,)
            data = await ports.pack_for(reader, key, "event", {"content": "x"}, keep_s=60.0, metadata={})
            await (ports.runs if key is run else ports.lite).append(key, data, ttl_s=60.0)
        closed = encoded({"sealedEntry": await seal_own(Seals(), memory, b"x")})
        await ports.lite.append(memory, closed, ttl_s=60.0)
    ports.claims.seals = Seals(rings.load, again_s=AGAIN_S)

    taken = [await taken_by(ports, entry) async for entry in ports.lite.read(topic)]
    kept = [entry async for entry in OwnJournal(ports, "a", sealed=True).read(memory)]
    logs = [message async for _, message in read(ports, run)]

    assert len(taken) == len(kept) == len(logs) == FLOOD
    # To know its own, and for what came before it.
    assert rings.looks <= 2


async def test_a_key_that_is_new_is_still_found_behind_a_flood(place: Place) -> None:
    rings, ports = Rings(), place.ports
    topic = ports.subjects.lite("talk", "c")
    ports.claims.seals = Seals(rings.load, again_s=AGAIN_S)
    for _ in range(3):
        for _ in range(FLOOD // 4):
            data = await ports.pack_for((KeyRing.create().public,), topic, "event", {"content": "x"}, keep_s=60.0)
            await ports.lite.append(topic, data, ttl_s=60.0)
        rings.ring = KeyRing.create()
        data = await ports.pack_for((rings.ring.public,), topic, "event", {"content": "for us"}, keep_s=60.0)
        seq = await ports.lite.append(topic, data, ttl_s=60.0)
        before = rings.looks
        entries = [entry async for entry in ports.lite.read(topic)]
        taken = {entry.seq: await taken_by(ports, entry) for entry in entries}
        assert b"for us" in (taken[seq] or b"")
        assert rings.looks <= before + 2
