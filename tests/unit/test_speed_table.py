"""The table of speed in the documentation is what `make bench` printed."""

from __future__ import annotations

import json

from benchmarks import speed_table


def test_the_page_has_the_table_of_the_figures_that_are_kept() -> None:
    kept = json.loads(speed_table.FIGURES.read_text())
    page = speed_table.PAGE.read_text()
    assert speed_table.put_into(page, speed_table.table(kept)) == page
