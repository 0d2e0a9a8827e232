"""Tables that notebooks show; where there is no notebook, things are as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, ClassVar

#: Rows that are shown; of more it is said how many there are.
MOST_ROWS = 100
#: Longest text in a cell, in characters.
MOST_TEXT = 500


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML of a table. What is in it is shown as text, whatever it is: messages hold what anybody wrote."""
    head = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    text = str(value)
    text = text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"
    return f'<td style="text-align:left;vertical-align:top;white-space:pre-wrap">{escape(text)}</td>'


class ShownAsTable(ABC):
    """For sequences: a notebook shows a row for each."""

    HEADER: ClassVar[tuple[str, ...]] = ()
    NONE: ClassVar[str] = ""

    @staticmethod
    @abstractmethod
    def _row(each: Any, /) -> Sequence[object]:
        """The cells for one of them."""

    def _repr_html_(self) -> str:
        assert isinstance(self, Sequence)
        if not self:
            return f"<p>{escape(self.NONE)}</p>"
        more = len(self) - MOST_ROWS
        rest = f"<p>{more:,} more are not shown.</p>" if more > 0 else ""
        return table(self.HEADER, map(self._row, self[:MOST_ROWS])) + rest
