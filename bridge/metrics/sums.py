"""The sums over the replicas of one agent, those that are gone included."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from squadron.bridge.metrics.counting import widths
from squadron.bridge.metrics.families import LONGEST_LABEL, OTHER, VERSION, Cell, Cells, Numbers
from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.wire.amounts import MOST_EXACT, is_amount

#: How long the figures of a silent replica are kept apart, in seconds: a heartbeat of one that was cut off must
#: not count again. Serve replaces a replica that was deaf for `deaf_after_s`.
KEPT_S = 600.0
#: With more replicas than this kept apart, of one agent, those are not that are silent for so many seconds.
MANY_KEPT, MANY_KEPT_S = 500, 60.0
#: Cells of one agent, over all versions of its code: a replica has no more than some 400.
MOST_CELLS = 2_000

#: What a sum over many replicas may come to.
_MOST_SUM = 1e300

_WIDTHS = widths()


@dataclass(frozen=True, slots=True)
class _Last:
    """What one replica has counted, as far as was heard, and when that was, in seconds of the loop's clock."""

    cells: Cells
    heard_at: float


class Sums:
    """What all replicas of one agent have counted since the environment began.

    Each tells what it has counted since its start. Of what was heard of one the largest counts, number by number,
    so that heartbeats that are late, doubled or lost change nothing; the sum over all of them never falls.
    """

    def __init__(self) -> None:
        #: Of replicas that are not heard of any more.
        self._gone: Cells = {}
        self._last: dict[str, _Last] = {}
        self._known: set[Cell] = set()

    def take(self, replica: str, cells: Cells, now: float) -> bool:
        """Take in what a replica told; whether the sum is another one now."""
        had: Cells = self._last[replica].cells if replica in self._last else {}
        has = _merged(max, (had, self._bounded(cells)))
        if has:
            # One that has counted nothing, because it crashes at its start, say, leaves nothing behind.
            self._last[replica] = _Last(has, now)
        self._fold(now)
        return has != had

    def _bounded(self, cells: Cells) -> Cells:
        """The same under no more than `MOST_CELLS` names; which those are never changes again."""
        bounded: dict[Cell, Numbers] = {}
        for cell, numbers in cells.items():
            if cell not in self._known:
                if len(self._known) < MOST_CELLS:
                    self._known.add(cell)
                else:
                    cell = (cell[0], *[OTHER] * (len(cell) - 1))
            bounded[cell] = _summed(bounded.get(cell, ()), numbers)
        return bounded

    def _fold(self, now: float) -> None:
        """Add up those that are silent for long."""
        kept_s = KEPT_S if len(self._last) <= MANY_KEPT else MANY_KEPT_S
        for replica in [name for name, each in self._last.items() if each.heard_at + kept_s < now]:
            self._gone = _merged(sum, (self._gone, self._last.pop(replica).cells))

    def wait_on(self, now: float) -> None:
        """Nobody could be heard until now: whoever was silent may be there all the same."""
        self._last = {name: _Last(each.cells, now) for name, each in self._last.items()}

    def total(self) -> Cells:
        """The sum over all replicas that ever were."""
        return _merged(sum, (self._gone, *(each.cells for each in self._last.values())))

    # --- as it is stored ---------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """All of it; small, since it is stored again at each heartbeat that brings something new."""
        last = {name: _listed(each.cells) for name, each in self._last.items()}
        return zlib.compress(json.dumps({"v": VERSION, "gone": _listed(self._gone), "last": last}).encode(), 1)

    @classmethod
    def decode(cls, data: bytes, now: float) -> Sums:
        """Take up what is stored; who stands in it may be there still.

        Raises:
            InvalidMessageError: it is something else.
        """
        sums = cls()
        try:
            raw = json.loads(zlib.decompress(data))
            sums._gone = read_cells(raw["gone"], most=_MOST_SUM)
            for name, cells in raw["last"].items():
                sums._last[name] = _Last(read_cells(cells, most=_MOST_SUM), now)
        except (zlib.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise InvalidMessageError(f"no sums of metrics: {error}") from None
        for cells in (sums._gone, *(each.cells for each in sums._last.values())):
            sums._known.update(cells)
        return sums


def read_cells(raw: Any, most: float = MOST_EXACT) -> Cells:
    """The cells that a heartbeat carries. Of a kind that we don't know a newer replica told: it is left out.

    So is one with a number that is none, or above `most`, and the others count.

    Raises:
        InvalidMessageError: it is something else.
    """
    if not isinstance(raw, list) or len(raw) > MOST_CELLS:
        raise InvalidMessageError(f"`cells` is not a list of at most {MOST_CELLS}")
    cells: dict[Cell, Numbers] = {}
    for each in raw:
        if not (isinstance(each, list) and len(each) >= 2 and isinstance(each[0], str)):
            raise InvalidMessageError("a cell is not a kind, its labels, and its numbers")
        kind, *labels, numbers = each
        if kind not in _WIDTHS:
            continue
        width, longest = _WIDTHS[kind]
        if len(labels) != width or not all(isinstance(it, str) and len(it) <= LONGEST_LABEL for it in labels):
            raise InvalidMessageError(f"a cell of {kind!r} has not {width} labels")
        if not (isinstance(numbers, list) and 0 < len(numbers) <= longest):
            raise InvalidMessageError(f"a cell of {kind!r} has not up to {longest} numbers")
        if all(is_amount(number, most) for number in numbers):
            cells[kind, *labels] = tuple(numbers)
    return cells


def _listed(cells: Cells) -> list[Any]:
    return [[*cell, list(numbers)] for cell, numbers in cells.items()]


def _summed(*all: Numbers) -> Numbers:
    return tuple(map(sum, zip_longest(*all, fillvalue=0)))


def _merged(join: Callable[[Iterable[float]], float], all: Iterable[Mapping[Cell, Numbers]]) -> Cells:
    """One number for each place of each cell, of all those that stand there."""
    gathered: dict[Cell, list[Numbers]] = {}
    for cells in all:
        for cell, numbers in cells.items():
            gathered.setdefault(cell, []).append(numbers)
    return {
        cell: tuple(map(join, zip_longest(*found, fillvalue=0))) if len(found) > 1 else found[0]
        for cell, found in gathered.items()
    }
