"""Where the time of a task went that keeps no run: by its outcome, its chunks, and the notes of its attempts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from squadron.actors.runs.moments import Bar, BarKind
from squadron.actors.runs.timeline import Lane
from squadron.runtime.errors import ClaimLostError, InvalidMessageError, UnsealedError
from squadron.runtime.ports.journal import Entry
from squadron.runtime.redact import scrub
from squadron.runtime.running.earlier import AttemptNote, notes_of
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.amounts import LAST_S, is_amount
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.spent import NOTHING, Spent
from squadron.runtime.wire.subjects import token_of

#: By what is noted at the end of an attempt: its bar, what the time until the next one goes to, how its lane ends,
#: and what is said of it.
ENDS: dict[str, tuple[BarKind, BarKind, str, str]] = {
    "again": ("vain", "pause", "tried_again", ""),
    "parked": ("work", "person", "", "waits for a person"),
    "handed_back": ("vain", "wait", "handed_back", "its replica was stopped"),
}


async def lanes_of_task(ports: Ports, task: str) -> list[Lane]:
    """What is still known of a task: nothing, once its outcome has lapsed.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    # Whoever asked has a lite topic for the outcome, under a name of its own.
    pattern = ports.subjects.lite_of().removesuffix("*") + token_of(task)
    outcomes, chunks = list[_End](), list[float]()
    for last in await ports.lite.latest(pattern):
        stored = [entry async for entry in ports.lite.read(last.key)]
        await _sort(ports, task, stored, outcomes, chunks)
    asked = await ports.lite.last(ports.subjects.lite(token_of(task), "asked"))
    # If its id is the caller's own, it is noted when it was asked.
    story = _Story(task, asked.time if asked is not None else 0.0)
    told: list[AttemptNote | _End] = [*await notes_of(ports, task), *outcomes]
    for each in sorted(told, key=lambda each: (each.life, each.at)):
        story.take(each)
    story.goes_on()
    if chunks:
        emits = Bar("work", min(chunks), max(chunks))
        story.lanes.append(Lane("task", "emits", 1, (emits,), note=f"{len(chunks)} chunks", id=task))
    for letter in await ports.dead.latest(ports.subjects.dead_of().removesuffix(">") + token_of(task)):
        buried, mailbox = Bar("work", letter.time, letter.time), letter.key.split(".")[3]
        story.lanes.append(Lane("task", "buried", bars=(buried,), note=f"squadron dlq show, of {mailbox}"))
    return story.lanes


@dataclass(frozen=True, slots=True)
class _End:
    """An outcome, as it is stored."""

    at: float
    kind: str
    agent: str
    replica: str
    attempt: int
    seconds: float
    life: int
    reason: str
    spent: Spent


async def _sort(
    ports: Ports, task: str, stored: Sequence[Entry], outcomes: list[_End], chunks: list[float]
) -> None:
    for entry in stored:
        with contextlib.suppress(InvalidMessageError, ClaimLostError):
            message = AgentMessage.decode(entry.data)
            with contextlib.suppress(UnsealedError):
                # Who has no key for it sees when it was, and from whom.
                message = await ports.claims.resolve(message, entry.key)
            if message.type == "stream" and message.correlation_id == task:
                chunks.append(min(message.timestamp, entry.time))
            elif message.type == "result" and message.context.parent_message_id == task:
                outcomes.append(_end(message, entry.time))


def _end(message: AgentMessage, stored_at: float) -> _End:
    content: Mapping[str, Any] = message.payload.content if isinstance(message.payload.content, Mapping) else {}
    latency, attempt, kind = content.get("latency"), content.get("attempt"), content.get("outcome")
    error = content.get("error")
    reason = error.get("message") if isinstance(error, Mapping) else ""
    spent = Spent.of_wire(content["spent"] if "spent" in content else {"tokens": _count(content.get("tokens"))})
    return _End(
        message.timestamp if 0 < message.timestamp <= LAST_S else stored_at,
        kind if isinstance(kind, str) else "",
        message.source.type,
        message.source.id,
        max(1, _count(attempt)),
        latency / 1000 if is_amount(latency) else 0.0,
        message.redriven,
        scrub(reason) if isinstance(reason, str) else "",
        spent,
    )


class _Story:
    """Makes lanes of what is told of a task, in the order in which it happened: one for each attempt."""

    def __init__(self, task: str, asked: float) -> None:
        self._task = task
        self.lanes: list[Lane] = []
        self._restart(0, asked)

    def _restart(self, life: int, asked: float = 0.0) -> None:
        """A dead letter that was put back is another life: its attempts are counted anew."""
        self._life, self._spent = life, NOTHING
        #: What went on since when, if it is known: a wait for a replica, or a pause, or for a person.
        self._gap: tuple[BarKind, float] = "wait", asked
        #: The newest attempt that nobody told the end of, and when it began; 0 if nobody knows.
        self._open: AttemptNote | None = None
        self._seen = 0

    def take(self, it: AttemptNote | _End) -> None:
        """Take in the next note, or an outcome."""
        if it.life != self._life:
            self._restart(it.life)
        match it:
            case _End():
                self._take_end(it)
            case AttemptNote(kind="begun"):
                self._know_asked(it)
                self._lose(it.attempt, it.began)
                self._open = it
            case AttemptNote():
                self._know_asked(it)
                self._lose(it.attempt, it.began)
                bar, gap, outcome, said = ENDS.get(it.kind, ENDS["again"])
                bars = (*self._before(it.began), Bar(bar, it.began, it.at))
                why = ", ".join(part for part in (it.error, said, f"by {it.replica}") if part)
                self._add(f"attempt {it.attempt}", bars, why, outcome, self._since(it.spent))
                self._seen, self._gap, self._open = it.attempt, (gap, it.at), None

    def _know_asked(self, note: AttemptNote) -> None:
        # That a dead letter was put back is not in it.
        if note.life == 0 and self._gap == ("wait", 0.0):
            self._gap = "wait", note.asked

    def _before(self, began: float) -> tuple[Bar, ...]:
        kind, since = self._gap
        return (Bar(kind, since, began),) if 0 < since < began else ()

    def _begun(self, attempt: int) -> AttemptNote | None:
        return self._open if self._open is not None and self._open.attempt == attempt else None

    def _lose(self, attempt: int, at: float) -> None:
        """An attempt before this one of which there is no end died with its replica."""
        for number in range(self._seen + 1, attempt):
            begun = self._begun(number)
            began = begun.began if begun is not None else self._gap[1] or at
            bars = (*self._before(began), Bar("lost", began, at))
            who = f"its replica died or fell silent{f', {begun.replica}' if begun is not None else ''}"
            self._add(f"attempt {number}", bars, who, "lost")
            self._seen, self._gap, self._open = number, ("wait", at), None

    def _add(self, name: str, bars: tuple[Bar, ...], note: str, outcome: str = "", spent: Spent = NOTHING) -> None:
        lane = Lane("task", name, 0, bars, outcome, note, spent.tokens, spent.usd, self._task)
        self.lanes.append(lane)

    def _since(self, spent: Spent) -> Spent:
        """What came to it since the attempt before: each tells of all."""
        own = spent - self._spent
        self._spent = spent
        return Spent(*(max(0, coin) for coin in own.coins))

    def _take_end(self, end: _End) -> None:
        if end.kind == "dead_lettered" and not end.spent.told:
            # Its last attempt died, too, and that is how it was told.
            self._lose(end.attempt + 1, end.at)
            self.lanes[-1:] = [replace(lane, note=end.reason, outcome=end.kind) for lane in self.lanes[-1:]]
        else:
            begun = self._begun(end.attempt)
            began = begun.began if begun is not None else end.at - end.seconds
            self._lose(end.attempt, began)
            bars = (*self._before(began), Bar("work", began, end.at))
            name = f"attempt {end.attempt}" if end.attempt > 1 else end.agent
            why = ", ".join(part for part in (end.reason, f"by {end.replica}") if part)
            self._add(name, bars, why, end.kind, self._since(end.spent) if end.spent.told else NOTHING)
        self._gap, self._open = ("wait", 0.0), None

    def goes_on(self) -> None:
        """All that is known is told: if that was no end, it lasts."""
        kind, since = self._gap
        if self._open is not None:
            bars = (*self._before(self._open.began), Bar("open", self._open.began, None))
            self._add(f"attempt {self._open.attempt}", bars, f"by {self._open.replica}")
        elif since:
            # Nobody tells that a first attempt begins.
            bar = Bar("open" if kind == "wait" else kind, since, None)
            self._add("then" if self.lanes else "asked", (bar,), "")


def _count(value: Any) -> int:
    return int(value) if is_amount(value) else 0
