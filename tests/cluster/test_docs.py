"""The programs of README and docs, run as they stand, each in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from squadron import Agent, Settings, Squad, topic
from tests.cluster.conftest import until
from tests.docs import Block, blocks

#: One program, in seconds: it joins a running cluster and deploys an agent or two.
WITHIN_S = 90


async def _run(block: Block, folder: Path, settings: Settings) -> str:
    script = folder / "program.py"
    script.write_text(block.text)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        cwd=folder,
        env=os.environ | settings.environ(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, f"{block}\n{err.decode()}"
    return out.decode()


@pytest.mark.parametrize("block", blocks("python", "cluster"), ids=str)
async def test_a_program_of_the_docs_runs(block: Block, squad: Squad, settings: Settings, tmp_path: Path) -> None:
    out = await _run(block, tmp_path, settings)
    if block.page.name == "README.md":
        score, by, source = out.split()
        assert float(score) == pytest.approx(1 / 3)
        assert (by, source.partition("-")[0]) == ("by", "analyst")


class Echo(Agent):
    """Says it again."""

    @topic("echo.say")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


async def test_the_bare_client_of_the_protocol_page_asks(squad: Squad, settings: Settings, tmp_path: Path) -> None:
    await squad.deploy(Echo)
    [block] = blocks("python", "ask")
    assert await _run(block, tmp_path, settings) == "by hand\n"


async def test_the_bare_agent_of_the_protocol_page_is_found_and_asked(
    squad: Squad, settings: Settings, tmp_path: Path
) -> None:
    [block] = blocks("python", "serve")
    serving = asyncio.create_task(_run(block, tmp_path, settings))

    async def found() -> bool:
        return any(hit.agent == "bare-doubler" for hit in squad.discover("double a number"))

    try:
        await until(found)
        assert (await squad.ask("bare.double", {"x": "no"})).kind == "rejected"
        outcome = await squad.ask("bare.double", {"x": 21}, within_s=20)
        assert (outcome.unwrap(), outcome.source) == (42, "bare-doubler")
    finally:
        await serving
    assert squad.discover("double a number") == []
