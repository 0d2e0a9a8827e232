"""The streams of an environment, and how they are made."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.stream_names import StreamNames as StreamNames
from squadron.runtime.errors import BusUnavailableError

#: Server 2.15 caps a stream at 1,000 consumers unless it names a positive number; -1 does not lift it.
MAX_CONSUMERS = 100_000
#: How long a message id is remembered, in seconds; a publisher retries for less.
DUPLICATE_WINDOW_S = 120
#: Longest life of a lite topic's entry and of a dead letter, in seconds: 30 and 90 days.
LITE_MAX_AGE_S = 30 * 24 * 3600
DEAD_MAX_AGE_S = 90 * 24 * 3600
#: Longest life of a run's log, in seconds: 90 days.
RUNS_MAX_AGE_S = 90 * 24 * 3600
#: How long a durable event is kept for groups that are away and for new ones, in seconds: 7 days.
EVENTS_MAX_AGE_S = 7 * 24 * 3600

#: What may follow the topic in a task's subject.
LANES = ("", *(f".p{priority}" for priority in range(10)))

#: How far the numbers of a stream that is made anew are from those of the one that is gone: it may have held more
#: than was seen last, and whoever still holds a number of the old one, to settle it or to read on, must not hit
#: another message by it.
FRESH_SEQS = 1_000_000_000

#: How often a bridge looks whether its streams are still those they were, in seconds, if its connection lasts: a
#: look is a question for each.
LOOK_S = 5.0

#: JetStream error codes (nats-server `errors.json`).
CONSUMER_NOT_FOUND = 10014
#: err_code of JetStream's API when there is no leader to do what is asked ("temporarily unavailable").
NO_LEADER = 10008
NO_MESSAGE = 10037
_STREAM_NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
#: There are fewer servers than copies wanted, or there is no cluster at all.
_TOO_FEW_SERVERS = frozenset((10005, 10074))

#: Messages of one mailbox that may be leased at once, over all replicas; slots are the real limit.
MAX_ACK_PENDING = 100_000
#: Pull requests that may wait at one consumer: one or two for each replica.
MAX_WAITING = 10_000


def _configs(names: StreamNames, copies: int, apart: bool, batched: bool) -> list[dict[str, Any]]:
    root = f"agents.{names.environment}"
    common = {"storage": "file", "max_consumers": MAX_CONSUMERS, "num_replicas": copies}
    tasks = {
        "name": names.tasks,
        # Each lane by its name: on a lane that does not exist a message would wait for ever.
        "subjects": [
            *(f"{root}.{kind}.*.*{lane}" for kind in ("task", "query") for lane in LANES),
            # Where principals are apart, in a stream of each ordered agent.
            *(() if apart else (f"{root}.ordered.*.*.*.*", f"{root}.ticket.*.*.*")),
        ],
        # A query is a task by another name: it is stored, and so served, under the task's subject.
        "subject_transform": {"src": f"{root}.query.>", "dest": f"{root}.task.>"},
        "retention": "workqueue",
        # To look at a queue without taking anything from it.
        "allow_direct": True,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
    }
    keyed = {"retention": "limits", "allow_direct": True, "allow_msg_ttl": True}
    registry = {
        "name": names.registry,
        "subjects": [f"{root}.registry.>"],
        "max_msgs_per_subject": 1,
        # Who keeps a copy hears of an entry once it is stored, with its sequence: by it the newest one counts.
        "republish": {"src": f"{root}.registry.>", "dest": f"{root}.told.>"},
    }
    dead = {
        "name": names.dead,
        "subjects": [f"{root}.dead.>"],
        "max_age": DEAD_MAX_AGE_S * NANOSECONDS,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
    }
    events = {
        "name": names.events,
        "subjects": [f"{root}.durable.*.*"],
        "retention": "limits",
        "max_age": EVENTS_MAX_AGE_S * NANOSECONDS,
        "allow_direct": True,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
        # Who listens for plain events hears durable ones, too.
        "republish": {"src": f"{root}.durable.>", "dest": f"{root}.event.>"},
    }
    journals = (_lite(names, root, batched), registry, dead, _runs(names, root))
    return [common | tasks, common | events] + [
        common | keyed | stream for stream in (*journals, _bucket(names, apart))
    ]


def _lite(names: StreamNames, root: str, batched: bool) -> dict[str, Any]:
    """Lite topics, with the orders to end them."""
    return {
        "name": names.lite,
        "subjects": [f"{root}.lite.*.*", f"{root}.life.*.*"],
        # A topic that was not used for its time is ended by the server itself: see ADR 0013.
        "allow_msg_schedules": True,
        "allow_rollup_hdrs": True,
        # Chunks of a stream come many at once, and older servers know no such field.
        **({"allow_batched": True} if batched else {}),
        # Who follows hears of an entry once it is stored, with its sequence and that of the one before it.
        "republish": {
            "src": f"{root}.lite.*.*",
            "dest": f"{root}.live.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
        },
        "max_age": LITE_MAX_AGE_S * NANOSECONDS,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
    }


def _runs(names: StreamNames, root: str) -> dict[str, Any]:
    """The logs of runs. Nobody is told of them: a run has one writer, and who looks at it reads."""
    return {
        "name": names.runs,
        "subjects": [f"{root}.run.*"],
        "max_age": RUNS_MAX_AGE_S * NANOSECONDS,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
    }


def _bucket(names: StreamNames, apart: bool) -> dict[str, Any]:
    """The object store of large payloads. Made with the others: who sends one needs no right to make streams."""
    return {
        "name": f"OBJ_{names.bucket}",
        "subjects": [f"$O.{names.bucket}.C.>", f"$O.{names.bucket}.M.>"],
        "discard": "new",
        # Any client's object store replaces its entries by them. Where principals are apart one header must not
        # empty what belongs to others.
        "allow_rollup_hdrs": not apart,
        # Each object has a time of its own; a payload never outlives the dead letter it may belong to.
        "max_age": DEAD_MAX_AGE_S * NANOSECONDS,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
    }


def _takes_batches(connection: Connection) -> bool:
    """Whether the server knows fast batches (`FastBatches`)."""
    return tuple(map(int, re.findall(r"\d+", connection.version)[:2])) >= (2, 14)


async def ensure_streams(
    connection: Connection, names: StreamNames, copies: int = 1, *, apart: bool = False
) -> None:
    """Make the seven streams that every environment has, each on so many servers, as `ensure_stream` does.

    Args:
        apart: its principals have credentials, and are kept from each other.
    """
    for config in _configs(names, copies, apart, _takes_batches(connection)):
        await ensure_stream(connection, config)


async def ensure_stream(connection: Connection, config: dict[str, Any]) -> None:
    """Make the stream if it is missing, else bring it to the present configuration.

    One that is there may get more copies by it, never fewer: not everybody who starts knows how many.

    Raises:
        BusUnavailableError: the server has no JetStream, or refuses; the message carries its reason.
    """
    name = config["name"]
    answer = await connection.api(f"STREAM.CREATE.{name}", config)
    if answer.get("error", {}).get("err_code") == _STREAM_NAME_IN_USE:
        present = await ask_for(connection, f"STREAM.INFO.{name}")
        # Placement, limits and where its numbers began are as they are, once the stream is there.
        ours = {key: value for key, value in config.items() if key != "first_seq"}
        ours["num_replicas"] = max(present["config"]["num_replicas"], config["num_replicas"])
        answer = await connection.api(f"STREAM.UPDATE.{name}", present["config"] | ours)
    if error := answer.get("error"):
        hint = "Squadron needs nats-server 2.12 or newer with JetStream enabled"
        if error.get("err_code") in _TOO_FEW_SERVERS:
            hint = f"{config['num_replicas']} copies of each stream take as many servers: SQUADRON_STREAM_REPLICAS"
        raise BusUnavailableError(f"NATS refused the stream {name}: {error.get('description')}", hint=hint)


async def find(
    connection: Connection, call: str, payload: dict[str, Any] | None = None, *, missing: int
) -> dict[str, Any] | None:
    """What an API call answers, or None if its error code is `missing`: there is no such thing.

    Raises:
        BusUnavailableError: anything else went wrong; nothing is known then.
    """
    answer = await connection.api(call, payload or {})
    error = answer.get("error")
    if error is None:
        return answer
    if error.get("err_code") == missing:
        return None
    raise BusUnavailableError(f"JetStream refused {call}: {error.get('description')}")


async def ask_for(connection: Connection, call: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an API call answers.

    Raises:
        BusUnavailableError: it answers with an error, whichever.
    """
    answer = await find(connection, call, payload, missing=-1)
    assert answer is not None
    return answer


async def streams_exist(connection: Connection, names: StreamNames) -> bool:
    """Whether the environment was ever brought up on this server.

    Raises:
        BusUnavailableError: nobody knows, because JetStream does not answer as it should.
    """
    return await find(connection, f"STREAM.INFO.{names.registry}", missing=STREAM_NOT_FOUND) is not None


class Streams:
    """The streams of an environment, watched: a server may come back without what it had stored."""

    def __init__(
        self, connection: Connection, names: StreamNames, copies: int = 1, *, apart: bool = False
    ) -> None:
        self._connection, self._names, self._copies, self._apart = connection, names, copies, apart
        #: When each was made, by the server's clock, and the last number seen in it.
        self._seen: dict[str, tuple[str, int]] = {}
        #: Of the last look: over which connection, by when that was made, and when, by the loop's clock.
        self._kept_over, self._kept_at = 0.0, 0.0

    async def watch(self) -> list[str]:
        """`keep`, but not more often than each `LOOK_S` over one connection: who loses a store was down.

        Raises:
            BusUnavailableError: as `keep`; the next look then comes at once.
        """
        over, now = self._connection.connected_at, asyncio.get_running_loop().time()
        if over == self._kept_over and now < self._kept_at + LOOK_S:
            return []
        lost = await self.keep()
        self._kept_over, self._kept_at = over, now
        return lost

    async def keep(self) -> list[str]:
        """Make what is missing; returns the streams that are not those of the last look: what they held is lost.

        Raises:
            BusUnavailableError: JetStream does not answer as it should; the next look finds what was lost.
        """
        now: dict[str, tuple[str, int]] = {}
        batched = _takes_batches(self._connection)
        for config in _configs(self._names, self._copies, self._apart, batched):
            name = config["name"]
            info = await find(self._connection, f"STREAM.INFO.{name}", missing=STREAM_NOT_FOUND)
            if info is None:
                fresh = {"first_seq": self._seen[name][1] + FRESH_SEQS} if name in self._seen else {}
                await ensure_stream(self._connection, config | fresh)
                info = await ask_for(self._connection, f"STREAM.INFO.{name}")
            now[name] = (info["created"], info["state"]["last_seq"])
        lost = [name for name, (made_at, _) in now.items() if self._seen.get(name, (made_at, 0))[0] != made_at]
        self._seen = now
        return lost
