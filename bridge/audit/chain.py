"""How entries are chained: batches of lines of JSON, whose heads stand for all that came before.

A batch is a first line that says where it stands (`Link`), then one line per entry. The head after it is computed
step by step, `sha256(head + sha256(line))`: over the entries, then over the first line. What is hashed are the
bytes that are stored; there is no canonical form.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from squadron.bridge.audit.records import Record
from squadron.runtime.errors import InvalidMessageError

#: The head before the first entry.
NOTHING = "0" * 64
#: Version of the layout.
VERSION = 1
#: How much of an entry's digest stands in the first line, in bytes: to say which entry is another. That none is
#: another is what the head says.
_MARK = 8
#: No entry is of later, in seconds since the epoch: the last year that a date may have ends 253 402 300 800.
_ENDS_AT = 253e9
#: Compression: the fastest; 3 µs for an entry.
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Link:
    """Where a batch stands in the chain, and what the archivist has to know to go on after it.

    Attributes:
        first: number of its first entry, from 1.
        previous: the head before it.
        at: when it was sealed, in seconds since the epoch.
        intake: the newest number of the intake that is in it or before, and when that stream was made.
        cursors: of each stream the newest number that was taken in.
        gaps: how many gaps are recorded in it and before.
    """

    first: int = 1
    previous: str = NOTHING
    at: float = 0.0
    intake: tuple[int, str] = (0, "")
    cursors: Mapping[str, int] = field(default_factory=dict)
    gaps: int = 0


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """A stored batch: its lines as they are, and the head that is stored beside them."""

    lines: tuple[bytes, ...]
    head: str

    @property
    def records(self) -> tuple[bytes, ...]:
        return self.lines[1:]

    def link(self) -> tuple[Link, bytes]:
        """What its first line says, with the marks of its entries.

        Raises:
            InvalidMessageError: it can't be read.
        """
        try:
            said = from_json(self.lines[0])
            seq, made_at = said["intake"]
            cursors = {str(name): int(each) for name, each in said["cursors"].items()}
            marks = base64.b64decode(said["marks"])
            if said["audit"] != VERSION:
                raise ValueError(f"version {said['audit']!r}")
            first, previous, at = int(said["first"]), str(said["previous"]), float(said["at"])
            # The first version did not say how many gaps there were.
            return Link(first, previous, at, (seq, made_at), cursors, int(said.get("gaps", 0))), marks
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidMessageError(f"this is no batch of an audit trail: {error}") from None

    def entries(self) -> list[Record]:
        """Its entries, with their numbers; of one that can't be read, that it is `unreadable`, and why."""
        link, _ = self.link()
        return [{"n": n, **_entry(line, link.at)} for n, line in enumerate(self.records, link.first)]

    def packed(self) -> bytes:
        """As it is stored."""
        return zlib.compress(b"\n".join(self.lines), _LEVEL)

    @classmethod
    def unpacked(cls, data: bytes, head: str) -> SealedBatch:
        """A batch as it is stored.

        Raises:
            InvalidMessageError: it is damaged.
        """
        try:
            return cls(tuple(zlib.decompress(data).split(b"\n")), head)
        except zlib.error as error:
            raise InvalidMessageError(f"a batch of the audit trail is damaged: {error}") from None


def sealed(link: Link, records: Sequence[Record]) -> SealedBatch:
    """The batch of these records."""
    # Others read no NaN, which is no JSON.
    lines = [to_json(record, inf_nan_mode="strings") for record in records]
    said: dict[str, Any] = {
        "audit": VERSION,
        "first": link.first,
        "previous": link.previous,
        "at": link.at,
        "intake": link.intake,
        "cursors": link.cursors,
        "gaps": link.gaps,
        "marks": base64.b64encode(b"".join(map(_mark, lines))).decode(),
    }
    first = to_json(said)
    return SealedBatch((first, *lines), head_after(link.previous, (first, *lines)))


def _entry(line: bytes, sealed_at: float) -> Record:
    try:
        try:
            found = from_json(line)
        except ValueError:
            # It reads 200 levels: all of a message may have, whose entry has one more.
            found = json.loads(line)
        if 0 <= found["at"] < _ENDS_AT and isinstance(found["kind"], str):
            return dict(found)
        why = "it is no entry"
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
    return {"at": sealed_at, "kind": "unreadable", "why": why}


def head_after(previous: str, lines: Sequence[bytes]) -> str:
    """The head after a batch of these lines."""
    head = bytes.fromhex(previous)
    for line in (*lines[1:], lines[0]):
        head = hashlib.sha256(head + hashlib.sha256(line).digest()).digest()
    return head.hex()


def _mark(line: bytes) -> bytes:
    return hashlib.sha256(line).digest()[:_MARK]


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is not as it was recorded.

    Attributes:
        what: changed, missing, reordered, added, cut or rewritten.
        first, last: numbers of the entries that it is about.
        why: how it shows.
    """

    what: str
    first: int
    last: int
    why: str

    def to_dict(self) -> dict[str, Any]:
        return {"what": self.what, "first": self.first, "last": self.last, "why": self.why}


class Verifier:
    """Takes the batches of a trail as they are stored, oldest first, and says what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[Flaw] = []
        #: Heads by the number of entries up to them, for anchors; a batch without entries adds one.
        self.heads: defaultdict[int, set[str]] = defaultdict(set)
        #: Number of the first entry that is there, and of the next one; 0 before there is one.
        self.first = self.next = 0
        self.gaps = 0
        self._head = ""

    def take(self, batch: SealedBatch) -> None:
        """Look at the next batch."""
        try:
            link, marks = batch.link()
        except InvalidMessageError as error:
            return self.unreadable(error)
        self.first = self.first or link.first
        expected, last = self.next or link.first, link.first + len(marks) // _MARK - 1
        if link.first > expected:
            self._fault("missing", expected, link.first - 1, "there is no batch with them")
        elif link.first < expected:
            self._fault("reordered", link.first, last, f"they stand after entry {expected - 1}")
        elif self._head and link.previous != self._head:
            self._fault("rewritten", self.first, expected - 1, f"entry {expected} followed on another head")
        fine = self._compare(link.first, batch.records, marks)
        try:
            true = head_after(link.previous, batch.lines)
        except ValueError:
            true = ""
        if fine and true != batch.head:
            self._fault("changed", link.first, last, "the head of their batch does not follow from them")
        self.gaps += sum(b'"kind":"gap"' in line for line in batch.records)
        # What comes next is held against what was stored here: one fault is told once.
        self._head, self.next = batch.head, max(self.next, last + 1)
        self.heads[last].add(batch.head)

    def unreadable(self, error: Exception) -> None:
        """The next batch can't be read at all."""
        self._fault("changed", self.next, self.next, f"a batch that begins here can't be read: {error}")
        self._head = ""

    def _compare(self, first: int, lines: Sequence[bytes], marks: bytes) -> bool:
        """Find the entries that are not those which were sealed; says whether all are."""
        wanted = [marks[at : at + _MARK] for at in range(0, len(marks), _MARK)]
        found = [_mark(line) for line in lines]
        if found == wanted:
            return True
        lost, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
        if not lost and not extra:
            moved = [first + at for at, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]]
            self._fault("reordered", moved[0], moved[-1], "they stand in another order than they were recorded in")
            return False
        what = "changed" if len(found) == len(wanted) else "missing"
        for at, mark in enumerate(wanted):
            if lost[mark]:
                lost[mark] -= 1
                why = "it is not what was recorded" if what == "changed" else "its batch has it no more"
                self._fault(what, first + at, first + at, why)
        if len(found) > len(wanted):
            self._fault("added", first, first + len(wanted) - 1, "their batch has more than was recorded")
        return False

    def _fault(self, what: str, first: int, last: int, why: str) -> None:
        self.faults.append(Flaw(what, first, last, why))

    def hold(self, count: int, head: str, at: str) -> None:
        """Hold the trail against an anchor: after `count` entries its head was `head`. After the last batch."""
        if count >= self.next and count:
            self._fault("cut", max(self.next, 1), count, f"an anchor of {at} knows of them")
        elif count in self.heads and head not in self.heads[count]:
            self._fault("rewritten", self.first, count, f"an anchor of {at} has another head")
        elif count not in self.heads and count >= self.first:
            self._fault("rewritten", self.first, count, f"an anchor of {at} has a batch end at entry {count}")
