"""How much the streams of an environment hold, and how much they may."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.own_streams import own_names
from squadron.bridge.jetstream.stream_configs import STREAM_NOT_FOUND, StreamNames, ask_for, find
from squadron.runtime.wire.subjects import Subjects


async def storage(connection: Connection, names: StreamNames) -> tuple[dict[str, tuple[int, int, int]], int, int]:
    """Bytes, messages and most bytes of each stream; then bytes of all of the account's, and the most of those.

    A limit is 0 where there is none; an account without one has that of the server, which does not tell it.

    Raises:
        BusUnavailableError: JetStream does not answer as it should.
    """
    streams = {}
    shared = (names.tasks, names.lite, names.registry, names.dead, names.runs, names.events, f"OBJ_{names.bucket}")
    apart = [*await own_names(connection, names), *await own_names(connection, names, "ticket")]
    for name in dict.fromkeys((*shared, *apart)):
        # One that was lost is made anew a moment later.
        if info := await find(connection, f"STREAM.INFO.{name}", missing=STREAM_NOT_FOUND):
            state = info["state"]
            streams[name] = (state["bytes"], state["messages"], max(0, info["config"].get("max_bytes", 0)))
    account = await ask_for(connection, "INFO")
    return streams, account["storage"], max(0, account["limits"]["max_storage"])


async def oldest_at(
    connection: Connection, subjects: Subjects, mailbox: str, topics: Sequence[str]
) -> float | None:
    """When the oldest task of a mailbox was stored that is there yet, in seconds since the epoch; None if none is.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    plain, names = [subjects.task(topic) for topic in topics], StreamNames(subjects.environment)
    places = [(names.tasks, each) for each in (*plain, *(f"{each}.*" for each in plain), subjects.line(mailbox))]
    if await find(connection, f"STREAM.INFO.{names.line(mailbox)}", missing=STREAM_NOT_FOUND):
        places.append((names.line(mailbox), subjects.line(mailbox)))
    found = []
    for stream, pattern in places:
        query = json.dumps({"seq": 1, "next_by_subj": pattern}).encode()
        answer = await connection.request(f"{connection.api_prefix}.DIRECT.GET.{stream}", query)
        if stamp := answer.headers.get("Nats-Time-Stamp"):
            found.append(datetime.fromisoformat(stamp).timestamp())
    return min(found, default=None)
