"""What is forged, replayed, truncated or mixed up is thrown at everybody at work: nothing comes of it."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest

from squadron.runtime.asking.options import AskOptions
from squadron.runtime.ports.bus import Note
from squadron.runtime.trust.agent_sender import SENDER_HEADER
from squadron.runtime.trust.carried import CARRIED_HEADER
from squadron.runtime.wire.outcome import Result
from tests.contract.conftest import Peer
from tests.contract.test_signed import Echo, Land, Streamer, land

__all__ = ["land"]
SEED, FORGED, ASKS = 20_261_128, 10_000, 60


class Attacker:
    """Hears all that passes, may put anything anywhere, and has a client's credential of its own."""

    def __init__(self, plain: Peer, own: Peer, rng: random.Random) -> None:
        self.plain, self.own, self.rng = plain, own, rng
        self.heard: list[Note] = []

    async def listen(self) -> None:
        await self.plain.bus.subscribe(self.plain.subjects.all, self.heard.append)

    def _headers(self, note: Note) -> dict[str, str]:
        other = self.rng.choice(self.heard)
        value = note.headers.get(SENDER_HEADER, "{}")
        cut = self.rng.randrange(len(value) + 1)
        made = self.rng.choice(
            [
                {},
                {SENDER_HEADER: value},
                {SENDER_HEADER: value[:cut]},
                {SENDER_HEADER: value[:cut] + "A" + value[cut + 1 :]},
                {SENDER_HEADER: other.headers.get(SENDER_HEADER, "x")},
                {SENDER_HEADER: value, CARRIED_HEADER: other.headers.get(CARRIED_HEADER, "{}")},
            ]
        )
        return {**made, "Nats-Msg-Id": uuid.uuid4().hex}

    def _data(self, note: Note) -> bytes:
        """The same, another's, or as he would like it."""
        choice = self.rng.randrange(4)
        if choice == 0:
            return note.data
        if choice == 1:
            return self.rng.choice(self.heard).data
        try:
            raw = json.loads(note.data)
            if choice == 2 and isinstance(raw, dict) and isinstance(raw.get("payload"), dict):
                raw["payload"]["content"] = {
                    "outcome": "result",
                    "success": True,
                    "data": "forged",
                    "text": "forged",
                }
                raw["payload"]["chunk"] = "forged"
            return json.dumps(raw).encode()
        except ValueError:
            return note.data[: len(note.data) // 2]

    async def strike(self) -> None:
        """One forged message, where the one it is made of came from, or where another did."""
        note = self.rng.choice(self.heard)
        place = self.rng.choice([note.subject, note.subject, self.rng.choice(self.heard).subject])
        peer = self.rng.choice([self.plain, self.plain, self.own])
        headers, data = self._headers(note), self._data(note)
        kind = place.split(".")[2]
        if kind in ("task", "query", "ordered", "ticket"):
            await peer.queue.put(place, data, msg_id=headers.pop("Nats-Msg-Id"), headers=headers)
        elif kind == "lite":
            await peer.lite.append(place, data, msg_id=headers.pop("Nats-Msg-Id"), headers=headers)
        elif kind == "registry":
            await peer.records.append(place, data, ttl_s=600, headers=headers)
        else:
            await peer.bus.publish(place, data, headers=headers)


def _texts() -> Iterator[str]:
    return (f"true {number}" for number in range(ASKS))


@pytest.mark.parametrize("land", ["memory"], indirect=True)
@pytest.mark.timeout(120)
async def test_none_of_ten_thousand_forged_messages_is_taken_or_does_harm(land: Land) -> None:
    rng = random.Random(SEED)
    plain, own = await land.join("stranger", None, verify="off"), await land.join("mallory", "client")
    attacker = Attacker(plain, own, rng)
    await attacker.listen()
    echo, streamer = await land.serve(Echo()), await land.serve(Streamer())
    ann = await land.join("ann", "client")
    await ann.caller.ask("text.echo", {"text": "so that there is something to hear"}, AskOptions(within_s=600))
    done = 0

    async def attack() -> None:
        for number in range(FORGED):
            await attacker.strike()
            if number % 50 == 0:
                await asyncio.sleep(0.001)

    attacking = asyncio.create_task(attack())
    sent: set[str] = set()
    for text in _texts():
        topic = rng.choice(["text.echo", "text.stream"])
        handle = await ann.caller.submit(topic, {"text": text}, AskOptions(within_s=600))
        sent.add(handle.task_id)
        outcome = await handle.outcome()
        assert isinstance(outcome, Result), outcome
        said = outcome.data["text"] if topic == "text.echo" else outcome.data
        assert said == text
        done += 1
    await attacking
    assert done == ASKS
    agent = streamer.agent
    assert isinstance(agent, Streamer)
    # Mallory asks in her own name, which she may; nothing else ran, and nothing twice.
    assert set(agent.ran) <= sent
    assert len(agent.ran) == len(set(agent.ran))
    for topic in ("text.echo", "text.stream"):
        assert ann.registry.find(topic) is not None
    assert {card.agent for card in ann.registry.cards()} == {"echo", "streamer"}
    refused: Counter[str] = Counter()
    for each in (echo.peer, streamer.peer, ann):
        refused += each.ports.guard.refused
    assert refused["task"] > 100
    assert refused["card"] + refused["presence"] > 100
    # All goes on.
    assert isinstance(await ann.caller.ask("text.echo", {"text": "after"}, AskOptions(within_s=600)), Result)
