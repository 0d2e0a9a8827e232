"""What a process sends at once is acknowledged at once, where the server and the stream take that."""

from __future__ import annotations

import pytest

from squadron.bridge.jetstream.fast_batches import FastBatches
from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError
from tests.contract.conftest import ON_NATS, Peer

pytestmark = ON_NATS
COUNT = 100


@pytest.fixture
def key(peer: Peer) -> str:
    return peer.subjects.lite("reader", "one")


@pytest.fixture
def connection(peer: Peer) -> Connection:
    assert isinstance(peer.place, Wiring)
    return peer.place.connection


@pytest.fixture
def batches(connection: Connection) -> FastBatches:
    return FastBatches(connection)


def some(count: int = COUNT) -> list[tuple[bytes, str]]:
    return [(b"%d" % number, f"id-{number}") for number in range(count)]


async def stored(peer: Peer, key: str) -> list[int]:
    return [int(entry.data) async for entry in peer.lite.read(key)]


async def test_a_batch_is_stored_in_its_order_for_two_answers(
    peer: Peer, key: str, connection: Connection, batches: FastBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bytes] = []
    hear = batches._read_end

    def count(answer: Heard, subject: str) -> int:
        answers.append(answer.data)
        return hear(answer, subject)

    monkeypatch.setattr(batches, "_read_end", count)

    assert await batches.append(key, some(), {"Nats-TTL": "60s"}) == COUNT

    assert await stored(peer, key) == list(range(COUNT))
    # What it lets us have in flight, and the end.
    assert len(answers) == 2


async def test_what_comes_alone_is_acknowledged_alone(peer: Peer, key: str, batches: FastBatches) -> None:
    assert await batches.append(key, some(1), {}) == 1
    assert await stored(peer, key) == [0]


async def test_of_what_was_stored_before_nothing_is_stored_again(
    peer: Peer, key: str, batches: FastBatches
) -> None:
    for data, msg_id in some()[1:50:7]:
        await peer.lite.append(key, data, msg_id=msg_id)

    assert await batches.append(key, some(), {}) == COUNT

    assert sorted(await stored(peer, key)) == list(range(COUNT))


async def test_a_batch_whose_first_was_stored_before_is_to_be_sent_again(
    peer: Peer, key: str, batches: FastBatches
) -> None:
    await batches.append(key, some(1), {})

    told = await batches.append(key, some(), {})
    for entry in some()[told:]:
        assert await batches.append(key, [entry], {}) == 1

    assert await stored(peer, key) == list(range(COUNT))


async def test_a_batch_ends_at_what_is_refused(peer: Peer, key: str, batches: FastBatches) -> None:
    lives = [{"Nats-TTL": "60s"}] * 30 + [{"Nats-TTL": "no time"}] + [{"Nats-TTL": "60s"}] * 30
    endings = zip(batches._endings(len(lives)), some(len(lives)), lives, strict=True)
    messages = [(f"{ending}.$FI", data, {**life, "Nats-Msg-Id": id}) for ending, (data, id), life in endings]

    assert await batches._connection.ask_many(key, messages, batches._read_end) == 30

    assert await stored(peer, key) == list(range(30))


async def test_of_a_batch_with_a_gap_only_what_is_before_it_is_stored(
    peer: Peer, key: str, batches: FastBatches
) -> None:
    endings = zip(batches._endings(COUNT), some(), strict=True)
    messages = [(f"{ending}.$FI", data, {"Nats-Msg-Id": id}) for ending, (data, id) in endings]
    del messages[40]

    assert await batches._connection.ask_many(key, messages, batches._read_end) == 40

    assert await stored(peer, key) == list(range(40))


async def test_too_large_a_message_is_found_before_any_is_sent(
    peer: Peer, key: str, connection: Connection, batches: FastBatches
) -> None:
    with pytest.raises(MessageTooLargeError):
        await batches.append(key, [*some(3), (b"x" * (connection.max_payload + 1), "large")], {})

    assert await stored(peer, key) == []


async def test_a_stream_that_takes_no_batches_gets_one_by_one(
    peer: Peer, key: str, connection: Connection, batches: FastBatches
) -> None:
    names, name = StreamNames(peer.subjects.environment), f"bare-{peer.subjects.environment}"
    assert (await connection.api(f"STREAM.INFO.{names.lite}", {}))["config"]["allow_batched"] is True
    bare = {"name": name, "subjects": [name], "storage": "memory"}
    assert "error" not in await connection.api(f"STREAM.CREATE.{name}", bare)

    with pytest.raises(BusUnavailableError, match="batch"):
        await batches.append(name, some(), {})

    assert await batches.append(name, some(), {}) == COUNT
    assert (await connection.api(f"STREAM.INFO.{name}", {}))["state"]["messages"] == COUNT


async def test_a_server_that_knows_no_batches_gets_one_by_one(
    peer: Peer, connection: Connection, batches: FastBatches
) -> None:
    # It acknowledges each message, whatever its reply subject looks like.
    sequences: list[str] = []

    def acknowledge(msg: Heard) -> None:
        sequences.append(msg.reply)
        connection.client.post(msg.reply, b'{"stream": "old", "seq": %d}' % len(sequences))

    await connection.listen("old.one", acknowledge)

    assert await batches.append("old.one", some(), {}) == 0
    assert await batches.append("old.one", some(), {}) == COUNT
    assert sum(reply.endswith(".$FI") for reply in sequences) == COUNT
