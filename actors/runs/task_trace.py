"""Where the time of a task went that keeps no run: by its outcome and its chunks, while they live."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from squadron.actors.runs.moments import Bar, BarKind
from squadron.actors.runs.timeline import Lane
from squadron.runtime.errors import ClaimLostError, InvalidMessageError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.redact import scrub
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.spent import Spent
from squadron.runtime.wire.subjects import token_of


async def lanes_of_task(ports: Ports, task: str) -> list[Lane]:
    """What is still known of a task: nothing, once its outcome has lapsed.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    # Whoever asked has a lite topic for the outcome, under a name of its own.
    pattern = ports.subjects.lite_of().removesuffix("*") + token_of(task)
    lanes: list[Lane] = []
    for last in await ports.lite.latest(pattern):
        stored = [entry async for entry in ports.lite.read(last.key)]
        lanes += await _lanes(ports, task, stored)
    asked = await ports.lite.last(ports.subjects.lite(token_of(task), "asked"))
    if asked is not None:
        # Its id is the caller's own; then it is noted when it was asked.
        begun = min((bar.began for lane in lanes for bar in lane.bars), default=None)
        kind: BarKind = "open" if begun is None else "wait"
        lanes.insert(0, Lane("task", "asked", bars=(Bar(kind, asked.time, begun),), id=task))
    for letter in await ports.dead.latest(ports.subjects.dead_of().removesuffix(">") + token_of(task)):
        mailbox = letter.key.split(".")[3]
        lanes.append(
            Lane(
                "task",
                "buried",
                bars=(Bar("work", letter.time, letter.time),),
                note=f"squadron dlq show, of {mailbox}",
            )
        )
    return lanes


async def _lanes(ports: Ports, task: str, stored: Sequence[Entry]) -> list[Lane]:
    chunks: list[float] = []
    lanes: list[Lane] = []
    for entry in stored:
        with contextlib.suppress(InvalidMessageError, ClaimLostError):
            message = await ports.claims.open(entry.data)
            if message.type == "stream" and message.correlation_id == task:
                chunks.append(message.timestamp)
            elif message.type == "result" and message.context.parent_message_id == task:
                lanes.append(_of_outcome(message, entry.time))
    if chunks:
        note = f"{len(chunks)} chunks"
        lanes.append(Lane("task", "emits", 1, (Bar("work", min(chunks), max(chunks)),), note=note, id=task))
    return lanes


def _of_outcome(message: AgentMessage, stored_at: float) -> Lane:
    content: Mapping[str, Any] = message.payload.content if isinstance(message.payload.content, Mapping) else {}
    ended = message.timestamp or stored_at
    latency, attempt, kind = content.get("latency"), content.get("attempt"), content.get("outcome")
    seconds = latency / 1000 if isinstance(latency, int | float) and latency > 0 else 0.0
    error = content.get("error")
    reason = error.get("message") if isinstance(error, Mapping) else ""
    notes = [f"attempt {attempt}"] if isinstance(attempt, int) and attempt > 1 else []
    notes += [f"by {message.source.id}"] + ([scrub(reason)] if isinstance(reason, str) and reason else [])
    spent = (
        Spent.of_wire(content["spent"]) if content.get("spent") else Spent(tokens=_count(content.get("tokens")))
    )
    return Lane(
        "task",
        message.source.type,
        bars=(Bar("work", ended - seconds, ended),),
        outcome=kind if isinstance(kind, str) else "",
        note=", ".join(notes),
        tokens=spent.tokens,
        usd=spent.usd,
        id=message.context.parent_message_id or "",
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
