"""By which number a task in line is known, wherever it stands."""

from __future__ import annotations

from squadron.runtime.ports.journal import Entry
from squadron.runtime.ports.queue import sent_with
from squadron.runtime.trust.carried import carry

#: Header of a task in line that stood elsewhere before: the number that it had there. Only who may write into the
#: line can give it one, for the intake takes no such header along.
_STOOD_AT = "Squadron-Stood-At"


def brought_along(head: Entry) -> dict[str, str]:
    """Headers with which a task that stands in line is put somewhere else: it stays the one that it was.

    What is known of it goes by its number: above all the mark that it was begun, without which it runs no more.
    """
    return (
        sent_with(head.headers) | carry(head.headers, head.key, at=head.time) | {_STOOD_AT: str(number_of(head))}
    )


def number_of(head: Entry) -> int:
    """The number by which a task in line is known: the first that it had."""
    before = head.headers.get(_STOOD_AT, "")
    # Where it stands now the numbers begin beyond all of those.
    known = before.isascii() and before.isdigit() and len(before) < 20
    return int(before) if known and 0 < int(before) < head.seq else head.seq
