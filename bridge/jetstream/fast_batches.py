"""Many entries for one acknowledgement: fast batches (ADR-50 of NATS), where they are taken."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_core import from_json

from squadron.bridge.jetstream.link.connect import NOT_YET, Connection
from squadron.bridge.jetstream.link.lasting_client import Heard
from squadron.bridge.jetstream.publish_acks import read_ack

#: The server is to acknowledge after so many messages at the soonest: the end of a batch is all that we look at.
_FLOW = 1000
#: JetStream error code (nats-server `errors.json`): the stream takes no batches of this kind.
_NO_BATCHES = 10205


class FastBatches:
    """Sends entries of one stream in batches.

    A batch is numbered in its reply subjects. The server ends one with a gap in it where the gap is, and says how
    many it stored, in their order. It tells neither their sequences nor which of them it knew already.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: Ids of batches are the stream's, whoever sends them.
        self._ids = (f"{os.urandom(8).hex()}-{number}" for number in itertools.count())
        #: False once an answer said that the server or the stream takes none: those before 2.14.
        self.taken = True

    def append(
        self, key: str, entries: Sequence[tuple[bytes, str]], headers: dict[str, str]
    ) -> asyncio.Future[int]:
        """Send entries, each with its message id; the future ends with how many are stored, from the first on.

        Raises:
            MessageTooLargeError, SquadClosedError: see `Connection.ask`; the same holds for how the future fails.
        """
        if len(entries) == 1:
            data, msg_id = entries[0]
            return self._connection.ask(key, data, _read_one, headers={**headers, "Nats-Msg-Id": msg_id})
        if not self.taken:
            return _counted([self.append(key, [entry], headers) for entry in entries])
        messages = [
            (f"{ending}.$FI", data, {**headers, "Nats-Msg-Id": msg_id})
            for ending, (data, msg_id) in zip(self._endings(len(entries)), entries, strict=True)
        ]
        return self._connection.ask_many(key, messages, self._read_end)

    def _endings(self, count: int) -> Iterator[str]:
        """What reply subjects have behind an inbox: id, flow, what to do at a gap, number, operation."""
        batch = f".{next(self._ids)}.{_FLOW}.fail"
        yield f"{batch}.1.0"
        for number in range(2, count):
            yield f"{batch}.{number}.1"
        yield f"{batch}.{count}.2"

    def _read_end(self, answer: Heard, subject: str) -> Any:
        """How many entries of a batch are stored."""
        data = answer.data
        if data.startswith(b'{"type"'):
            # Of its flow, a gap or a fault: the end comes yet.
            return NOT_YET
        ack = from_json(data, cache_strings="keys")
        if "batch" in ack and "error" not in ack:
            return int(ack["count"])
        # One entry is acknowledged, and not the batch, or none is taken at all.
        self.taken = ack.get("error", {}).get("err_code") not in (None, _NO_BATCHES)
        read_ack(answer, subject)
        return 0


def _read_one(answer: Heard, subject: str) -> int:
    read_ack(answer, subject)
    return 1


def _counted(each: Sequence[asyncio.Future[int]]) -> asyncio.Future[int]:
    """How many of them ended well, from the first on."""
    counted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def count(all: asyncio.Future[list[int | BaseException]]) -> None:
        if not counted.done():
            ended = [isinstance(one, int) for one in all.result()]
            counted.set_result([*ended, False].index(False))

    asyncio.gather(*each, return_exceptions=True).add_done_callback(count)
    return counted
