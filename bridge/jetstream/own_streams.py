"""Streams of what agents keep for themselves, one for each, where agents are cut from each other.

A right to read is one to a whole stream, as a batch of direct gets names its subject in its body. So what no other
agent is to read can't be in the stream that all of them read.
"""

from __future__ import annotations

import time
from typing import Any

from squadron.bridge.jetstream.former_streams import copy_to_the_end, give_up, remove, source_from, until_asked
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.stream_configs import (
    DUPLICATE_WINDOW_S,
    MAX_CONSUMERS,
    NO_MESSAGE,
    RUNS_MAX_AGE_S,
    STREAM_NOT_FOUND,
    StreamNames,
    ask_for,
    ensure_stream,
    find,
)
from squadron.runtime.errors import BusUnavailableError, InvalidMessageError, UntrustedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.store.own_journal import Taken, is_by, owners_of
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.may_say import is_agent
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import ROOT, Subjects

#: Header by which the server says from which stream it has an entry.
_TOLD_ON = "Nats-Stream-Source"


class OwnStream(JetStreamJournal):
    """What one agent keeps for itself, under the keys that it has in the streams of all: what is sealed for a key
    opens wherever it is stored. Nobody is told of its entries.
    """

    def __init__(self, connection: Connection, names: StreamNames, agent: str) -> None:
        super().__init__(connection, names.own(agent))
        root = f"{ROOT}.{names.environment}."
        self._here, self._there = root, f"{root}own.{agent}."

    def _subject(self, key: str) -> str:
        return self._there + key.removeprefix(self._here)

    def _key(self, subject: str) -> str:
        return self._here + subject.removeprefix(self._there)


async def make_own(connection: Connection, names: StreamNames, guard: Guard | None, agent: str) -> None:
    """Make the stream of an agent if there is none, and bring there what it has kept in those of all.

    The logs of its runs are told on in the stream of all logs, which those read who may look at runs.

    Args:
        guard: says what the agent wrote itself, as nobody looks any more where it is brought; None brings all.

    Raises:
        BusUnavailableError: the server can't be reached, or refuses.
    """
    await _take_over_former(connection, names, agent)
    runs = (await ask_for(connection, f"STREAM.INFO.{names.runs}"))["config"]
    if await find(connection, f"STREAM.INFO.{names.own(agent)}", missing=STREAM_NOT_FOUND) is None:
        # Beyond all numbers of one that was lost: whoever still holds one of those must not hit an entry by it.
        fresh = {"first_seq": round(time.time() * 1000)}
        await ensure_stream(connection, _config(names, agent, runs["num_replicas"]) | fresh)
    sources = runs.get("sources") or []
    if any(each["name"] == names.own(agent) for each in sources):
        return
    await _bring(connection, names, guard, agent)
    subjects = Subjects(names.environment)
    logs = OwnStream(connection, names, agent)._subject(subjects.run())
    transform = {"src": logs, "dest": subjects.run().replace("*", "{{wildcard(1)}}")}
    source = {"name": names.own(agent), "subject_transforms": [transform]}
    # Last: until it is there, whoever is called again begins anew.
    await ensure_stream(connection, runs | {"sources": [*sources, source]})
    # Where the first of all logs are gone, the server (2.15) tells nothing of one of two agents, for good, if the
    # second is added before it has asked for what the first has.
    await until_asked(connection, names.runs, names.own(agent))


async def _take_over_former(connection: Connection, names: StreamNames, agent: str) -> None:
    """Bring along what was kept under the name that such streams had before."""
    own = names.own(agent)
    former = names.former(own)
    config = _config(names, agent, 1)
    if not await give_up(connection, names, own, config["subjects"]):
        return
    copies = (await ask_for(connection, f"STREAM.INFO.{former}"))["config"]["num_replicas"]
    await copy_to_the_end(connection, former, config | {"num_replicas": copies})
    await source_from(connection, names.runs, former, own)
    await remove(connection, former)


async def own_names(connection: Connection, names: StreamNames, kind: str = "own") -> list[str]:
    """Names of the streams that agents have of their own, or of all that hold subjects of another kind.

    Raises:
        BusUnavailableError: the server does not say.
    """
    found, total = list[str](), 1
    while len(found) < total:
        query = {"subject": f"{ROOT}.{names.environment}.{kind}.>", "offset": len(found)}
        answer = await ask_for(connection, "STREAM.NAMES", query)
        page = answer.get("streams") or []
        found += page
        # One that went meanwhile is told no more: an empty page is the last.
        total = answer["total"] if page else 0
    return found


def _config(names: StreamNames, agent: str, copies: int) -> dict[str, Any]:
    return {
        "name": names.own(agent),
        "subjects": [f"{ROOT}.{names.environment}.own.{agent}.>"],
        "storage": "file",
        "max_consumers": MAX_CONSUMERS,
        "num_replicas": copies,
        "retention": "limits",
        "allow_direct": True,
        "allow_msg_ttl": True,
        # The longest that any of it is kept.
        "max_age": RUNS_MAX_AGE_S * NANOSECONDS,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
    }


async def _bring(connection: Connection, names: StreamNames, guard: Guard | None, agent: str) -> None:
    """Take over what the agent has kept where it was not cut off from others; what others wrote there stays."""
    subjects, own = Subjects(names.environment), OwnStream(connection, names, agent)
    lite, runs = JetStreamJournal(connection, names.lite), JetStreamJournal(connection, names.runs)
    logs = await _logs_of(runs, subjects.run(), guard, agent)
    for journal, stream, patterns in (
        (lite, names.lite, [subjects.lite_of(owner) for owner in owners_of(agent)]),
        (runs, names.runs, logs),
    ):
        for pattern in patterns:
            kept, others, taken = list[Entry](), set[str](), Taken()
            async for entry in journal.read(pattern):
                if await _is_its(guard, entry, agent, taken):
                    kept.append(entry)
                else:
                    others.add(entry.key)
            for entry in kept:
                ended = {name: value for name, value in entry.headers.items() if name == END_HEADER}
                # With an id: whoever begins anew after it was cut off doubles nothing.
                id = f"{journal is runs} {entry.seq}"
                await own.append(entry.key, entry.data, ttl_s=_left_s(entry), msg_id=id, headers=ended)
            for key in {entry.key for entry in kept} - others:
                await journal.erase(key)
            for entry in kept:
                if entry.key in others:
                    await _discard(connection, stream, entry.seq)


async def _logs_of(runs: JetStreamJournal, pattern: str, guard: Guard | None, agent: str) -> list[str]:
    """Logs that are to be looked through for what an agent wrote.

    Where it shows who wrote what, those with any entry that says so. Else by the first: nobody takes a log over by
    writing into it.
    """
    shows, begun, logs = guard is not None and guard.requires, set[str](), dict[str, None]()
    async for entry in runs.read(pattern):
        if agent.encode() in entry.data and (shows or entry.key not in begun) and _agent_of(entry) == agent:
            logs[entry.key] = None
        begun.add(entry.key)
    return list(logs)


async def _is_its(guard: Guard | None, entry: Entry, agent: str, taken: Taken) -> bool:
    """Whether an agent wrote this, as far as it is looked; where it is only told of, nobody else signed it."""
    # What is told on is in another agent's own stream, and the bridge may have signed it, that brought it there.
    if _TOLD_ON in entry.headers or not await is_by(guard, entry, agent, taken):
        return False
    if guard is None:
        return True
    if guard.requires:
        # Nor what says that it is another's: the bridge signs what it brings, and what it signs may be anybody's.
        return _agent_of(entry) in ("", agent)
    try:
        signed = await guard.verifier.verify(entry.key, entry.data, entry.headers, at=entry.time)
    except UntrustedError:
        return True
    return is_agent(signed.by, agent)


async def _discard(connection: Connection, stream: str, seq: int) -> None:
    answer = await connection.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
    # The server has one code for whatever went wrong. Its time may have ended meanwhile: then it is gone as well.
    if "error" in answer and await find(connection, f"STREAM.MSG.GET.{stream}", {"seq": seq}, missing=NO_MESSAGE):
        raise BusUnavailableError(f"{stream}: {seq} can't be deleted: {answer['error'].get('description')}")


def _left_s(entry: Entry) -> float | None:
    """How much of its life an entry has left, in seconds; None if it has no end of its own."""
    life = entry.headers.get("Nats-TTL", "")
    return int(life.removesuffix("s")) - (time.time() - entry.time) if life else None


def _agent_of(entry: Entry) -> str:
    """The agent whose run an entry says that it is of; empty if it does not say."""
    try:
        about = (AgentMessage.decode(entry.data).metadata or {}).get("about")
    except InvalidMessageError:
        return ""
    return str(about.get("agent") or "") if isinstance(about, dict) else ""
