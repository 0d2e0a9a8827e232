"""One followed lite topic: where its reader is, and what is held for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from squadron.runtime.ports.journal import Entry

#: Most entries that are held for one topic: a reader that is slower gets them from the store.
MOST_LIVE = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """What one topic has to read: the next `entries` behind the sequence `after`, up to `seq`, oldest first.

    `lapsed`: what was handed out before them is not in the store any more, so that some between may have gone
    unread: their life was over, or they were erased. There may be no entries then.
    """

    key: str
    entries: Sequence[Entry]
    seq: int
    lapsed: bool = False
    after: int = 0

    @property
    def may_have_missed(self) -> bool:
        """Whether there may have been entries before these that nobody can read any more."""
        # Right behind the one before there can't have been another.
        return self.lapsed and not (self.entries and self.entries[0].seq == self.after + 1)


@dataclass(slots=True, eq=False)
class Followed:
    """One topic that is followed, from its cursor on: everything up to there was handed out.

    Attributes:
        newest: the newest entry that was heard of; never below the cursor.
        unread: the store may hold entries after the cursor that nobody told of.
        anchored: there was an entry at the cursor, so that it can be missing.
        passing: it is here because of its owner only, to be forgotten when it is read.
        queued: it waits for its turn.
        failures: how often in a row its handler raised.
        live: the newest entries that were heard; there is none between two of them.
        before: there is none between this sequence and the first of `live`.
    """

    key: str
    cursor: int
    newest: int
    unread: bool = False
    anchored: bool = False
    passing: bool = False
    queued: bool = False
    failures: int = 0
    live: list[Entry] = field(default_factory=list)
    before: int = 0

    @property
    def has_news(self) -> bool:
        """Whether there is something to read, or may be."""
        return self.unread or self.newest > self.cursor

    @property
    def is_contiguous(self) -> bool:
        """Whether `live` goes on exactly where the cursor is, so that the store need not be asked."""
        return bool(self.live) and not self.unread and self.before <= self.cursor

    def hear(self, entry: Entry, previous: int, *, keep: bool) -> int:
        """Take in the newest entry; there is none between `previous` and it. Returns the change in bytes held."""
        self.newest = entry.seq
        change = 0
        if not keep or (self.live and previous > self.live[-1].seq):
            change -= self.drop(len(self.live))
        if keep:
            if not self.live:
                self.before = previous
            self.live.append(entry)
            change += len(entry.data)
            if len(self.live) > MOST_LIVE:
                change -= self.drop(1)
        return change

    def drop(self, count: int) -> int:
        """Let go of the oldest live entries; returns how many bytes they had."""
        if not count:
            return 0
        dropped = self.live[:count]
        del self.live[:count]
        self.before = dropped[-1].seq
        return sum(len(entry.data) for entry in dropped)

    def advance(self, seq: int) -> int:
        """Everything up to `seq` was handed out; returns how many bytes are let go of."""
        self.cursor, self.newest = seq, max(self.newest, seq)
        return self.drop(sum(entry.seq <= seq for entry in self.live))
