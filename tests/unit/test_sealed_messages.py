"""A sealed message opens as it was sent, and in no other envelope."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.runtime.errors import KeyLostError, UnsealedError
from squadron.runtime.store.sealed import info_of, is_sealed, open_message, seal_message
from squadron.runtime.trust.sealing import Box, KeyRing
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage, Payload

RING = KeyRing([b"a" * 32])
PLACE = "agents.test.task.analysis.sentiment"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def task(content: Any, number: int = 0, **fields: Any) -> AgentMessage:
    return AgentMessage.new(
        "task",
        AgentIdentity(id=f"caller-{number}"),
        payload=Payload.model_validate({"content": content, "constraints": {"deadline": 5}, **fields}),
        id=f"task-{number}",
        conversation_id=f"talk-{number}",
        reply_to=f"agents.test.lite.caller-{number}-asks.task-{number}",
        metadata={"path": ["a.b#0123"], "seen": 1.5},
        timestamp=1764366330.123456 + number,
    )


def sealed(message: AgentMessage, ring: KeyRing = RING, place: str = PLACE) -> AgentMessage:
    return AgentMessage.decode(seal_message(message, Box([ring.public], info_of(message)), place).encode())


@given(JSON)
def test_a_sealed_message_opens_as_it_was_sent(content: Any) -> None:
    message = task(content, model="m:x", parameters={"temperature": 0})
    travels = sealed(message)
    assert is_sealed(travels)
    assert json.loads(open_message(travels, RING, PLACE).encode()) == json.loads(message.encode())


def test_of_a_sealed_message_nothing_is_readable_but_the_envelope() -> None:
    data = sealed(task({"text": "planted-secret"}, model="planted-model")).encode()
    assert b"planted" not in data
    assert b"a.b#0123" not in data
    assert b'"deadline":5' in data


def test_what_is_put_back_from_among_the_dead_opens_with_its_new_time_and_deadline() -> None:
    travels = sealed(task("x"))
    limits = {"constraints": {"deadline": 99}}
    payload = Payload.model_validate({**travels.payload.model_dump(by_alias=True, exclude_unset=True), **limits})
    metadata = {**(travels.metadata or {}), "redriven": 1}
    again = travels.model_copy(update={"timestamp": 1.0, "metadata": metadata, "payload": payload})
    opened = open_message(again, RING, PLACE)
    assert opened.payload.content == "x"
    assert opened.payload.constraints is not None
    assert opened.payload.constraints.deadline == 99


def test_a_lost_key_is_told_by_its_id() -> None:
    with pytest.raises(KeyLostError, match=RING.public.kid):
        open_message(sealed(task("x")), KeyRing.create(), PLACE)


@pytest.mark.parametrize("where", ["timestamp", "at", "number"])
def test_numbers_beyond_all_measure_harm_nobody(where: str) -> None:
    travels = sealed(task("x"))
    payload = travels.payload.model_dump(by_alias=True, exclude_unset=True)
    if where == "at":
        payload["sealed"] = {**payload["sealed"], "at": 10**5000}
    elif where == "number":
        payload["sequenceNumber"] = 10**5000
    time = 1e308 if where == "timestamp" else travels.timestamp
    forged = travels.model_copy(update={"timestamp": time, "payload": Payload.model_validate(payload)})
    with pytest.raises(UnsealedError):
        open_message(forged, RING, PLACE)


def test_ten_thousand_messages_that_were_mixed_up_open_nowhere() -> None:
    dice = random.Random(36)
    good = [sealed(task(f"secret {n}", n, sequenceNumber=n, epoch=1, isFinal=False)) for n in range(6)]
    names = ("id", "source", "reply_to", "correlation_id", "timestamp", "context", "type")
    for _ in range(10_000):
        one, other = dice.sample(good, 2)
        inner = dict((one.payload.model_extra or {})["sealed"])
        place, ring = PLACE, RING
        payload = one.payload.model_dump(by_alias=True, exclude_unset=True)
        changes: dict[str, Any] = {}
        match dice.choice(("envelope", "payload", "data", "kid", "number", "final", "place", "cut", "shape")):
            case "envelope":
                name = dice.choice(names)
                changes[name] = {"type": "result", "correlation_id": "x"}.get(name, getattr(other, name))
            case "payload":
                payload = other.payload.model_dump(by_alias=True, exclude_unset=True)
            case "data":
                inner["data"] = (other.payload.model_extra or {})["sealed"]["data"]
            case "kid":
                inner["keys"] = {f"{dice.getrandbits(64):016x}": next(iter(inner["keys"].values()))}
            case "number":
                payload[dice.choice(("sequenceNumber", "epoch", "attempt"))] = dice.randrange(7, 99)
            case "final":
                payload["isFinal"] = True
            case "place":
                place = f"agents.test.task.other.topic{dice.randrange(9)}"
            case "cut":
                inner["data"] = inner["data"][: dice.randrange(len(inner["data"]) - 1)]
            case "shape":
                rubbish = (None, 3, [], {}, "x", {"a": 1})
                inner[dice.choice(("v", "keys", "data"))] = dice.choice(rubbish)
        if payload.get("sequenceNumber") == one.payload.model_dump(by_alias=True).get("sequenceNumber"):
            payload["sealed"] = inner
        forged = one.model_copy(update={**changes, "payload": Payload.model_validate(payload)})
        with pytest.raises(UnsealedError):
            open_message(forged, ring, place)
    assert [open_message(each, RING, PLACE).payload.content for each in good] == [f"secret {n}" for n in range(6)]
