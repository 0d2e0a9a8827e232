"""`AgentMessage` 1.0 on the wire: nothing is lost, nothing is added, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.wire.envelope import (
    LAST_MS,
    LONGEST_WAIT_S,
    AgentIdentity,
    AgentMessage,
    Constraints,
    Payload,
    Routing,
    pack,
)

#: Text that UTF-8 can carry: anything but lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
#: Names that the protocol does not know, in any level of the message.
FOREIGN = st.dictionaries(TEXT.map("x".__add__), JSON, max_size=3)


def _minimal() -> dict[str, Any]:
    return {
        "id": "m1",
        "timestamp": 1763800000.25,
        "version": "1.0",
        "type": "task",
        "source": {"id": "me"},
        "context": {"conversationId": "c1", "metadata": {}},
        "payload": {"content": "hello"},
        "routing": {"priority": 5},
    }


def _full() -> dict[str, Any]:
    """Every field of the protocol's "Core Message Structure"."""
    return {
        "id": "m1",
        "timestamp": 1763800000,
        "version": "1.0",
        "type": "task",
        "source": {"id": "planner-1", "type": "planner"},
        "target": "analyst-2",
        "replyTo": "agents.prod.lite.planner.m1",
        "correlationId": "k1",
        "context": {
            "conversationId": "c1",
            "parentMessageId": "m0",
            "history": [{"role": "user", "content": "hi"}],
            "maxHistory": 10,
            "metadata": {"user": {"name": "Zoë"}},
        },
        "payload": {
            "content": {"text": "…"},
            "model": "gpt",
            "parameters": {"temperature": 0.2, "maxTokens": 100},
            "constraints": {"time": 1000, "tokens": 5, "cost": 0.5, "hops": 3, "deadline": 1763800060000},
        },
        "routing": {"priority": 9, "capabilities": ["nlp"], "exclusions": ["analyst-1"], "timeout": 30000},
        "metadata": {"trace": None},
    }


def _round_trip(raw: dict[str, Any]) -> dict[str, Any]:
    return json.loads(AgentMessage.decode(json.dumps(raw).encode()).encode())


@pytest.mark.parametrize("raw", [_minimal(), _full()])
def test_a_message_comes_out_as_it_went_in(raw: dict[str, Any]) -> None:
    assert _round_trip(raw) == raw


def test_it_is_camel_case_outside_and_snake_case_inside() -> None:
    message = AgentMessage.decode(json.dumps(_full()).encode())

    assert message.reply_to == "agents.prod.lite.planner.m1"
    assert message.context.parent_message_id == "m0"
    assert message.payload.constraints == Constraints(
        time=1000, tokens=5, cost=0.5, hops=3, deadline=1763800060000
    )
    assert not re.search(rb'"[a-z]+_[a-z]+"\s*:', message.encode())


@given(content=JSON)
def test_any_json_content_survives(content: Any) -> None:
    message = AgentMessage.new("task", AgentIdentity(id="me"), content)

    assert AgentMessage.decode(message.encode()) == message
    assert json.loads(message.encode())["payload"]["content"] == content


@given(levels=st.tuples(FOREIGN, FOREIGN, FOREIGN, FOREIGN, FOREIGN))
def test_unknown_fields_survive_in_every_level(levels: tuple[dict[str, Any], ...]) -> None:
    raw = _full()
    places = (raw, raw["source"], raw["context"], raw["payload"]["constraints"], raw["routing"])
    for place, extra in zip(places, levels, strict=True):
        place.update(extra)

    assert _round_trip(raw) == raw


def test_an_explicit_null_stays_and_an_absent_field_stays_away() -> None:
    raw = _minimal() | {"target": None, "metadata": None, "somethingNew": None}
    raw["context"]["history"] = None

    assert _round_trip(raw) == raw


@pytest.mark.parametrize("key", ["reply_to", "replyTo"])
def test_snake_case_is_understood_too(key: str) -> None:
    assert AgentMessage.decode(json.dumps(_minimal() | {key: "here"}).encode()).reply_to == "here"


def test_routing_and_metadata_may_be_missing() -> None:
    raw = _minimal()
    del raw["routing"], raw["context"]["metadata"]

    assert AgentMessage.decode(json.dumps(raw).encode()).routing == Routing()


def test_a_new_message_says_no_more_than_it_has_to() -> None:
    message = AgentMessage.new("event", AgentIdentity(id="me"), {"n": 1})
    raw = json.loads(message.encode())

    assert set(raw) == {"id", "timestamp", "version", "type", "source", "context", "payload", "routing"}
    assert raw["context"] == {"conversationId": message.id, "metadata": {}}
    assert raw["payload"] == {"content": {"n": 1}}
    assert raw["routing"] == {"priority": 5}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "2.0"}, "version"),
        ({"version": 1.0}, "version"),
        ({"type": "order"}, "type"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"timestamp": "noon"}, "timestamp"),
        *(({"timestamp": at}, "timestamp") for at in (float("nan"), float("-inf"), -1, 1e300, 10**400)),
        ({"routing": {"priority": 10}}, "routing.priority"),
        ({"routing": {"priority": -1}}, "routing.priority"),
        ({"routing": {"timeout": 0}}, "routing.timeout"),
        ({"source": "me"}, "source"),
        ({"context": {}}, "context.conversationId"),
        ({"payload": []}, "payload"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidMessageError, match=re.escape(repr(field))) as caught:
        AgentMessage.decode(json.dumps(_minimal() | change).encode())

    assert caught.value.field == field


@pytest.mark.parametrize(("at", "waited_s"), [(1000, 5), (1010, 0), (1.0e12, 0), (0, 1005), (LAST_MS, 0)])
def test_how_long_it_waited_is_a_time_that_can_be(at: float, waited_s: float) -> None:
    message = AgentMessage.decode(json.dumps(_minimal() | {"timestamp": at}).encode())

    assert message.waited_s(1005) == waited_s
    assert message.waited_s(1.8e9) <= LONGEST_WAIT_S
    # Who puts it back moves its deadline along: to where it can be read.
    limits = {"content": 1, "constraints": {"deadline": LAST_MS}}
    limited = AgentMessage.decode(json.dumps(_minimal() | {"timestamp": at, "payload": limits}).encode())
    assert AgentMessage.decode(limited.put_back(1, 1.8e9).encode()).redriven == 1


@pytest.mark.parametrize("name", ["id", "timestamp", "type", "source", "context", "payload"])
def test_a_missing_field_is_named(name: str) -> None:
    raw = _minimal()
    del raw[name]
    with pytest.raises(InvalidMessageError, match=name):
        AgentMessage.decode(json.dumps(raw).encode())


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_invalid_message(data: bytes) -> None:
    with contextlib.suppress(InvalidMessageError):
        assert AgentMessage.decode(data).id


def test_deep_nesting_is_invalid_and_not_a_crash() -> None:
    with pytest.raises(InvalidMessageError):
        AgentMessage.decode(b'{"payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_a_message_can_not_be_changed() -> None:
    message = AgentMessage.new("task", AgentIdentity(id="me"))
    with pytest.raises(ValueError, match="frozen"):
        message.id = "other"  # type: ignore[misc]


def test_stream_fields_are_kept_in_the_payload() -> None:
    payload = Payload.model_validate({"sequenceNumber": 3, "isFinal": False, "chunk": {"a": 1}})
    message = AgentMessage.new("stream", AgentIdentity(id="me"), payload=payload)

    assert json.loads(message.encode())["payload"] == {"sequenceNumber": 3, "isFinal": False, "chunk": {"a": 1}}


def test_the_fields_are_those_of_the_protocol_page_if_it_is_here() -> None:
    page = Path(__file__).parents[2] / "docs" / "protocol.md"
    known = {"id", "timestamp", "version", "type", "source", "target", "replyTo", "correlationId"}
    known |= {"context", "payload", "routing", "metadata"}

    assert {field.alias for field in AgentMessage.model_fields.values()} == known
    if page.is_file():
        assert all(f"`{name}`" in page.read_text() or name in page.read_text() for name in known)


@given(
    id=TEXT.filter(bool),
    conversation_id=TEXT,
    parent=st.none() | TEXT,
    reply_to=st.none() | TEXT,
    correlation_id=st.none() | TEXT,
    target=st.none() | TEXT,
    content=JSON | st.floats(),
    priority=st.integers(0, 9),
)
def test_what_is_packed_is_a_message_that_encodes_to_the_same(content: Any, priority: int, **fields: Any) -> None:
    source = AgentIdentity(id="me", type="test")

    packed = pack("task", source, {"content": content}, routing={"priority": priority}, **fields)

    assert AgentMessage.decode(packed).encode() == packed
