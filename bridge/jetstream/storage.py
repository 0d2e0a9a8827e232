"""How much the streams of an environment hold, and how much they may."""

from __future__ import annotations

from squadron.bridge.jetstream.link.connect import Connection
from squadron.bridge.jetstream.stream_configs import STREAM_NOT_FOUND, StreamNames, ask_for, find


async def storage(connection: Connection, names: StreamNames) -> tuple[dict[str, tuple[int, int, int]], int, int]:
    """Bytes, messages and most bytes of each stream; then bytes of all of the account's, and the most of those.

    A limit is 0 where there is none; an account without one has that of the server, which does not tell it.

    Raises:
        BusUnavailableError: JetStream does not answer as it should.
    """
    streams = {}
    all = (names.tasks, names.lite, names.registry, names.dead, names.runs, names.events, f"OBJ_{names.bucket}")
    for name in all:
        # The bucket is made with the first large payload.
        if info := await find(connection, f"STREAM.INFO.{name}", missing=STREAM_NOT_FOUND):
            state = info["state"]
            streams[name] = (state["bytes"], state["messages"], max(0, info["config"].get("max_bytes", 0)))
    account = await ask_for(connection, "INFO")
    return streams, account["storage"], max(0, account["limits"]["max_storage"])
