"""Notes of a task's earlier attempts, where the next one finds what they spent, and who looks what they came to.

A task whose first attempt ends it has none: what nobody reads is not written. So of a first attempt that died with
its replica there is no note; that of the second one tells of it.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from squadron.runtime.errors import BusUnavailableError, MessageTooLargeError
from squadron.runtime.redact import scrub
from squadron.runtime.running.ledger import Ledger
from squadron.runtime.store.port_set import Ports
from squadron.runtime.store.sealed import is_sealed
from squadron.runtime.wire.amounts import LAST_S, is_amount
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import UNLIMITED, Deadline
from squadron.runtime.wire.outcome import LITE_TTL_S
from squadron.runtime.wire.spent import NOTHING, Spent
from squadron.runtime.wire.subjects import token_of

#: How long they are kept beyond the caller's deadline: as long as the outcome is. And at most, in seconds: a task
#: without a deadline is tried again within a week or never.
KEPT_BEYOND_S, LONGEST_KEPT_S = LITE_TTL_S, 7 * 24 * 3600.0
#: Characters of what went wrong.
ERROR_CHARS = 500
#: Last part of the lite topic of the notes; of a dead letter that was put back with the number of its life.
NOTES = "attempts"

#: What a note tells of its attempt: it begins; or it is over, and the task is tried again, waits for a person, or
#: goes back to the mailbox as its replica is drained.
NoteKind = Literal["begun", "again", "parked", "handed_back"]


@dataclass(frozen=True, slots=True)
class AttemptNote:
    """What a note of an attempt tells.

    Attributes:
        began, at: when the attempt began, and when this was told, in seconds since the epoch.
        asked: when the task was sent.
        life: how often the task had been put back from among the dead letters.
        spent: by the attempts up to here.
        error: why it failed, without secrets.
    """

    kind: str
    attempt: int
    began: float
    at: float
    asked: float
    life: int = 0
    agent: str = ""
    replica: str = ""
    topic: str = ""
    error: str = ""
    spent: Spent = NOTHING


@dataclass(slots=True)  # made for each task: frozen it takes three times as long
class NoteBook:
    """Writes the notes of one attempt; a server that is away is not waited for."""

    ports: Ports
    message: AgentMessage
    agent: str
    topic: str
    ledger: Ledger
    deadline: Deadline
    attempt: int
    began: float

    async def write(self, kind: NoteKind, error: str = "") -> None:
        """Tell what became of the attempt, and what was spent until now."""
        note = {
            "kind": kind,
            "attempt": self.attempt,
            "began": self.began,
            "asked": self.message.timestamp,
            "life": self.message.redriven,
            "agent": self.agent,
            "replica": self.ports.identity.id,
            "topic": self.topic,
            # Anybody may read it: of a sealed task only what kind of error it was.
            "error": scrub(error.partition(":")[0] if is_sealed(self.message) else error)[:ERROR_CHARS],
            "spent": self.ledger.spent.to_wire(),
            "carried": self.ledger.carried(),
        }
        ttl_s = min(self.deadline.remaining_s() + KEPT_BEYOND_S, LONGEST_KEPT_S)
        with contextlib.suppress(BusUnavailableError, MessageTooLargeError):
            await self.ports.lite.append(_key(self.ports, self.message), json.dumps(note).encode(), ttl_s=ttl_s)


async def open_ledger(ports: Ports, message: AgentMessage, *, again: bool) -> Ledger:
    """The books of a task; if it may have been begun before, with what was spent then.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    limits = message.payload.constraints
    ledger = Ledger(UNLIMITED if limits is None else limits.budget)
    entry = await ports.lite.last(_key(ports, message)) if again else None
    if entry is not None:
        ledger.take_over(_object(entry.data).get("carried"))
    return ledger


async def notes_of(ports: Ports, task: str) -> list[AttemptNote]:
    """What is noted of the attempts at a task, oldest first; nothing if its first one ended it, or all has lapsed.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    keys = [entry.key for entry in await ports.lite.latest(ports.subjects.lite_of(token_of(task)))]
    notes = [
        read_note(entry.data, entry.time)
        for key in keys
        if are_notes(key.rpartition(".")[2])
        async for entry in ports.lite.read(key)
    ]
    return sorted((note for note in notes if note.attempt > 0), key=lambda note: (note.life, note.at))


def are_notes(id: str) -> bool:
    """Whether that is the last part of a lite topic of notes."""
    return id.partition("-")[0] == NOTES


def read_note(data: bytes, at: float) -> AttemptNote:
    """A note that was stored at this time; anybody may write there, and what can't be read is of attempt 0."""
    told = _object(data)
    texts = {name: _text(told.get(name)) for name in ("kind", "agent", "replica", "topic", "error")}
    attempt, life = int(_number(told.get("attempt"))), int(_number(told.get("life")))
    began, asked = min(at, _number(told.get("began"))), min(at, _number(told.get("asked")))
    spent = Spent.of_wire(told.get("spent") or {})
    return AttemptNote(attempt=attempt, began=began, at=at, asked=asked, life=life, spent=spent, **texts)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    return value if is_amount(value, LAST_S) else 0.0


def _key(ports: Ports, message: AgentMessage) -> str:
    # A dead letter that was put back is another life, and was told of at the end of the first.
    life = f"{NOTES}-{message.redriven}" if message.redriven else NOTES
    return ports.subjects.lite(token_of(message.id), life)
