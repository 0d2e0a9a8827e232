"""What a server sends is read the same however it is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from squadron.bridge.jetstream.link.wire_parser import WireParser


class Hearer:
    """Notes what a parser hands to its client."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def take(self, *message: Any) -> bool:
        # As of a client, some of whose subscriptions have a queue.
        if message[0] % 2:
            self.heard.append(message)
        return bool(message[0] % 2)

    async def _process_msg(self, *message: Any) -> None:
        self.heard.append(message)

    async def _process_ping(self) -> None:
        self.heard.append("ping")

    async def _process_pong(self) -> None:
        self.heard.append("pong")

    async def _process_info(self, info: Any) -> None:
        self.heard.append(info)

    async def _process_err(self, error: str) -> None:
        self.heard.append(error)


def line(chance: random.Random) -> bytes:
    body = chance.choice([b"", b"\r\n", b"MSG a 1 3\r\n", chance.randbytes(chance.randrange(3000))])
    # The last three are what senders may write who are not ours: a parser passes them on as they are.
    headers = chance.choice(
        [
            b"NATS/1.0\r\nA: b\r\n\r\n",
            b"NATS/1.0 503\r\n\r\n",
            b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Stream: 3\r\n\r\n",
            b"NATS/1.0\r\nA: b\r\n c\r\n: d\r\n\r\n",
            b"NATS/1.0",
            chance.randbytes(40),
        ]
    )
    sid, reply = chance.randrange(4), chance.choice([b"", b"12 ", b"_INBOX.a.b ", b"r\t"])
    return chance.choice(
        [
            b"MSG a.b %d %s%d\r\n%s\r\n" % (sid, reply, len(body), body),
            b"HMSG a.b\t%d %s%d %d\r\n%s%s\r\n" % (sid, reply, len(headers), len(headers + body), headers, body),
            b"PING\r\n",
            b"PONG\r\n",
            b"+OK\r\n",
            b"-ERR 'Permissions Violation'\r\n",
            b'INFO {"max_payload": 1}\r\n',
        ]
    )


@pytest.mark.parametrize("seed", range(20))
async def test_a_stream_is_the_same_messages_however_it_is_cut(seed: int) -> None:
    chance = random.Random(seed)
    sent = b"".join(line(chance) for _ in range(200))
    theirs, ours = Hearer(), Hearer()
    await Parser(theirs).parse(sent)
    assert len(theirs.heard) > 100
    parser = WireParser(ours, ours.take)
    left = sent
    while left:
        cut = chance.choice([1, 2, 7, 100, 5000])
        await parser.parse(left[:cut])
        left = left[cut:]
    assert ours.heard == theirs.heard
    assert not parser.buf


async def test_what_is_none_of_the_protocol_is_an_error() -> None:
    for line in (b"MSG a\r\n", b"HMSG a 1 5\r\n", b"MSG a x 5\r\n", b"whatever\r\n"):
        hearer = Hearer()
        with pytest.raises(ProtocolError):
            await WireParser(hearer, hearer.take).parse(line)


async def test_a_form_feed_is_a_part_of_a_subject() -> None:
    hearer = Hearer()
    await WireParser(hearer, hearer.take).parse(b"MSG a\x0cb 1 1\r\nx\r\n")
    assert hearer.heard == [(1, b"a\x0cb", b"", b"x", None)]


async def test_nothing_of_a_connection_that_was_lost_is_read_as_of_the_next() -> None:
    hearer = Hearer()
    parser = WireParser(hearer, hearer.take)

    async def lose() -> None:
        parser.reset()

    hearer._process_pong = lose  # type: ignore[method-assign]
    await parser.parse(b"PONG\r\nMSG a 1 1\r\nx\r\nMSG a 1 10\r\nx")
    await parser.parse(b"MSG b 1 1\r\ny\r\n")
    assert hearer.heard == [(1, b"b", b"", b"y", None)]
