"""The streams of the audit trail, and how an environment's audit is switched on and off while it runs.

The work queue is never sourced or mirrored: that would take tasks out of it. It republishes what it stores, and
the intake captures that; all other streams keep what they have, so the intake sources them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from squadron.bridge.jetstream.link.connect import NANOSECONDS, Connection
from squadron.bridge.jetstream.stream_configs import (
    DUPLICATE_WINDOW_S,
    STREAM_NOT_FOUND,
    StreamNames,
    ask_for,
    ensure_stream,
    find,
)
from squadron.runtime.errors import BusUnavailableError

AuditMode = Literal["off", "trail", "full"]
MODES: tuple[AuditMode, ...] = get_args(AuditMode)

#: How long the raw intake waits for an archivist that is away, in seconds: a week.
INTAKE_MAX_AGE_S = 7 * 24 * 3600
DAY_S = 24 * 3600

#: Where the policy stands: in the metadata of the audit stream, so that all processes know the same one.
_MODE, _CHUNKS = "squadron-audit", "squadron-audit-chunks"
#: The last number of the work queue that was not audited, in the metadata of the intake.
_FROM = "squadron-tasks-before"


@dataclass(frozen=True, slots=True)
class AuditPolicy:
    """What an environment records, and for how long.

    Attributes:
        keep_days: days that entries are kept.
        max_bytes: bytes that all entries may take; the oldest go first. -1 is no limit.
        chunks: whether the chunks of streams are recorded, too.
    """

    mode: AuditMode = "off"
    keep_days: float = 90.0
    max_bytes: int = -1
    chunks: bool = False


def audit_stream(names: StreamNames) -> str:
    """The stream that holds the trail."""
    return names.audit


def intake_stream(names: StreamNames) -> str:
    """The stream that holds what the archivist has yet to record."""
    return names.intake


def audit_subject(names: StreamNames) -> str:
    """Where batches of entries are appended."""
    return f"agents.{names.environment}.audit"


def action_subject(names: StreamNames, verb: str) -> str:
    """Where operators' actions are stored, if there is an audit."""
    return f"agents.{names.environment}.filed.action.{verb}"


def sent_subject(environment: str, subject: str) -> str:
    """Where a strict sender stores what it puts on `subject`, for the trail."""
    return f"agents.{environment}.filed.sent.{subject.split('.', 3)[-1]}"


def _sourced(names: StreamNames) -> tuple[str, ...]:
    # Whole streams: each number that is missing in what comes is then one that was lost.
    return (names.lite, names.events, names.dead, names.runs)


async def read_policy(connection: Connection, names: StreamNames) -> AuditPolicy | None:
    """What the environment records now; None if it never recorded anything.

    Raises:
        BusUnavailableError: the server does not say.
    """
    info = await find(connection, f"STREAM.INFO.{audit_stream(names)}", missing=STREAM_NOT_FOUND)
    if info is None:
        return None
    config = info["config"]
    said = config.get("metadata") or {}
    mode = said.get(_MODE)
    return AuditPolicy(
        mode if mode in MODES else "off",
        config["max_age"] / NANOSECONDS / DAY_S,
        config["max_bytes"],
        said.get(_CHUNKS) == "yes",
    )


async def make_trail(connection: Connection, names: StreamNames) -> None:
    """Make the stream of a trail that is brought in from elsewhere: it grows no more, and nothing of it lapses.

    Raises:
        BusUnavailableError: the server can't be reached, or refuses.
    """
    await ensure_stream(connection, _audit_config(names, AuditPolicy(keep_days=0.0)))


async def set_policy(connection: Connection, names: StreamNames, policy: AuditPolicy) -> None:
    """Switch the audit of a running environment, in place; what is recorded stays. Safe to repeat.

    Raises:
        BusUnavailableError: the server can't be reached, or refuses.
    """
    if policy.mode == "off" and await read_policy(connection, names) is None:
        return
    # On as many servers as what is audited.
    tasks = await ask_for(connection, f"STREAM.INFO.{names.tasks}")
    copies = {"num_replicas": tasks["config"]["num_replicas"]}
    # The trail first, what fills it last: nothing is captured that nobody can record.
    await ensure_stream(connection, _audit_config(names, policy) | copies)
    on = policy.mode != "off"
    if on:
        await ensure_stream(connection, await _intake_config(connection, names) | copies)
    await _republish(connection, names, on)
    if not on:
        await _stop_intake(connection, names)


def _audit_config(names: StreamNames, policy: AuditPolicy) -> dict[str, Any]:
    max_age_s = round(policy.keep_days * DAY_S)
    return {
        "name": audit_stream(names),
        "subjects": [audit_subject(names)],
        "storage": "file",
        "num_replicas": 1,
        "retention": "limits",
        "allow_direct": True,
        # What a client may not do by mistake. No proof against whoever may administer streams: that is the chain.
        "deny_delete": True,
        "deny_purge": True,
        "max_age": max_age_s * NANOSECONDS,
        "max_bytes": policy.max_bytes,
        # The server refuses one that is longer than entries live.
        "duplicate_window": min(DUPLICATE_WINDOW_S, max_age_s or DUPLICATE_WINDOW_S) * NANOSECONDS,
        "metadata": {_MODE: policy.mode, _CHUNKS: "yes" if policy.chunks else "no"},
    }


async def _intake_config(connection: Connection, names: StreamNames) -> dict[str, Any]:
    root = f"agents.{names.environment}"
    present = await find(connection, f"STREAM.INFO.{intake_stream(names)}", missing=STREAM_NOT_FOUND)
    sources = {} if present is None else {each["name"]: each for each in present["config"].get("sources") or ()}
    for stream in _sourced(names):
        if stream not in sources:
            # From here on: the past was not audited.
            sources[stream] = {"name": stream, "opt_start_seq": await _last_seq(connection, stream) + 1}
    known = {} if present is None else present["config"].get("metadata") or {}
    return {
        "name": intake_stream(names),
        "metadata": {_FROM: known.get(_FROM) or str(await _last_seq(connection, names.tasks))},
        # Republished tasks, and what operators do.
        "subjects": [f"{root}.filed.>"],
        "sources": [sources[stream] for stream in _sourced(names)],
        "storage": "file",
        "num_replicas": 1,
        # No work queue: an acknowledgement for each message would be half of what it costs. What is recorded is
        # purged, many at a time.
        "retention": "limits",
        # Full or late it drops the oldest, which is then a known gap; nothing that works waits for it.
        "discard": "old",
        "max_age": INTAKE_MAX_AGE_S * NANOSECONDS,
        # The least there is: what is sourced is dropped, too, when its id is that of an entry of another stream.
        "duplicate_window": NANOSECONDS // 10,
    }


async def _last_seq(connection: Connection, stream: str) -> int:
    return int((await ask_for(connection, f"STREAM.INFO.{stream}"))["state"]["last_seq"])


def baseline(names: StreamNames, config: Mapping[str, Any]) -> dict[str, int]:
    """Of each stream the last number that came before it was audited, by the configuration of the intake."""
    before = {each["name"]: each.get("opt_start_seq", 1) - 1 for each in config.get("sources") or ()}
    tasks = (config.get("metadata") or {}).get(_FROM)
    return before | ({names.tasks: int(tasks)} if tasks else {})


async def _republish(connection: Connection, names: StreamNames, on: bool) -> None:
    """Have the work queue tell what it stores: all of it, so that each number that is missing is a gap."""
    root = f"agents.{names.environment}"
    config = (await ask_for(connection, f"STREAM.INFO.{names.tasks}"))["config"]
    present = config.pop("republish", None)
    wanted = {"src": f"{root}.>", "dest": f"{root}.filed.>"} if on else None
    if present != wanted:
        update = config | ({"republish": wanted} if wanted else {})
        answer = await connection.api(f"STREAM.UPDATE.{names.tasks}", update)
        if error := answer.get("error"):
            raise BusUnavailableError(f"NATS refused to audit {names.tasks}: {error.get('description')}")


async def _stop_intake(connection: Connection, names: StreamNames) -> None:
    """Take nothing in any more; what is in it is recorded yet."""
    call = f"STREAM.INFO.{intake_stream(names)}"
    info = await find(connection, call, missing=STREAM_NOT_FOUND)
    if info is None:
        return
    # It must have a subject, or a source: one that nobody publishes on.
    stopped = info["config"] | {"subjects": [f"agents.{names.environment}.filed.nothing"], "sources": []}
    answer = await connection.api(f"STREAM.UPDATE.{intake_stream(names)}", stopped)
    if error := answer.get("error"):
        raise BusUnavailableError(f"NATS refused to stop the intake: {error.get('description')}")
