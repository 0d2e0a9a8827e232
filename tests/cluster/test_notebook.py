"""The notebooks, cell by cell in real kernels, all against one squad that runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from squadron import Settings, Squad

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
#: One cell, in seconds: the slowest starts three replicas on a machine that is busy.
CELL_WITHIN_S = 120


class Ran:
    """A notebook that was run: what its cells showed."""

    def __init__(self, notebook: nbformat.NotebookNode) -> None:
        self._cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    def of(self, words: str, kind: str = "text/plain") -> str:
        """What the last cell shows that is, or else has in it, these words."""
        exact = [cell for cell in self._cells if cell.source == words]
        cell = (exact or [cell for cell in self._cells if words in cell.source])[-1]
        shown = [
            output.text if output.output_type == "stream" else output.get("data", {}).get(kind, "")
            for output in cell.outputs
        ]
        return "".join(shown)


class Kernel:
    """Runs notebooks in kernels whose home is that of the squad."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = os.environ | {"SQUADRON_HOME": str(settings.home), "PATH": path}

    @contextlib.asynccontextmanager
    async def opened(self, notebook: nbformat.NotebookNode) -> AsyncIterator[NotebookClient]:
        """A kernel for a notebook; nothing is run yet."""
        client = NotebookClient(notebook, timeout=CELL_WITHIN_S, kernel_name="python3")
        async with client.async_setup_kernel(env=self._env, cwd=str(self._folder)):
            yield client

    async def run(self, name: str, *, times: int = 1) -> Ran:
        """Run all cells, `times` times in one kernel; the last one, which says good-bye, at the end only."""
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        places = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        async with self.opened(notebook) as client:
            for place in places[:-1] * times + places[-1:]:
                await client.async_execute_cell(notebook.cells[place], place)
        return Ran(notebook)


@pytest.fixture
def kernel(settings: Settings, tmp_path: Path) -> Kernel:
    return Kernel(settings, tmp_path)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.timeout(300)
async def test_first_agents_shows_what_its_text_says(kernel: Kernel, squad: Squad, settings: Settings) -> None:
    ran = await kernel.run("01_first_agents")

    assert float(ran.of("outcome.unwrap()")) == pytest.approx(1 / 3)
    assert "topic='analysis.sentiment'" in ran.of("outcome")
    refused = ran.of('"text": 42')
    assert "field 'text'" in refused
    assert "did you mean analysis.sentiment" in refused
    assert ran.of("stream.outcome").split() == ["rays", "fly", "under", "water", "'result'"]
    assert float(ran.of("the old code answered")) == -1
    assert ran.of("squad.discover").startswith("analysis.sentiment ")
    assert "'agent_online'" in ran.of("squad.scale")
    assert "['result']" in ran.of("range(100)")
    agent, status, *rest = ran.of("STATUS").splitlines()[1].split()
    assert (agent, rest) == ("analyst", ["2", "2", "0", "analysis.sentiment"])
    # A moment after the second replica is there Serve may still call it deploying.
    assert status in ("RUNNING", "DEPLOYING")
    assert ran.of("dashboard").startswith("http://127.0.0.1:")
    assert str(settings.home / "ray" / "token") in ran.of("dashboard']}/#/serve")


@pytest.mark.timeout(300)
async def test_a_supervised_run_is_seen_as_it_grows_and_can_be_run_again(kernel: Kernel, squad: Squad) -> None:
    ran = await kernel.run("02_a_supervised_run", times=2)

    tree = ran.of("LiveRun() as live", "text/html")
    assert "8 tasks" in tree
    assert tree.count("<pre") == 1, "one picture, however often it was drawn"
    assert "rays, volume" in ran.of("LiveRun() as live")
    assert "<svg" in ran.of("squad.runs.show", "text/html")
    count, work, run = re.findall(r"[0-9.]+", ran.of("together"))
    assert (count, float(work) > float(run)) == ("8", True)
    assert ran.of("plt.show", "image/png")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_scaling_is_drawn_while_it_happens(kernel: Kernel, squad: Squad) -> None:
    ran = await kernel.run("03_scaling")

    assert "40 of 40 done by" in ran.of("forty tasks")
    assert "miner runs at 2" in ran.of("squadron status")
    for cell in ("forty tasks", "by_hand"):
        assert ran.of(cell, "image/png")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_killed_replica_loses_nothing_before_the_readers_eyes(kernel: Kernel, squad: Squad) -> None:
    ran = await kernel.run("04_failure")

    assert "'attempt 2'" in ran.of("Counter(")
    assert "dropped the vase" in ran.of("broken.kind")
    assert ran.of("history.mark", "image/png")
    assert ran.of("plt.show", "image/png")


@pytest.mark.timeout(300)
async def test_a_model_and_tools_of_ones_own_and_a_person(kernel: Kernel, squad: Squad) -> None:
    ran = await kernel.run("05_your_own_model", times=2)

    assert ran.of("flush=True").startswith("Well, it is a ray with wings")
    assert "Tea or coffee?" in ran.of("question.question.message")
    assert "you gets tea" in ran.of('by="you"')
    assert "a ray that lays eggs" in ran.of("blocking()")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_notebook_becomes_files_and_a_job(kernel: Kernel, squad: Squad) -> None:
    ran = await kernel.run("06_to_a_cluster")

    assert "nothing to do" in ran.of("--diff && echo")
    assert "Argo is in" in ran.of('"Argo"')
    assert "ship 19 is in" in ran.of("ray job submit")


#: What opens a squad both ways, a cell that awaits, one that blocks, and what comes after.
OPENING = """
from squadron import Agent, Squad, topic

squad, plain = await Squad.up(), Squad.up().blocking()

class Sleeper(Agent):
    grace_s = 0.1

    @topic("sleep.long")
    async def sleep(self, seconds: float) -> str:
        import asyncio
        await asyncio.sleep(seconds)
        return "awake"

await squad.deploy(Sleeper)
"""
WAITING = (
    'await squad.ask("sleep.long", {"seconds": 600}, within_s=600)',
    'plain.ask("sleep.long", {"seconds": 600}, within_s=600)',
)
AFTER = (
    '(await squad.ask("sleep.long", {"seconds": 0})).unwrap()',
    '%autoawait off\nplain.ask("sleep.long", {"seconds": 0}).unwrap()',
)


@pytest.mark.timeout(300)
async def test_an_interrupt_ends_the_cell_and_nothing_else(kernel: Kernel, squad: Squad) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in (OPENING, *WAITING, *AFTER)]
    notebook = nbformat.v4.new_notebook(cells=cells)

    async def running() -> int:
        return sum(each["taken"] for each in (await squad.status())["agents"] if each["agent"] == "sleeper")

    async with kernel.opened(notebook) as client:
        await client.async_execute_cell(cells[0], 0)
        for place in range(1, 3):
            cell = asyncio.create_task(client.async_execute_cell(cells[place], place))
            while await running() < place:
                await asyncio.sleep(0.1)
            assert client.km is not None
            await client.km.interrupt_kernel()
            with pytest.raises(CellExecutionError, match=r"KeyboardInterrupt|CancelledError"):
                await cell
        for place in range(3, 5):
            await client.async_execute_cell(cells[place], place)

    assert [Ran(notebook).of(source) for source in AFTER] == ["'awake'", "'awake'"]
