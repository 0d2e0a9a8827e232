"""The notebook, cell by cell in a real kernel, in a home of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from squadron import Settings
from squadron.servers import stop_local

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_first_agents.ipynb"
#: One cell, in seconds: the slowest starts Ray on a machine that is busy.
CELL_WITHIN_S = 120


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sq-notebook-") as folder:
        yield Path(folder)
        stop_local(Settings.load({}, home=folder))


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.timeout(300)
def test_every_cell_runs_and_shows_what_its_text_says(home: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_WITHIN_S, kernel_name="python3")

    client.execute(env=os.environ | {"SQUADRON_HOME": str(home)}, cwd=str(home))

    shown = {cell.source: _shown(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert "error" not in {output.output_type for cell in notebook.cells for output in cell.get("outputs", [])}
    assert float(_of(shown, "outcome.unwrap()")) == pytest.approx(1 / 3)
    assert "topic='analysis.sentiment'" in _of(shown, "outcome")
    refused = _of(shown, '"text": 42')
    assert "field 'text'" in refused
    assert "did you mean analysis.sentiment" in refused
    assert _of(shown, "stream.outcome").split() == ["rays", "fly", "under", "water", "'result'"]
    assert float(_of(shown, "the old code answered")) == -1
    assert _of(shown, "squad.discover").startswith("analysis.sentiment ")
    assert "'agent_online'" in _of(shown, "squad.scale")
    assert "['result']" in _of(shown, "range(100)")
    agent, status, *rest = _of(shown, "STATUS").splitlines()[1].split()
    assert (agent, rest) == ("analyst", ["2", "2", "0", "analysis.sentiment"])
    # A moment after the second replica is there Serve may still call it deploying.
    assert status in ("RUNNING", "DEPLOYING")
    assert _of(shown, "dashboard").startswith("http://127.0.0.1:")
    assert str(home / "ray" / "token") in _of(shown, "dashboard']}/#/serve")


def _shown(cell: nbformat.NotebookNode) -> str:
    texts = [
        output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    ]
    return "".join(texts)


def _of(shown: dict[str, str], words: str) -> str:
    """What the last cell shows that is, or else has in it, these words."""
    return shown.get(words) or [text for source, text in shown.items() if words in source][-1]
